use super::*;
use rustix::fs::{CWD, FileType};

fn directory() -> (tempfile::TempDir, OwnedFd) {
    // The file system of the sources: a tmpfs at /tmp may know no user attributes.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let fd = rustix::fs::openat(CWD, dir.path(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    (dir, fd)
}

fn create(dir: &OwnedFd, name: &str) -> OwnedFd {
    rustix::fs::openat(dir, name, OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from(0o644)).unwrap()
}

fn sorted(names: &Names) -> Vec<Vec<u8>> {
    let mut names: Vec<_> = names.iter().filter(|n| !n.starts_with(b"security.")).map(<[u8]>::to_vec).collect();
    names.sort();
    names
}

#[test]
fn open_path_and_named_access_see_the_same_attributes() {
    let (_guard, dir) = directory();
    let file = create(&dir, "file");
    let path = open_path(dir.as_fd(), b"file").unwrap();
    set(&file, b"user.a", b"1", SetMode::Create).unwrap();
    set(&path, b"user.b", b"2", SetMode::Create).unwrap();
    set_at(&dir, b"file", b"user.c", b"3", SetMode::Create).unwrap();
    let all = vec![b"user.a".to_vec(), b"user.b".to_vec(), b"user.c".to_vec()];
    assert_eq!(sorted(&list(&file).unwrap()), all);
    assert_eq!(sorted(&list(&path).unwrap()), all);
    assert_eq!(sorted(&list_at(&dir, b"file").unwrap()), all);
    for (name, value) in [(b"user.a", b"1"), (b"user.b", b"2"), (b"user.c", b"3")] {
        assert_eq!(get(&file, name).unwrap().as_deref(), Some(&value[..]));
        assert_eq!(get(&path, name).unwrap().as_deref(), Some(&value[..]));
        assert_eq!(get_at(&dir, b"file", name).unwrap().as_deref(), Some(&value[..]));
    }
    assert!(remove(&file, b"user.a").unwrap());
    assert!(remove(&path, b"user.b").unwrap());
    assert!(remove_at(&dir, b"file", b"user.c").unwrap());
    assert!(!remove(&file, b"user.a").unwrap());
    assert!(!remove(&path, b"user.a").unwrap());
    assert!(!remove_at(&dir, b"file", b"user.a").unwrap());
    assert_eq!(get(&file, b"user.a").unwrap(), None);
    assert_eq!(get_at(&dir, b"file", b"user.a").unwrap(), None);
}

#[test]
fn modes_of_setting_are_kept() {
    let (_guard, dir) = directory();
    let file = create(&dir, "file");
    assert_eq!(set(&file, b"user.a", b"1", SetMode::Replace), Err(Errno::NODATA));
    set(&file, b"user.a", b"1", SetMode::CreateOrReplace).unwrap();
    assert_eq!(set(&file, b"user.a", b"2", SetMode::Create), Err(Errno::EXIST));
    assert_eq!(set_at(&dir, b"file", b"user.a", b"2", SetMode::Create), Err(Errno::EXIST));
    set_at(&dir, b"file", b"user.a", b"2", SetMode::Replace).unwrap();
    assert_eq!(get(&file, b"user.a").unwrap().as_deref(), Some(&b"2"[..]));
}

#[test]
fn sizes_around_the_first_guess_and_empty_values_come_back_whole() {
    let (_guard, dir) = directory();
    let file = create(&dir, "file");
    for size in [0, 1, FIRST_GUESS - 1, FIRST_GUESS, FIRST_GUESS + 1, 3000] {
        let value = vec![7; size];
        set(&file, b"user.a", &value, SetMode::CreateOrReplace).unwrap();
        assert_eq!(get(&file, b"user.a").unwrap(), Some(value.clone()), "{size}");
        assert_eq!(get_at(&dir, b"file", b"user.a").unwrap(), Some(value), "{size}");
    }
    remove(&file, b"user.a").unwrap();
    let names: Vec<_> = (0..40).map(|n| format!("user.{n:030}").into_bytes()).collect();
    for name in &names {
        set(&file, name, b"", SetMode::Create).unwrap();
    }
    assert_eq!(sorted(&list(&file).unwrap()), names);
    assert_eq!(sorted(&list_at(&dir, b"file").unwrap()), names);
}

#[test]
fn root_links_devices_and_fifos_keep_their_own_attributes() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: trusted attributes need root");
        return;
    }
    let (_guard, dir) = directory();
    create(&dir, "target");
    rustix::fs::symlinkat("target", &dir, "link").unwrap();
    rustix::fs::mknodat(&dir, "fifo", FileType::Fifo, Mode::from(0o600), 0).unwrap();
    rustix::fs::mknodat(&dir, "device", FileType::CharacterDevice, Mode::from(0o600), 0).unwrap();
    for name in [&b"link"[..], b"fifo", b"device"] {
        let path = open_path(dir.as_fd(), name).unwrap();
        set_at(&dir, name, b"trusted.x", name, SetMode::Create).unwrap();
        assert_eq!(get(&path, b"trusted.x").unwrap().as_deref(), Some(name));
        assert_eq!(sorted(&list(&path).unwrap()), [b"trusted.x".to_vec()]);
        set(&path, b"trusted.y", b"", SetMode::Create).unwrap();
        assert_eq!(get_at(&dir, name, b"trusted.y").unwrap().as_deref(), Some(&b""[..]));
        assert_eq!(set_at(&dir, name, b"user.x", b"", SetMode::Create), Err(Errno::PERM));
    }
    assert_eq!(get_at(&dir, b"target", b"trusted.x").unwrap(), None);
}

#[test]
fn hostile_names_give_errors() {
    let (_guard, dir) = directory();
    let file = create(&dir, "file");
    assert_eq!(get(&file, b"user.a\0b"), Err(Errno::INVAL));
    assert_eq!(set(&file, &[b'u'; 300], b"", SetMode::Create), Err(Errno::RANGE));
    assert_eq!(get(&file, &[b"user.".as_slice(), &[b'u'; 300]].concat()), Err(Errno::RANGE));
    assert_eq!(get_at(&dir, b"file", &[b"user.".as_slice(), &[b'u'; 300]].concat()), Err(Errno::RANGE));
    assert_eq!(set(&file, b"user.a", &vec![0; VALUE_MAX + 1], SetMode::Create), Err(Errno::TOOBIG));
    assert_eq!(get(&file, b"nonsense").unwrap(), None);
    assert_eq!(list_at(&dir, b"nowhere"), Err(Errno::NOENT));
}
