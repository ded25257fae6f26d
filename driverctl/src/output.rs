//! What goes to standard output and standard error: text that no name can garble, JSON as the peers print it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// A line on standard output.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")
}

/// Many lines on standard output, written in few calls.
pub(crate) fn lines(lines: impl IntoIterator<Item = String>) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
    for line in lines {
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Bytes on standard output, as they are.
pub(crate) fn bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// A line on standard error.
pub(crate) fn complain(text: &str) {
    // Where standard error is gone, nobody is left to tell.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// One line of compact JSON, escaped as Go's encoder does.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    let bytes = graph_store::json::to_vec(value)?;
    let mut out = io::stdout().lock();
    out.write_all(&bytes)?;
    out.write_all(b"\n")?;
    Ok(())
}

/// A name for a terminal: control characters escaped, the rest as it is.
pub(crate) fn safe(text: &str) -> String {
    if text.chars().any(char::is_control) {
        text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
    } else {
        text.to_owned()
    }
}

/// Free text: as it is for a program, without what a terminal would obey for a person.
pub(crate) fn free_text(text: &str) -> String {
    let obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if io::stdout().is_terminal() && text.chars().any(obeyed) {
        text.chars().flat_map(|c| if obeyed(c) { c.escape_default().collect() } else { vec![c] }).collect()
    } else {
        text.to_owned()
    }
}

/// A path in quotes, as Go's `%q` prints it.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    let mut write = |text: std::fmt::Arguments<'_>| out.write_fmt(text).unwrap_or_default();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => write(format_args!("\\{c}")),
                '\u{7}' => write(format_args!("\\a")),
                '\u{8}' => write(format_args!("\\b")),
                '\u{c}' => write(format_args!("\\f")),
                '\n' => write(format_args!("\\n")),
                '\r' => write(format_args!("\\r")),
                '\t' => write(format_args!("\\t")),
                '\u{b}' => write(format_args!("\\v")),
                c if c.is_ascii_control() => write(format_args!("\\x{:02x}", c as u32)),
                c if c.is_control() || c == '\u{feff}' => write(format_args!("\\u{:04x}", c as u32)),
                c => write(format_args!("{c}")),
            }
        }
        for byte in chunk.invalid() {
            write(format_args!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_go_quotes_them() {
        assert_eq!(quoted(b"/a b"), "\"/a b\"");
        assert_eq!(quoted(b"/a\"\\\n\x1b\xff\xc3\xa9"), "\"/a\\\"\\\\\\n\\x1b\\xff\u{e9}\"");
        assert_eq!(safe("a\u{1b}[31m"), "a\\u{1b}[31m");
    }
}
