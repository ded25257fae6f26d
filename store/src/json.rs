//! JSON as Go writes it.
//!
//! The peers write their records with Go's encoder: compact, fields in the order of the struct, map keys sorted, and
//! `<`, `>`, `&`, U+2028 and U+2029 escaped in strings. Nobody takes a digest of these files, but tests and scripts cut
//! them up with sed, so the bytes are the same here. A record that is not changed is not even re-encoded: the text it was
//! read from is written again (`Slot`), so that whatever a newer peer put in survives byte for byte.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::ser::{CompactFormatter, Formatter};
use serde_json::value::RawValue;

/// Go's way of writing strings; everything else as serde_json's compact form, which is Go's too.
struct GoFormatter;

impl Formatter for GoFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, found)) =
            rest.char_indices().find(|(_, c)| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}'))
        {
            let (before, from) = rest.split_at(at);
            writer.write_all(before.as_bytes())?;
            write!(writer, "\\u{:04x}", u32::from(found))?;
            rest = from.get(found.len_utf8()..).unwrap_or_default();
        }
        writer.write_all(rest.as_bytes())
    }

    fn write_raw_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        CompactFormatter.write_raw_fragment(writer, fragment)
    }
}

/// Appends `value` to `out` as Go would encode it.
pub(crate) fn append<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(out, GoFormatter))
}

/// `value` as Go's encoder would write it: compact, without a newline at the end.
///
/// # Errors
/// Those of the value's own `Serialize`.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(256);
    append(&mut out, value)?;
    Ok(out)
}

/// One record of a file, with the text it came from for as long as it is unchanged.
#[derive(Clone, Debug)]
pub(crate) struct Slot<T> {
    value: Arc<T>,
    text: Option<Text>,
}

/// A piece of a file that was read.
#[derive(Clone, Debug)]
struct Text {
    file: Arc<[u8]>,
    place: Range<usize>,
}

impl<T> Slot<T> {
    /// A record that was in no file yet.
    pub(crate) fn new(value: T) -> Self {
        Self { value: Arc::new(value), text: None }
    }

    /// A record as it was read, to be changed.
    pub(crate) fn of(value: &Arc<T>) -> Self {
        Self { value: Arc::clone(value), text: None }
    }

    /// Where it is in its file.
    pub(crate) fn place(&self) -> Option<&Range<usize>> {
        self.text.as_ref().map(|text| &text.place)
    }

    /// The record.
    pub(crate) fn get(&self) -> &Arc<T> {
        &self.value
    }
}

impl<T: Clone> Slot<T> {
    /// The record, to be changed: its text is forgotten.
    pub(crate) fn change(&mut self) -> &mut T {
        self.text = None;
        Arc::make_mut(&mut self.value)
    }
}

/// Reads one record, which has to be all there is.
pub(crate) fn parse_one<T: DeserializeOwned>(text: &[u8]) -> Option<Slot<T>> {
    Some(Slot { value: Arc::new(serde_json::from_slice(text).ok()?), text: None })
}

/// Reads an array of records. An empty or missing file, and Go's `null`, are an empty array.
pub(crate) fn parse_array<T: DeserializeOwned>(bytes: Vec<u8>) -> serde_json::Result<Vec<Slot<T>>> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let file: Arc<[u8]> = bytes.into();
    // Once more and more slowly, for an error with its place in the file, or for `null`.
    parse_in_one_pass(&file).map_or_else(|| parse_in_two(&file), Ok)
}

/// Reads the records one behind the other; `None` for what is no array of records.
fn parse_in_one_pass<T: DeserializeOwned>(file: &Arc<[u8]>) -> Option<Vec<Slot<T>>> {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    // Where the next thing is, and its first byte.
    let next = |at: usize| {
        let rest = file.get(at..)?;
        let skipped = rest.iter().position(|byte| !blank(byte))?;
        Some((at.checked_add(skipped)?, *rest.get(skipped)?))
    };
    let mut slots = Vec::new();
    let (mut at, b'[') = next(0)? else { return None };
    loop {
        let (start, first) = next(at.checked_add(1)?)?;
        if first == b']' && slots.is_empty() {
            at = start;
            break;
        }
        let mut stream = serde_json::Deserializer::from_slice(file.get(start..)?).into_iter::<T>();
        let value = Arc::new(stream.next()?.ok()?);
        let end = start.checked_add(stream.byte_offset())?;
        slots.push(Slot { value, text: Some(Text { file: Arc::clone(file), place: start..end }) });
        let (behind, byte) = next(end)?;
        at = behind;
        match byte {
            b',' => {}
            b']' => break,
            _ => return None,
        }
    }
    next(at.checked_add(1)?).is_none().then_some(slots)
}

fn parse_in_two<T: DeserializeOwned>(file: &[u8]) -> serde_json::Result<Vec<Slot<T>>> {
    let texts: Option<Vec<&RawValue>> = serde_json::from_slice(file)?;
    let slot = |text: &RawValue| {
        let file: Arc<[u8]> = Arc::from(text.get().as_bytes());
        let place = 0..file.len();
        Ok(Slot { value: Arc::new(serde_json::from_str(text.get())?), text: Some(Text { file, place }) })
    };
    texts.unwrap_or_default().into_iter().map(slot).collect()
}

/// Writes an array of records: unchanged ones as they were read, the others as Go would.
pub(crate) fn write_array<'s, T: Serialize + 's>(
    slots: impl IntoIterator<Item = &'s Slot<T>>,
) -> serde_json::Result<Vec<u8>> {
    let mut out = vec![b'['];
    for (n, slot) in slots.into_iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        match slot.text.as_ref().and_then(|text| text.file.get(text.place.clone())) {
            Some(text) => out.extend_from_slice(text),
            None => append(&mut out, &*slot.value)?,
        }
    }
    out.push(b']');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Layer;

    #[test]
    fn strings_are_escaped_as_go_does() {
        let text = "a<b>&c\u{2028}\u{2029}\"\\\n\t\u{1}\u{7f}é";
        let expected = "\"a\\u003cb\\u003e\\u0026c\\u2028\\u2029\\\"\\\\\\n\\t\\u0001\u{7f}é\"";
        assert_eq!(String::from_utf8(to_vec(text).unwrap()).unwrap(), expected);
    }

    #[test]
    fn null_and_nothing_are_no_records() {
        for nothing in ["", "null", " null\n", "[]", " [ \n] \t"] {
            assert_eq!(parse_array::<Layer>(nothing.into()).unwrap().len(), 0, "{nothing:?}");
        }
    }

    #[test]
    fn what_is_no_array_of_records_is_refused_with_its_place() {
        let record = r#"{"id":"a","created":"2026-11-21T06:52:14Z"}"#;
        for (bad, place) in [
            ("[R".to_owned(), "line 1 column"),
            ("[R,]".to_owned(), "line 1 column"),
            ("[,R]".to_owned(), "line 1 column 2"),
            ("[R R]".to_owned(), "line 1 column"),
            ("[R]]".to_owned(), "trailing"),
            ("[R]\n\nR".to_owned(), "line 3 column 1"),
            ("{}".to_owned(), "line 1 column"),
            ("[1]".to_owned(), "the record of a Layer"),
            ("[[]]".to_owned(), "the record of a Layer"),
            ("[R,null]".to_owned(), "the record of a Layer"),
            ("[{\"id\":7}]".to_owned(), "expected a string"),
            ("nul".to_owned(), "line 1 column"),
        ] {
            let error = parse_array::<Layer>(bad.replace('R', record).into()).unwrap_err().to_string();
            assert!(error.contains(place), "{bad}: {error}");
        }
        let spaced = format!(" [ {record} ,\n{record}\t]\n");
        let slots = parse_array::<Layer>(spaced.into()).unwrap();
        assert_eq!(write_array(&slots).unwrap(), format!("[{record},{record}]").as_bytes());
    }

    #[test]
    fn an_unchanged_record_keeps_its_text_and_a_changed_one_its_unknown_fields() {
        let text = r#"[{"flags":{"incomplete":true}, "id":"a","created":"2026-11-21T06:52:14.1Z","new":{"b":1.50,"a":"<"}},{"id":"b","created":"2026-11-21T06:52:14Z","x":[1e3]}]"#;
        let mut slots = parse_array::<Layer>(text.into()).unwrap();
        assert_eq!(write_array(&slots).unwrap(), text.as_bytes());
        slots[1].change().names.push("n".to_owned());
        let expected = text.replace(r#"{"id":"b","#, r#"{"id":"b","names":["n"],"#);
        assert_eq!(String::from_utf8(write_array(&slots).unwrap()).unwrap(), expected);
    }
}
