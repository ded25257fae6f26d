//! What goes wrong in the middle: a full disk, a failing source, a cut archive. And what other programs archive.

#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking
#![allow(clippy::disallowed_methods)] // trees are looked at by path, as their users do
#![allow(clippy::print_stderr)] // skipped tests say why

mod apply_support;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use apply_support::{dir, file, link, messages, symlink, tar, tree};
use graph_archive::apply::{ApplyOptions, apply};
use graph_archive::limits::Limits;
use graph_archive::{Error, ErrorKind};
use graph_sys::mount::{FsContext, MountAttrFlags};

#[test]
fn root_a_full_disk() {
    let context = FsContext::open("tmpfs").unwrap();
    context.set_string("size", b"1m").unwrap();
    let Ok(small) = context.create(MountAttrFlags::empty()) else {
        eprintln!("skipped: no tmpfs can be mounted here");
        return;
    };
    let layer = tar(&[file("fits", vec![1; 100_000]), file("usr/lib/big", vec![1; 2_000_000]), file("after", "")]);
    let error = apply(small.as_fd(), layer.as_slice(), ApplyOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "write \"usr/lib/big\"");
    let Error::Io { source, .. } = error else { panic!("not an I/O error") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);

    // Out of inodes.
    let context = FsContext::open("tmpfs").unwrap();
    context.set_string("nr_inodes", b"20").unwrap();
    let small = context.create(MountAttrFlags::empty()).unwrap();
    let many: Vec<_> = (0..40).map(|number| file(format!("d/{number}"), "")).collect();
    let error = apply(small.as_fd(), tar(&many).as_slice(), ApplyOptions::default()).unwrap_err();
    assert!(error.to_string().starts_with("create file \"d/"), "{error}");
}

#[test]
fn root_a_read_only_root() {
    let context = FsContext::open("tmpfs").unwrap();
    let Ok(still) = context.create(MountAttrFlags::MOUNT_ATTR_RDONLY) else {
        eprintln!("skipped: no tmpfs can be mounted here");
        return;
    };
    let error = apply(still.as_fd(), tar(&[file("f", "")]).as_slice(), ApplyOptions::default()).unwrap_err();
    assert!(messages(&error).contains("Read-only file system"), "{}", messages(&error));
}

/// Gives `good` bytes and then fails as a disk does.
struct Failing<'b>(&'b [u8]);

impl Read for Failing<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.0.read(out)? {
            0 => Err(io::Error::from_raw_os_error(5)),
            count => Ok(count),
        }
    }
}

#[test]
fn a_failing_source() {
    let layer = tar(&[dir("d"), file("d/f", vec![1; 300_000]), symlink("s", "d")]);
    for cut in [0, 100, 512, 1024, 2000, 100_000, layer.len() - 1024, layer.len()] {
        let scratch = tempfile::tempdir().unwrap();
        let root = File::open(scratch.path()).unwrap();
        let error = apply(root.as_fd(), Failing(&layer[..cut]), ApplyOptions::default()).unwrap_err();
        assert!(messages(&error).contains("Input/output error"), "{cut}: {}", messages(&error));
    }
}

#[test]
fn a_cut_archive() {
    let long = "long-name/".repeat(30);
    let layer = tar(&[
        dir("d").xattr("user.x", "y"),
        file("d/f", vec![1; 3000]),
        file(format!("{long}f"), "x").time(-5, 5),
        link("d/l", "d/f"),
        symlink("s", "d"),
    ]);
    let mut complete = 0;
    // Around every block, and some in between.
    let cuts = (0..layer.len()).filter(|cut| matches!(cut % 512, 0 | 1 | 511) || cut % 97 == 0);
    for cut in cuts {
        let scratch = tempfile::tempdir().unwrap();
        let root = File::open(scratch.path()).unwrap();
        match apply(root.as_fd(), &layer[..cut], ApplyOptions::default()) {
            // Between members nobody can tell that there should be more.
            Ok(report) => {
                assert_eq!(report.bytes, cut as u64);
                complete += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "cut at {cut}: {}", messages(&error));
                assert!(messages(&error).contains("unexpected EOF"), "cut at {cut}: {}", messages(&error));
            }
        }
    }
    assert!((6..60).contains(&complete), "{complete}");
}

#[test]
fn limits_end_it() {
    let scratch = tempfile::tempdir().unwrap();
    let root = File::open(scratch.path()).unwrap();
    let many: Vec<_> = (0..20).map(|number| file(number.to_string(), "")).collect();
    let options = ApplyOptions { limits: Limits { entries: 10, ..Limits::default() }, ..ApplyOptions::default() };
    let error = apply(root.as_fd(), tar(&many).as_slice(), options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.to_string().starts_with("entries is limited to 10"), "{error}");

    // Links that wait for their targets are kept in memory, so there is an end to it.
    let name = "x".repeat(200);
    let waiting: Vec<_> = (0..40_000).map(|number| link(format!("{name}{number}"), "never")).collect();
    let error = apply(root.as_fd(), tar(&waiting).as_slice(), ApplyOptions::default()).unwrap_err();
    assert!(error.to_string().starts_with("memory for hard links to later members is limited to"), "{error}");
}

/// Trees that other programs archive come out as they were.
#[test]
fn root_archives_of_other_programs() {
    let source = tempfile::tempdir().unwrap();
    let make = r#"
        set -e
        mkdir -p usr/bin usr/lib/deep/er etc empty var/tmp
        chmod 1777 var/tmp; chmod 700 etc; chmod 2755 usr/lib
        echo program > usr/bin/program; chmod 4755 usr/bin/program; chown 12:34 etc usr/lib/deep
        ln usr/bin/program usr/bin/other; ln -s ../bin/program usr/lib/link; ln -s /nowhere dangling
        mkfifo etc/pipe; mknod etc/null c 1 3; mknod etc/disk b 7 200
        printf 'a\nb' > "etc/odd name"; touch -d '1969-12-31 23:00:00.25 UTC' etc/old
        head -c 3000000 /dev/urandom > usr/lib/deep/er/random
        truncate -s 10M etc/sparse; printf data | dd of=etc/sparse bs=1 seek=5000000 conv=notrunc status=none
        setfattr -n user.kind -v test etc/old; setfattr -n trusted.kind -v test usr/lib
        setcap cap_net_raw+ep usr/lib/deep/er/random
        touch -d '2001-02-03 04:05:06.789 UTC' usr etc empty var usr/lib/deep .
    "#;
    let made = Command::new("sh").args(["-c", make]).current_dir(source.path()).output().unwrap();
    if !made.status.success() {
        eprintln!("skipped: the tree cannot be made here: {}", String::from_utf8_lossy(&made.stderr));
        return;
    }
    let programs: [(&str, &[&str], bool); 3] = [
        ("tar", &["--format=pax", "--sparse", "--xattrs", "--xattrs-include=*", "-cf", "-", "."], true),
        ("tar", &["--format=gnu", "-cf", "-", "."], false),
        ("bsdtar", &["--format=pax", "-cf", "-", "."], true),
    ];
    for (program, arguments, everything) in programs {
        let archive = match Command::new(program).args(arguments).current_dir(source.path()).output() {
            Ok(output) if output.status.success() => output.stdout,
            output => {
                eprintln!("skipped: {program} cannot archive here: {output:?}");
                continue;
            }
        };
        let scratch = tempfile::tempdir().unwrap();
        let root = File::open(scratch.path()).unwrap();
        let report = apply(root.as_fd(), archive.as_slice(), ApplyOptions::default()).unwrap();
        assert_eq!((report.bytes, report.notices), (archive.len() as u64, vec![]), "{program}");
        let (mut expected, mut found) = (tree(source.path()), tree(scratch.path()));
        assert_eq!(found.groups(), expected.groups(), "{program}");
        expected.same.clear();
        found.same.clear();
        if !everything {
            for node in expected.nodes.values_mut() {
                node.xattrs.clear();
                node.mtime.1 = 0;
            }
        }
        if arguments[0] != "--format=pax" || program != "tar" {
            // Only GNU tar's PAX archives state times before the epoch right.
            expected.nodes.remove(Path::new("etc/old"));
            found.nodes.remove(Path::new("etc/old"));
        }
        // Not as one: a tree of some megabytes is no message.
        assert_eq!(found.paths(), expected.paths(), "{program}");
        for (path, node) in &expected.nodes {
            assert!(found.nodes.get(path) == Some(node), "{program} {arguments:?}: {}", path.display());
        }
    }
}
