//! What the integration tests share.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::disallowed_methods, reason = "tests work in directories of their own")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "test code")]
#![allow(unreachable_pub, reason = "a module of test binaries")]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use graph_archive::apply::{ApplyObserver, ContentPlace};
use graph_archive::{Entry, EntryKind, Metadata};

/// A directory's descriptor.
pub fn fd(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

/// Bytes that do not repeat soon.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut state = u64::try_from(length).unwrap() | 1;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        })
        .collect()
}

/// Whether a program can be started; says so if not.
pub fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Programs that make archives, and how.
pub const TAR_MAKERS: &[(&str, &[&str])] = &[
    ("tar", &["--format=v7", "--exclude=*long*", "-cf", "-", "."]),
    ("tar", &["--format=oldgnu", "-cf", "-", "."]),
    ("tar", &["--format=gnu", "-cf", "-", "."]),
    ("tar", &["--format=ustar", "--exclude=*long*", "-cf", "-", "."]),
    ("tar", &["--format=posix", "--xattrs", "-cf", "-", "."]),
    ("tar", &["--format=posix", "--record-size=1024", "-cf", "-", "."]),
    ("bsdtar", &["--format=pax", "-cf", "-", "."]),
    ("bsdtar", &["--format=ustar", "--exclude=*long*", "-cf", "-", "."]),
    ("bsdtar", &["--format=gnutar", "-cf", "-", "."]),
];

/// What a program prints when it packs a directory.
pub fn tar_of(directory: &Path, program: &str, args: &[&str]) -> Option<Vec<u8>> {
    if !have(program) {
        return None;
    }
    let output = Command::new(program).args(args).current_dir(directory).stderr(Stdio::null()).output().unwrap();
    // Old formats cannot hold everything; what they leave out is told by the exit status.
    assert!(output.status.success() || output.stdout.len() > 10_000, "{program} {args:?}");
    Some(output.stdout)
}

/// Files, directories, links, a pipe, long names and names that are not UTF-8.
pub fn sample_tree(root: &Path) {
    use std::os::unix::ffi::OsStrExt;
    fs::create_dir_all(root.join("d/e")).unwrap();
    fs::write(root.join("d/empty"), "").unwrap();
    fs::write(root.join("d/f"), "hi\n").unwrap();
    fs::write(root.join("d/block"), pattern(512)).unwrap();
    fs::write(root.join("d/more"), pattern(100_000)).unwrap();
    fs::hard_link(root.join("d/f"), root.join("d/g")).unwrap();
    std::os::unix::fs::symlink("f", root.join("d/s")).unwrap();
    make_fifo(&root.join("d/p"));
    let long = format!("d/{}", "long".repeat(50));
    fs::write(root.join(&long), "long").unwrap();
    fs::write(root.join("d/<&>\u{2028}ä"), "text").unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"d/long\xff\xfe")), "raw").unwrap();
}

/// A named pipe.
pub fn make_fifo(path: &Path) {
    use graph_sys::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// An archive of plain files.
pub fn simple_tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len().try_into().unwrap());
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Files of an archive, as the `tar` crate sees them.
pub fn files(tar: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.push((entry.path_bytes().into_owned(), content));
        }
    }
    found
}

/// Writes a file below a root, making its directories.
pub fn put(root: &Path, name: &[u8], content: &[u8]) {
    use std::os::unix::ffi::OsStrExt;
    let path = root.join(Path::new(std::ffi::OsStr::from_bytes(name)));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Shows an archive to an observer, read by the `tar` crate.
pub fn observe(tar: &[u8], observer: &mut dyn ApplyObserver) {
    let mut done = 0;
    if tar.iter().any(|byte| *byte != 0) {
        for member in tar::Archive::new(tar).entries().unwrap() {
            let member = member.unwrap();
            let kind = match member.header().entry_type() {
                kind if kind.is_file() => EntryKind::File,
                kind if kind.is_symlink() => EntryKind::Symlink,
                kind if kind.is_hard_link() => EntryKind::HardLink,
                kind if kind.is_dir() => EntryKind::Directory,
                _ => EntryKind::Fifo,
            };
            let size = if kind == EntryKind::File { member.size() } else { 0 };
            let entry = Entry {
                path: member.path_bytes().into_owned(),
                kind,
                link_target: Vec::new(),
                size,
                sparse: None,
                metadata: Metadata::default(),
                offset: member.raw_header_position(),
            };
            let start = usize::try_from(member.raw_file_position()).unwrap();
            let end = start + usize::try_from(size).unwrap();
            observer.raw(&tar[done..start]).unwrap();
            observer.begin(&entry, ContentPlace::OnDisk).unwrap();
            for chunk in tar[start..end].chunks(10_000) {
                observer.content(chunk).unwrap();
            }
            done = end;
        }
    }
    for chunk in tar[done..].chunks(70_000) {
        observer.raw(chunk).unwrap();
    }
}

/// A named pipe, if it can be made.
pub fn try_fifo(path: &Path) {
    use graph_sys::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).ok();
}

/// A store of the packaged containers-storage in a directory.
pub struct PeerStore {
    pub root: std::path::PathBuf,
    driver: &'static str,
}

impl PeerStore {
    /// A new store; `None` where the program is missing or this is not root.
    pub fn new(at: &Path, driver: &'static str) -> Option<Self> {
        if !graph_sys::process::geteuid().is_root() {
            eprintln!("skipped: containers-storage needs root here");
            return None;
        }
        have("containers-storage").then(|| Self { root: at.join(driver), driver })
    }

    /// What a command prints.
    pub fn run(&self, args: &[&str]) -> Vec<u8> {
        let output = Command::new("containers-storage")
            .arg("--graph")
            .arg(self.root.join("graph"))
            .arg("--run")
            .arg(self.root.join("run"))
            .args(["--storage-driver", self.driver])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// A new layer's id.
    pub fn create_layer(&self, parent: Option<&str>) -> String {
        let mut args = vec!["create-layer"];
        args.extend(parent);
        let printed = String::from_utf8(self.run(&args)).unwrap();
        printed.lines().next().unwrap().trim().to_owned()
    }

    /// A layer's directory.
    pub fn layer(&self, id: &str) -> std::path::PathBuf {
        match self.driver {
            "vfs" => self.root.join("graph/vfs/dir").join(id),
            driver => self.root.join("graph").join(driver).join(id).join("diff"),
        }
    }
}

/// Shows an archive to an observer, read by our own decoder, everything taken as being on disk.
pub fn observe_decoded(tar: &[u8], observer: &mut dyn ApplyObserver) {
    let mut decoder = graph_archive::tar::Decoder::new(tar, graph_archive::limits::Limits::default());
    while let Some(entry) = decoder.next_entry(&mut |bytes| observer.raw(bytes)).unwrap() {
        observer.begin(&entry, ContentPlace::OnDisk).unwrap();
        let plain = entry.kind == EntryKind::File && entry.sparse.is_none();
        while let Some(data) = decoder.next_data(&mut |bytes| observer.raw(bytes)).unwrap() {
            if plain {
                observer.content(data.bytes).unwrap();
            }
        }
    }
    decoder.finish(&mut |bytes| observer.raw(bytes)).unwrap();
}
