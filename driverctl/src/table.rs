//! Lists for people: aligned columns with headings. Programs get the peers' lines instead.

use std::io::{self, IsTerminal};

use crate::output;

/// Whether standard output is read by a person.
pub(crate) fn wanted() -> bool {
    io::stdout().is_terminal()
}

/// Whether colours may be used: on a terminal that has them, unless `NO_COLOR` is set (<https://no-color.org>).
fn coloured() -> bool {
    wanted()
        && std::env::vars_os().all(|(name, value)| match name.to_str() {
            Some("NO_COLOR") => value.is_empty(),
            Some("TERM") => value != "dumb",
            _ => true,
        })
}

/// A colour, as ECMA-48 numbers it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Paint {
    Bold,
    Cyan,
}

/// Text in a colour, where colours may be used.
pub(crate) fn painted(text: &str, paint: Paint) -> String {
    paint_if(coloured(), text, paint)
}

fn paint_if(coloured: bool, text: &str, paint: Paint) -> String {
    let number = match paint {
        Paint::Bold => 1,
        Paint::Cyan => 36,
    };
    if coloured { format!("\x1b[{number}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A heading; numbers stand to the right of their column.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column {
    Id(&'static str),
    Text(&'static str),
    Number(&'static str),
}

/// A list to be printed when it is whole, since the widest cell counts.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; what a terminal would obey is escaped.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into_iter().map(|cell| output::safe(&cell)).collect());
    }

    pub(crate) fn print(&self) -> io::Result<()> {
        for line in self.lines(coloured()) {
            output::line(&line)?;
        }
        Ok(())
    }

    fn lines(&self, coloured: bool) -> Vec<String> {
        let headings: Vec<String> = self.columns.iter().map(|column| column.heading().to_owned()).collect();
        let width = |at: usize| {
            let cells = std::iter::once(&headings).chain(&self.rows).filter_map(|row| row.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &[String], is_heading: bool| {
            let mut text = String::new();
            for (at, ((cell, column), width)) in cells.iter().zip(&self.columns).zip(&widths).enumerate() {
                let width = *width;
                let last = at + 1 == self.columns.len();
                let aligned = match column {
                    Column::Number(_) => format!("{cell:>width$}"),
                    // No blanks at a line's end.
                    _ if last => cell.clone(),
                    _ => format!("{cell:<width$}"),
                };
                let cell = match column {
                    _ if is_heading => paint_if(coloured, &aligned, Paint::Bold),
                    Column::Id(_) => paint_if(coloured, &aligned, Paint::Cyan),
                    _ => aligned,
                };
                text.push_str(&cell);
                if !last {
                    text.push_str("  ");
                }
            }
            text.trim_end().to_owned()
        };
        let rows = self.rows.iter().map(|row| line(row, false));
        std::iter::once(line(&headings, true)).chain(rows).collect()
    }
}

impl Column {
    fn heading(self) -> &'static str {
        match self {
            Self::Id(heading) | Self::Text(heading) | Self::Number(heading) => heading,
        }
    }
}

/// The first digits of a random id, as many as people type; other ids whole.
pub(crate) fn short(id: &str) -> String {
    if id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        id.chars().take(12).collect()
    } else {
        id.to_owned()
    }
}

/// A point in time to the minute, in UTC.
pub(crate) fn minute(time: &str) -> String {
    time.get(..16).unwrap_or(time).replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[Column::Id("ID"), Column::Number("SIZE"), Column::Text("NAMES")]);
        table.row(["a".to_owned(), "1234567".to_owned(), "long name".to_owned()]);
        table.row([short(&"0123456789abcdef".repeat(4)), "9".to_owned(), "\x1b[31m".to_owned()]);
        table
    }

    #[test]
    fn columns_are_aligned() {
        let expected =
            ["ID               SIZE  NAMES", "a             1234567  long name", "0123456789ab        9  \\u{1b}[31m"];
        assert_eq!(table().lines(false), expected);
        assert_eq!(minute("2026-11-21T16:20:01.123Z"), "2026-11-21 16:20");
    }

    #[test]
    fn colours_stand_around_whole_cells() {
        let lines = table().lines(true);
        assert_eq!(lines[1], "\x1b[36ma           \x1b[0m  1234567  long name");
        assert!(lines[0].starts_with("\x1b[1mID          \x1b[0m  "));
    }
}
