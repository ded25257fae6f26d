//! `check`: a store without damage says nothing, damage is found and said in the peer's words, and repaired.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::{TestStore, both, have, in_own_mount_namespace, run};

const DRIVERS: [&str; 2] = ["overlay", "vfs"];

/// A store in memory, and a second, read-only one beside it.
struct Scene {
    store: TestStore,
}

impl Scene {
    fn new(driver: &'static str) -> Self {
        let store = TestStore::new(driver);
        store.in_memory();
        Self { store }
    }

    fn ok(&self, words: &[&str]) -> String {
        self.store.ok(words).trim_end().to_owned()
    }

    /// A tar made by a shell script in an empty directory.
    fn tar(&self, name: &str, script: &str) -> PathBuf {
        let dir = self.store.path(&format!("{name}.d"));
        fs::create_dir_all(&dir).unwrap();
        run(Command::new("sh").args(["-ec", &format!("umask 022; {script}")]).current_dir(&dir));
        let tar = self.store.path(name);
        run(Command::new("tar")
            .args(["--numeric-owner", "--sort=name", "--format=pax", "--xattrs", "-cf"])
            .arg(&tar)
            .arg(".")
            .current_dir(&dir));
        tar
    }

    fn import(&self, tar: &Path, parent: &str) -> String {
        self.ok(&["import-layer", "--file", tar.to_str().unwrap(), parent])
    }

    /// The directory of a layer's own files.
    fn files(&self, layer: &str) -> PathBuf {
        self.files_in("root", layer)
    }

    fn files_in(&self, root: &str, layer: &str) -> PathBuf {
        let root = self.store.path(root);
        if self.store.driver == "overlay" {
            root.join("overlay").join(layer).join("diff")
        } else {
            root.join("vfs/dir").join(layer)
        }
    }

    fn records(&self, kind: &str) -> PathBuf {
        self.store.path(&format!("root/{}-{kind}/{kind}.json", self.store.driver))
    }

    fn output(&self, words: &[&str]) -> Output {
        self.store.command(words).output().unwrap()
    }

    fn set_data(&self, kind: &str, id: &str, file: &str) {
        run(&mut self.store.peer(&[&format!("set-{kind}-data"), "-f", file, id, "datafile"]));
    }

    fn assert_clean(&self) {
        assert_eq!(self.ok(&["check"]), "");
        assert_eq!(self.ok(&["check", "-r"]), "");
    }

    /// `check` must fail and say all of this; what it said.
    fn finds(&self, words: &[&str], texts: &[&str]) -> String {
        let said = self.store.fails(words);
        for text in texts {
            assert!(said.contains(text), "{}: {words:?} does not say {text:?}: {said}", self.store.driver);
        }
        said
    }

    /// `check -r` must repair this: it says so, ends with 0, and afterwards nothing is left of it.
    fn repairs(&self, words: &[&str], texts: &[&str]) {
        self.finds(&words.iter().copied().filter(|word| *word != "-r" && *word != "-f").collect::<Vec<_>>(), texts);
        let out = self.output(words);
        assert_eq!(out.status.code(), Some(0), "{words:?}: {}", both(&out));
        for text in texts {
            assert!(both(&out).contains(text), "{words:?} does not say {text:?}: {}", both(&out));
        }
        self.assert_clean();
    }

    /// Three layers with everything in them that layers can have, an image and a container.
    fn image(&self) -> (Vec<String>, String, String) {
        let base = self.tar(
            "base.tar",
            "mkdir -p dir/sub opaque empty; echo one >dir/one; echo two >dir/sub/two; echo old >opaque/old; ln dir/one hard; \
             ln -s dir/one link; echo gone >gone; chmod 4755 dir/one; mkfifo pipe; mknod device c 1 3; : >nothing; \
             chown 1000:1000 dir/sub/two; chmod 1777 empty; setfattr -n user.k -v v dir/sub/two; \
             truncate -s 1M sparse; echo end >>sparse; touch -d 2001-02-03 dir",
        );
        let middle = self.tar(
            "middle.tar",
            "mkdir -p opaque dir; : >.wh.gone; : >opaque/.wh..wh..opq; echo new >opaque/new; : >dir/.wh.sub",
        );
        let top = self.tar("top.tar", "mkdir dir; echo changed >dir/one; mkdir gone; echo back >gone/back");
        let base = self.import(&base, "");
        let middle = self.import(&middle, &base);
        let top = self.import(&top, &middle);
        let image = self.ok(&["create-image", "-n", "image", &top]).lines().next().unwrap().to_owned();
        let container = self.ok(&["create-container", &image]);
        (vec![base, middle, top], image, container)
    }
}

fn each(test: &str, work: impl Fn(Scene)) {
    if in_own_mount_namespace(test) {
        for driver in DRIVERS {
            eprintln!("{driver}");
            work(Scene::new(driver));
        }
    }
}

#[test]
fn root_a_store_without_damage_says_nothing() {
    each("root_a_store_without_damage_says_nothing", |scene| {
        scene.assert_clean();
        let (layers, image, container) = scene.image();
        scene.assert_clean();
        let mount = scene.ok(&["mount", &container]);
        fs::write(Path::new(&mount).join("written"), "by the container").unwrap();
        scene.assert_clean();
        for flags in [&["check", "-q"][..], &["check", "-m", "1h30m"], &["check", "-qr"], &["check", "-m=24h", "-f"]] {
            assert_eq!(scene.ok(flags), "");
        }
        for only in [&layers[0], &layers[2], &image, &container, &image[..12].to_owned(), &"image".to_owned()] {
            assert_eq!(scene.ok(&["check", only]), "");
        }
        assert_eq!(
            scene.ok(&["check", "-j"]),
            r#"{"Layers":{},"ROLayers":{},"Images":{},"ROImages":{},"Containers":{}}"#
        );
        scene.finds(&["check", "nothing"], &["identifier is not a layer, image, or container"]);
        scene.finds(&["check", "-m", "bad"], &["time: invalid duration \"bad\""]);
        scene.ok(&["unmount", &container]);
    });
}

/// A name of the damage, what does it in the layer's directory, and what is said of it.
type Damage = (&'static str, &'static str, &'static str);

#[test]
fn root_damage_of_every_kind_is_found() {
    const DAMAGES: &[Damage] = &[
        ("content", "echo owt >dir/sub/two", "file integrity checksum failed for \"./dir/sub/two\""),
        ("size", "echo more >nothing", "/nothing(size:0\u{ffeb}5"),
        ("longer content", "echo more >>dir/sub/two", "file integrity checksum failed for \"./dir/sub/two\""),
        ("mode", "chmod 600 dir/sub/two", "/dir/sub/two(mode:0644\u{ffeb}0600), layer content modified"),
        ("setuid", "chmod u-s dir/one", "/dir/one(mode:4755\u{ffeb}0755), layer content modified"),
        ("owner", "chown 7 dir/sub/two", "/dir/sub/two(uid:1000\u{ffeb}7), layer content modified"),
        ("group", "chgrp -h 8 link", "/link(gid:0\u{ffeb}8), layer content modified"),
        ("xattr", "setfattr -n user.k -v w dir/sub/two", "/dir/sub/two(xattr user.k:changed), layer content modified"),
        ("lost xattr", "setfattr -x user.k dir/sub/two", "/dir/sub/two(xattr user.k:missing), layer content modified"),
        ("more xattr", "setfattr -n user.other -v v dir", "/dir(xattr user.other:extra), layer content modified"),
        ("time", "touch -d 1999-01-01 hard", "/hard(mtime:"),
        ("missing file", "rm nothing", "-/nothing, layer content modified"),
        ("missing content", "rm dir/sub/two", "file integrity checksum failed for \"./dir/sub/two\""),
        ("missing directory", "rmdir empty", "-/empty, layer content modified"),
        ("extra file", "echo x >dir/more", "+/dir/more, layer content modified"),
        ("extra directory", "mkdir -p other/below", "+/other, layer content modified"),
        ("type", "rm nothing; mkdir nothing", "/nothing(filetype:file\u{ffeb}directory"),
        ("device", "rm device; mknod device c 1 5", "/device(device:1:3\u{ffeb}1:5"),
        ("link", "ln -sfn elsewhere link", "/link(target:dir/one\u{ffeb}elsewhere), layer content modified"),
        ("pipe", "rm pipe", "-/pipe, layer content modified"),
    ];
    each("root_damage_of_every_kind_is_found", |scene| {
        let base = scene.tar(
            "base.tar",
            "mkdir -p dir/sub empty; echo one >dir/one; echo two >dir/sub/two; ln dir/one hard; ln -s dir/one link; \
             chmod 4755 dir/one; mkfifo pipe; mknod device c 1 3; : >nothing; chown 1000:1000 dir/sub/two; \
             setfattr -n user.k -v v dir/sub/two; find . -exec touch -h -d @1000000000 {} +",
        );
        for (name, script, said) in DAMAGES {
            eprintln!("{name}");
            let layer = scene.import(&base, "");
            let image = scene.ok(&["create-image", &layer]);
            assert_eq!(scene.ok(&["check", &image]), "", "{name}");
            // Only what is asked for: whoever damages a layer on purpose keeps its times.
            let restore = if *name == "time" { "" } else { "find . -mindepth 1 -exec touch -h -d @1000000000 {} +" };
            run(Command::new("sh").args(["-ec", &format!("{script}\n{restore}")]).current_dir(scene.files(&layer)));
            let said_of = format!("layer {layer}: {said}");
            let found = scene
                .finds(&["check", &image], &[&said_of, "1 layer errors, 0 read-only layer errors, 1 image errors, "]);
            let lines: Vec<&str> = found.lines().collect();
            assert_eq!(lines[0], format!("layer {layer}:"), "{name}");
            assert!(lines.contains(&format!("image {image}:").as_str()), "{name}: {found}");
            // Nothing else is wrong; a file with two names is told of twice, a lost one as lost and as without its content.
            let problems = match *name {
                "setuid" | "time" | "missing content" | "longer content" => 2,
                _ => 1,
            };
            assert_eq!(lines.len(), 3 + 2 * problems, "{name}: {found}");
            scene.repairs(&["check", "-r"], &[&said_of]);
            assert_eq!(scene.ok(&["images", "-q"]), "");
            assert_eq!(scene.ok(&["layers", "-q"]), "");
        }
    });
}

#[test]
fn root_what_hides_lower_files_is_looked_at() {
    each("root_what_hides_lower_files_is_looked_at", |scene| {
        let (layers, _, container) = scene.image();
        let (middle, top) = (&layers[1], &layers[2]);
        let script = if scene.store.driver == "overlay" {
            "rm gone; setfattr -n trusted.overlay.opaque -v n opaque; rm dir/sub; touch -r ../../../../middle.tar.d/dir dir"
        } else {
            "echo x >gone; echo x >opaque/old; mkdir dir/sub"
        };
        run(Command::new("sh").args(["-ec", script]).current_dir(scene.files(middle)));
        let found = scene.store.fails(&["check", middle]);
        for name in ["+/gone", "+/opaque/old", "+/dir/sub"] {
            assert!(found.contains(&format!("layer {middle}: {name}, layer content modified")), "{name}: {found}");
        }
        let of_top = found.contains(top.as_str());
        assert!(!of_top, "{found}");
        // Everything that is on it.
        let found = scene.finds(&["check"], &[&format!("container {container}:"), "1 container errors"]);
        assert!(found.contains(&format!("layer {middle}: +/gone")), "{found}");
    });
}

#[test]
fn root_data_items_that_are_missing_or_have_another_size() {
    let test = "root_data_items_that_are_missing_or_have_another_size";
    if !have("containers-storage", test) {
        return;
    }
    each(test, |scene| {
        let data = scene.store.path("data");
        fs::write(&data, "some data").unwrap();
        let data = data.to_str().unwrap();
        let driver = scene.store.driver;
        let file = |kind: &str, id: &str| scene.store.path(&format!("root/{driver}-{kind}/{id}/datafile"));

        let layer = scene.ok(&["create-layer"]);
        scene.ok(&["create-image", &layer]);
        scene.set_data("layer", &layer, data);
        scene.assert_clean();
        fs::remove_file(file("layers", &layer)).unwrap();
        scene.repairs(
            &["check", "-r"],
            &[&format!("layer {layer}: data item \"datafile\": layer data item is missing")],
        );

        for damage in ["is missing", "has incorrect size"] {
            let break_it = |file: PathBuf| match damage {
                "is missing" => fs::remove_file(file).unwrap(),
                _ => fs::write(file, "some data\n").unwrap(),
            };
            let layer = scene.ok(&["create-layer"]);
            let image = scene.ok(&["create-image", &layer]);
            scene.set_data("image", &image, data);
            scene.assert_clean();
            break_it(file("images", &image));
            let text = format!("image {image}: data item \"datafile\": image data item {damage}");
            scene.repairs(&["check", "-r"], &[&text]);
            assert_eq!(scene.ok(&["layers"]), "");

            let container = scene.ok(&["create-container", ""]);
            scene.set_data("container", &container, data);
            scene.assert_clean();
            break_it(file("containers", &container));
            let text = format!("container {container}: data item \"datafile\": container data item {damage}");
            // Containers only if one insists.
            scene.finds(&["check", "-r"], &[&text]);
            scene.finds(&["check"], &[&text]);
            scene.repairs(&["check", "-r", "-f"], &[&text]);
            assert_eq!(scene.ok(&["layers"]), "");
        }
    });
}

#[test]
fn root_layers_that_nobody_uses_or_knows() {
    each("root_layers_that_nobody_uses_or_knows", |scene| {
        let layer = scene.ok(&["create-layer"]);
        let child = scene.ok(&["create-layer", &layer]);
        // Somebody may be about to make an image of them.
        scene.assert_clean();
        let text = |id: &str| format!("layer {id}: layer not referenced by any images or containers");
        scene.finds(&["check", "-m", "0"], &[&text(&layer), &text(&child)]);
        scene.repairs(&["check", "-r", "-m", "0"], &[]);
        assert_eq!(scene.ok(&["layers"]), "");

        // The driver has them, no record does.
        let base = scene.ok(&["create-layer"]);
        let middle = scene.ok(&["create-layer", &base]);
        let top = scene.ok(&["create-layer", &middle]);
        fs::write(scene.files(&base).join("file"), "0123456789").unwrap();
        fs::write(scene.records("layers"), "[]").unwrap();
        let text = |id: &str| format!("layer {id}: layer in lower level storage driver not accounted for");
        let found = scene.finds(&["check"], &[&text(&base), &text(&middle), &text(&top), "3 layer errors"]);
        // The bytes are said.
        assert!(found.lines().any(|line| line.starts_with(&format!(" {} (", text(&base)))), "{found}");
        scene.repairs(&["check", "-r"], &[&text(&base), &text(&middle), &text(&top)]);
        for id in [base, middle, top] {
            assert!(!scene.files(&id).exists());
        }
    });
}

#[test]
fn root_records_that_name_what_is_not_there() {
    each("root_records_that_name_what_is_not_there", |scene| {
        // An image without its layer.
        let layer = scene.ok(&["create-layer"]);
        let image = scene.ok(&["create-image", &layer]);
        scene.ok(&["delete", &layer]);
        scene.repairs(&["check", "-r"], &[&format!("image {image}: layer {layer}: image layer is missing")]);
        assert_eq!(scene.ok(&["images"]), "");

        // A container without its image.
        let layer = scene.ok(&["create-layer"]);
        let image = scene.ok(&["create-image", &layer]);
        let container = scene.ok(&["create-container", &image]);
        scene.ok(&["delete", &image]);
        let texts = [&*format!("container {container}:"), &format!("image {image}: image missing")];
        scene.finds(&["check", "-r"], &texts);
        scene.finds(&["check"], &texts);
        scene.repairs(&["check", "-r", "-f"], &texts);
        scene.repairs(&["check", "-r", "-m", "0"], &[&layer]);

        // A layer without its parent.
        let parent = scene.ok(&["create-layer"]);
        let layer = scene.ok(&["create-layer", &parent]);
        let image = scene.ok(&["create-image", &layer]);
        scene.ok(&["delete", &parent]);
        scene.repairs(&["check", "-r"], &[&format!("layer {parent}: layer is missing"), &format!("image {image}:")]);
        assert_eq!(scene.ok(&["layers"]), "");

        // A layer that the driver has lost.
        let layer = scene.ok(&["create-layer"]);
        scene.ok(&["create-image", &layer]);
        let files = scene.files(&layer);
        fs::remove_dir_all(if scene.store.driver == "overlay" { files.parent().unwrap() } else { &files }).unwrap();
        scene.repairs(&["check", "-r"], &[&format!("layer {layer}: ")]);
    });
}

#[test]
fn root_records_with_impossible_ids_and_cycles_are_repaired() {
    each("root_records_with_impossible_ids_and_cycles_are_repaired", |scene| {
        let good = scene.ok(&["create-layer"]);
        scene.ok(&["create-image", "-n", "good", &good]);
        let kept = fs::read_to_string(scene.records("layers")).unwrap();
        let record = |text: &str| kept.replacen('[', &format!("[{text},"), 1);
        let date = r#""created":"2020-01-01T00:00:00Z""#;

        // Nobody can clean this one up, and every command says so, until it is repaired.
        fs::write(scene.records("layers"), record(&format!(r#"{{"id":"../x","flags":{{"incomplete":true}},{date}}}"#)))
            .unwrap();
        let out = scene.output(&["layers", "-q"]);
        assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains(&good), "{}", both(&out));
        let out = scene.output(&["check", "-r"]);
        assert_eq!(out.status.code(), Some(0), "{}", both(&out));
        assert!(both(&out).contains("layer ../x: incomplete layer that could not be removed"), "{}", both(&out));
        scene.assert_clean();
        assert_eq!(fs::read_to_string(scene.records("layers")).unwrap(), kept);

        fs::write(scene.records("layers"), record(&format!(r#"{{"id":"../x",{date}}}"#))).unwrap();
        scene.repairs(&["check", "-r"], &["layer ../x: "]);
        assert_eq!(fs::read_to_string(scene.records("layers")).unwrap(), kept);

        // Two layers that are each other's parent.
        let cycle = format!(r#"{{"id":"a","parent":"b",{date}}},{{"id":"b","parent":"a",{date}}}"#);
        fs::write(scene.records("layers"), record(&cycle)).unwrap();
        scene.finds(&["check"], &["layer a: ", "layer b: "]);
        scene.repairs(&["check", "-r"], &["layer a: ", "layer b: "]);
        assert_eq!(fs::read_to_string(scene.records("layers")).unwrap(), kept);
        assert_eq!(scene.ok(&["layers", "-q"]), good);
    });
}

#[test]
fn peer_stores_of_containers_storage_are_clean() {
    let test = "peer_stores_of_containers_storage_are_clean";
    if !have("containers-storage", test) {
        return;
    }
    each(test, |scene| {
        let tars = [
            scene.tar(
                "base.tar",
                "mkdir -p dir/sub opaque; echo one >dir/one; echo two >dir/sub/two; echo old >opaque/old; ln dir/one hard; \
                 ln -s dir/one link; echo gone >gone; chmod 4755 dir/one; mkfifo pipe; mknod device c 1 3; \
                 chown 1000:1000 dir/sub/two; setfattr -n user.k -v v dir/sub/two; touch -d 2001-02-03 dir",
            ),
            scene.tar("middle.tar", "mkdir -p opaque dir; : >.wh.gone; : >opaque/.wh..wh..opq; echo new >opaque/new"),
        ];
        // Members whose directories the archive does not state: engines disagree on what those become.
        run(Command::new("sh")
            .args([
                "-ec",
                "mkdir -p dir/sub new/deep; echo 1 >dir/sub/more; echo 2 >new/deep/file; \
                           tar -cf top.tar dir/sub/more new/deep/file",
            ])
            .current_dir(scene.store.dir.path()));
        let mut parent = String::new();
        for tar in tars.iter().chain([&scene.store.path("top.tar")]) {
            let layer = run(&mut scene.store.peer(&["create-layer", &parent])).trim().to_owned();
            run(&mut scene.store.peer(&["applydiff", "--file", tar.to_str().unwrap(), &layer]));
            parent = layer;
        }
        let image = run(&mut scene.store.peer(&["create-image", &parent])).trim().to_owned();
        let container = run(&mut scene.store.peer(&["create-container", &image])).trim().to_owned();
        scene.assert_clean();
        let mount = run(&mut scene.store.peer(&["mount", &container])).trim().to_owned();
        fs::write(Path::new(&mount).join("written"), "by the container").unwrap();
        scene.assert_clean();
        run(&mut scene.store.peer(&["unmount", &container]));

        // And the peer goes on with what a repair has left.
        fs::write(scene.files(&parent).join("new/deep/file"), "3\n").unwrap();
        scene.finds(&["check", "-r"], &["file integrity checksum failed for \"new/deep/file\""]);
        scene.repairs(&["check", "-r", "-f"], &[&format!("container {container}:")]);
        assert_eq!(run(&mut scene.store.peer(&["layers"])).trim(), "");
        assert_eq!(run(&mut scene.store.peer(&["containers"])).trim(), "");
    });
}

/// Every file of the store below the graph root, with what is in it.
fn contents(store: &TestStore) -> String {
    let script = "find root -type f -not -name '*.lock' | sort | xargs sha256sum";
    run(Command::new("sh").args(["-ec", script]).current_dir(store.dir.path()))
}

/// A check reads: a disk without room or without leave to write is no reason to fail, and nothing is lost on either.
#[test]
fn root_full_and_read_only_file_systems() {
    each("root_full_and_read_only_file_systems", |scene| {
        let store = &scene.store;
        let root = store.path("root");
        fs::create_dir_all(&root).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "small"]).arg(&root));
        let (layers, _, container) = scene.image();
        scene.assert_clean();
        let whole = contents(store);

        let filler = root.join("filler");
        let room = Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display())).output();
        assert!(both(&room.unwrap()).contains("No space left on device"));
        scene.assert_clean();
        assert_eq!(scene.ok(&["gc"]), "");
        fs::remove_file(&filler).unwrap();
        assert_eq!(contents(store), whole);

        // Damage that a full disk keeps from being repaired is told, and stays damage and nothing worse.
        let file = scene.files(&layers[0]).join("dir/sub/two");
        let kept = fs::read(&file).unwrap();
        fs::write(&file, "owt\n").unwrap();
        let said = format!("layer {}: file integrity checksum failed for \"./dir/sub/two\"", layers[0]);
        let room = Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display())).output();
        assert!(both(&room.unwrap()).contains("No space left on device"));
        scene.finds(&["check"], &[&said]);
        scene.finds(&["check", "-r"], &[&said]);
        fs::remove_file(&filler).unwrap();
        assert_eq!(scene.ok(&["containers", "-q"]), container);
        assert_eq!(scene.ok(&["layers", "-q"]).lines().count(), 4);

        run(Command::new("mount").args(["-o", "remount,ro"]).arg(&root));
        scene.finds(&["check"], &[&said]);
        let found = scene.finds(&["check", "-r"], &[&said]);
        assert!(found.contains("Read-only file system"), "{found}");
        run(Command::new("mount").args(["-o", "remount,rw"]).arg(&root));
        fs::write(&file, kept).unwrap();
        run(Command::new("touch").args(["-r"]).arg(store.path("base.tar.d/dir/sub/two")).arg(&file));
        // The first repair may have taken the image off; the container, that nobody let go, and all its layers are whole.
        assert_eq!(scene.ok(&["containers", "-q"]), container);
        for layer in &layers {
            assert_eq!(scene.ok(&["check", layer]), "");
        }

        run(Command::new("mount").args(["-o", "remount,ro"]).arg(&root));
        for layer in &layers {
            assert_eq!(scene.ok(&["check", layer]), "");
        }
        assert!(store.fails(&["shutdown"]).contains("Read-only file system"));
        run(Command::new("mount").args(["-o", "remount,rw"]).arg(&root));
        scene.ok(&["shutdown"]);
        run(Command::new("umount").arg(&root));
    });
}
