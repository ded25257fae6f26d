//! `repair --from`: damaged files of a layer come back from its blob, and nothing else is touched.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
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

/// A tar with files of all owners and modes, one with two names, and another layer upon it.
fn image(store: &TestStore) -> (PathBuf, Vec<String>, String) {
    let dir = store.path("tree");
    fs::create_dir_all(&dir).unwrap();
    let script = "umask 022; mkdir -p bin etc/deep; seq 100000 >bin/program; chmod 4755 bin/program; ln bin/program bin/other; \
                  echo key >etc/deep/key; chown 1000:1001 etc/deep/key; chmod 600 etc/deep/key; \
                  setfattr -n user.k -v v etc/deep/key; echo untouched >etc/untouched; : >empty; \
                  find . -exec touch -h -d @1000000000 {} +; \
                  tar --numeric-owner --sort=name --format=pax --xattrs -cf ../base.tar .; gzip -nk ../base.tar; \
                  cd ..; mkdir -p top/etc; echo top >top/etc/top; tar -C top -cf top.tar etc/top";
    run(Command::new("sh").args(["-ec", script]).current_dir(&dir));
    let import = |tar: &str, parent: &str| {
        store.ok(&["import-layer", "--file", store.path(tar).to_str().unwrap(), parent]).trim().to_owned()
    };
    let base = import("base.tar.gz", "");
    let top = import("top.tar", &base);
    let image = store.ok(&["create-image", &top]).trim().to_owned();
    (store.path("base.tar"), vec![base, top], image)
}

fn files(store: &TestStore, layer: &str) -> PathBuf {
    let root = store.path("root");
    if store.driver == "overlay" {
        root.join("overlay").join(layer).join("diff")
    } else {
        root.join("vfs/dir").join(layer)
    }
}

/// Everything that can be said of a tree.
fn facts(root: &Path) -> String {
    let script = "find . -mindepth 1 -printf '%p %y %m %U:%G %n %T@ %s\\n' | sort; find . -type f | sort | xargs sha256sum; \
                  getfattr -R -d -m user . 2>/dev/null | grep -v '^#' | sort";
    run(Command::new("sh").args(["-c", script]).current_dir(root))
}

#[test]
fn root_damaged_and_lost_files_come_back_from_every_kind_of_source() {
    each("root_damaged_and_lost_files_come_back_from_every_kind_of_source", |store| {
        let (tar, layers, image) = image(&store);
        let layout = format!("oci:{}", store.path("layout").display());
        store.ok(&["save", &image, &format!("{layout}:one")]);
        let base = files(&store, &layers[0]);
        let whole = facts(&base);
        let untouched = fs::metadata(base.join("etc/untouched")).unwrap();
        let sources = [
            tar.display().to_string(),
            format!("{}.gz", tar.display()),
            layout.clone(),
            format!("{layout}:one"),
            store.path("layout").display().to_string(),
        ];
        for (n, source) in sources.iter().enumerate() {
            eprintln!("{source}");
            // Sizes stay, or not; files are lost, with their directories.
            run(Command::new("sh")
                .args(["-ec", "printf x | dd of=bin/program bs=1 seek=1000 conv=notrunc status=none; rm -r etc/deep"])
                .current_dir(&base));
            assert_eq!(store.command(&["check", &image]).output().unwrap().status.code(), Some(1));
            let only = [vec![], vec![image.as_str()], vec![layers[0].as_str()]][n % 3].clone();
            let said = store.ok(&[vec!["repair", "--from", source], only].concat());
            let expected = ["bin/other", "etc/deep/key"].map(|file| format!("{}: restored \"{file}\"\n", layers[0]));
            assert_eq!(said, expected.concat());
            assert_eq!(facts(&base), whole, "from {source}");
            assert_eq!(store.ok(&["check"]), "");
            assert_eq!(store.ok(&["repair", "--from", source]), "", "nothing more to do");
        }
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(base.join("etc/untouched")).unwrap().ino(), untouched.ino());
        assert_eq!(store.ok(&["repair", "--from", &sources[0], "-j"]), "{}\n");
        // Nothing is left over.
        for dir in ["root/overlay/tempdirs", "root/vfs/tempdirs"] {
            assert!(fs::read_dir(store.path(dir)).map_or(0, Iterator::count) == 0);
        }
    });
}

#[test]
fn root_another_blob_changes_nothing() {
    each("root_another_blob_changes_nothing", |store| {
        let (tar, layers, image) = image(&store);
        let base = files(&store, &layers[0]);
        fs::write(base.join("etc/deep/key"), "other").unwrap();
        let damaged = facts(&base);
        // The same file with the same content, in another archive.
        run(Command::new("sh")
            .args(["-c", "tar -C tree -cf other.tar etc/deep/key; head -c 20000 base.tar >cut.tar"])
            .current_dir(store.dir.path()));
        for (source, text) in [
            ("top.tar", "layer content incorrect digest"),
            ("other.tar", "layer content incorrect digest"),
            ("cut.tar", "unexpected EOF"),
            ("missing", "No such file"),
        ] {
            let said = store.fails(&["repair", "--from", store.path(source).to_str().unwrap()]);
            assert!(said.contains(text), "{source}: {said}");
            assert_eq!(facts(&base), damaged, "{source}");
        }
        let empty = store.path("empty-layout");
        fs::create_dir_all(&empty).unwrap();
        let said = store.fails(&["repair", "--from", empty.to_str().unwrap()]);
        assert!(said.contains(&format!("layer {}: 1 damaged files, and", layers[0])), "{said}");

        // A container that is mounted on it: the damaged file may be in somebody's hands.
        let container = store.ok(&["create-container", &image]).trim().to_owned();
        let mount = store.ok(&["mount", &container]).trim().to_owned();
        let out = store.command(&["repair", "--from", tar.to_str().unwrap()]).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", both(&out));
        assert!(both(&out).contains("unmount and mount that again"), "{}", both(&out));
        store.ok(&["unmount", &container]);
        store.ok(&["mount", &container]);
        if store.driver == "overlay" {
            assert_eq!(fs::read_to_string(Path::new(&mount).join("etc/deep/key")).unwrap(), "key\n");
        }
        store.ok(&["unmount", &container]);
        assert_eq!(store.ok(&["check"]), "");
    });
}

#[test]
fn root_without_a_source_repair_removes_as_check_does() {
    each("root_without_a_source_repair_removes_as_check_does", |store| {
        let (_, layers, image) = image(&store);
        fs::write(files(&store, &layers[0]).join("etc/deep/key"), "other").unwrap();
        let container = store.ok(&["create-container", &image]).trim().to_owned();
        assert!(store.fails(&["repair"]).contains("file integrity checksum failed"));
        assert_eq!(store.ok(&["containers", "-q"]).trim(), container);
        let out = store.command(&["repair", "--force"]).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", both(&out));
        assert_eq!(store.ok(&["layers"]), "");
        assert_eq!(store.ok(&["check"]), "");
    });
}

#[test]
fn root_owners_modes_times_and_attributes_come_back_and_what_was_added_goes() {
    each("root_owners_modes_times_and_attributes_come_back_and_what_was_added_goes", |store| {
        let (tar, layers, image) = image(&store);
        let trees = || -> Vec<String> { layers.iter().map(|layer| facts(&files(&store, layer))).collect() };
        let whole = trees();
        let damage = "chmod u-s bin/program; chown 7:8 etc/untouched; chmod 777 etc; setfattr -x user.k etc/deep/key; \
                      setfattr -n user.more -v v empty; mkdir -p more/below; echo x >more/below/x; echo x >etc/deep/extra; \
                      ln -s /etc/passwd bin/link; touch -d 1999-01-01 empty";
        run(Command::new("sh").args(["-ec", damage]).current_dir(files(&store, &layers[0])));
        run(Command::new("sh").args(["-ec", "chmod 600 etc/top"]).current_dir(files(&store, &layers[1])));
        assert_eq!(store.command(&["check", &image]).output().unwrap().status.code(), Some(1));
        let said = store.ok(&["repair", "--from", tar.to_str().unwrap()]);
        for (layer, text) in [
            (0, "restored \"bin/program\""),
            (0, "restored \"etc/untouched\""),
            (0, "restored \"etc/deep/key\""),
            (0, "restored \"empty\""),
            (0, "removed \"more\""),
            (0, "removed \"etc/deep/extra\""),
            (0, "removed \"bin/link\""),
            (1, "restored \"etc/top\""),
        ] {
            assert!(said.contains(&format!("{}: {text}\n", layers[layer])), "{text}: {said}");
        }
        assert_eq!(trees(), whole, "{said}");
        assert_eq!(store.ok(&["check"]), "");
        assert_eq!(store.ok(&["repair", "--from", tar.to_str().unwrap()]), "", "nothing more to do");
    });
}
