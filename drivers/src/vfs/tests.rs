//! What the conformance suite cannot know: the home on disk, options, faults, and the peer.

#![allow(clippy::disallowed_methods, reason = "tests work in directories of their own")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use graph_core::driver::{ApplyDiffOptions, CreateOptions, GetOptions};
use graph_core::registry::DriverSetup;
use graph_core::{Driver, ErrorKind, LayerId};

use super::Vfs;

fn id(text: &str) -> LayerId {
    LayerId::new(text).unwrap()
}

fn setup(root: &Path) -> DriverSetup {
    DriverSetup { root: root.to_path_buf(), run_root: root.join("run"), ..DriverSetup::default() }
}

fn is_root() -> bool {
    let root = graph_sys::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn create(vfs: &Vfs, name: &str, parent: Option<&str>) {
    let parent = parent.map(id);
    vfs.create_read_write(&id(name), parent.as_ref(), &CreateOptions::default()).unwrap();
}

#[test]
fn home_is_laid_out_as_containers_storage_does() {
    if !is_root() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let vfs = Vfs::open(&setup(temp.path())).unwrap();
    create(&vfs, "base", None);
    let home = temp.path().join("vfs");
    assert_eq!((mode(&home), mode(home.join("dir"))), (0o700, 0o700));
    let base = home.join("dir/base");
    assert_eq!(mode(&base), 0o555);
    assert_eq!(vfs.get(&id("base"), &GetOptions::default()).unwrap().path(), base);
    fs::set_permissions(&base, PermissionsExt::from_mode(0o2711)).unwrap();
    std::os::unix::fs::chown(&base, Some(12), Some(34)).unwrap();
    fs::set_permissions(&base, PermissionsExt::from_mode(0o2711)).unwrap();
    create(&vfs, "child", Some("base"));
    let child = fs::metadata(home.join("dir/child")).unwrap();
    assert_eq!((child.mode() & 0o7777, child.uid(), child.gid()), (0o2711, 12, 34));
    // Nothing stays of the temporary directories, but their root does, as with the peer.
    assert_eq!(fs::read_dir(home.join("tempdirs")).unwrap().count(), 0);
    assert_eq!(mode(home.join("tempdirs")), 0o700);
}

#[test]
fn opening_removes_what_killed_processes_left_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let vfs = Vfs::open(&setup(temp.path())).unwrap();
    create(&vfs, "base", None);
    let staged = vfs.begin_staged(None, &CreateOptions::default()).unwrap();
    // A process that was killed holds no lock any more.
    let left = temp.path().join("vfs/tempdirs/temp-dir-123");
    fs::create_dir_all(left.join("0-addition/dir")).unwrap();
    fs::write(temp.path().join("vfs/tempdirs/lock-123"), "").unwrap();
    fs::set_permissions(left.join("0-addition/dir"), PermissionsExt::from_mode(0o000)).unwrap();
    // What is no layer is no reason to fail.
    fs::write(temp.path().join("vfs/dir/file"), "").unwrap();
    std::os::unix::fs::symlink("base", temp.path().join("vfs/dir/link")).unwrap();

    let again = Vfs::open(&setup(temp.path())).unwrap();
    assert!(!left.exists());
    assert!(!temp.path().join("vfs/tempdirs/lock-123").exists());
    assert_eq!(again.list_layers().unwrap(), [id("base")]);
    assert!(!again.exists(&id("link")).unwrap());
    assert_eq!(again.get(&id("link"), &GetOptions::default()).unwrap_err().kind(), ErrorKind::NotFound);
    // The one that is being filled is still there.
    staged.publish(&id("staged")).unwrap();
    assert_eq!(again.list_layers().unwrap(), [id("base"), id("staged")]);
}

#[test]
fn read_only_layers_go_to_the_image_store() {
    let temp = tempfile::tempdir().unwrap();
    let (root, store) = (temp.path().join("root"), temp.path().join("store"));
    for path in [&root, &store] {
        fs::create_dir(path).unwrap();
    }
    let vfs = Vfs::open(&DriverSetup { image_store: Some(store.clone()), ..setup(&root) }).unwrap();
    vfs.create(&id("image"), None, &CreateOptions::default()).unwrap();
    vfs.begin_staged(Some(&id("image")), &CreateOptions::default()).unwrap().publish(&id("staged")).unwrap();
    create(&vfs, "container", Some("staged"));
    assert!(store.join("vfs/dir/image").exists() && store.join("vfs/dir/staged").exists());
    assert!(root.join("vfs/dir/container").exists());
    assert_eq!(vfs.list_layers().unwrap(), [id("container"), id("image"), id("staged")]);
    assert_eq!(vfs.temp_dir_roots(), [root.join("vfs/tempdirs"), store.join("vfs/tempdirs")]);
    let status = vfs.status().unwrap();
    assert_eq!(status.last().unwrap().1, store.join("vfs").to_str().unwrap());
    // One id, one layer, wherever it is.
    let error = vfs.create_read_write(&id("image"), None, &CreateOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    for name in ["image", "staged", "container"] {
        vfs.remove(&id(name)).unwrap();
    }
    assert_eq!(vfs.list_layers().unwrap(), []);
}

#[test]
fn an_additional_store_may_have_no_vfs_layers_and_is_never_written_to() {
    let temp = tempfile::tempdir().unwrap();
    let (root, other, empty) = (temp.path().join("root"), temp.path().join("other"), temp.path().join("empty"));
    for path in [&root, &other, &empty] {
        fs::create_dir(path).unwrap();
    }
    let theirs = Vfs::open(&setup(&other)).unwrap();
    create(&theirs, "base", None);
    let stores = format!("{},{}", empty.display(), other.display());
    let options = vec![("imagestore".to_owned(), stores)];
    let vfs = Vfs::open(&DriverSetup { options, ..setup(&root) }).unwrap();
    assert_eq!(vfs.additional_image_stores(), [empty.clone(), other.clone()]);
    assert!(vfs.exists(&id("base")).unwrap());
    vfs.remove(&id("base")).unwrap();
    let empty_archive = [0; 1024];
    let error = vfs.apply_diff(&id("base"), None, &mut &empty_archive[..], &mut ApplyDiffOptions::default());
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NotFound);
    let identity = graph_archive::IdMappings::default();
    let error = vfs.update_layer_id_map(&id("base"), &identity, &identity, "").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(vfs.exists(&id("base")).unwrap());
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
}

#[test]
fn refusals_say_what_to_do() {
    let temp = tempfile::tempdir().unwrap();
    let vfs = Vfs::open(&setup(temp.path())).unwrap();
    create(&vfs, "base", None);
    let limited =
        CreateOptions { storage_opt: [("size".to_owned(), "1G".to_owned())].into(), ..CreateOptions::default() };
    let error = vfs.create_read_write(&id("x"), None, &limited).unwrap_err();
    assert_eq!(error.to_string(), "vfs: --storage-opt (vfs has no quotas) is not supported");
    let options = GetOptions { options: vec!["ro".into(), "nodev".into()], ..GetOptions::default() };
    let error = vfs.get(&id("base"), &options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "mount option \"nodev\" for layer base: the vfs driver mounts nothing and takes no option but \"ro\""
    );
    assert_eq!(vfs.get(&id("none"), &GetOptions::default()).unwrap_err().to_string(), "layer none: unknown layer");
    let options = vec![("mountopt".to_owned(), "nodev".to_owned())];
    let error = Vfs::open(&DriverSetup { options, ..setup(temp.path()) }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

/// No space for a copy of the parent: a typed error, and nothing of the new layer stays.
#[test]
fn a_full_file_system_leaves_nothing_behind() {
    if !is_root() {
        return;
    }
    std::thread::spawn(|| {
        graph_sys::namespace::private_mounts().unwrap();
        let temp = tempfile::tempdir().unwrap();
        let target = temp.path().as_os_str().as_encoded_bytes();
        let flags = graph_sys::mount::MountFlags::empty();
        graph_sys::mount::classic::mount(b"tmpfs", target, "tmpfs", flags, b"size=4m").unwrap();
        let vfs = Vfs::open(&setup(temp.path())).unwrap();
        create(&vfs, "base", None);
        fs::write(temp.path().join("vfs/dir/base/big"), vec![7; 3 << 20]).unwrap();
        let error = vfs.create_read_write(&id("child"), Some(&id("base")), &CreateOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Archive);
        let mut messages = vec![error.to_string()];
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
        while let Some(inner) = cause {
            messages.push(inner.to_string());
            cause = inner.source();
        }
        assert_eq!(messages, ["layer base", "copy \"big\"", "No space left on device (os error 28)"]);
        assert_eq!(vfs.list_layers().unwrap(), [id("base")]);
        assert_eq!(fs::read_dir(temp.path().join("vfs/tempdirs")).unwrap().count(), 0);
        // And there is room again for a layer that fits.
        create(&vfs, "empty", None);
        graph_sys::mount::classic::unmount(target, graph_sys::mount::UnmountFlags::DETACH).unwrap();
    })
    .join()
    .unwrap();
}

/// A home that the packaged containers-storage made, and one layer of ours beside its.
#[test]
fn peer_layers_are_read_and_stacked_upon() {
    if !is_root() {
        return;
    }
    if Command::new("containers-storage").arg("version").output().is_err() {
        eprintln!("skipped: containers-storage is not installed");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    let peer = |arguments: &[&str]| {
        let output = Command::new("containers-storage")
            .args(["--graph", root.to_str().unwrap(), "--run", temp.path().join("run").to_str().unwrap()])
            .args(["--storage-driver", "vfs"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    peer(&["create-layer", "--id", "lower"]);
    let mounted = peer(&["mount", "lower"]);
    fs::write(Path::new(mounted.trim()).join("file"), "theirs").unwrap();
    peer(&["create-layer", "--id", "upper", "lower"]);

    let vfs = Vfs::open(&setup(&root)).unwrap();
    assert_eq!(vfs.list_layers().unwrap(), [id("lower"), id("upper")]);
    create(&vfs, "ours", Some("upper"));
    let ours = vfs.get(&id("ours"), &GetOptions::default()).unwrap();
    assert_eq!(fs::read(ours.path().join("file")).unwrap(), b"theirs");
    let theirs = vfs.get(&id("lower"), &GetOptions::default()).unwrap();
    assert_eq!(theirs.path(), Path::new(mounted.trim()));
    assert_eq!(mode(ours.path()), mode(theirs.path()));
    // The home is as it would have made it.
    assert_eq!((mode(root.join("vfs")), mode(root.join("vfs/dir"))), (0o700, 0o700));
    // What we leave lying, it cleans up, and the other way round: the same names, the same locks.
    let staged = vfs.begin_staged(Some(&id("upper")), &CreateOptions::default()).unwrap();
    peer(&["delete-layer", "upper"]);
    assert_eq!(staged.publish(&id("late")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(peer(&["status"]).is_empty());
    vfs.remove(&id("ours")).unwrap();
    assert_eq!(vfs.list_layers().unwrap(), [id("lower")]);
    peer(&["unmount", "lower"]);
}
