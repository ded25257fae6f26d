//! JSON as Go writes it.
//!
//! The peers write their records with Go's encoder: compact, fields in the order of the struct, map keys sorted, and
//! `<`, `>`, `&`, U+2028 and U+2029 escaped in strings. Nobody takes a digest of these files, but tests and scripts cut
//! them up with sed, so the bytes are the same here. A record that is not changed is not even re-encoded: the text it was
//! read from is written again (`Slot`), so that whatever a newer peer put in survives byte for byte.

use std::io;
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
    text: Option<Arc<str>>,
}

impl<T> Slot<T> {
    /// A record that was in no file yet.
    pub(crate) fn new(value: T) -> Self {
        Self { value: Arc::new(value), text: None }
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

/// Reads an array of records. An empty or missing file, and Go's `null`, are an empty array.
pub(crate) fn parse_array<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<Vec<Slot<T>>> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let texts: Option<Vec<&RawValue>> = serde_json::from_slice(bytes)?;
    texts
        .unwrap_or_default()
        .into_iter()
        .map(|text| Ok(Slot { value: Arc::new(serde_json::from_str(text.get())?), text: Some(Arc::from(text.get())) }))
        .collect()
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
        match &slot.text {
            Some(text) => out.extend_from_slice(text.as_bytes()),
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
        assert_eq!(parse_array::<Layer>(b"").unwrap().len(), 0);
        assert_eq!(parse_array::<Layer>(b"null").unwrap().len(), 0);
        assert_eq!(parse_array::<Layer>(b"[]").unwrap().len(), 0);
        assert!(parse_array::<Layer>(b"[{\"id\":\"a\"").is_err());
    }

    #[test]
    fn an_unchanged_record_keeps_its_text_and_a_changed_one_its_unknown_fields() {
        let text = r#"[{"flags":{"incomplete":true}, "id":"a","created":"2026-11-21T06:52:14.1Z","new":{"b":1.50,"a":"<"}},{"id":"b","created":"2026-11-21T06:52:14Z","x":[1e3]}]"#;
        let mut slots = parse_array::<Layer>(text.as_bytes()).unwrap();
        assert_eq!(write_array(&slots).unwrap(), text.as_bytes());
        slots[1].change().names.push("n".to_owned());
        let expected = text.replace(r#"{"id":"b","#, r#"{"id":"b","names":["n"],"#);
        assert_eq!(String::from_utf8(write_array(&slots).unwrap()).unwrap(), expected);
    }
}
