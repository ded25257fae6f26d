use super::*;
use crate::error::ErrorKind;
use crate::mount_attr::{MountAttributes, Propagation};
use crate::mountinfo;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Runs a test that mounts on a thread with mounts of its own; says so when it cannot.
fn with_private_mounts(test: impl FnOnce(&Path) + Send) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            crate::namespace::private_mounts().unwrap();
            let temp = tempfile::tempdir().unwrap();
            // All tests run on a tmpfs of their own, so that nothing stays behind, whatever fails.
            let flags = MountFlags::empty();
            let path = temp.path().as_os_str().as_bytes();
            classic::mount(b"test", path, "tmpfs", flags, b"mode=755").unwrap();
            test(temp.path());
            classic::unmount(path, UnmountFlags::DETACH).unwrap();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn open(path: &Path) -> OwnedFd {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn put(dir: impl AsFd, name: &str) {
    rustix::fs::mknodat(dir, name, FileType::RegularFile, Mode::from(0o644), 0).unwrap();
}

fn has(dir: impl AsFd, name: &str) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn is_mounted(path: &Path) -> bool {
    mountinfo::read().unwrap().iter().any(|mount| mount.mount_point == bytes(path))
}

fn layers(temp: &Path, count: usize) -> Vec<std::path::PathBuf> {
    (0..count)
        .map(|n| {
            let layer = temp.join(format!("l{n}"));
            std::fs::create_dir(&layer).unwrap();
            put(open(&layer), &format!("f{n}"));
            layer
        })
        .collect()
}

#[test]
fn root_a_detached_mount_is_used_in_place_and_goes_away_by_itself() {
    with_private_mounts(|temp| {
        let before = mountinfo::read().unwrap();
        let context = FsContext::open("tmpfs").unwrap();
        context.set_string("size", b"1m").unwrap();
        let mount = context.create(MountAttrFlags::MOUNT_ATTR_NODEV).unwrap();
        put(&mount, "x");
        assert_eq!(mountinfo::read().unwrap(), before);
        let target = temp.join("t");
        std::fs::create_dir(&target).unwrap();
        let attached = mount.attach(open(&target)).unwrap();
        assert!(is_mounted(&target) && has(open(&target), "x"));
        drop(attached);
        assert!(!is_mounted(&target) && !has(open(&target), "x"));
        assert_eq!(mountinfo::read().unwrap(), before);
    });
}

#[test]
fn root_kept_mounts_stay_and_unmount_is_not_confused_by_others() {
    with_private_mounts(|temp| {
        let target = temp.join("t");
        std::fs::create_dir(&target).unwrap();
        let create = || FsContext::open("tmpfs").unwrap().create(MountAttrFlags::empty()).unwrap();
        create().attach_path(bytes(&target)).unwrap().keep();
        assert!(is_mounted(&target));
        assert_eq!(classic::unmount(bytes(&target), UnmountFlags::empty()).map_err(|e| e.kind()), Ok(()));
        assert!(!is_mounted(&target));
        let attached = create().attach_path(bytes(&target)).unwrap();
        classic::unmount(bytes(&target), UnmountFlags::DETACH).unwrap();
        attached.unmount().unwrap();
        let error = classic::unmount(bytes(&target), UnmountFlags::empty()).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL);
        let file = temp.join("file");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(create().attach_path(bytes(&file)).unwrap_err().errno(), Errno::INVAL);
        assert_eq!(create().attach_path(b"/nowhere/at/all").unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn root_overlay_by_descriptors_with_500_layers() {
    with_private_mounts(|temp| {
        let layers = layers(temp, 501);
        let upper = temp.join("upper");
        let work = temp.join("work");
        for dir in [&upper, &work] {
            std::fs::create_dir(dir).unwrap();
        }
        let context = FsContext::open("overlay").unwrap();
        for layer in &layers[..500] {
            context.set_directory("lowerdir+", open(layer)).unwrap();
        }
        let error = context.set_directory("lowerdir+", open(&layers[500])).unwrap_err();
        assert_eq!((error.kind(), error.errno()), (ErrorKind::Invalid, Errno::INVAL));
        context.set_directory("upperdir", open(&upper)).unwrap();
        context.set_directory("workdir", open(&work)).unwrap();
        let mount = context.create(MountAttrFlags::empty()).unwrap();
        assert!(has(&mount, "f0") && has(&mount, "f499") && !has(&mount, "f500"));
        put(&mount, "new");
        assert!(has(open(&upper), "new"));
    });
}

#[test]
fn root_overlay_by_paths_of_any_length_and_content() {
    with_private_mounts(|temp| {
        let mut long = temp.join("a,b:c\\d");
        for _ in 0..3 {
            long = long.join("n".repeat(120));
        }
        std::fs::create_dir_all(&long).unwrap();
        put(open(&long), "long");
        let short = temp.join("s,:\\");
        std::fs::create_dir(&short).unwrap();
        put(open(&short), "short");
        let context = FsContext::open("overlay").unwrap();
        let error = context.set_string("lowerdir+", bytes(&long)).unwrap_err();
        assert!(error.to_string().contains("over 255 bytes"), "{error}");
        let context = FsContext::open("overlay").unwrap();
        context.set_path("lowerdir+", bytes(&long)).unwrap();
        context.set_path("lowerdir+", bytes(&short)).unwrap();
        let mount = context.create(MountAttrFlags::MOUNT_ATTR_RDONLY).unwrap();
        assert!(has(&mount, "long") && has(&mount, "short"));
        // The same by the classic call, with escapes.
        let target = temp.join("t");
        std::fs::create_dir(&target).unwrap();
        let options = [
            b"lowerdir=".as_slice(),
            &classic::escape_overlay_path(bytes(&long)),
            b":",
            &classic::escape_overlay_path(bytes(&short)),
        ]
        .concat();
        classic::mount(b"overlay", bytes(&target), "overlay", MountFlags::RDONLY, &options).unwrap();
        assert!(has(open(&target), "long") && has(open(&target), "short"));
        classic::unmount(bytes(&target), UnmountFlags::empty()).unwrap();
        let too_long = vec![b'x'; classic::OPTIONS_MAX + 1];
        let error = classic::mount(b"overlay", bytes(&target), "overlay", MountFlags::empty(), &too_long).unwrap_err();
        assert_eq!(error.errno(), Errno::TOOBIG);
    });
}

#[test]
fn root_errors_carry_the_kernels_own_words() {
    with_private_mounts(|temp| {
        let layers = layers(temp, 2);
        let context = FsContext::open("overlay").unwrap();
        let error = context.set_string("no_such_option", b"1").unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL);
        assert!(error.log().iter().any(|line| line.contains("no_such_option")), "{error}");
        // No work directory beside the upper one.
        let context = FsContext::open("overlay").unwrap();
        context.set_path("lowerdir+", bytes(&layers[0])).unwrap();
        context.set_path("upperdir", bytes(&layers[1])).unwrap();
        let error = context.create(MountAttrFlags::empty()).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL);
        // Mixed ways of naming lower layers.
        let context = FsContext::open("overlay").unwrap();
        context.set_string("lowerdir", bytes(&layers[0])).unwrap();
        let error = context.set_path("lowerdir+", bytes(&layers[1])).unwrap_err();
        assert!(error.to_string().contains("the kernel says"), "{error}");
        let context = FsContext::open("overlay").unwrap();
        assert_eq!(context.set_path("lowerdir+", b"/nowhere/at/all").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(FsContext::open("no-such-fs").unwrap_err().kind(), ErrorKind::Unsupported);
    });
}

#[test]
fn root_mapped_lower_layers_in_an_overlay() {
    with_private_mounts(|temp| {
        let layers = layers(temp, 2);
        let range = crate::idmap::IdRange { inside: 0, outside: 100_000, count: 65_536 };
        let namespace = crate::idmap::UserNamespace::with_ranges(&[range], &[range]).unwrap();
        let context = FsContext::open("overlay").unwrap();
        let mut mapped = Vec::new();
        for layer in &layers {
            let copy = DetachedMount::copy_of(CWD, bytes(layer), false).unwrap();
            copy.map_ids(&namespace, false).unwrap();
            context.set_directory("lowerdir+", &copy).unwrap();
            mapped.push(copy);
        }
        let mount = context.create(MountAttrFlags::empty()).unwrap();
        // The overlay holds its layers by itself from here on.
        drop(mapped);
        for name in ["f0", "f1"] {
            let stat = rustix::fs::statat(&mount, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert_eq!((stat.st_uid, stat.st_gid), (100_000, 100_000));
        }
        let error = mount.map_ids(&namespace, false).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL, "overlay itself cannot be mapped");
    });
}

#[test]
fn root_attributes_are_set_and_cleared_one_by_one() {
    with_private_mounts(|temp| {
        let (source, target) = (temp.join("s"), temp.join("t"));
        std::fs::create_dir(&source).unwrap();
        std::fs::create_dir(&target).unwrap();
        let attributes = MountAttributes::new()
            .set(MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOATIME)
            .propagation(Propagation::Private);
        let copy = crate::mount_attr::copy_with(CWD, bytes(&source), &attributes, false).unwrap();
        let attached = copy.attach_path(bytes(&target)).unwrap();
        let options = || {
            let table = mountinfo::read().unwrap();
            let line = table.iter().find(|mount| mount.mount_point == bytes(&target)).unwrap();
            String::from_utf8(line.options.clone()).unwrap()
        };
        assert_eq!(options(), "ro,noatime");
        assert_eq!(rustix::fs::mkdirat(&attached, "x", Mode::from(0o700)), Err(Errno::ROFS));
        let change = MountAttributes::new()
            .clear(MountAttrFlags::MOUNT_ATTR_RDONLY)
            .set(MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME);
        crate::mount_attr::set(&attached, &change, true).unwrap();
        assert_eq!(options(), "rw,nosuid");
        classic::remount_bind(bytes(&target), MountFlags::RDONLY | MountFlags::NODEV).unwrap();
        assert_eq!(options(), "ro,nodev");
        let error = crate::mount_attr::set(open(&source), &change, false).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL);
    });
}

#[test]
fn root_bind_move_propagation_and_reconfiguration() {
    with_private_mounts(|temp| {
        let dirs: Vec<_> = ["a", "b", "c"].map(|name| temp.join(name)).into();
        for dir in &dirs {
            std::fs::create_dir(dir).unwrap();
        }
        classic::bind(bytes(&dirs[0]), bytes(&dirs[1]), false).unwrap();
        put(open(&dirs[0]), "x");
        assert!(has(open(&dirs[1]), "x"));
        classic::move_mount(bytes(&dirs[1]), bytes(&dirs[2])).unwrap();
        assert!(has(open(&dirs[2]), "x") && !has(open(&dirs[1]), "x"));
        let shared = |dir: &Path| mountinfo::of(open(dir)).unwrap().unwrap().shared;
        assert_eq!(shared(&dirs[2]), None);
        classic::change_propagation(bytes(&dirs[2]), MountPropagationFlags::SHARED).unwrap();
        assert!(shared(&dirs[2]).is_some());
        classic::unmount(bytes(&dirs[2]), UnmountFlags::NOFOLLOW).unwrap();

        let mount = FsContext::open("tmpfs").unwrap().create(MountAttrFlags::empty()).unwrap();
        let mount = mount.attach_path(bytes(&dirs[1])).unwrap();
        let context = FsContext::pick(&mount).unwrap();
        context.set_string("size", b"64k").unwrap();
        context.reconfigure().unwrap();
        let blocks = rustix::fs::fstatvfs(&mount).unwrap();
        assert_eq!(blocks.f_blocks * blocks.f_frsize, 65_536);
        classic::remount(bytes(&dirs[1]), MountFlags::RDONLY, b"size=128k").unwrap();
        let blocks = rustix::fs::fstatvfs(&mount).unwrap();
        assert_eq!(blocks.f_blocks * blocks.f_frsize, 131_072);
    });
}
