//! Mounting, in a mount namespace of the test's own.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use graph_archive::idmap::{IdMappings, IdRange};
use graph_core::driver::{CreateOptions, DiffRequest, GetOptions};
use graph_core::{Driver, Error};
use graph_sys::mount::{MountFlags, UnmountFlags, classic};

use super::super::Overlay;
use super::super::mount::Method;
use super::support::{Place, id, may_mount};

const METHODS: [Method; 2] = [Method::Descriptors, Method::Classic];

fn read_only() -> GetOptions {
    GetOptions { options: vec!["ro".into()], ..GetOptions::default() }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn root_layers_are_stacked_written_and_unmounted() {
    if !may_mount() {
        return;
    }
    for method in METHODS {
        let place = Place::new();
        let mut driver = place.with_three_layers();
        driver.method = method;
        for layer in ["base", "middle"] {
            std::fs::write(place.home().join(layer).join("diff/file"), layer).unwrap();
            std::fs::write(place.home().join(layer).join("diff").join(layer), layer).unwrap();
        }
        let mounted = driver.get(&id("top"), &GetOptions::default()).unwrap();
        assert_eq!(mounted.path(), place.home().join("top/merged"));
        assert_eq!(names(mounted.path()), ["base", "file", "middle"]);
        assert_eq!(std::fs::read(mounted.path().join("file")).unwrap(), b"middle");
        std::fs::remove_file(mounted.path().join("base")).unwrap();
        std::fs::write(mounted.path().join("new"), b"new").unwrap();
        let again = driver.get(&id("top"), &GetOptions::default()).unwrap();
        again.put().unwrap();
        assert_eq!(names(mounted.path()), ["file", "middle", "new"], "the first reference has gone with the second");
        let path = mounted.path().to_owned();
        mounted.put().unwrap();
        assert_eq!(names(&path), [""; 0]);
        assert_eq!(names(&place.home().join("top/diff")), ["base", "new"]);
        // Nothing is left that keeps the store from being removed: no mount of the home either.
        assert!(!mounts_below(place.dir.path()));
    }
}

fn mounts_below(path: &Path) -> bool {
    std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap().contains(path.to_str().unwrap())
}

#[test]
fn root_read_only_mounts_refuse_writes() {
    if !may_mount() {
        return;
    }
    for method in METHODS {
        let place = Place::new();
        let mut driver = place.with_three_layers();
        driver.method = method;
        for layer in ["base", "top"] {
            let mounted = driver.get(&id(layer), &read_only()).unwrap();
            let error = std::fs::write(mounted.path().join("file"), b"x").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{layer}");
            mounted.put().unwrap();
        }
    }
}

#[test]
fn root_500_layers_below_one_are_mounted_and_501_are_not() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let mut driver = place.open();
    let mut parent = None;
    for n in 0..=500 {
        let layer = id(&format!("{n:064}"));
        driver.create(&layer, parent.as_ref(), &CreateOptions::default()).unwrap();
        std::fs::write(place.home().join(layer.as_str()).join("diff/last"), n.to_string()).unwrap();
        std::fs::write(place.home().join(layer.as_str()).join(format!("diff/{n}")), b"").unwrap();
        parent = Some(layer);
    }
    let top = parent.unwrap();
    for method in METHODS {
        driver.method = method;
        let mounted = driver.get(&top, &GetOptions::default()).unwrap();
        assert_eq!(std::fs::read(mounted.path().join("last")).unwrap(), b"500");
        assert_eq!(names(mounted.path()).len(), 502);
        mounted.put().unwrap();
    }
    // The layer's own directory has no room among the lower ones any more.
    for method in METHODS {
        driver.method = method;
        let mounted = driver.get(&top, &read_only()).unwrap();
        assert_eq!(std::fs::read(mounted.path().join("last")).unwrap(), b"500");
        assert!(std::fs::write(mounted.path().join("last"), b"x").is_err());
        mounted.put().unwrap();
    }
    // A record of a peer that allows more.
    let lower_layers = place.home().join(top.as_str()).join("lower-layers");
    let records = format!("{0}:{1}", place.text(&format!("{top}/lower-layers")), id(&"0".repeat(64)));
    std::fs::write(&lower_layers, records).unwrap();
    std::fs::remove_file(place.home().join(top.as_str()).join("lower")).unwrap();
    let error = driver.get(&top, &GetOptions::default()).unwrap_err();
    assert!(matches!(error, Error::TooDeep { limit: 500, depth: 501, .. }), "{error}");
    assert!(error.to_string().contains("max depth exceeded"), "{error}");
    assert!(!mounts_below(place.dir.path()));
}

#[test]
fn root_paths_may_be_long_and_hold_commas_colons_and_quotes() {
    if !may_mount() {
        return;
    }
    for method in METHODS {
        let place = Place::new();
        let mut deep = place.dir.path().join("a,b:c\"d\\e f");
        for _ in 0..3 {
            deep.push("x".repeat(200));
        }
        let mut setup = place.setup();
        setup.root = deep.join("root");
        let mut driver = Overlay::open(&setup, "overlay").unwrap();
        driver.method = method;
        let mut parent = None;
        for n in 0..9 {
            let layer = id(&format!("{n}"));
            driver.create(&layer, parent.as_ref(), &CreateOptions::default()).unwrap();
            std::fs::write(setup.root.join(format!("overlay/{n}/diff/{n}")), b"").unwrap();
            parent = Some(layer);
        }
        // Nine paths of 700 bytes are more than mount(2) takes at once.
        let mounted = driver.get(&parent.unwrap(), &GetOptions::default()).unwrap();
        assert_eq!(names(mounted.path()).len(), 9);
        mounted.put().unwrap();
    }
}

#[test]
fn root_something_else_on_the_mount_point_is_named_and_left_alone() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let driver = place.with_three_layers();
    let merged = place.home().join("top/merged");
    let target = merged.as_os_str().as_encoded_bytes();
    let foreign = || classic::mount(b"foreign", target, "tmpfs", MountFlags::empty(), b"").unwrap();

    foreign();
    for result in
        [driver.get(&id("top"), &GetOptions::default()).map(drop), driver.put(&id("top")), driver.remove(&id("top"))]
    {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        assert!(error.to_string().contains("tmpfs"), "{error}");
    }
    assert!(mounts_below(&merged));
    classic::unmount(target, UnmountFlags::empty()).unwrap();

    // On top of our own mount.
    let mounted = driver.get(&id("top"), &GetOptions::default()).unwrap();
    foreign();
    assert!(matches!(mounted.put(), Err(Error::InUse { .. })));
    classic::unmount(target, UnmountFlags::empty()).unwrap();
    assert!(matches!(driver.remove(&id("top")), Err(Error::InUse { .. })), "it is still mounted");
    driver.put(&id("top")).unwrap();
    driver.remove(&id("top")).unwrap();
    assert!(!driver.exists(&id("top")).unwrap());
}

#[test]
fn root_a_copy_of_the_mount_in_another_namespace_does_not_stay() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let driver = place.with_three_layers();
    let mounted = driver.get(&id("top"), &GetOptions::default()).unwrap();
    let merged = mounted.path().to_owned();
    let step = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // A copy of all mounts, as a service started now would have.
            graph_sys::namespace::private_mounts().unwrap();
            assert!(mounts_below(&merged));
            step.wait();
            step.wait();
            mounts_below(&merged)
        });
        step.wait();
        mounted.put().unwrap();
        step.wait();
        assert!(!thread.join().unwrap());
    });
    driver.remove(&id("top")).unwrap();
}

#[test]
fn root_a_volatile_layer_is_mounted_again_but_not_after_a_restart() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let driver = place.with_three_layers();
    assert!(driver.capabilities().volatile);
    let options = GetOptions { volatile: true, ..GetOptions::default() };
    let mark = place.home().join("top/work/work/incompat/volatile");
    for round in ["1", "2"] {
        let mounted = driver.get(&id("top"), &options).unwrap();
        assert!(mark.exists());
        std::fs::write(mounted.path().join(round), round).unwrap();
        mounted.put().unwrap();
    }
    // Without the option, and by another process.
    let mounted = place.open().get(&id("top"), &GetOptions::default()).map(graph_core::driver::Mounted::put);
    mounted.unwrap().unwrap();
    assert_eq!(names(&place.home().join("top/diff")), ["1", "2"]);

    driver.get(&id("top"), &options).unwrap().put().unwrap();
    // A peer made the mark: no note of ours, but it is younger than the machine's start.
    std::fs::remove_dir_all(place.dir.path().join("run/overlay/top")).unwrap();
    driver.get(&id("top"), &options).unwrap().put().unwrap();

    // Our note is from another boot. (The mark's own time cannot be set back, so the test sets the rule's other half.)
    std::fs::write(place.dir.path().join("run/overlay/top/volatile-boot"), "another-boot").unwrap();
    let layer = driver.homes.require(&id("top")).unwrap();
    let error = super::super::volatile::prepare_at(&layer, &driver.run_path, true, i64::MAX).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("volatile") && error.to_string().contains("remove"), "{error}");
    assert!(mark.exists(), "reporting must not remove the mark");
    let note = place.dir.path().join("run/overlay/top/volatile-boot");
    driver.remove(&id("top")).unwrap();
    assert!(!note.exists());
}

#[test]
fn root_files_are_shown_through_mappings() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let mut driver = place.with_three_layers();
    if !driver.supports_shifting(&IdMappings::default()) {
        eprintln!("skipped: this kernel does not map the ids of this file system");
        return;
    }
    let base = place.home().join("base/diff");
    std::fs::write(base.join("root"), b"").unwrap();
    std::fs::write(base.join("user"), b"").unwrap();
    std::os::unix::fs::chown(base.join("user"), Some(1000), Some(100)).unwrap();
    let range = IdRange { container_id: 0, host_id: 100_000, size: 65_536 };
    let mappings = IdMappings { uids: vec![range], gids: vec![range] };
    let options = GetOptions { mappings, ..GetOptions::default() };
    let owner = |path: PathBuf| {
        let stat = std::fs::metadata(path).unwrap();
        (stat.uid(), stat.gid())
    };
    for (layer, extra) in [("top", None), ("middle", Some("ro"))] {
        let options = GetOptions { options: extra.map(str::to_owned).into_iter().collect(), ..options.clone() };
        let mounted = driver.get(&id(layer), &options).unwrap();
        assert_eq!(owner(mounted.path().join("root")), (100_000, 100_000), "{layer}");
        assert_eq!(owner(mounted.path().join("user")), (101_000, 100_100), "{layer}");
        assert_eq!(owner(mounted.path().to_owned()), (100_000, 100_000), "{layer}");
        mounted.put().unwrap();
    }
    // What was written through the mappings is on disk as it is shown, also to those who only read.
    let mounted = driver.get(&id("top"), &options).unwrap();
    std::fs::write(mounted.path().join("written"), b"").unwrap();
    std::os::unix::fs::chown(mounted.path().join("written"), Some(100_007), Some(100_008)).unwrap();
    mounted.put().unwrap();
    driver.create_read_write(&id("fresh"), Some(&id("middle")), &CreateOptions::default()).unwrap();
    let only_read = GetOptions { own_files_as_on_disk: true, options: vec!["ro".into()], ..options.clone() };
    for method in METHODS {
        driver.method = method;
        let mounted = driver.get(&id("top"), &only_read).unwrap();
        assert_eq!(owner(mounted.path().join("written")), (100_007, 100_008));
        assert_eq!(owner(mounted.path().join("user")), (101_000, 100_100));
        assert_eq!(owner(mounted.path().to_owned()), (100_000, 100_000));
        mounted.put().unwrap();
        let mounted = driver.get(&id("fresh"), &only_read).unwrap();
        assert_eq!(owner(mounted.path().to_owned()), (100_000, 100_000), "a container that was never written to");
        mounted.put().unwrap();
    }
    let plain = GetOptions { disable_shifting: true, ..options };
    let mounted = driver.get(&id("middle"), &plain).unwrap();
    assert_eq!(owner(mounted.path().join("user")), (1000, 100));
    mounted.put().unwrap();
    assert_eq!(owner(base.join("user")), (1000, 100), "nothing on disk has changed");

    let mut setup = place.setup();
    setup.disable_id_mapped_mounts = true;
    assert!(!Overlay::open(&setup, "overlay").unwrap().supports_shifting(&IdMappings::default()));
}

#[test]
fn root_a_home_bind_that_a_peer_takes_away_does_not_hinder_looking() {
    if !may_mount() {
        return;
    }
    for method in METHODS {
        let place = Place::new();
        drop(place.with_three_layers());
        let home = place.home();
        let home = home.as_os_str().as_encoded_bytes();
        classic::bind(home, home, false).unwrap();
        let mut driver = place.open();
        driver.method = method;
        std::fs::write(place.home().join("base/diff/file"), b"content").unwrap();
        classic::unmount(home, UnmountFlags::DETACH).unwrap();
        let tree = driver.peek(&id("top")).unwrap();
        assert!(graph_sys::fs::statat(&tree, "file", graph_sys::fs::AtFlags::empty()).is_ok());
        // Not the layer's own parent: by mounts.
        let (top, base, none) = (id("top"), id("base"), IdMappings::default());
        let request =
            DiffRequest { id: &top, mappings: &none, parent: Some(&base), parent_mappings: &none, mount_label: "" };
        assert_eq!(driver.changes(&request).unwrap(), []);
        driver.get(&id("top"), &GetOptions::default()).unwrap().put().unwrap();
    }
}

#[test]
fn root_layers_of_a_read_only_store_are_mounted_without_touching_it() {
    if !may_mount() {
        return;
    }
    let other = Place::new();
    drop(other.with_three_layers());
    std::fs::write(other.home().join("base/diff/file"), b"content").unwrap();
    let store = other.dir.path().join("root");
    let bytes = store.as_os_str().as_encoded_bytes();
    classic::bind(bytes, bytes, false).unwrap();
    classic::remount_bind(bytes, MountFlags::RDONLY).unwrap();

    let place = Place::new();
    let mut setup = place.setup();
    setup.options = vec![("imagestore".into(), store.to_str().unwrap().into())];
    let driver = Overlay::open(&setup, "overlay").unwrap();
    assert_eq!(driver.additional_image_stores(), std::slice::from_ref(&store));
    assert!(driver.exists(&id("top")).unwrap());
    assert_eq!(driver.list_layers().unwrap(), []);
    for layer in ["base", "top"] {
        let mounted = driver.get(&id(layer), &GetOptions::default()).unwrap();
        assert_eq!(mounted.path(), place.dir.path().join("run/overlay").join(layer).join("merged"));
        assert_eq!(std::fs::read(mounted.path().join("file")).unwrap(), b"content");
        assert!(std::fs::write(mounted.path().join("other"), b"").is_err());
        mounted.put().unwrap();
        assert!(!place.dir.path().join("run/overlay").join(layer).exists());
    }
    driver.create_read_write(&id("child"), Some(&id("top")), &CreateOptions::default()).unwrap();
    let mounted = driver.get(&id("child"), &GetOptions::default()).unwrap();
    std::fs::write(mounted.path().join("file"), b"changed").unwrap();
    mounted.put().unwrap();
    assert_eq!(std::fs::read(place.home().join("child/diff/file")).unwrap(), b"changed");
    driver.remove(&id("top")).unwrap();
    assert!(driver.exists(&id("top")).unwrap(), "it is not ours to remove");
    drop(driver);
    classic::unmount(bytes, UnmountFlags::empty()).unwrap();
}

#[test]
fn root_probes_are_kept_under_the_peers_names() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let mut setup = place.setup();
    setup.options = vec![("mountopt".into(), "nodev,metacopy=on".into())];
    let driver = Overlay::open(&setup, "overlay").unwrap();
    let run = place.dir.path().join("run/overlay");
    assert_eq!(
        names(&run).into_iter().filter(|name| !name.starts_with("reflink")).collect::<Vec<_>>(),
        [
            "dataonly-layers-true",
            "idmapped-lower-dir-true",
            "metacopy(nodev,metacopy=on)-true",
            "native-diff(nodev,metacopy=on)-false",
            "overlay-true",
            "volatile-true",
        ]
    );
    assert!(!driver.capabilities().native_diff);
    assert!(place.open().capabilities().native_diff);
    assert_eq!(names(&place.home().join("tempdirs")), [""; 0]);
    assert_eq!(place.text(".has-mount-program"), "false");
    let status = driver.status().unwrap();
    let keys: Vec<&str> = status.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "Backing Filesystem",
            "Supports d_type",
            "Native Overlay Diff",
            "Using metacopy",
            "Supports shifting",
            "Supports volatile"
        ]
    );

    // What another process found out is believed, also its reason.
    std::fs::remove_file(run.join("overlay-true")).unwrap();
    std::fs::write(run.join("overlay-false"), "no such luck").unwrap();
    let error = Overlay::open(&setup, "overlay").unwrap_err();
    assert!(matches!(error, Error::NotSupported { .. }) && error.to_string().contains("no such luck"), "{error}");
}

#[test]
fn root_a_refused_driver_leaves_no_home() {
    let place = Place::new();
    let setup = place.setup();
    let run = place.dir.path().join("run/overlay");
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(run.join("overlay-false"), "refused").unwrap();
    Overlay::open(&setup, "overlay").unwrap_err();
    assert!(!place.home().exists());

    std::fs::remove_file(run.join("overlay-false")).unwrap();
    drop(place.with_three_layers());
    std::fs::set_permissions(place.home().join(".has-mount-program"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(place.home().join(".has-mount-program"), "true").unwrap();
    // With the usual program, where that is installed; never by the kernel.
    match Overlay::open(&setup, "overlay") {
        Ok(driver) => assert!(driver.program.is_some()),
        Err(error) => assert!(error.to_string().contains("fuse-overlayfs"), "{error}"),
    }
    let mut setup = place.setup();
    setup.options = vec![("mount_program".into(), "/no/such/program".into())];
    let error = Overlay::open(&setup, "overlay").unwrap_err();
    assert!(matches!(error, Error::Config { .. }) && error.to_string().contains("/no/such/program"), "{error}");
    assert!(place.home().join("base").exists());
}

#[test]
fn root_probes_answer_the_same_with_the_old_mount_call() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let driver = place.open();
    let run = tempfile::tempdir().unwrap();
    let opened = super::super::layout::open_dir(graph_sys::fs::CWD, run.path()).unwrap();
    let prober = super::super::probe::Prober {
        home: &driver.homes.own,
        run_home: &opened,
        run_path: run.path(),
        namespace: driver.namespace,
        options: &driver.options,
        id_maps_disabled: false,
        method: Method::Classic,
    };
    let works = |features: &super::super::probe::Features| {
        [&features.overlay, &features.metacopy, &features.native_diff, &features.volatile, &features.data_only]
            .map(|answer| answer.works)
    };
    let features = prober.features().unwrap();
    assert_eq!(works(&features), works(&driver.features), "{features:?}");
    assert!(!mounts_below(place.dir.path()));
}

#[test]
fn root_a_peer_may_mount_the_home_upon_itself_at_any_time() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let mut setup = place.setup();
    setup.disable_id_mapped_mounts = true;
    let driver = Overlay::open(&setup, "overlay").unwrap();
    place.fill(&driver);
    let home = place.home();
    let bytes = home.as_os_str().as_encoded_bytes();
    let range = IdRange { container_id: 0, host_id: 100_000, size: 65_536 };
    let work = |name: &str| {
        driver.create_read_write(&id(name), Some(&id("middle")), &CreateOptions::default()).unwrap();
        let mapped = IdMappings { uids: vec![range], gids: vec![range] };
        driver.update_layer_id_map(&id(name), &IdMappings::default(), &mapped, "").unwrap();
        let mounted = driver.get(&id(name), &GetOptions::default()).unwrap();
        std::fs::write(mounted.path().join("file"), name).unwrap();
        mounted.put().unwrap();
        assert_eq!(std::fs::read(home.join(name).join("diff/file")).unwrap(), name.as_bytes());
        driver.remove(&id(name)).unwrap();
    };
    work("before");
    classic::bind(bytes, bytes, false).unwrap();
    work("during");
    let mounted = driver.get(&id("top"), &GetOptions::default()).unwrap();
    assert_eq!(mounted.persist(), home.join("top/merged"));
    driver.cleanup().unwrap();
    assert!(mounts_below(&home), "clean-up leaves mounts that are not the driver's");
    driver.put(&id("top")).unwrap();
    classic::unmount(bytes, UnmountFlags::empty())
        .unwrap_or_else(|_| classic::unmount(bytes, UnmountFlags::DETACH).unwrap());
    work("after");
}

#[test]
fn root_a_full_disk_is_not_taken_for_a_missing_feature() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let root = place.dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let target = root.as_os_str().as_encoded_bytes();
    // From too few inodes for the home to nearly enough for all attempts: every place where the disk can be full.
    let mut outcomes = [0, 0];
    for inodes in 3..40 {
        classic::mount(b"small", target, "tmpfs", MountFlags::empty(), format!("nr_inodes={inodes}").as_bytes())
            .unwrap();
        match Overlay::open(&place.setup(), "overlay") {
            Ok(_) => outcomes[0] += 1,
            Err(error) => {
                assert_eq!(error.kind(), graph_core::ErrorKind::Io, "{inodes}: {error}");
                outcomes[1] += 1;
            }
        }
        classic::unmount(target, UnmountFlags::empty()).unwrap();
        let run = place.dir.path().join("run/overlay");
        let kept = if run.exists() { names(&run) } else { Vec::new() };
        assert!(!kept.iter().any(|name| name == "overlay-false" || name == "volatile-false"), "{inodes}: {kept:?}");
        std::fs::remove_dir_all(place.dir.path().join("run")).ok();
    }
    assert!(place.open().capabilities().native_diff);
    assert!(outcomes.iter().all(|count| *count > 5), "{outcomes:?}");
}
