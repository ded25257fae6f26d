//! `gc`, `wipe` and `shutdown`: what belongs to nothing goes, what is in use stays, and damage stops none of them.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use support::{TestStore, both, in_own_mount_namespace, run};

fn each(test: &str, work: impl Fn(TestStore)) {
    if in_own_mount_namespace(test) {
        for driver in ["overlay", "vfs"] {
            eprintln!("{driver}");
            let store = TestStore::new(driver);
            store.in_memory();
            work(store);
        }
    }
}

fn layer(store: &TestStore, parent: &str) -> String {
    store.ok(&["create-layer", parent]).trim().to_owned()
}

#[test]
fn root_gc_removes_what_belongs_to_nothing_and_lists_it_before() {
    each("root_gc_removes_what_belongs_to_nothing_and_lists_it_before", |store| {
        let driver = store.driver;
        let kept = layer(&store, "");
        let image = store.ok(&["create-image", &kept]).trim().to_owned();
        store.ok(&["create-container", &image]);
        assert_eq!(store.ok(&["gc", "--dry-run"]), "");
        assert_eq!(store.ok(&["gc"]), "");
        assert_eq!(store.ok(&["gc", "-j"]), "\"\"\n");

        let records = store.path(&format!("root/{driver}-layers/layers.json"));
        let text = fs::read_to_string(&records).unwrap();
        let unknown = layer(&store, "");
        fs::write(&records, &text).unwrap();
        let nobody = "0123456789abcdef".repeat(4);
        let mut garbage = vec![unknown.clone()];
        for (dir, name) in [
            (format!("root/{driver}-images/{nobody}"), "manifest"),
            (format!("root/{driver}-containers/{nobody}"), "data"),
            (format!("root/{driver}-layers/{unknown}"), "data"),
        ] {
            fs::create_dir_all(store.path(&dir)).unwrap();
            fs::write(store.path(&dir).join(name), "0123456789").unwrap();
            garbage.push(store.path(&dir).display().to_string());
        }
        let split = store.path(&format!("root/{driver}-layers/{unknown}.tar-split.gz"));
        fs::write(&split, "01234").unwrap();
        garbage.push(split.display().to_string());
        if driver == "overlay" {
            let dangling = store.path("root/overlay/l/ABCDEFGHIJKLMNOPQRSTUVWXYZ");
            symlink("../gone/diff", &dangling).unwrap();
            let doubled = store.path("root/overlay/l/BBCDEFGHIJKLMNOPQRSTUVWXYZ");
            symlink(format!("../{kept}/diff"), &doubled).unwrap();
            garbage.extend([dangling, doubled].map(|path| path.display().to_string()));
            // A partial pull whose process is dead, and one that lives.
            for name in ["dead", "living"] {
                let dir = store.path("root/overlay/staging").join(name);
                fs::create_dir_all(dir.join("dir")).unwrap();
                fs::write(dir.join("dir/file"), "0123456789").unwrap();
                fs::write(dir.join("staging.lock"), "").unwrap();
            }
            garbage.push(store.path("root/overlay/staging/dead").display().to_string());
        }
        // Names that are not of the usual kind may be anybody's, and data of a layer that the driver has not, another image
        // store's.
        let strangers = [
            format!("root/{driver}-images/mine"),
            format!("root/{driver}-layers/mine"),
            format!("root/{driver}-layers/{nobody}"),
        ];
        for stranger in &strangers {
            fs::create_dir_all(store.path(stranger)).unwrap();
        }
        let incomplete = format!(
            r#"[{{"flags":{{"incomplete":true}},"id":"begun","created":"2020-01-01T00:00:00Z"}},{}"#,
            &text[1..]
        );
        fs::write(&records, &incomplete).unwrap();
        garbage.push("begun".to_owned());

        let mut owner = Command::new("python3");
        owner.args(["-c", "import fcntl,sys\nf=open(sys.argv[1],'r+')\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint(flush=True)\nsys.stdin.read()"]);
        owner.arg(store.path("root/overlay/staging/living/staging.lock"));
        owner.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut owner = (driver == "overlay").then(|| {
            let mut owner = owner.spawn().unwrap();
            std::io::Read::read_exact(owner.stdout.as_mut().unwrap(), &mut [0]).unwrap();
            owner
        });

        // In a script the records of engines that clean up less are what counts: not even the dry run's own opening cleans.
        let listed = store.ok(&["gc", "--dry-run"]);
        for place in &garbage {
            assert!(listed.contains(&format!("\t{place}\n")), "{place} is not in: {listed}");
        }
        assert_eq!(listed.lines().count(), garbage.len() + 1, "{listed}");
        assert!(listed.contains(&format!("10\tdata of an image that no record knows\t{}", garbage[1])), "{listed}");
        let json: serde_json::Value = serde_json::from_str(&store.ok(&["gc", "--dry-run", "--json"])).unwrap();
        assert_eq!(json.as_array().unwrap().len(), garbage.len());
        assert_eq!(fs::read_to_string(&records).unwrap(), incomplete);
        assert!(split.exists());

        assert_eq!(store.ok(&["gc"]), "");
        assert_eq!(store.ok(&["gc", "--dry-run"]), "");
        for place in &garbage {
            assert!(!Path::new(place).is_absolute() || fs::symlink_metadata(place).is_err(), "{place}");
        }
        for stranger in &strangers {
            assert!(store.path(stranger).exists());
        }
        if let Some(owner) = &mut owner {
            assert!(store.path("root/overlay/staging/living/dir/file").exists());
            drop(owner.stdin.take());
            owner.wait().unwrap();
        }
        assert_eq!(store.ok(&["check"]), "");
        assert_eq!(store.ok(&["images", "-q"]), format!("{image}\n"));
    });
}

/// Without its image store, or with another, a graph root has data of layers that no record knows.
#[test]
fn root_gc_without_the_image_store_keeps_the_data_of_its_layers() {
    each("root_gc_without_the_image_store_keeps_the_data_of_its_layers", |store| {
        let driver = store.driver;
        let archive = store.path("layer.tar");
        let tree = store.path("tree");
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("file"), "contents").unwrap();
        run(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&tree).arg("."));
        let images = store.path("images").display().to_string();
        let archive = archive.display().to_string();
        let import = ["import-layer", "--readonly", "-f", &archive];
        fn in_store<'w>(images: &'w str, words: &[&'w str]) -> Vec<&'w str> {
            [&["--image-store", images], words].concat()
        }
        let mut layers = vec![store.ok(&in_store(&images, &import)).trim().to_owned()];
        store.ok(&["shutdown"]);
        let newer = || both(&store.peer(&["layers", "--help"]).output().unwrap()).contains("--image-store");
        if !support::have("containers-storage", "a split store of the peer's") {
        } else if !newer() {
            eprintln!("skipped: a split store of the peer's: this containers-storage knows none");
        } else {
            layers.push(run(&mut store.peer(&in_store(&images, &import))).trim().to_owned());
            run(&mut store.peer(&in_store(&images, &["shutdown"])));
        }
        for layer in &layers {
            store.ok(&in_store(&images, &["set-layer-data", "-f", &archive, layer, "item"]));
        }
        let writable = store.ok(&in_store(&images, &["create-layer", layers.last().unwrap()])).trim().to_owned();
        let other = store.path("other").display().to_string();
        for open in [&[][..], &["--image-store", &*other], &["--image-store", &*images]] {
            assert_eq!(store.ok(&[open, &["gc", "--dry-run"]].concat()), "");
            assert_eq!(store.ok(&[open, &["gc"]].concat()), "");
            store.ok(&["shutdown"]);
        }
        for layer in &layers {
            let data = store.path(&format!("root/{driver}-layers"));
            assert!(data.join(format!("{layer}.tar-split.gz")).exists());
            assert_eq!(fs::read_dir(data.join(layer)).unwrap().count(), 1);
        }
        let to = if driver == "vfs" { "overlay" } else { "vfs" };
        assert!(store.fails(&["convert", "--remove-old", "--to", to]).contains("with a separate image store"));
        assert_eq!(store.ok(&in_store(&images, &["check"])), "");
        store.ok(&in_store(&images, &["layer", &writable]));
    });
}

/// Whoever has the store open as a transient one has other records of volatile layers than others.
#[test]
fn root_gc_and_check_spare_layers_of_transient_containers() {
    each("root_gc_and_check_spare_layers_of_transient_containers", |store| {
        let transient = store.ok(&["--transient-store", "create-container", ""]).trim().to_owned();
        let image = store.ok(&["create-image", &layer(&store, "")]).trim().to_owned();
        let volatile = store.ok(&["create-container", "--volatile", &image]);
        for mode in ["--transient-store=false", "--transient-store"] {
            assert_eq!(store.ok(&[mode, "gc", "--dry-run"]), "");
            assert_eq!(store.ok(&[mode, "gc"]), "");
            assert_eq!(store.ok(&[mode, "check", "-r"]), "");
        }
        let to = if store.driver == "vfs" { "overlay" } else { "vfs" };
        assert!(store.fails(&["convert", "--to", to]).contains("transient containers"));
        store.ok(&["--transient-store", "mount", &transient]);
        store.ok(&["--transient-store", "unmount", &transient]);
        store.ok(&["mount", volatile.trim()]);
        store.ok(&["unmount", volatile.trim()]);
    });
}

#[test]
fn root_wipe_steps_over_damage_and_unmounts() {
    each("root_wipe_steps_over_damage_and_unmounts", |store| {
        let base = layer(&store, "");
        let middle = layer(&store, &base);
        let image = store.ok(&["create-image", &middle]).trim().to_owned();
        let container = store.ok(&["create-container", &image]).trim().to_owned();
        store.ok(&["mount", &container]);
        store.ok(&["mount", &middle]);
        let records = store.path(&format!("root/{}-layers/layers.json", store.driver));
        let text = fs::read_to_string(&records).unwrap();
        let date = r#""created":"2020-01-01T00:00:00Z""#;
        let damage = format!(
            r#"[{{"id":"a","parent":"b",{date}}},{{"id":"b","parent":"a",{date}}},{{"id":"../x",{date}}},{{"id":"orphan","parent":"gone",{date}}},"#
        );
        fs::write(&records, text.replacen('[', &damage, 1)).unwrap();
        // The driver has lost one, and has one of its own.
        run(Command::new("sh")
            .args(["-c", "rm -rf root/*/orphan; if test -d root/overlay; then mkdir root/overlay/stray; else mkdir root/vfs/dir/stray; fi"])
            .current_dir(store.dir.path()));
        assert_eq!(store.ok(&["wipe"]), "");
        assert_eq!(fs::read_to_string(&records).unwrap(), "[]");
        for list in ["layers", "images", "containers"] {
            assert_eq!(store.ok(&[list]), "");
        }
        let stray = if store.driver == "overlay" { "root/overlay/stray" } else { "root/vfs/dir/stray" };
        assert!(!store.path(stray).exists());
        assert_eq!(store.ok(&["check"]), "");
        store.ok(&["wipe", "-j"]);
        store.ok(&["shutdown"]);
        // Nothing is mounted: the root can be removed.
        fs::remove_dir_all(store.path("root")).unwrap();
    });
}

#[test]
fn root_shutdown_refuses_mounts_unless_forced() {
    each("root_shutdown_refuses_mounts_unless_forced", |store| {
        let container = store.ok(&["create-container", ""]).trim().to_owned();
        store.ok(&["mount", &container]);
        store.ok(&["mount", &container]);
        let out = store.command(&["shutdown"]).output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        assert!(both(&out).contains("a layer is mounted: layer is in use by a container"), "{}", both(&out));
        assert_eq!(store.ok(&["shutdown", "-f"]), "");
        assert_eq!(store.ok(&["shutdown"]), "");
        fs::remove_dir_all(store.path("root")).unwrap();
    });
}

#[test]
fn root_an_operators_own_mount_on_the_home_stays() {
    if !in_own_mount_namespace("root_an_operators_own_mount_on_the_home_stays") {
        return;
    }
    let store = TestStore::new("overlay");
    store.in_memory();
    let home = store.path("root/overlay");
    fs::create_dir_all(&home).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&home));
    let container = store.ok(&["create-container", ""]).trim().to_owned();
    store.ok(&["mount", &container]);
    store.ok(&["unmount", &container]);
    store.ok(&["shutdown", "-f"]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let here = mounts.lines().filter(|line| line.split(' ').nth(4) == home.to_str()).count();
    assert_eq!(here, 1, "{mounts}");
    assert_eq!(store.ok(&["check"]), "");
    run(Command::new("umount").arg(&home));
}
