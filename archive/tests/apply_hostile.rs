//! Archives that are small and ask for much: time, reading back. And names that only links lead to.

#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking
#![allow(clippy::disallowed_methods)] // trees are looked at by path, as their users do

mod apply_support;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use apply_support::{Member, apply_plain, apply_with, dir, file, link, messages, overlay, symlink, tar};
use graph_archive::apply::{ApplyObserver, ApplyOptions, ContentPlace, WhiteoutForm, XattrNamespace, apply};
use graph_archive::limits::Limits;
use graph_archive::split::{DirectoryGetter, GzipPacker, assemble};
use graph_archive::{Defect, Entry, Error, SparseRun};

/// Much more than any of these archives takes, and much less than what they took once.
const SOON: Duration = Duration::from_secs(20);

/// Counts what is read back.
#[derive(Default)]
struct Lost {
    bytes: u64,
    sizes: Vec<u64>,
}

impl ApplyObserver for Lost {
    fn raw(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn begin(&mut self, _: &Entry, _: ContentPlace) -> io::Result<()> {
        Ok(())
    }
    fn content(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn lost(&mut self, content: &mut dyn Read, size: u64) -> io::Result<()> {
        self.sizes.push(size);
        // No more than it takes to see that it is asked.
        self.bytes += io::copy(&mut content.take(1 << 20), &mut io::sink())?;
        Ok(())
    }
}

fn sparse(path: &str, size: u64) -> Member {
    let mut member = file(path, "x");
    member.entry.size = size;
    member.entry.sparse = Some(vec![SparseRun { offset: 0, length: 1 }]);
    member
}

/// Applies with an observer; the sizes of what was lost.
fn lost(members: &[Member]) -> Vec<u64> {
    let scratch = tempfile::tempdir().unwrap();
    let mut observer = Lost::default();
    let options = ApplyOptions { observer: Some(&mut observer), ..ApplyOptions::default() };
    apply_with(scratch.path(), members, options).unwrap();
    observer.sizes
}

#[test]
fn only_contents_that_nobody_else_has_are_read_back() {
    assert_eq!(lost(&[file("a", "content"), file("a", "")]), [7]);
    assert_eq!(lost(&[file("d/a", "content"), file("d", "")]), [7]);
    // Bytes of sparse members go to the observer as raw bytes. One header can make them as big as a disk.
    assert_eq!(lost(&[sparse("a", 1 << 35), file("a", ""), sparse("d/a", 1 << 35), file("d", "")]), [0; 0]);
    // A link has no content of its own, whatever it is linked to.
    let links = [file("a", "content"), link("l", "a"), file("l", ""), link("d/l", "a"), link("d", "a"), link("d", "a")];
    assert_eq!(lost(&links), [0; 0]);
    // A name that was one, and then a file.
    assert_eq!(lost(&[file("a", "1"), link("l", "a"), file("l", "22"), file("l", ""), sparse("a", 9)]), [2, 1]);
    // Through links, members are kept by the observer anyway.
    assert_eq!(lost(&[dir("d"), symlink("l", "d"), file("l/a", "333"), file("d/a", "4444"), file("d/a", "")]), [4]);
}

#[test]
fn archives_that_replace_sparse_members_and_links_come_out_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let (root, store) = (scratch.path().join("root"), scratch.path().join("store"));
    for path in [&root, &store] {
        std::fs::create_dir(path).unwrap();
    }
    let archive = tar(&[
        sparse("s", 1 << 28),
        file("s", "now a file"),
        file("a", "content"),
        link("l", "a"),
        file("l", "own"),
        file("a", "other"),
        link("m", "l"),
        file("l", "last"),
    ]);
    let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
    let records = File::options().read(true).write(true).create_new(true).open(store.join("records")).unwrap();
    let mut packer = GzipPacker::new(records, open(&store));
    let options = ApplyOptions { observer: Some(&mut packer), ..ApplyOptions::default() };
    apply(open(&root).as_fd(), archive.as_slice(), options).unwrap();
    let getter = DirectoryGetter::new(open(&root), Vec::new());
    packer.finish(&getter).unwrap();
    let mut out = Vec::new();
    let records = flate_read(&std::fs::read(store.join("records")).unwrap());
    assemble(records.as_slice(), &getter, &mut out).unwrap();
    assert!(out == archive);
}

fn flate_read(bytes: &[u8]) -> Vec<u8> {
    let limits = graph_archive::limits::Limits::NONE;
    let mut out = Vec::new();
    graph_archive::compress::Decompressor::new(bytes, &limits).unwrap().read_to_end(&mut out).unwrap();
    out
}

#[test]
fn links_that_go_up_and_down_take_no_time() {
    let scratch = tempfile::tempdir().unwrap();
    // Deep, and every link goes up and down as often as a link can.
    let deep = ["d"; 900].join("/");
    let mut members = vec![dir(format!("{deep}/x"))];
    let last = 38;
    for number in 0..=last {
        let next = if number == last { "x".to_owned() } else { format!("l{}", number + 1) };
        members.push(symlink(format!("{deep}/l{number}"), format!("{}{next}", "x/../".repeat(700))));
    }
    for number in 0..5 {
        members.push(file(format!("{deep}/l0/{number}"), ""));
    }
    let start = Instant::now();
    apply_plain(scratch.path(), &members).unwrap();
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[test]
fn repeated_opaque_marks_take_no_time() {
    let lower = tempfile::tempdir().unwrap();
    for form in [None, Some(false), Some(true)] {
        let scratch = tempfile::tempdir().unwrap();
        let mut members: Vec<_> = (0..3000).map(|number| file(format!("d/e/{number}"), "")).collect();
        for number in 0..3000 {
            members.push(file("d/e/.wh..wh..opq", ""));
            members.push(file("d/.wh.e", ""));
            members.push(file(".wh.d", ""));
            members.push(file(format!("d/e/more{number}"), ""));
        }
        let options = match form {
            None => ApplyOptions::default(),
            Some(with_lower) => {
                std::fs::create_dir_all(lower.path().join("other")).unwrap();
                if with_lower {
                    std::fs::create_dir_all(lower.path().join("d/e/f")).unwrap();
                }
                overlay(XattrNamespace::Trusted, WhiteoutForm::CharDevice, &[lower.path().to_owned()])
            }
        };
        let start = Instant::now();
        apply_with(scratch.path(), &members, options).unwrap();
        assert!(start.elapsed() < SOON, "{form:?}: {:?}", start.elapsed());
        assert_eq!(std::fs::read_dir(scratch.path().join("d/e")).unwrap().count(), 6000);
    }
}

#[test]
fn whiteout_names_are_not_made_through_links_either() {
    for target in ["a/.wh.b", ".wh.b", ".wh..wh..opq/c", "a/.wh..wh.plnk"] {
        let scratch = tempfile::tempdir().unwrap();
        let error = apply_plain(scratch.path(), &[symlink("l", target), file("l/f", "")]).unwrap_err();
        let invalid = matches!(error, Error::Input { defect: Defect::InvalidWhiteout, .. });
        assert!(invalid, "{target}: {}", messages(&error));
        // Looking is not making.
        let looks = [symlink("l", target), file("l/.wh.f", "")];
        apply_plain(&scratch.path().join("look"), &looks).unwrap();
    }
}

#[test]
fn directories_that_nobody_states_count_as_members() {
    let scratch = tempfile::tempdir().unwrap();
    let limits = Limits { entries: 500, ..Limits::default() };
    let options = || ApplyOptions { limits: limits.clone(), ..ApplyOptions::default() };
    let deep = |root: &str| file(format!("{root}/{}f", "d/".repeat(300)), "");
    apply_with(scratch.path(), &[deep("a"), deep("a")], options()).unwrap();
    let error = apply_with(scratch.path(), &[deep("b"), deep("c")], options()).unwrap_err();
    assert!(matches!(error, Error::Limit { limit: "entries", maximum: 500, found: 501, .. }), "{error:?}");
}
