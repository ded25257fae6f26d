//! Stores of any size, made quickly: the records and directories of empty layers, images and containers on them.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};

use super::TestStore;

/// 64 hexadecimal digits, different ones for every number, kind and half.
pub fn id(kind: u64, number: usize) -> String {
    let mut text = String::new();
    let mut state = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ kind.wrapping_mul(0xd6e8_feb8_6659_fd93);
    for _ in 0..4 {
        state = (state ^ (state >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(kind);
        write!(text, "{:016x}", state ^ (state >> 29)).unwrap();
    }
    text
}

fn array(records: impl Iterator<Item = String>) -> String {
    format!("[{}]", records.collect::<Vec<_>>().join(","))
}

/// Puts layers (in chains of ten), images of the tops, and containers of the images into a new overlay store.
pub fn seed(store: &TestStore, layers: usize, images: usize, containers: usize) {
    store.ok(&["layers"]);
    let root = store.path("root");
    let time = "2026-11-21T06:52:14.114090173Z";
    let layer = |n: usize| {
        let parent = if n.is_multiple_of(10) { String::new() } else { format!(r#""parent":"{}","#, id(1, n - 1)) };
        format!(
            r#"{{"id":"{}","names":["layer-{n}"],{parent}"created":"{time}","compressed-diff-digest":"sha256:{}","compressed-size":1024,"diff-digest":"sha256:{}","diff-size":2048,"compression":2}}"#,
            id(1, n),
            id(4, n),
            id(5, n)
        )
    };
    let top = |n: usize| id(1, (n * 10 + 9) % layers.max(1));
    let image = |n: usize| {
        format!(
            r#"{{"id":"{}","digest":"sha256:{}","names":["localhost/image-{n}:1"],"layer":"{}","created":"{time}"}}"#,
            id(2, n),
            id(6, n),
            top(n)
        )
    };
    let container_layers =
        (0..containers).map(|n| format!(r#"{{"id":"{}","parent":"{}","created":"{time}"}}"#, id(7, n), top(n)));
    let container = |n: usize| {
        format!(
            r#"{{"id":"{}","names":["container-{n}"],"image":"{}","layer":"{}","created":"{time}","flags":{{"MountLabel":"","ProcessLabel":""}}}}"#,
            id(3, n),
            id(2, n),
            id(7, n)
        )
    };
    let write = |kind: &str, text: String| {
        fs::write(root.join(format!("overlay-{kind}/{kind}.json")), text).unwrap();
    };
    write("layers", array((0..layers).map(layer).chain(container_layers)));
    write("images", array((0..images).map(image)));
    write("containers", array((0..containers).map(container)));
    for (kind, count, name) in [("images", images, 2), ("containers", containers, 3)] {
        for n in 0..count {
            fs::DirBuilder::new().mode(0o700).create(root.join(format!("overlay-{kind}/{}", id(name, n)))).unwrap();
        }
    }
    let home = root.join("overlay");
    let link = |id: &str| id[..26].to_uppercase().replace(['0', '1', '8', '9'], "A");
    let mut chain: Vec<String> = Vec::new();
    let all = (0..layers).map(|n| (id(1, n), n.is_multiple_of(10), None));
    let all = all.chain((0..containers).map(|n| (id(7, n), false, Some((n * 10 + 9) % layers.max(1)))));
    for (id, base, on) in all {
        if base {
            chain.clear();
        }
        if let Some(top) = on {
            chain = (top / 10 * 10..=top).map(|n| self::id(1, n)).collect();
        }
        let dir = home.join(&id);
        for part in ["", "diff", "work", "merged"] {
            fs::create_dir(dir.join(part)).unwrap();
        }
        fs::write(dir.join("link"), link(&id)).unwrap();
        if chain.is_empty() {
            fs::create_dir(dir.join("empty")).unwrap();
        } else {
            let lowers: Vec<String> = chain.iter().rev().map(|below| format!("l/{}", link(below))).collect();
            fs::write(dir.join("lower"), lowers.join(":")).unwrap();
            let ids: Vec<&str> = chain.iter().rev().map(String::as_str).collect();
            fs::write(dir.join("lower-layers"), ids.join(":")).unwrap();
        }
        symlink(format!("../{id}/diff"), home.join("l").join(link(&id))).unwrap();
        chain.push(id);
    }
}
