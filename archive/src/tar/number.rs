//! Numbers in tar headers and PAX records.

use crate::entry::Timestamp;

/// A number field of a header: octal digits among spaces and NULs, or base-256 when the first bit is set (GNU; two's
/// complement, big-endian). `None` where it does not parse or does not fit.
pub(super) fn numeric(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

/// Octal digits, spaces and NULs around them ignored, ending at the first NUL; nothing at all is 0.
pub(super) fn octal(field: &[u8]) -> Option<i64> {
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let Some(from) = field.iter().position(|b| !blank(b)) else { return Some(0) };
    let digits = field.get(from..)?;
    let digits = digits.split(|b| *b == 0).next()?;
    let to = digits.iter().rposition(|b| !blank(b))?.checked_add(1)?;
    let mut value: u64 = 0;
    for digit in digits.get(..to)? {
        let digit = digit.checked_sub(b'0').filter(|d| *d < 8)?;
        value = value.checked_mul(8)?.checked_add(u64::from(digit))?;
    }
    i64::try_from(value).ok()
}

fn base256(field: &[u8]) -> Option<i64> {
    // The bit below the marker is the sign. A negative number is the complement of a non-negative one.
    let negative = field.first()? & 0x40 != 0;
    let invert = if negative { 0xff } else { 0 };
    let mut value: u64 = 0;
    for (at, byte) in field.iter().enumerate() {
        let mut byte = byte ^ invert;
        if at == 0 {
            byte &= 0x7f;
        }
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if negative { !value } else { value })
}

/// A decimal number with an optional sign, as in PAX records.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A PAX time: seconds, optionally negative, with an optional fraction of which nine digits count.
///
/// The sign holds for both parts: `-1.5` is half a second before -1 s.
pub(super) fn time(text: &[u8]) -> Option<Timestamp> {
    let mut parts = text.splitn(2, |b| *b == b'.');
    let whole = parts.next()?;
    let seconds = decimal(whole)?;
    let mut nanoseconds: u32 = 0;
    let mut unit: u32 = 100_000_000;
    for digit in parts.next().unwrap_or_default() {
        let digit = digit.checked_sub(b'0').filter(|d| *d < 10)?;
        nanoseconds = nanoseconds.checked_add(u32::from(digit).checked_mul(unit)?)?;
        unit /= 10;
    }
    if whole.first() == Some(&b'-') && nanoseconds != 0 {
        return Some(Timestamp {
            seconds: seconds.checked_sub(1)?,
            nanoseconds: 1_000_000_000_u32.checked_sub(nanoseconds)?,
        });
    }
    Some(Timestamp { seconds, nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_fields() {
        let table: &[(&[u8], Option<i64>)] = &[
            (b"", Some(0)),
            (b"\0\0\0\0", Some(0)),
            (b"    ", Some(0)),
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\x00644 \0", Some(0o644)),
            (b"0000644 ", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"0000648\0", None),
            (b"-1\0", None),
            (b"+1\0", None),
            (b"6 4\0", None),
            (b"0x1\0", None),
            (b"\x80\0\0\0\0\0\0\x07", Some(7)),
            (b"\x80\0\0\0\x01\0\0\0\0\0\0\0", Some(0x0100_0000_0000_0000)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (field, expected) in table {
            assert_eq!(numeric(field), *expected, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn pax_times() {
        let at = |seconds, nanoseconds| Some(Timestamp { seconds, nanoseconds });
        let table: &[(&str, Option<Timestamp>)] = &[
            ("0", at(0, 0)),
            ("1350244992.023960108", at(1_350_244_992, 23_960_108)),
            ("1350244992.02396010", at(1_350_244_992, 23_960_100)),
            ("1350244992.0239601089", at(1_350_244_992, 23_960_108)),
            ("1350244992.3", at(1_350_244_992, 300_000_000)),
            ("1350244992.", at(1_350_244_992, 0)),
            ("-1.000000000", at(-1, 0)),
            ("-1.000000001", at(-2, 999_999_999)),
            ("-0.5", at(-1, 500_000_000)),
            ("+1.5", at(1, 500_000_000)),
            ("-9223372036854775808.1", None),
            ("9223372036854775807.999999999", at(i64::MAX, 999_999_999)),
            ("9223372036854775808", None),
            ("", None),
            (".5", None),
            ("1.5x", None),
            ("1.-5", None),
            (" 1", None),
            ("1e3", None),
            ("nan", None),
        ];
        for (text, expected) in table {
            assert_eq!(time(text.as_bytes()), *expected, "{text}");
        }
    }
}
