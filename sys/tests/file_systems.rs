//! What depends on the file system, on the four that layers are kept on: copying, attributes, mapped mounts, probes.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on fails, and says what it skips")]

use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use graph_sys::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use graph_sys::idmap::{IdRange, UserNamespace};
use graph_sys::mount::DetachedMount;
use graph_sys::probe::{self, Support};
use graph_sys::reflink::{self, CopyMethod};
use graph_sys::statfs::{Magic, magic};
use graph_sys::{extents, io, special, statx, sync, xattr};

struct Kind {
    name: &'static str,
    make: Option<&'static [&'static str]>,
    magic: Magic,
    reflinks: bool,
}

const KINDS: [Kind; 4] = [
    Kind { name: "ext4", make: Some(&["mkfs.ext4", "-q", "-F"]), magic: Magic::EXT, reflinks: false },
    Kind { name: "xfs", make: Some(&["mkfs.xfs", "-q", "-f", "-K"]), magic: Magic::XFS, reflinks: true },
    Kind { name: "btrfs", make: Some(&["mkfs.btrfs", "-q", "-f", "-K"]), magic: Magic::BTRFS, reflinks: true },
    Kind { name: "tmpfs", make: None, magic: Magic::TMPFS, reflinks: false },
];

/// Mounts a fresh file system at `target`; `false`, said aloud, where it cannot be made. The loop device frees itself.
fn mount(kind: &Kind, scratch: &Path, target: &Path) -> bool {
    let run = |program: &str, arguments: &[&str], paths: &[&Path]| {
        Command::new(program).args(arguments).args(paths).output().is_ok_and(|output| output.status.success())
    };
    let Some([program, options @ ..]) = kind.make else {
        return run("mount", &["-t", "tmpfs", "tmpfs"], &[target]);
    };
    let image = scratch.join("image");
    std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
    let mounted = run(program, options, &[&image]) && run("mount", &["-o", "loop"], &[&image, target]);
    std::fs::remove_file(&image).unwrap();
    if !mounted {
        eprintln!("skipped: {} cannot be made or mounted here", kind.name);
    }
    mounted
}

fn create(dir: impl AsFd, name: &str) -> std::os::fd::OwnedFd {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    graph_sys::fs::openat(dir, name, flags, Mode::from(0o600)).unwrap()
}

fn check(kind: &Kind, target: &Path) {
    let root = graph_sys::fs::openat(CWD, target, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    assert_eq!(magic(&root).unwrap(), kind.magic);

    // Copies, with a hole in front and one behind.
    let source = create(&root, "source");
    let content: Vec<u8> = (0..300_000_u32).map(|n| (n / 7 % 251) as u8).collect();
    assert_eq!(io::pwrite(&source, &content, 4 << 20).unwrap(), content.len());
    graph_sys::fs::ftruncate(&source, 16 << 20).unwrap();
    let copy = create(&root, "copy");
    let copied = reflink::copy_content(&copy, &source).unwrap();
    let expected = if kind.reflinks { CopyMethod::Reflink } else { CopyMethod::InKernel };
    assert_eq!((copied.method, copied.size), (expected, 16 << 20));
    let mut back = vec![0; 16 << 20];
    let mut at = 0;
    while at < back.len() {
        match io::pread(&copy, &mut back[at..], at as u64).unwrap() {
            0 => break,
            length => at += length,
        }
    }
    assert!(at == 16 << 20 && back[4 << 20..][..content.len()] == content);
    assert!(back[..4 << 20].iter().all(|&byte| byte == 0) && back[(4 << 20) + content.len()..].iter().all(|&b| b == 0));
    sync::syncfs(&root).unwrap();
    assert!(statx::metadata(&copy, b"").unwrap().blocks * 512 < 1 << 20, "the holes were filled");
    let support = if kind.reflinks { Support::Works } else { Support::Missing };
    assert_eq!(probe::reflinks(&root).unwrap(), support);
    assert_eq!(probe::unnamed_files(&root).unwrap(), Support::Works);
    let shared = [&source, &copy].map(|file| extents::shared_bytes(file).unwrap());
    match (kind.reflinks, kind.magic) {
        (true, _) => assert!(shared.iter().all(|shared| shared.is_some_and(|b| (300_000..1 << 20).contains(&b)))),
        (false, Magic::TMPFS) => assert_eq!(shared, [None; 2]),
        (false, _) => assert_eq!(shared, [Some(0); 2]),
    }
    let alone = create(&root, "alone");
    assert_eq!(io::pwrite(&alone, &content, 0).unwrap(), content.len());
    sync::syncfs(&root).unwrap();
    assert_eq!(extents::shared_bytes(&alone).unwrap().unwrap_or(0), 0);

    // Across file systems.
    let elsewhere = tempfile::tempfile().unwrap();
    let copied = reflink::copy_content(&elsewhere, &source).unwrap();
    assert_eq!(copied.size, 16 << 20);
    assert_ne!(copied.method, CopyMethod::Reflink);
    let mut middle = vec![0; 1000];
    io::pread(&elsewhere, &mut middle, 4 << 20).unwrap();
    assert_eq!(middle, content[..1000]);

    // Attributes.
    for namespace in [&b"user."[..], b"trusted.", b"security."] {
        assert_eq!(probe::xattrs(&root, namespace).unwrap(), Support::Works, "{namespace:?}");
    }
    let value = vec![1; 900];
    xattr::set_at(&root, b"copy", b"user.x", &value, xattr::SetMode::Create).unwrap();
    assert_eq!(xattr::get(&copy, b"user.x").unwrap(), Some(value));

    // Whiteouts and mapped ids.
    special::make_whiteout(&root, b"whiteout").unwrap();
    let stat = graph_sys::fs::statat(&root, "whiteout", AtFlags::SYMLINK_NOFOLLOW).unwrap();
    assert!(special::is_whiteout(&stat));
    assert_eq!(probe::mapped_mounts(&root).unwrap(), Support::Works);
    let range = IdRange { inside: 0, outside: 300_000, count: 1000 };
    let namespace = UserNamespace::with_ranges(&[range], &[range]).unwrap();
    let mapped = DetachedMount::copy_of(&root, b"", false).unwrap();
    mapped.map_ids(&namespace, false).unwrap();
    let seen = graph_sys::fs::statat(&mapped, "copy", AtFlags::SYMLINK_NOFOLLOW).unwrap();
    assert_eq!((seen.st_uid, seen.st_gid), (300_000, 300_000));

    // Birth times, and types in directories.
    assert!(statx::metadata(&copy, b"").unwrap().btime.is_some());
    let names = graph_sys::getdents::read_sorted(&root, &mut graph_sys::getdents::DirBuffer::new()).unwrap();
    let of = |name: &[u8]| names.iter().find(|entry| entry.name == name).unwrap().file_type;
    assert_eq!((of(b"copy"), of(b"whiteout")), (FileType::RegularFile, FileType::CharacterDevice));
}

#[test]
fn root_all_file_systems() {
    if !graph_sys::process::geteuid().is_root() {
        eprintln!("skipped: making file systems needs root");
        return;
    }
    let thread = std::thread::spawn(|| {
        // The thread's mounts end with it, whatever fails.
        graph_sys::namespace::private_mounts().unwrap();
        for kind in &KINDS {
            let (scratch, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            if mount(kind, scratch.path(), target.path()) {
                check(kind, target.path());
                let path = target.path().as_os_str().as_encoded_bytes();
                // Nothing of ours keeps it busy.
                graph_sys::mount::classic::unmount(path, graph_sys::mount::UnmountFlags::empty())
                    .unwrap_or_else(|error| panic!("{}: {error}", kind.name));
            }
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
