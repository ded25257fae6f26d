//! What belongs to the process: its umask, its descriptors, its memory. One test, as they are the whole process's.

#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking
#![allow(clippy::disallowed_methods)] // trees are looked at by path, as their users do

mod apply_support;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use apply_support::{apply_plain, dir, file, member, tar};
use graph_archive::EntryKind;
use graph_archive::apply::{ApplyOptions, apply};
use graph_sys::fs::Mode;
use graph_sys::process::{Resource, Rlimit, getrlimit, setrlimit, umask};

#[test]
fn umask_descriptors_and_memory() {
    any_umask();
    few_descriptors();
    deep_trees_are_replaced_with_few_descriptors();
    little_memory();
}

fn any_umask() {
    for mask in [0, 0o022, 0o077, 0o777] {
        let scratch = tempfile::tempdir().unwrap();
        let before = umask(Mode::from_raw_mode(mask));
        let layer = [
            file("f", "").mode(0o666),
            file("suid", "").mode(0o6777),
            dir("d").mode(0o777),
            member("p", EntryKind::Fifo).mode(0o666),
            file("implied/f", "").mode(0o644),
        ];
        apply_plain(scratch.path(), &layer).unwrap();
        assert_eq!(umask(before), Mode::from_raw_mode(mask), "it has been changed");
        let mode = |path| std::fs::symlink_metadata(scratch.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            [mode("f"), mode("suid"), mode("d"), mode("p"), mode("implied"), mode("implied/f")],
            [0o666, 0o6777, 0o777, 0o666, 0o755, 0o644],
            "umask {mask:o}"
        );
    }
}

fn few_descriptors() {
    let scratch = tempfile::tempdir().unwrap();
    let root = File::open(scratch.path()).unwrap();
    let mut members = Vec::new();
    for round in 0..2 {
        for number in 0..400 {
            members.push(file(format!("{number}/a/b/{round}"), "x"));
        }
        for number in 0..400 {
            members.push(dir(format!("{number}/a")).time(number, 5));
        }
    }
    let archive = tar(&members);
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(40), maximum: before.maximum }).unwrap();
    let report = apply(root.as_fd(), archive.as_slice(), ApplyOptions::default());
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(report.unwrap().entries, 1600);
    for number in [0, 7, 399] {
        let made = scratch.path().join(format!("{number}/a"));
        assert_eq!(std::os::unix::fs::MetadataExt::mtime(&std::fs::metadata(&made).unwrap()), number);
        assert!(made.join("b/0").exists() && made.join("b/1").exists());
    }
}

/// An archive of many members that is never in memory.
struct Many {
    numbers: std::ops::Range<u32>,
    block: Vec<u8>,
}

impl Read for Many {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.block.is_empty()
            && let Some(number) = self.numbers.next()
        {
            let name = format!("some/directory-{}/file-{number}", number / 50);
            self.block = tar(&[file(name, "").owner(number % 1000, 0)]);
            self.block.truncate(self.block.len() - 1024);
        }
        let count = self.block.len().min(out.len());
        out[..count].copy_from_slice(&self.block[..count]);
        self.block.drain(..count);
        Ok(count)
    }
}

/// Peak and present resident memory in KiB.
fn resident() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    };
    (field("VmHWM:"), field("VmRSS:"))
}

fn little_memory() {
    // A root that is not empty, so that what is whose has to be remembered.
    let scratch = tempfile::tempdir().unwrap();
    let lower: Vec<_> = (0..2000).map(|number| dir(format!("some/directory-{number}"))).collect();
    apply_plain(scratch.path(), &lower).unwrap();
    let root = File::open(scratch.path()).unwrap();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (_, before) = resident();
    let report = apply(root.as_fd(), Many { numbers: 0..100_000, block: Vec::new() }, ApplyOptions::default()).unwrap();
    let (peak, _) = resident();
    assert_eq!(report.entries, 100_000);
    assert!(peak - before < 8 * 1024, "{} KiB more at the peak", peak - before);
}

fn deep_trees_are_replaced_with_few_descriptors() {
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(200), maximum: before.maximum }).unwrap();
    let deep = ["d"; 1500].join("/");
    for lower in [false, true] {
        for end in [file("d", "now a file"), file(".wh.d", ""), file(".wh..wh..opq", "")] {
            let scratch = tempfile::tempdir().unwrap();
            let tree = vec![
                file(format!("{deep}/f"), ""),
                file("d/z", "1"),
                file("d/d/d/b", "1"),
                dir("d/d/c").time(5, 5),
                dir("d/d").time(6, 6),
            ];
            let own = [file(format!("{deep}/own"), ""), file("d/own", "")];
            let whiteout = end.entry.path != b"d";
            if lower {
                apply_plain(scratch.path(), &tree).unwrap();
                apply_plain(scratch.path(), &[&own[..], &[end]].concat()).unwrap();
            } else {
                apply_plain(scratch.path(), &[&tree[..], &own, &[end]].concat()).unwrap();
            }
            let at = |path: &str| scratch.path().join(path).symlink_metadata().is_ok();
            assert_eq!(
                (at("d/z"), at("d/d/d/b"), at("d/d/c"), at("d/own")),
                match (whiteout, lower) {
                    (false, _) => (false, false, false, false),
                    (true, true) => (false, false, false, true),
                    (true, false) => (true, true, true, true),
                }
            );
            graph_sys::remove::remove_tree(File::open(scratch.path()).unwrap(), "d").unwrap();
        }
    }
    setrlimit(Resource::Nofile, before).unwrap();
}
