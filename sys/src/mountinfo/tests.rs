use super::*;
use crate::mount::{FsContext, MountAttrFlags};
use rustix::fs::{CWD, Mode, OFlags};
use std::os::unix::ffi::OsStrExt;

#[test]
fn escapes_are_undone() {
    let table: &[(&[u8], &[u8])] = &[
        (b"/plain", b"/plain"),
        (b"/a\\040b", b"/a b"),
        (b"\\011\\012\\134\\043", b"\t\n\\#"),
        (b"\\134040", b"\\040"),
        (b"\\377\\200", b"\xff\x80"),
        (b"\\400", b"\\400"),
        (b"\\08", b"\\08"),
        (b"\\04", b"\\04"),
        (b"tail\\", b"tail\\"),
        (b"\\\\040", b"\\ "),
        (b"", b""),
    ];
    for (escaped, plain) in table {
        assert_eq!(unescape(escaped), *plain, "{}", escaped.escape_ascii());
    }
}

#[test]
fn lines_of_every_shape() {
    let line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime shared:7 master:1 propagate_from:3 - ext3 /dev/root rw,errors=continue";
    let info = parse_line(line).unwrap();
    assert_eq!(
        info,
        MountInfo {
            id: 36,
            parent_id: 35,
            device: (98, 0),
            root: b"/mnt1".into(),
            mount_point: b"/mnt 2".into(),
            options: b"rw,noatime".into(),
            shared: Some(7),
            master: Some(1),
            unbindable: false,
            file_system: b"ext3".into(),
            source: b"/dev/root".into(),
            super_options: b"rw,errors=continue".into(),
        }
    );
    assert!(parse_line(b"1 1 0:1 / / rw unbindable future:1 - tmpfs  rw").unwrap().unbindable);
    assert_eq!(parse_line(b"1 1 0:1 / / rw - tmpfs  rw").unwrap().source, b"");
    for broken in [
        &b""[..],
        b"x",
        b"1 1 0:1 / / rw",
        b"1 1 01 / / rw - t s o",
        b"-1 1 0:1 / / rw - t s o",
        b"+1 1 0:1 / / rw - t s o",
        b"1 99999999999999999999 0:1 / / rw - t s o",
        b"1 1 0:1 / / rw - t",
        b"1 1 0:4294967296 / / rw - t s o",
    ] {
        assert_eq!(parse_line(broken), None, "{}", broken.escape_ascii());
    }
}

#[test]
fn own_table_has_the_root_and_proc() {
    let table = read().unwrap();
    assert!(table.iter().any(|mount| mount.mount_point == b"/"));
    assert!(table.iter().any(|mount| mount.mount_point == b"/proc" && mount.file_system == b"proc"));
}

#[test]
fn root_a_mount_is_found_under_an_odd_name_by_both_ways() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    std::thread::spawn(|| {
        crate::namespace::private_mounts().unwrap();
        let temp = tempfile::tempdir().unwrap();
        let odd = temp.path().join(std::ffi::OsStr::from_bytes(b"a b\tc\nd\\e\xff#,"));
        std::fs::create_dir(&odd).unwrap();
        let name = odd.as_os_str().as_bytes();
        let open = || rustix::fs::openat(CWD, name, OFlags::PATH, Mode::empty()).unwrap();
        assert!(!is_mount_point(open()).unwrap());
        let context = FsContext::open("tmpfs").unwrap();
        context.set_string("source", b"so urce").unwrap();
        let mount = context.create(MountAttrFlags::MOUNT_ATTR_RDONLY).unwrap().attach_path(name).unwrap();
        assert!(is_mount_point(open()).unwrap());
        assert!(is_mount_point(&mount).unwrap());
        assert!(is_mount_point_at(CWD, name).unwrap());
        let found = of(open()).unwrap().unwrap();
        assert_eq!(found.mount_point, name);
        assert_eq!((&*found.file_system, &*found.root), (&b"tmpfs"[..], &b"/"[..]));
        let listed: Vec<_> = read().unwrap().into_iter().filter(|mount| mount.mount_point == name).collect();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].source, b"so urce");
        assert!(listed[0].options.starts_with(b"ro"));
        // Both ways of asking give the same mount. (What only the table tells is left empty by the other.)
        assert_eq!((found.id, found.parent_id, found.device), (listed[0].id, listed[0].parent_id, listed[0].device));
        mount.unmount().unwrap();
        assert!(!is_mount_point(open()).unwrap());
    })
    .join()
    .unwrap();
}
