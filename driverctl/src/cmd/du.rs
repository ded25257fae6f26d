//! What layers, images and containers take on disk.

use std::io::IsTerminal;

use anyhow::Result;
use graph_store::{Space, Store, StoreUsage, UsageOptions};
use indicatif::DecimalBytes;
use serde_json::{Value, json};

use super::Outcome;
use crate::output::{self, safe};
use crate::progress;

/// A line of the table. Numbers that do not apply are missing.
struct Row {
    kind: &'static str,
    id: String,
    names: String,
    space: Space,
    /// Bytes on disk that only this image has, and that it shares with other images.
    unique_and_shared: Option<(u64, u64)>,
}

const HEADINGS: [&str; 8] = ["KIND", "ID", "APPARENT", "ON DISK", "REFLINKED", "UNIQUE", "SHARED", "NAMES"];

pub(crate) fn du(store: &Store, bytes: bool, json: bool) -> Result<Outcome> {
    let bar = progress::steps("measuring");
    let on_progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let usage = store.disk_usage(&UsageOptions { on_progress: Some(&on_progress), ..UsageOptions::default() });
    bar.finish_and_clear();
    let usage = usage?;
    if json {
        output::json(&as_json(&usage))?;
    } else if std::io::stdout().is_terminal() {
        table(&rows(&usage), bytes)?;
    } else {
        for row in rows(&usage) {
            output::line(&cells(&row, true, &row.id).join("\t"))?;
        }
    }
    Ok(Outcome::Done)
}

fn together(a: &Space, b: &Space) -> Space {
    Space {
        apparent: a.apparent.saturating_add(b.apparent),
        on_disk: a.on_disk.saturating_add(b.on_disk),
        reflinked: a.reflinked.zip(b.reflinked).map(|(a, b)| a.saturating_add(b)),
        inodes: a.inodes.saturating_add(b.inodes),
    }
}

fn rows(usage: &StoreUsage) -> Vec<Row> {
    let names = |names: &[String]| names.iter().map(|name| safe(name)).collect::<Vec<_>>().join(" ");
    let mut rows: Vec<Row> = Vec::new();
    let mut add = |kind, id: &str, names: String, space, unique_and_shared| {
        rows.push(Row { kind, id: safe(id), names, space, unique_and_shared });
    };
    for of in &usage.layers {
        add("layer", &of.layer.id, names(&of.layer.names), of.space, None);
    }
    for of in &usage.images {
        let space = together(&of.unique, &of.shared);
        add("image", &of.image.id, names(&of.image.names), space, Some((of.unique.on_disk, of.shared.on_disk)));
    }
    for of in &usage.containers {
        add("container", &of.container.id, names(&of.container.names), together(&of.layer, &of.data), None);
    }
    add("other", "-", String::new(), usage.other, None);
    add("total", "-", String::new(), usage.total, None);
    rows
}

fn cells(row: &Row, bytes: bool, id: &str) -> [String; 8] {
    let number = |n: u64| if bytes { n.to_string() } else { DecimalBytes(n).to_string() };
    let maybe = |n: Option<u64>, none: &str| n.map_or_else(|| none.to_owned(), number);
    [
        row.kind.to_owned(),
        id.to_owned(),
        number(row.space.apparent),
        number(row.space.on_disk),
        maybe(row.space.reflinked, "?"),
        maybe(row.unique_and_shared.map(|(unique, _)| unique), "-"),
        maybe(row.unique_and_shared.map(|(_, shared)| shared), "-"),
        row.names.clone(),
    ]
}

fn table(rows: &[Row], bytes: bool) -> Result<()> {
    let short = |row: &Row| row.id.chars().take(12).collect::<String>();
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| cells(row, bytes, &short(row))));
    let mut widths = [0_usize; 8];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for line in &lines {
        let mut text = String::new();
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            // Numbers to the right.
            let cell = if (2..7).contains(&column) { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            text.push_str(&cell);
        }
        output::line(text.trim_end())?;
    }
    Ok(())
}

fn space(of: &Space) -> Value {
    json!({"apparent": of.apparent, "on-disk": of.on_disk, "reflinked": of.reflinked, "inodes": of.inodes})
}

fn as_json(usage: &StoreUsage) -> Value {
    let layers = usage.layers.iter().map(|of| {
        json!({"id": of.layer.id, "parent": of.layer.parent, "names": of.layer.names,
            "read-only": of.layer.is_read_only(), "space": space(&of.space)})
    });
    let images = usage.images.iter().map(|of| {
        json!({"id": of.image.id, "names": of.image.names, "read-only": of.image.is_read_only(),
            "data": space(&of.data), "unique": space(&of.unique), "shared": space(&of.shared)})
    });
    let containers = usage.containers.iter().map(|of| {
        json!({"id": of.container.id, "names": of.container.names, "image": of.container.image,
            "layer": space(&of.layer), "data": space(&of.data)})
    });
    json!({"layers": layers.collect::<Vec<_>>(), "images": images.collect::<Vec<_>>(),
        "containers": containers.collect::<Vec<_>>(), "other": space(&usage.other), "total": space(&usage.total)})
}
