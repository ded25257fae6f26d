//! Layers applied in a sandbox with canaries around it, in both forms, which must agree.
#![no_main]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use graph_archive::apply::{ApplyOptions, OverlayOptions, Style, WhiteoutForm, XattrNamespace, apply};
use graph_archive::limits::Limits;
use graph_archive::tar::{EncodeOptions, Encoder};
use graph_archive::{Entry, EntryKind, Metadata, Timestamp};
use graph_sys::mount::{FsContext, MountAttrFlags};
use libfuzzer_sys::fuzz_target;

const NAMES: [&[u8]; 16] = [
    b"a",
    b"b",
    b"c",
    b"a",
    b"b",
    b"c",
    b".wh.a",
    b".wh.b",
    b".wh.c",
    b".wh..wh..opq",
    b"..",
    b"",
    b".wh..",
    b"...",
    b".wh..wh.plnk",
    b"\xff",
];
const TARGETS: [&[u8]; 8] = [b"..", b"/", b"/a", b"b", b"../../victim", b"/victim", b"a/b", b"c/../a"];

static YARD: LazyLock<PathBuf> = LazyLock::new(|| {
    let yard = PathBuf::from(format!("/dev/shm/graph-fuzz-apply-{}", std::process::id()));
    fs::create_dir_all(yard.join("victim/below")).unwrap();
    fs::create_dir_all(yard.join("in/victim")).unwrap();
    for canary in ["victim/hello", "victim/below/deep", "in/victim/hello", "canary", "in/canary"] {
        fs::write(yard.join(canary), "canary").unwrap();
    }
    yard
});

/// Reads numbers from the fuzzer's bytes; zeros after their end.
struct Bytes<'b>(&'b [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
    fn path(&mut self) -> Vec<u8> {
        let count = self.next() % 4 + 1;
        (0..count).map(|_| NAMES[usize::from(self.next() % 16)]).collect::<Vec<_>>().join(&b'/')
    }
    fn member(&mut self) -> (Entry, Vec<u8>) {
        let (kind, link_target, content) = match self.next() % 12 {
            0..3 => (EntryKind::File, Vec::new(), vec![b'x'; usize::from(self.next())]),
            3..6 => (EntryKind::Directory, Vec::new(), Vec::new()),
            6 => (EntryKind::Symlink, TARGETS[usize::from(self.next() % 8)].to_vec(), Vec::new()),
            7 => (EntryKind::HardLink, self.path(), Vec::new()),
            8 => (EntryKind::Fifo, Vec::new(), Vec::new()),
            9 => {
                let device = EntryKind::CharDevice { major: u32::from(self.next() % 2) << 12 | 1, minor: 3 };
                (device, Vec::new(), Vec::new())
            }
            _ => (EntryKind::File, Vec::new(), Vec::new()),
        };
        let path = self.path();
        let bits = self.next();
        let mode = if bits & 1 == 0 { 0o755 } else { u32::from(self.next()) << 4 | 0o2 };
        let mut xattrs = Vec::new();
        if bits & 2 != 0 && kind != EntryKind::HardLink {
            xattrs.push((b"trusted.overlay.opaque".to_vec(), b"y".to_vec()));
            xattrs.push((b"trusted.overlay.redirect".to_vec(), b"/victim".to_vec()));
        }
        let metadata = Metadata {
            mode: mode & 0o7777,
            uid: u32::from(bits >> 6),
            gid: u32::from(bits >> 4 & 3),
            mtime: Timestamp { seconds: i64::from(bits) - 100, nanoseconds: 5 },
            xattrs,
            ..Metadata::default()
        };
        let size = content.len() as u64;
        (Entry { path, kind, link_target, size, sparse: None, metadata, offset: 0 }, content)
    }
}

fn archive(bytes: &mut Bytes<'_>, first: bool) -> Vec<u8> {
    let options = EncodeOptions { nanoseconds: true, access_times: false, sparse: false };
    let mut encoder = Encoder::with_options(Vec::new(), options);
    if first {
        let metadata = Metadata { mode: 0o755, ..Metadata::default() };
        let root = Entry {
            path: b"./".to_vec(),
            kind: EntryKind::Directory,
            link_target: Vec::new(),
            size: 0,
            sparse: None,
            metadata,
            offset: 0,
        };
        encoder.write_entry(&root).unwrap();
    }
    for _ in 0..bytes.next() % 10 {
        let (entry, content) = bytes.member();
        // What cannot be written is left out.
        if encoder.write_entry(&entry).is_ok() {
            encoder.append(&content).unwrap();
        }
    }
    encoder.finish().unwrap()
}

type Seen = BTreeMap<PathBuf, (u32, u32, u32, i64, i64, u64, Vec<u8>)>;

fn look(root: &Path, metadata: &fs::Metadata) -> (u32, u32, u32, i64, i64, u64, Vec<u8>) {
    let content = match metadata.file_type() {
        kind if kind.is_symlink() => fs::read_link(root).unwrap().as_os_str().as_bytes().to_vec(),
        kind if kind.is_file() => fs::read(root).unwrap(),
        _ => Vec::new(),
    };
    let device = if metadata.mode() & 0o170_000 == 0o20_000 { metadata.rdev() } else { 0 };
    let times = (metadata.mtime(), metadata.mtime_nsec());
    (metadata.mode(), metadata.uid(), metadata.gid(), times.0, times.1, device, content)
}

fn tree(root: &Path) -> Seen {
    let mut seen = Seen::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(at) = pending.pop() {
        let here = if at.as_os_str().is_empty() { root.to_path_buf() } else { root.join(&at) };
        let metadata = fs::symlink_metadata(&here).unwrap();
        seen.insert(at.clone(), look(&here, &metadata));
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&here).unwrap().map(|entry| at.join(entry.unwrap().file_name())));
        }
    }
    seen
}

/// What lies around the sandbox.
fn around() -> Seen {
    let mut seen = Seen::new();
    for part in ["victim", "in/victim", "canary", "in/canary"] {
        seen.extend(tree(&YARD.join(part)).into_iter().map(|(path, node)| (Path::new(part).join(path), node)));
    }
    for (part, count) in [("", 3), ("in", 3)] {
        assert_eq!(fs::read_dir(YARD.join(part)).unwrap().count(), count, "something new beside the root");
    }
    seen
}

fn limits() -> Limits {
    Limits { entries: 1000, total_bytes: 4 << 20, ..Limits::default() }
}

fn plain(root: &Path, archive: &[u8]) -> Result<(), String> {
    let root = File::open(root).unwrap();
    let options = ApplyOptions { limits: limits(), ..ApplyOptions::default() };
    apply(root.as_fd(), archive, options).map(|_| ()).map_err(|error| error.to_string())
}

fn overlay(root: &Path, archive: &[u8], lowers: &[PathBuf]) -> Result<(), String> {
    let lowers = lowers.iter().map(|lower| OwnedFd::from(File::open(lower).unwrap())).collect();
    let root = File::open(root).unwrap();
    let overlay = OverlayOptions {
        namespace: XattrNamespace::Trusted,
        whiteout: WhiteoutForm::CharDevice,
        lowers,
        lowers_unknown: false,
    };
    let options = ApplyOptions { style: Style::Overlay(overlay), limits: limits(), ..ApplyOptions::default() };
    apply(root.as_fd(), archive, options).map(|_| ()).map_err(|error| error.to_string())
}

fn mounted(lowers: &[PathBuf], empty: &Path) -> Option<OwnedFd> {
    let context = FsContext::open("overlay").ok()?;
    for lower in lowers {
        context.set_string("lowerdir+", lower.as_os_str().as_bytes()).ok()?;
    }
    context.set_string("lowerdir+", empty.as_os_str().as_bytes()).ok()?;
    context.create(MountAttrFlags::MOUNT_ATTR_RDONLY).ok().map(OwnedFd::from)
}

fn run(data: &[u8], root: &Path) {
    let (tree_root, empty) = (root.join("plain"), root.join("empty"));
    fs::create_dir(&tree_root).unwrap();
    fs::create_dir(&empty).unwrap();
    if let Some(raw) = data.strip_prefix(b"R") {
        let layer = root.join("layer");
        fs::create_dir(&layer).unwrap();
        // Whether they take it does not matter: the second sees what the first has made.
        let _plain = plain(&tree_root, raw);
        let _overlay = overlay(&layer, raw, std::slice::from_ref(&tree_root));
        return;
    }
    let mut bytes = Bytes(data);
    let mut lowers: Vec<PathBuf> = Vec::new();
    for number in 0..=bytes.next() % 4 {
        let archive = archive(&mut bytes, number == 0);
        let layer = root.join(format!("layer{number}"));
        fs::create_dir(&layer).unwrap();
        let by_plain = plain(&tree_root, &archive);
        let by_overlay = overlay(&layer, &archive, &lowers);
        assert_eq!(by_plain, by_overlay, "layer {number}");
        if by_plain.is_err() {
            return;
        }
        lowers.insert(0, layer);
        if let Some(mount) = mounted(&lowers, &empty) {
            let shown = PathBuf::from(format!("/proc/self/fd/{}/.", mount.as_raw_fd()));
            assert_eq!(tree(&tree_root), tree(&shown), "layer {number}");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let root = YARD.join("in/root");
    fs::create_dir(&root).unwrap();
    let before = around();
    run(data, &root);
    assert_eq!(around(), before, "something outside the root has changed");
    let inside = File::open(YARD.join("in")).unwrap();
    graph_sys::remove::remove_tree(&inside, "root").unwrap();
});
