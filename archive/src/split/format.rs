//! Records of tar-split: one JSON object a line, in the words and the key order of the Go implementation.
//!
//! ```text
//! {"type":2,"payload":"<base64 of raw bytes>","position":0}
//! {"type":1,"name":"d/f","size":3,"payload":"<base64 of CRC-64, big endian>","position":1}
//! ```
//!
//! `name_raw` (base64) stands for `name` where the name is not UTF-8; `size` is left out when 0, `payload` of a file
//! without content is `null`.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::error::{Defect, Error, Result};

/// Raw bytes that one segment record holds at most. Writers cut longer runs, as the Go implementation does.
pub const SEGMENT_BYTES: usize = 1 << 20;

/// Longest record that is read. Go's writers put everything between two files into one record: a PAX header of at most
/// 1 MiB, long name and long link of as much, twice perhaps, and a third more for base64.
pub const RECORD_BYTES: usize = 16 << 20;

/// Longest file name in a record, the same as the archive limit `name_bytes` by default.
const NAME_BYTES: usize = 1 << 20;

/// Writes records, numbering them.
#[derive(Debug, Default)]
pub(super) struct RecordWriter {
    position: u64,
    line: Vec<u8>,
}

impl RecordWriter {
    /// A segment record; nothing for no bytes.
    pub(super) fn segment(&mut self, out: &mut impl Write, payload: &[u8]) -> io::Result<()> {
        if payload.is_empty() {
            return Ok(());
        }
        self.line.clear();
        self.line.extend_from_slice(b"{\"type\":2,\"payload\":\"");
        push_base64(&mut self.line, payload)?;
        self.line.push(b'"');
        self.end(out)
    }

    /// A file record. `crc` is the content's checksum and stands only where `size` is not 0.
    pub(super) fn file(&mut self, out: &mut impl Write, name: &[u8], size: u64, crc: u64) -> io::Result<()> {
        self.line.clear();
        self.line.extend_from_slice(b"{\"type\":1");
        match std::str::from_utf8(name) {
            Ok("") => {}
            Ok(text) => {
                self.line.extend_from_slice(b",\"name\":\"");
                push_escaped(&mut self.line, text);
                self.line.push(b'"');
            }
            Err(_) => {
                self.line.extend_from_slice(b",\"name_raw\":\"");
                push_base64(&mut self.line, name)?;
                self.line.push(b'"');
            }
        }
        if size == 0 {
            self.line.extend_from_slice(b",\"payload\":null");
        } else {
            write!(self.line, ",\"size\":{size},\"payload\":\"")?;
            push_base64(&mut self.line, &crc.to_be_bytes())?;
            self.line.push(b'"');
        }
        self.end(out)
    }

    fn end(&mut self, out: &mut impl Write) -> io::Result<()> {
        writeln!(self.line, ",\"position\":{}}}", self.position)?;
        self.position = self.position.saturating_add(1);
        out.write_all(&self.line)
    }
}

fn push_base64(line: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    let start = line.len();
    let length = base64::encoded_len(bytes.len(), true).unwrap_or(usize::MAX);
    line.resize(start.saturating_add(length), 0);
    let room = line.get_mut(start..).unwrap_or_default();
    STANDARD.encode_slice(bytes, room).map_err(io::Error::other)?;
    Ok(())
}

/// What Go's `encoding/json` makes of a string: beside what JSON demands, `<`, `>`, `&` and the two line separators of
/// Unicode are escaped.
fn push_escaped(line: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let plain = |b: u8| (0x20..0x80).contains(&b) && !matches!(b, b'"' | b'\\' | b'<' | b'>' | b'&');
    if text.bytes().all(plain) {
        line.extend_from_slice(text.as_bytes());
        return;
    }
    for c in text.chars() {
        match c {
            '"' => line.extend_from_slice(b"\\\""),
            '\\' => line.extend_from_slice(b"\\\\"),
            '\n' => line.extend_from_slice(b"\\n"),
            '\r' => line.extend_from_slice(b"\\r"),
            '\t' => line.extend_from_slice(b"\\t"),
            '\u{8}' => line.extend_from_slice(b"\\b"),
            '\u{c}' => line.extend_from_slice(b"\\f"),
            '<' | '>' | '&' | '\u{0}'..='\u{1f}' => {
                let code = c as usize;
                line.extend_from_slice(b"\\u00");
                line.extend(HEX.get(code >> 4));
                line.extend(HEX.get(code & 15));
            }
            '\u{2028}' => line.extend_from_slice(b"\\u2028"),
            '\u{2029}' => line.extend_from_slice(b"\\u2029"),
            _ => line.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// One record as read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// Bytes of the archive.
    Segment(&'a [u8]),
    /// Here the content of a file belongs.
    File {
        /// The member's name, not cleaned.
        name: &'a [u8],
        /// Length of the content in bytes.
        size: u64,
        /// Checksum of the content; 0 where `size` is.
        crc: u64,
    },
}

/// Reads records, trusting nothing in them; memory is bounded by [`RECORD_BYTES`].
#[derive(Debug)]
pub(super) struct RecordReader<R> {
    input: BufReader<R>,
    line: Vec<u8>,
    payload: Vec<u8>,
    name: Vec<u8>,
}

impl<R: Read> RecordReader<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(64 << 10, input),
            line: Vec::new(),
            payload: Vec::new(),
            name: Vec::new(),
        }
    }

    /// The next record, or `None` at the end. `offset` is where in the archive it belongs, for the error.
    pub(super) fn next(&mut self, offset: u64) -> Result<Option<Record<'_>>> {
        let bad = |name: &[u8]| Error::input(name, offset, Defect::InvalidTarSplit);
        loop {
            self.line.clear();
            let limit = u64::try_from(RECORD_BYTES).unwrap_or(u64::MAX);
            let mut limited = (&mut self.input).take(limit.saturating_add(1));
            let read = limited
                .read_until(b'\n', &mut self.line)
                .map_err(|source| Error::io("read", b"tar-split".as_slice(), source))?;
            if read == 0 {
                return Ok(None);
            }
            if read > RECORD_BYTES {
                return Err(Error::Limit {
                    limit: "record_bytes",
                    maximum: limit,
                    found: limit.saturating_add(1),
                    entry: Vec::new(),
                    offset,
                });
            }
            if !self.line.trim_ascii().is_empty() {
                break;
            }
        }
        let raw: RawRecord<'_> = serde_json::from_slice(&self.line).map_err(|_| bad(b""))?;
        let decode = |text: &Text<'_>, into: &mut Vec<u8>| -> Result<()> {
            into.clear();
            let text = text.0.as_deref().unwrap_or_default();
            STANDARD.decode_vec(text, into).map_err(|_| bad(b""))
        };
        decode(&raw.payload, &mut self.payload)?;
        match raw.kind {
            1 => {
                match &raw.name.0 {
                    Some(name) if !name.is_empty() => {
                        self.name.clear();
                        self.name.extend_from_slice(name.as_bytes());
                    }
                    _ => decode(&raw.name_raw, &mut self.name)?,
                }
                if self.name.len() > NAME_BYTES {
                    return Err(bad(b""));
                }
                let crc = if raw.size == 0 {
                    0
                } else {
                    let bytes = <[u8; 8]>::try_from(self.payload.as_slice()).map_err(|_| bad(&self.name))?;
                    u64::from_be_bytes(bytes)
                };
                Ok(Some(Record::File { name: &self.name, size: raw.size, crc }))
            }
            2 => Ok(Some(Record::Segment(&self.payload))),
            _ => Err(bad(b"")),
        }
    }
}

#[derive(serde::Deserialize)]
struct RawRecord<'a> {
    #[serde(rename = "type")]
    kind: u64,
    #[serde(default, borrow)]
    name: Text<'a>,
    #[serde(default, borrow)]
    name_raw: Text<'a>,
    #[serde(default)]
    size: u64,
    #[serde(default, borrow)]
    payload: Text<'a>,
}

/// A string or null, borrowed from the line where it has no escapes.
#[derive(Default)]
struct Text<'a>(Option<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or null")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(Text(None))
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Some(Cow::Borrowed(text))))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Some(Cow::Owned(text.to_owned()))))
            }
        }
        deserializer.deserialize_any(TextVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(write: impl FnOnce(&mut RecordWriter, &mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut RecordWriter::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn records_are_written_as_go_writes_them() {
        let text = lines(|writer, out| {
            writer.segment(out, b"hi\n")?;
            writer.segment(out, b"")?;
            writer.file(out, b"./d/f", 3, 0x6149_9810_0000_0000)?;
            writer.file(out, b"d/", 0, 7)?;
            writer.file(out, b"", 0, 0)?;
            writer.file(out, b"\xff\xfe", 0, 0)?;
            writer.file(out, "<&>\"\\\u{7f}\n\u{1}\u{2028}\u{2029}ä".as_bytes(), 0, 0)
        });
        let expected = concat!(
            r#"{"type":2,"payload":"aGkK","position":0}"#,
            "\n",
            r#"{"type":1,"name":"./d/f","size":3,"payload":"YUmYEAAAAAA=","position":1}"#,
            "\n",
            r#"{"type":1,"name":"d/","payload":null,"position":2}"#,
            "\n",
            r#"{"type":1,"payload":null,"position":3}"#,
            "\n",
            r#"{"type":1,"name_raw":"//4=","payload":null,"position":4}"#,
            "\n",
            r#"{"type":1,"name":"\u003c\u0026\u003e\"\\"#,
            "\u{7f}",
            r#"\n\u0001\u2028\u2029ä","payload":null,"position":5}"#,
            "\n",
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let name = "<&>\"\\\u{7f}\n\u{1}\u{2028}ä".as_bytes();
        let text = lines(|writer, out| {
            writer.segment(out, &[0, 1, 255])?;
            writer.file(out, name, 5, 42)?;
            writer.file(out, b"\xff", 0, 0)
        });
        let mut reader = RecordReader::new(text.as_bytes());
        assert_eq!(reader.next(0).unwrap(), Some(Record::Segment(&[0, 1, 255])));
        assert_eq!(reader.next(0).unwrap(), Some(Record::File { name, size: 5, crc: 42 }));
        assert_eq!(reader.next(0).unwrap(), Some(Record::File { name: b"\xff", size: 0, crc: 0 }));
        assert_eq!(reader.next(0).unwrap(), None);
    }

    #[test]
    fn damaged_records_are_refused() {
        for text in [
            "{",
            "[]",
            "{\"payload\":\"\"}",
            "{\"type\":3}",
            "{\"type\":2,\"payload\":\"?\"}",
            "{\"type\":1,\"name\":\"f\",\"size\":-1}",
            "{\"type\":1,\"name\":\"f\",\"size\":1,\"payload\":null}",
            "{\"type\":1,\"name\":\"f\",\"size\":1,\"payload\":\"AAAA\"}",
            "{\"type\":1,\"name\":\"f\",\"size\":99999999999999999999,\"payload\":\"YUmYEAAAAAA=\"}",
            "{\"type\":1,\"name_raw\":\"*\"}",
            "\u{0}",
        ] {
            let error = RecordReader::new(text.as_bytes()).next(7).unwrap_err();
            assert!(
                matches!(error, Error::Input { offset: 7, defect: Defect::InvalidTarSplit, .. }),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_record_without_end_stops_at_the_limit() {
        let error = RecordReader::new(io::repeat(b' ')).next(0).unwrap_err();
        assert!(matches!(error, Error::Limit { limit: "record_bytes", .. }), "{error}");
    }
}
