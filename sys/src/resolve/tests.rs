use super::*;
use rustix::fs::{AtFlags, FileType, RenameFlags};
use std::sync::atomic::{AtomicBool, Ordering};

const BOTH: [Strategy; 2] = [Strategy::Kernel, Strategy::Walk];

type Row<'a, T> = (&'a [u8], OFlags, Result<T>);

fn mkdir(dir: impl AsFd, name: &str) {
    rustix::fs::mkdirat(dir, name, Mode::from(0o755)).unwrap();
}

fn write(dir: impl AsFd, name: &str, content: &[u8]) {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::EXCL;
    let file = rustix::fs::openat(dir, name, flags, Mode::from(0o644)).unwrap();
    assert_eq!(rustix::io::write(&file, content).unwrap(), content.len());
}

fn read(file: &OwnedFd) -> Vec<u8> {
    let mut content = vec![0; 64];
    let length = rustix::io::read(file, &mut content).unwrap();
    content.truncate(length);
    content
}

/// `<temp>/secret` is outside, `<temp>/root` is the root.
fn tree() -> (tempfile::TempDir, OwnedFd) {
    let temp = tempfile::tempdir().unwrap();
    let outside = RootDir::open(temp.path()).unwrap();
    write(&outside, "secret", b"outside");
    mkdir(&outside, "root");
    let root: OwnedFd = RootDir::open(temp.path().join("root")).unwrap().into();
    mkdir(&root, "dir");
    mkdir(&root, "dir/sub");
    write(&root, "secret", b"inside");
    write(&root, "dir/file", b"file");
    write(&root, "dir/sub/deep", b"deep");
    for (target, name) in [
        ("/secret", "absolute"),
        ("../../../../secret", "climbing"),
        ("dir", "to-dir"),
        ("dir/", "to-dir-slash"),
        ("sub/../file", "dir/within"),
        ("/dir/sub", "dir/absolute-dir"),
        ("dangling-target", "dangling"),
        ("loop2", "loop1"),
        ("loop1", "loop2"),
        ("self/self", "self"),
        ("..", "dir/up"),
        ("/", "top"),
        (".", "here"),
    ] {
        rustix::fs::symlinkat(target, &root, name).unwrap();
    }
    for n in 0..45 {
        let target = if n == 0 { "secret".to_owned() } else { format!("chain{}", n - 1) };
        rustix::fs::symlinkat(target, &root, format!("chain{n}")).unwrap();
    }
    rustix::fs::mknodat(&root, "fifo", FileType::Fifo, Mode::from(0o600), 0).unwrap();
    (temp, root)
}

fn root(directory: &OwnedFd, strategy: Strategy) -> RootDir {
    RootDir::from_fd(directory.try_clone().unwrap()).with_strategy(strategy)
}

#[test]
fn look_ups_stay_inside_and_both_ways_agree() {
    let (_temp, directory) = tree();
    let long_name = [b'x'; 256];
    let table: &[Row<'_, &[u8]>] = &[
        (b"secret", OFlags::RDONLY, Ok(b"inside")),
        (b"/secret", OFlags::RDONLY, Ok(b"inside")),
        (b"//dir//./file", OFlags::RDONLY, Ok(b"file")),
        (b"../secret", OFlags::RDONLY, Ok(b"inside")),
        (b"../../../secret", OFlags::RDONLY, Ok(b"inside")),
        (b"dir/../../secret", OFlags::RDONLY, Ok(b"inside")),
        (b"dir/sub/../../dir/sub/../file", OFlags::RDONLY, Ok(b"file")),
        (b"dir/sub/./.././file", OFlags::RDONLY, Ok(b"file")),
        (b"absolute", OFlags::RDONLY, Ok(b"inside")),
        (b"climbing", OFlags::RDONLY, Ok(b"inside")),
        (b"to-dir/file", OFlags::RDONLY, Ok(b"file")),
        (b"to-dir-slash/file", OFlags::RDONLY, Ok(b"file")),
        (b"dir/within", OFlags::RDONLY, Ok(b"file")),
        (b"dir/absolute-dir/deep", OFlags::RDONLY, Ok(b"deep")),
        (b"dir/absolute-dir/../file", OFlags::RDONLY, Ok(b"file")),
        (b"dir/up/secret", OFlags::RDONLY, Ok(b"inside")),
        (b"top/top/here/top/secret", OFlags::RDONLY, Ok(b"inside")),
        (b"chain39", OFlags::RDONLY, Ok(b"inside")),
        (b"chain40", OFlags::RDONLY, Err(Errno::LOOP)),
        (b"dangling", OFlags::RDONLY, Err(Errno::NOENT)),
        (b"loop1", OFlags::RDONLY, Err(Errno::LOOP)),
        (b"self", OFlags::RDONLY, Err(Errno::LOOP)),
        (b"nowhere", OFlags::RDONLY, Err(Errno::NOENT)),
        (b"nowhere/../secret", OFlags::RDONLY, Err(Errno::NOENT)),
        (b"secret/", OFlags::RDONLY, Err(Errno::NOTDIR)),
        (b"secret/..", OFlags::RDONLY, Err(Errno::NOTDIR)),
        (b"secret/x", OFlags::RDONLY, Err(Errno::NOTDIR)),
        (b"absolute/", OFlags::RDONLY, Err(Errno::NOTDIR)),
        (b"secret", OFlags::DIRECTORY, Err(Errno::NOTDIR)),
        (b"secret", OFlags::DIRECTORY.union(OFlags::PATH), Err(Errno::NOTDIR)),
        (b"absolute", OFlags::NOFOLLOW, Err(Errno::LOOP)),
        (b"to-dir", OFlags::NOFOLLOW.union(OFlags::DIRECTORY), Err(Errno::NOTDIR)),
        (b"to-dir", OFlags::NOFOLLOW.union(OFlags::DIRECTORY).union(OFlags::PATH), Err(Errno::NOTDIR)),
        (b"sec\0ret", OFlags::RDONLY, Err(Errno::INVAL)),
        (b"dir", OFlags::WRONLY, Err(Errno::ISDIR)),
        (b"new", OFlags::CREATE, Err(Errno::INVAL)),
        (b"dir", OFlags::TMPFILE.union(OFlags::RDWR), Err(Errno::INVAL)),
        (&long_name, OFlags::RDONLY, Err(Errno::NAMETOOLONG)),
    ];
    for strategy in BOTH {
        let root = root(&directory, strategy);
        for (path, flags, expected) in table {
            let answer = root.open_in_root(path, *flags).map(|file| read(&file));
            let expected = expected.map(<[u8]>::to_vec);
            assert_eq!(answer, expected, "{strategy:?} {} {flags:?}", String::from_utf8_lossy(path));
        }
    }
}

#[test]
fn creation_refuses_links_and_ways_out_and_both_ways_agree() {
    let create = OFlags::CREATE | OFlags::WRONLY;
    let exclusive = create | OFlags::EXCL;
    let path_link = OFlags::PATH | OFlags::NOFOLLOW;
    let table: &[Row<'_, FileType>] = &[
        (b"new", create, Ok(FileType::RegularFile)),
        (b"dir/sub/../new", exclusive, Ok(FileType::RegularFile)),
        (b"dir/new/x", create, Err(Errno::NOTDIR)),
        (b"secret", exclusive, Err(Errno::EXIST)),
        (b"absolute", exclusive, Err(Errno::EXIST)),
        (b"dangling", exclusive, Err(Errno::EXIST)),
        (b"dangling", create, Err(Errno::LOOP)),
        (b"absolute", create, Err(Errno::LOOP)),
        (b"absolute", OFlags::WRONLY, Err(Errno::LOOP)),
        (b"absolute", OFlags::PATH, Err(Errno::LOOP)),
        (b"absolute", path_link, Ok(FileType::Symlink)),
        (b"to-dir/file", OFlags::RDONLY, Err(Errno::LOOP)),
        (b"to-dir/", OFlags::RDONLY, Err(Errno::LOOP)),
        (b"to-dir/new", create, Err(Errno::LOOP)),
        (b"/secret", OFlags::RDONLY, Err(Errno::XDEV)),
        (b"/new", create, Err(Errno::XDEV)),
        (b"..", OFlags::PATH, Err(Errno::XDEV)),
        (b"../secret", OFlags::RDONLY, Err(Errno::XDEV)),
        (b"dir/../../secret", OFlags::RDONLY, Err(Errno::XDEV)),
        (b"dir/..", OFlags::PATH, Ok(FileType::Directory)),
        (b"dir/.", create, Err(Errno::ISDIR)),
        (b"dir/.", exclusive, Err(Errno::EXIST)),
        (b"nowhere/", create, Err(Errno::ISDIR)),
        (b"dir/", create, Err(Errno::ISDIR)),
        (b"dir", create, Err(Errno::ISDIR)),
        (b"nowhere/x", create, Err(Errno::NOENT)),
        (b"", OFlags::PATH, Ok(FileType::Directory)),
        (b".", OFlags::DIRECTORY, Ok(FileType::Directory)),
        (b"fifo", OFlags::PATH, Ok(FileType::Fifo)),
        (b"dir", OFlags::TMPFILE | OFlags::WRONLY, Ok(FileType::RegularFile)),
        (b".", OFlags::TMPFILE | OFlags::WRONLY, Ok(FileType::RegularFile)),
    ];
    for strategy in BOTH {
        let (_temp, directory) = tree();
        let root = root(&directory, strategy);
        for (path, flags, expected) in table {
            let answer = root
                .open_beneath(path, *flags, Mode::from(0o600))
                .map(|file| FileType::from_raw_mode(rustix::fs::fstat(&file).unwrap().st_mode));
            assert_eq!(answer, *expected, "{strategy:?} {} {flags:?}", String::from_utf8_lossy(path));
        }
    }
}

#[test]
fn the_way_that_is_chosen_works_here() {
    let (temp, _directory) = tree();
    let root = RootDir::open(temp.path().join("root")).unwrap();
    assert_eq!(read(&root.open_in_root(b"absolute", OFlags::RDONLY).unwrap()), b"inside");
    assert_eq!(root.open_beneath(b"absolute", OFlags::RDONLY, Mode::empty()).err(), Some(Errno::LOOP));
}

#[test]
fn parents_come_with_the_last_name() {
    let (_temp, directory) = tree();
    for strategy in BOTH {
        let root = root(&directory, strategy);
        let inode = |file: &OwnedFd| rustix::fs::fstat(file).unwrap().st_ino;
        let sub = root.open_in_root(b"dir/sub", OFlags::PATH).unwrap();
        for path in [&b"dir/sub/x"[..], b"dir//sub//x//", b"dir/sub/./x"] {
            let (parent, name) = root.open_parent(path).unwrap();
            assert_eq!((inode(&parent), name), (inode(&sub), &b"x"[..]));
        }
        let (parent, name) = root.open_parent(b"x").unwrap();
        assert_eq!((inode(&parent), name), (inode(&directory), &b"x"[..]));
        for path in [&b""[..], b"/", b".", b"..", b"dir/..", b"dir/.", b"///"] {
            assert_eq!(root.open_parent(path).err(), Some(Errno::INVAL), "{path:?}");
        }
        assert_eq!(root.open_parent(b"to-dir/x").err(), Some(Errno::LOOP));
        let (parent, name) = root.open_parent_in_root(b"dir/absolute-dir/x").unwrap();
        assert_eq!((inode(&parent), name), (inode(&sub), &b"x"[..]));
    }
}

#[test]
fn paths_longer_than_the_kernel_takes_are_walked() {
    let (_temp, directory) = tree();
    let component = [b'n'; 200];
    let mut path = Vec::new();
    let mut here = directory.try_clone().unwrap();
    for _ in 0..50 {
        rustix::fs::mkdirat(&here, &component[..], Mode::from(0o755)).unwrap();
        here = rustix::fs::openat(&here, &component[..], OFlags::PATH, Mode::empty()).unwrap();
        path.extend_from_slice(&component);
        path.push(b'/');
    }
    write(&here, "end", b"end");
    assert!(path.len() > 2 * PATH_MAX);
    let end = [&path[..], b"end"].concat();
    let back = [&path[..], &b"../".repeat(50), b"secret"].concat();
    for strategy in BOTH {
        let root = root(&directory, strategy);
        assert_eq!(read(&root.open_in_root(&end, OFlags::RDONLY).unwrap()), b"end");
        assert_eq!(read(&root.open_beneath(&end, OFlags::RDONLY, Mode::empty()).unwrap()), b"end");
        assert_eq!(read(&root.open_in_root(&back, OFlags::RDONLY).unwrap()), b"inside");
        let out = [&path[..], &b"../".repeat(51), b"secret"].concat();
        assert_eq!(root.open_beneath(&out, OFlags::RDONLY, Mode::empty()).err(), Some(Errno::XDEV));
        let (parent, name) = root.open_parent(&end).unwrap();
        assert_eq!(
            (rustix::fs::fstat(&parent).unwrap().st_ino, name),
            (rustix::fs::fstat(&here).unwrap().st_ino, &b"end"[..])
        );
    }
    // The temporary directory's own clean-up takes no such paths on some systems: take it down from the end.
    rustix::fs::unlinkat(&here, "end", AtFlags::empty()).unwrap();
}

#[test]
fn root_mounts_stop_creation_but_not_look_ups() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    std::thread::spawn(|| {
        crate::namespace::private_mounts().unwrap();
        let (temp, directory) = tree();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("t", temp.path().join("root/dir/sub"), "tmpfs", flags, None).unwrap();
        // A bind mount of the same file system has the same device number.
        mkdir(&directory, "bound");
        rustix::mount::mount_bind(temp.path().join("root/dir"), temp.path().join("root/bound")).unwrap();
        for strategy in BOTH {
            let root = root(&directory, strategy);
            for path in [&b"dir/sub"[..], b"dir/sub/.", b"bound", b"bound/file", b"bound/.."] {
                assert_eq!(
                    root.open_beneath(path, OFlags::PATH, Mode::empty()).err(),
                    Some(Errno::XDEV),
                    "{strategy:?} {path:?}"
                );
                root.open_in_root(path, OFlags::PATH).unwrap();
            }
            assert_eq!(read(&root.open_in_root(b"dir/sub/../file", OFlags::RDONLY).unwrap()), b"file");
            mkdir(&directory, "p");
            rustix::mount::mount("p", temp.path().join("root/p"), "proc", flags, None).unwrap();
            for path in [&b"p/self/root"[..], b"p/self/root/etc", b"p/self/cwd/x"] {
                assert_eq!(root.open_in_root(path, OFlags::PATH).err(), Some(Errno::LOOP), "{strategy:?} {path:?}");
            }
            rustix::mount::unmount(temp.path().join("root/p"), rustix::mount::UnmountFlags::DETACH).unwrap();
            rustix::fs::unlinkat(&directory, "p", AtFlags::REMOVEDIR).unwrap();
        }
        let detach = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(temp.path().join("root/dir/sub"), detach).unwrap();
        rustix::mount::unmount(temp.path().join("root/bound"), detach).unwrap();
    })
    .join()
    .unwrap();
}

/// While one thread swaps a directory for a link that leads out, no look-up and no creation gets out.
#[test]
fn a_swapped_directory_never_leads_out() {
    for strategy in BOTH {
        let (temp, directory) = tree();
        rustix::fs::symlinkat("../../", &directory, "evil").unwrap();
        mkdir(&directory, "victim");
        mkdir(&directory, "victim/in");
        write(&directory, "victim/in/secret", b"inside");
        mkdir(&directory, "victim/root");
        write(&directory, "victim/secret", b"inside");
        let done = AtomicBool::new(false);
        let mut outcomes = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(&directory, "victim", &directory, "evil", RenameFlags::EXCHANGE).unwrap();
                    // Also moves a directory out and in again, which is what makes `..` dangerous.
                    let outside = RootDir::open(temp.path()).unwrap();
                    if rustix::fs::renameat(&directory, "dir/sub", &outside, "moved").is_ok() {
                        rustix::fs::renameat(&outside, "moved", &directory, "dir/sub").unwrap();
                    }
                }
            });
            let root = root(&directory, strategy);
            for n in 0..4000 {
                for path in [&b"victim/secret"[..], b"victim/in/../secret", b"dir/sub/../../../secret"] {
                    if let Ok(file) = root.open_in_root(path, OFlags::RDONLY) {
                        assert_eq!(read(&file), b"inside", "{strategy:?} {path:?}");
                        outcomes.0 += 1;
                    } else {
                        outcomes.1 += 1;
                    }
                }
                let name = format!("victim/in/../made{}", n % 8);
                drop(root.open_beneath(name.as_bytes(), OFlags::CREATE | OFlags::WRONLY, Mode::from(0o600)));
                drop(root.open_beneath(b"dir/sub/../../escaped", OFlags::CREATE | OFlags::WRONLY, Mode::from(0o600)));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(outcomes.0 > 0, "{outcomes:?}");
        let outside = RootDir::open(temp.path()).unwrap();
        let names = crate::getdents::read_sorted(&outside, &mut crate::getdents::DirBuffer::new()).unwrap();
        let names: Vec<_> = names.iter().map(|entry| &*entry.name).collect();
        assert_eq!(names, [&b"root"[..], b"secret"], "{strategy:?}");
    }
}
