//! PAX extended headers: `"%d %s=%s\n" % (length, key, value)`, one record after the other.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::number::{decimal, time};
use crate::entry::Timestamp;
use crate::error::Defect;

/// Base64 as libarchive writes it (no padding) and as others may (padding).
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

pub(super) const SCHILY_XATTR: &[u8] = b"SCHILY.xattr.";
pub(super) const LIBARCHIVE_XATTR: &[u8] = b"LIBARCHIVE.xattr.";

/// What the records of one member say. A record with an empty value says nothing, so that the header's value holds.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) user_name: Option<Vec<u8>>,
    pub(super) group_name: Option<Vec<u8>>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) size: Option<i64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) atime: Option<Timestamp>,
    /// Sorted by name, each once. An empty value is a value here: such attributes exist.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseRecords,
}

/// The `GNU.sparse.*` records, not interpreted yet: which of them mean something depends on the version.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) major: Vec<u8>,
    pub(super) minor: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) size: Vec<u8>,
    pub(super) real_size: Vec<u8>,
    pub(super) block_count: Vec<u8>,
    /// Version 0.1: numbers with commas between them.
    pub(super) map: Vec<u8>,
    /// Version 0.0: offsets and lengths in turn.
    pub(super) pairs: Vec<Vec<u8>>,
}

/// Splits the first record off: key, value, rest. `None` where it is malformed.
fn split_record(input: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = input.iter().position(|b| *b == b' ')?;
    let digits = input.get(..space)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let length = usize::try_from(decimal(digits)?).ok()?;
    if length < 5 {
        return None;
    }
    let (record, rest) = input.split_at_checked(length)?;
    let body = record.get(space.checked_add(1)?..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    let (key, value) = body.split_at_checked(equals)?;
    if key.is_empty() || key.contains(&0) {
        return None;
    }
    Some((key, value.get(1..)?, rest))
}

/// `Some` unless the value is empty.
fn stated<T>(value: &[u8], field: &'static str, parse: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>, Defect> {
    if value.is_empty() {
        return Ok(None);
    }
    parse(value).map(Some).ok_or(Defect::InvalidNumber { field })
}

fn name(value: &[u8], defect: Defect) -> Result<Option<Vec<u8>>, Defect> {
    if value.contains(&0) {
        return Err(defect);
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

impl Records {
    /// Reads the body of an extended header. Later records of the same key replace earlier ones.
    pub(super) fn parse(mut body: &[u8]) -> Result<Self, Defect> {
        let mut records = Self::default();
        let mut libarchive = Vec::new();
        while !body.is_empty() {
            let (key, value, rest) = split_record(body).ok_or(Defect::InvalidPax)?;
            body = rest;
            match key {
                b"path" => records.path = name(value, Defect::InvalidName)?,
                b"linkpath" => records.link_path = name(value, Defect::InvalidName)?,
                b"uname" => records.user_name = name(value, Defect::InvalidPax)?,
                b"gname" => records.group_name = name(value, Defect::InvalidPax)?,
                b"uid" => records.uid = stated(value, "uid", decimal)?,
                b"gid" => records.gid = stated(value, "gid", decimal)?,
                b"size" => records.size = stated(value, "size", decimal)?,
                b"mtime" => records.mtime = stated(value, "mtime", time)?,
                b"atime" => records.atime = stated(value, "atime", time)?,
                b"ctime" => {
                    stated(value, "ctime", time)?;
                }
                _ => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        records.sparse.take(key, value)?;
                    } else if let Some(name) = key.strip_prefix(SCHILY_XATTR) {
                        if name.is_empty() {
                            return Err(Defect::InvalidPax);
                        }
                        records.xattrs.push((name.to_vec(), value.to_vec()));
                    } else if let Some(name) = key.strip_prefix(LIBARCHIVE_XATTR) {
                        libarchive.push(libarchive_xattr(name, value).ok_or(Defect::InvalidPax)?);
                    }
                }
            }
        }
        records.merge_xattrs(libarchive);
        if !records.sparse.pairs.len().is_multiple_of(2) {
            return Err(Defect::InvalidSparseMap);
        }
        Ok(records)
    }

    /// Sorts, and keeps the last record of each name. bsdtar states each attribute in both vocabularies; star's is the
    /// one that everybody else reads, so it wins.
    fn merge_xattrs(&mut self, mut libarchive: Vec<(Vec<u8>, Vec<u8>)>) {
        if !libarchive.is_empty() {
            libarchive.append(&mut self.xattrs);
            self.xattrs = libarchive;
        }
        // A stable sort keeps records of one name in the order of the stream; `dedup` keeps the first, so turn them.
        self.xattrs.reverse();
        self.xattrs.sort_by(|a, b| a.0.cmp(&b.0));
        self.xattrs.dedup_by(|later, kept| later.0 == kept.0);
    }
}

impl SparseRecords {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Defect> {
        match key {
            b"major" => self.major = value.to_vec(),
            b"minor" => self.minor = value.to_vec(),
            b"name" => self.name = name(value, Defect::InvalidName)?.unwrap_or_default(),
            b"size" => self.size = value.to_vec(),
            b"realsize" => self.real_size = value.to_vec(),
            b"numblocks" => self.block_count = value.to_vec(),
            b"map" => self.map = value.to_vec(),
            // Version 0.0 repeats two keys in turn, which is why their order counts.
            b"offset" if self.pairs.len().is_multiple_of(2) => self.pairs.push(value.to_vec()),
            b"numbytes" if !self.pairs.len().is_multiple_of(2) => self.pairs.push(value.to_vec()),
            b"offset" | b"numbytes" => return Err(Defect::InvalidSparseMap),
            _ => {}
        }
        Ok(())
    }
}

/// Name with `%XX` escapes, value in base64.
fn libarchive_xattr(name: &[u8], value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut plain = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        if *byte != b'%' {
            plain.push(*byte);
            continue;
        }
        let high = char::from(*bytes.next()?).to_digit(16)?;
        let low = char::from(*bytes.next()?).to_digit(16)?;
        plain.push(u8::try_from(high << 4 | low).ok()?);
    }
    if plain.is_empty() || plain.contains(&0) {
        return None;
    }
    Some((plain, BASE64.decode(value).ok()?))
}

/// Records to write: sorted by key, each key once.
#[derive(Debug, Default)]
pub(super) struct Body {
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Body {
    pub(super) fn push(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.records.push((key.into(), value.into()));
    }

    /// Adds an extended attribute. A name with `=` in it cannot be a key of star's; libarchive's way has escapes.
    pub(super) fn push_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), Defect> {
        if name.is_empty() || name.contains(&0) {
            return Err(Defect::InvalidPax);
        }
        if !name.contains(&b'=') {
            self.push([SCHILY_XATTR, name].concat(), value);
            return Ok(());
        }
        let mut key = LIBARCHIVE_XATTR.to_vec();
        for byte in name {
            if byte.is_ascii_graphic() && !b"%=".contains(byte) {
                key.push(*byte);
            } else {
                key.extend_from_slice(format!("%{byte:02X}").as_bytes());
            }
        }
        self.push(key, BASE64.encode(value));
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The keys, in the order they were added.
    pub(super) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.records.iter().map(|(key, _)| key.as_slice())
    }

    /// The body of the extended header.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut records: Vec<_> = self.records.iter().collect();
        records.sort();
        let mut body = Vec::new();
        for (key, value) in records {
            // The length counts its own digits.
            let rest = key.len().saturating_add(value.len()).saturating_add(3);
            let mut length = rest;
            loop {
                let next = rest.saturating_add(length.to_string().len());
                if next == length {
                    break;
                }
                length = next;
            }
            body.extend_from_slice(format!("{length} ").as_bytes());
            body.extend_from_slice(key);
            body.push(b'=');
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One record of a key.
    fn record(key: &str, value: &str) -> Vec<u8> {
        let mut body = Body::default();
        body.push(key, value);
        body.encode()
    }

    #[test]
    fn record_lengths_count_themselves() {
        assert_eq!(record("SCHILY.xattr.user.k", "v"), b"25 SCHILY.xattr.user.k=v\n");
        for length in [1, 80, 85, 86, 87, 88, 89, 90, 91, 92, 985, 986, 987, 988, 989, 990, 991, 992] {
            let value = "v".repeat(length);
            let bytes = record("path", &value);
            let stated: usize = std::str::from_utf8(&bytes).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(stated, bytes.len());
            assert_eq!(Records::parse(&bytes).unwrap().path.unwrap(), value.as_bytes());
        }
    }

    #[test]
    fn malformed_records() {
        for body in [
            &b"\n"[..],
            b"7 a=b",
            b"8 a=b\n\n",
            b"5 a=b\n",
            b"60 path=b\n",
            b"0 a=b\n",
            b"-6 a=b\n",
            b"+6 a=b\n",
            b"x a=b\n",
            b" 6 a=b\n",
            b"6 a=bc",
            b"5 =b\n",
            b"5 ab\n",
            b"9 a\0b=cd\n",
            b"99999999999999999999 a=b\n",
            b"6 a=b\n\0\0\0",
            b"4 a\n",
        ] {
            assert_eq!(Records::parse(body).map(|_| ()), Err(Defect::InvalidPax), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn values_that_do_not_fit() {
        let table: &[(&str, &str, Defect)] = &[
            ("path", "a\0b", Defect::InvalidName),
            ("linkpath", "\0", Defect::InvalidName),
            ("uname", "a\0", Defect::InvalidPax),
            ("gname", "a\0", Defect::InvalidPax),
            ("uid", "9223372036854775808", Defect::InvalidNumber { field: "uid" }),
            ("gid", "x", Defect::InvalidNumber { field: "gid" }),
            ("size", "1e3", Defect::InvalidNumber { field: "size" }),
            ("mtime", "1.2.3", Defect::InvalidNumber { field: "mtime" }),
            ("atime", "now", Defect::InvalidNumber { field: "atime" }),
            ("ctime", " ", Defect::InvalidNumber { field: "ctime" }),
            ("GNU.sparse.name", "a\0", Defect::InvalidName),
            ("GNU.sparse.offset", "1", Defect::InvalidSparseMap),
            ("GNU.sparse.numbytes", "1", Defect::InvalidSparseMap),
            ("SCHILY.xattr.", "v", Defect::InvalidPax),
            ("LIBARCHIVE.xattr.", "dg", Defect::InvalidPax),
            ("LIBARCHIVE.xattr.a%", "dg", Defect::InvalidPax),
            ("LIBARCHIVE.xattr.a%0", "dg", Defect::InvalidPax),
            ("LIBARCHIVE.xattr.a%00", "dg", Defect::InvalidPax),
            ("LIBARCHIVE.xattr.a%+1", "dg", Defect::InvalidPax),
            ("LIBARCHIVE.xattr.a", "!", Defect::InvalidPax),
        ];
        for (key, value, defect) in table {
            assert_eq!(Records::parse(&record(key, value)).map(|_| ()).unwrap_err(), *defect, "{key}={value:?}");
        }
    }

    #[test]
    fn an_empty_value_is_no_value() {
        let body = [record("path", "a"), record("path", ""), record("size", ""), record("mtime", "")].concat();
        let records = Records::parse(&body).unwrap();
        assert_eq!((records.path, records.size, records.mtime), (None, None, None));
    }

    #[test]
    fn extended_attributes() {
        let body = [
            record("LIBARCHIVE.xattr.user.both", "bGliYXJjaGl2ZQ=="),
            record("SCHILY.xattr.user.twice", "first"),
            record("SCHILY.xattr.user.both", "star"),
            record("SCHILY.xattr.user.twice", "second"),
            record("SCHILY.xattr.user.empty", ""),
            record("LIBARCHIVE.xattr.user.a%3Db%20%C3%A4", "AAECAw"),
        ];
        let xattrs = Records::parse(&body.concat()).unwrap().xattrs;
        let expected: &[(&[u8], &[u8])] = &[
            ("user.a=b ä".as_bytes(), b"\0\x01\x02\x03"),
            (b"user.both", b"star"),
            (b"user.empty", b""),
            (b"user.twice", b"second"),
        ];
        assert_eq!(xattrs, expected.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect::<Vec<_>>());
    }

    #[test]
    fn an_attribute_name_with_an_equals_sign_comes_back() {
        let mut body = Body::default();
        body.push_xattr("user.a=b%ä".as_bytes(), b"\0=\n").unwrap();
        let body = body.encode();
        assert!(body.windows(16).any(|w| w == b"LIBARCHIVE.xattr"), "{}", body.escape_ascii());
        assert_eq!(Records::parse(&body).unwrap().xattrs, [("user.a=b%ä".as_bytes().to_vec(), b"\0=\n".to_vec())]);
    }
}
