//! Names, data, metadata, digests and directories of layers, images and containers, on the command line: every row of the
//! contract with the peers that is about records, on each driver, with and without a transient store.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use support::{TestStore, both, have, in_own_mount_namespace, run};

/// A store as a test of the contract sees it.
struct Scene {
    store: TestStore,
    transient: bool,
}

impl Scene {
    fn with<'w>(&self, words: &[&'w str]) -> Vec<&'w str> {
        let flag: &[&str] = if self.transient { &["--transient-store"] } else { &[] };
        [flag, words].concat()
    }

    fn ok(&self, words: &[&str]) -> String {
        self.store.ok(&self.with(words))
    }

    fn fails(&self, words: &[&str]) -> String {
        self.store.fails(&self.with(words))
    }

    /// What is made: the first line of what is printed.
    fn make(&self, words: &[&str]) -> String {
        self.ok(words).lines().next().unwrap().to_owned()
    }

    fn exists(&self, kind: &str, object: &str) -> bool {
        let words = self.with(&["exists", kind, object]);
        self.store.command(&words).output().unwrap().status.success()
    }

    fn names(&self, object: &str) -> Vec<String> {
        self.ok(&["get-names", object]).lines().map(str::to_owned).collect()
    }

    fn driver(&self) -> &'static str {
        self.store.driver
    }

    fn file(&self, name: &str, contents: &[u8]) -> String {
        let path = self.store.path(name);
        fs::write(&path, contents).unwrap();
        path.display().to_string()
    }
}

/// Runs a test on each driver, with and without a transient store.
fn on_each(test: &str, scene: impl Fn(&Scene)) {
    if !in_own_mount_namespace(test) {
        return;
    }
    for driver in ["overlay", "vfs"] {
        for transient in [false, true] {
            let store = TestStore::new(driver);
            store.in_memory();
            let it = Scene { store, transient };
            scene(&it);
            it.ok(&["wipe"]);
            assert_eq!(it.ok(&["layers"]), "");
            it.ok(&["shutdown"]);
        }
    }
}

fn sha256(path: &str) -> String {
    format!("sha256:{}", run(Command::new("sha256sum").arg(path)).split(' ').next().unwrap())
}

/// The kinds of objects, how one is made without names, and the flag of `exists`.
const KINDS: [(&[&str], &str); 3] =
    [(&["create-layer"], "-l"), (&["create-image"], "-i"), (&["create-container", ""], "-c")];

#[test]
fn root_contract_names_at_creation() {
    on_each("root_contract_names_at_creation", |it| {
        for (words, kind) in KINDS {
            let (verb, rest) = words.split_first().unwrap();
            let plain = it.make(words);
            assert!(it.exists(kind, &plain) && it.names(&plain).is_empty());
            assert!(!it.exists(kind, "foo") && !it.exists(kind, "bar"));
            let named = [&[*verb, "-n", "foo", "--name=bar", "-n", "foo"][..], rest].concat();
            let printed = it.ok(&named);
            let named_id = printed.lines().next().unwrap().to_owned();
            assert_eq!(printed, format!("{named_id}\n\tfoo\n\tbar\n"));
            assert!(it.exists(kind, "foo") && it.exists(kind, "bar") && !it.exists(kind, "no-such-name"));
            assert_eq!(it.names(&named_id), ["foo", "bar"]);
            assert_eq!(it.ok(&["get-names", "--json", &named_id]), "[\"foo\",\"bar\"]\n");
            // One kind's names are no concern of another's, but within a kind they are unique.
            let said = it.fails(&[&[*verb, "-n", "foo"][..], rest].concat());
            assert!(said.contains("that name is already in use"), "{said}");
            let said = it.fails(&[&[*verb, "-i", &*named_id][..], rest].concat());
            assert!(said.contains("that ID is already in use"), "{said}");
            it.ok(&["delete", &named_id]);
        }
        assert!(it.fails(&["get-names", "nothing"]).contains("layer not known"));
    });
}

#[test]
fn root_contract_names_are_added_set_moved_and_removed() {
    on_each("root_contract_names_are_added_set_moved_and_removed", |it| {
        for (words, kind) in KINDS {
            let first = it.make(words);
            let second = it.make(words);
            assert_eq!(it.ok(&["add-names", "-n", "old1", "-n", "old2", &first]), "");
            assert_eq!(it.ok(&["addnames", "-j", "-n", "new", "-n", "new", &first]), "[\"new\",\"old1\",\"old2\"]\n");
            assert_eq!(it.names(&first), ["new", "old1", "old2"]);
            assert_eq!(it.ok(&["set-names", "-n", "a name", "-n", "other", &first]), "");
            assert_eq!(it.names(&first), ["a name", "other"]);
            assert!(!it.exists(kind, "old1") && it.exists(kind, "a name"));
            // A used name moves to its new owner.
            assert_eq!(it.ok(&["set-names", "-n", "other", "-n", "more", &second]), "");
            assert_eq!(
                (it.names(&first), it.names(&second)),
                (vec!["a name".to_owned()], vec!["other".to_owned(), "more".to_owned()])
            );
            assert_eq!(it.ok(&["add-names", "-j", "-n", "other", &first]), "[\"other\",\"a name\"]\n");
            assert_eq!(it.names(&second), ["more"]);
            assert_eq!(it.ok(&["remove-names", "-j", "-n", "other", "-n", "no such", &first]), "[\"a name\"]\n");
            assert!(!it.exists(kind, "other"));
            assert_eq!(it.ok(&["set-names", "-j", "more"]), "[]\n");
            assert!(it.names(&second).is_empty());
            let said = it.fails(&["add-names", "-n", "bad\nname", &first]);
            assert!(said.contains("\\n") && said.contains("control characters"), "{said}");
            it.ok(&["delete", &first]);
            it.ok(&["delete", &second]);
        }
        for verb in ["add-names", "set-names", "remove-names"] {
            assert!(it.fails(&[verb, "-n", "x", "nothing"]).contains("layer not known"));
        }
    });
}

#[test]
fn root_contract_images_remember_their_names() {
    on_each("root_contract_images_remember_their_names", |it| {
        let image = it.make(&["create-image", "-n", "at-creation"]);
        it.ok(&["add-names", "-n", "one", &image]);
        it.ok(&["set-names", "-n", "two", &image]);
        it.ok(&["remove-names", "-n", "two", &image]);
        let json: serde_json::Value = serde_json::from_str(&it.ok(&["image", "-j", &image])).unwrap();
        let history: Vec<&str> =
            json[0]["names-history"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert!(history.contains(&"one") && history.contains(&"two"), "{json}");
        assert!(json[0].get("names").is_none(), "{json}");
    });
}

#[test]
fn root_contract_data_of_layers_images_and_containers() {
    on_each("root_contract_data_of_layers_images_and_containers", |it| {
        let one = it.file("one", &(0..1234_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
        let two = it.file("two", &vec![0; 5678]);
        let layer = it.make(&["create-layer"]);
        let image = it.make(&["create-image", &layer]);
        let container = it.make(&["create-container", &image]);
        for (kind, id) in [("layer", &layer), ("image", &image), ("container", &container)] {
            let (list, get, set) =
                (format!("list-{kind}-data"), format!("get-{kind}-data"), format!("set-{kind}-data"));
            assert_eq!(it.ok(&[&list, id]), "");
            assert_eq!(it.ok(&[&list, "-j", id]), "null\n");
            assert_eq!(it.ok(&[&set, "-f", &one, id, "big-item-1"]), "");
            // From standard input as well, and by the other spelling.
            let words = it.with(&[]);
            let mut child = it.store.command(&[&*words, &[&*set.replace('-', ""), id.as_str(), "big-item-2"]].concat());
            let out = child.stdin(Stdio::from(fs::File::open(&two).unwrap())).output().unwrap();
            assert!(out.status.success(), "{}", both(&out));
            assert_eq!(it.ok(&[&list, id]), "big-item-1\nbig-item-2\n");
            assert_eq!(it.ok(&[&list, "-j", id]), "[\"big-item-1\",\"big-item-2\"]\n");
            for (key, path) in [("big-item-1", &one), ("big-item-2", &two)] {
                let copy = it.store.path("copy").display().to_string();
                assert_eq!(it.ok(&[&get, "-f", &copy, id, key]), "");
                assert_eq!(fs::read(&copy).unwrap(), fs::read(path).unwrap());
                let out = it.store.command(&it.with(&[&get, id, key])).output().unwrap();
                assert_eq!(out.stdout, fs::read(path).unwrap());
                if kind != "layer" {
                    let size = fs::metadata(path).unwrap().len();
                    assert_eq!(it.ok(&[&format!("{get}-size"), id, key]), format!("{size}\n"));
                    assert_eq!(it.ok(&[&format!("{get}-digest"), id, key]), format!("{}\n", sha256(path)));
                }
            }
            // Raw under the key, or in base64.
            let dir = it.store.path("root").join(format!("{}-{kind}s/{id}", it.driver()));
            assert_eq!(fs::read(dir.join("=YmlnLWl0ZW0tMQ==")).unwrap(), fs::read(&one).unwrap());
            it.ok(&[&set, "-f", &two, id, "plain.1"]);
            assert_eq!(fs::read(dir.join("plain.1")).unwrap(), fs::read(&two).unwrap());

            let said = it.fails(&[&get, "nothing", "big-item-1"]);
            assert!(said.contains(&format!("{kind} not known")), "{said}");
            let none = it.store.path("none").display().to_string();
            let said = it.fails(&[&get, "-f", &none, id, "no-such-item"]);
            assert!(said.contains("does not exist") && !Path::new(&none).exists(), "{said}");
            for key in ["", ".", "..", "x/", "a\u{7}b"] {
                let said = it.fails(&[&set, "-f", &one, id, key]);
                assert!(said.contains("not a valid name for a big data item") && !said.contains('\u{7}'), "{said}");
            }
            assert_eq!(it.ok(&[&list, id]).lines().count(), 3);
            if kind != "layer" {
                assert!(it.fails(&[&format!("{get}-size"), id, "none"]).contains("size is not known"));
                let said = it.fails(&[&format!("{get}-digest"), id, "none"]);
                assert!(said.contains("could not compute digest of item"), "{said}");
            }
        }
        // A container's are sorted.
        it.ok(&["set-container-data", "-f", &one, &container, "a"]);
        assert!(it.ok(&["list-container-data", &container]).starts_with("a\nbig-item-1\n"));
    });
}

#[test]
fn root_contract_metadata() {
    on_each("root_contract_metadata", |it| {
        let text = it.file("text", b"from a file, <b>&\n");
        let layer = it.make(&["create-layer"]);
        let image = it.make(&["create-image", "-m", "of an image"]);
        let container = it.make(&["create-container", "-f", &text, ""]);
        assert_eq!(it.ok(&["metadata", &layer]), format!("{layer}: \n"));
        assert_eq!(it.ok(&["metadata", "-q", &image, &container]), "of an image\nfrom a file, <b>&\n");
        for id in [&layer, &image, &container] {
            assert_eq!(it.ok(&["set-metadata", "-m", "new", id]), "");
            assert_eq!(it.ok(&["metadata", id]), format!("{id}: new\n"));
            assert_eq!(it.ok(&["setmetadata", "--metadata-file", &text, id]), "");
            assert_eq!(it.ok(&["metadata", "-q", id]), "from a file, <b>&\n");
            assert_eq!(
                it.ok(&["metadata", "-j", id]),
                format!("{{\"{id}\":\"from a file, \\u003cb\\u003e\\u0026\"}}\n")
            );
        }
        let out = it.store.command(&it.with(&["metadata", "nothing", &layer])).output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        assert_eq!(String::from_utf8(out.stdout).unwrap(), format!("nothing: \n{layer}: from a file, <b>&\n"));
        assert_eq!(it.fails(&["metadata", "-j", "nothing"]), "{}\n");
        assert!(it.fails(&["set-metadata", &layer]).contains("no new metadata provided"));
        let said = it.fails(&["set-metadata", "-m", "x", "nothing"]);
        assert!(said.contains("identifier is not a layer, image, or container"), "{said}");
    });
}

#[test]
fn root_contract_images_are_found_by_their_digests() {
    on_each("root_contract_images_are_found_by_their_digests", |it| {
        let manifests = ["one", "two", "three"].map(|text| it.file(text, text.as_bytes()));
        let digests = manifests.each_ref().map(|path| sha256(path));
        let [one, two, three] = digests.each_ref().map(String::as_str);
        let first = it.make(&["create-image", "--digest", one, "-n", "first"]);
        let second = it.make(&["create-image", "-n", "second"]);
        it.ok(&["set-image-data", "-f", &manifests[0], &first, "manifest"]);
        it.ok(&["set-image-data", "-f", &manifests[1], &first, "manifest-random2"]);
        it.ok(&["set-image-data", "-f", &manifests[1], &second, "manifest"]);
        it.ok(&["set-image-data", "-f", &manifests[2], &second, "not-a-manifest"]);
        let found = |digest: &str| it.ok(&["images-by-digest", "--quiet", digest]);
        assert_eq!(found(one), format!("{first}\n"));
        assert_eq!(found(two), format!("{first}\n{second}\n"));
        assert_eq!(found(three), "");
        assert_eq!(it.ok(&["images-by-digest", "-j", three]), "[]\n");
        let shown = it.ok(&["imagesbydigest", one]);
        assert_eq!(
            shown,
            format!(
                "{first}\n\tname: first\n\tdigest: {one}\n\tdigest: {two}\n\tdata: manifest\n\tdata: manifest-random2\n"
            )
        );
        assert!(it.ok(&["image", &second]).contains(&format!("Digest: {two}\n")));
        let json: serde_json::Value = serde_json::from_str(&it.ok(&["images-by-digest", "-j", two])).unwrap();
        assert_eq!(json.as_array().unwrap().len(), 2);
        for bad in ["sha256:12", "nothing", "md5:d41d8cd98f00b204e9800998ecf8427e", ""] {
            assert!(it.fails(&["images-by-digest", bad]).contains("invalid checksum digest format"), "{bad}");
        }
        assert!(it.fails(&["create-image", "-d", "sha256:12"]).contains("invalid checksum digest format"));
        it.ok(&["delete-image", &first]);
        assert_eq!((found(one), found(two)), (String::new(), format!("{second}\n")));
    });
}

#[test]
fn root_contract_directories_for_engines() {
    on_each("root_contract_directories_for_engines", |it| {
        let image = it.make(&["create-image", "-n", "image"]);
        let container = it.make(&["create-container", "-n", "container", "image"]);
        for (kind, id) in [("image", &image), ("container", &container)] {
            for (verb, root) in [(format!("get-{kind}-dir"), "root"), (format!("get-{kind}-run-dir"), "run")] {
                let expected = it.store.path(root).join(format!("{}-{kind}s/{id}/userdata", it.driver()));
                // By name, by the start of the id, however it is spelled.
                for words in [[&*verb, kind], [&*verb.replace('-', ""), id.get(..20).unwrap()]] {
                    assert_eq!(it.ok(&words), format!("{}\n", expected.display()));
                }
                fs::write(expected.join("file"), [0; 100]).unwrap();
                let said = it.fails(&[&verb, "../../../x"]);
                assert!(said.contains(&format!("{kind} not known")), "{said}");
            }
        }
        assert!(!it.store.path("x").exists());
        let size = it.ok(&["container", "container"]);
        assert!(size.contains("Size: 200\n"), "{size}");
        it.ok(&["delete-container", "container"]);
        it.ok(&["delete-image", "image"]);
        for (root, kind, id) in [
            ("root", "image", &image),
            ("run", "image", &image),
            ("root", "container", &container),
            ("run", "container", &container),
        ] {
            assert!(!it.store.path(root).join(format!("{}-{kind}s/{id}", it.driver())).exists(), "{root} {kind}");
        }
    });
}

/// What a lock file says of its last writer.
fn token(path: &Path) -> Vec<u8> {
    let token = fs::read(path).unwrap_or_default();
    // Nobody has written yet, or 64 bytes of which a shell keeps something.
    assert!(token.is_empty() || (token.len() == 64 && token.iter().any(|byte| !matches!(byte, 0 | b'\n'))));
    token
}

#[test]
fn root_contract_whatever_is_made_changes_its_token_and_is_listed() {
    on_each("root_contract_whatever_is_made_changes_its_token_and_is_listed", |it| {
        it.ok(&["layers"]);
        let root = it.store.path("root");
        let home = if it.transient { it.store.path("run") } else { root.clone() };
        let lock = |home: &Path, kind: &str| home.join(format!("{}-{kind}/{kind}.lock", it.driver()));
        let mut made: Vec<String> = Vec::new();
        for (path, words, list) in [
            (lock(&root, "layers"), &["create-layer"][..], "layers"),
            (lock(&root, "images"), &["create-image", ""], "images"),
            (lock(&home, "containers"), &["create-container", ""], "containers"),
        ] {
            let mut tokens = vec![token(&path)];
            made.clear();
            for _ in 0..3 {
                made.push(it.make(words));
                let now = token(&path);
                assert!(!now.is_empty() && !tokens.contains(&now), "{path:?}");
                tokens.push(now);
            }
            let listed = it.ok(&[list]);
            assert_eq!(listed.lines().filter(|line| !line.starts_with('\t')).count(), 3, "{listed}");
            assert!(made.iter().all(|id| listed.lines().any(|line| line == id)), "{listed}");
            assert_eq!(it.ok(&[list]), listed);
            assert_eq!(token(&path), *tokens.last().unwrap(), "listing writes nothing");
        }
        let layer = it.make(&["create-layer"]);
        let path = it.store.path("run").join(format!("{}-layers/mountpoints.lock", it.driver()));
        let before = token(&path);
        it.ok(&["mount", &layer]);
        assert_ne!(token(&path), before);
        it.ok(&["unmount", &layer]);
    });
}

#[test]
fn root_contract_containers_of_nothing_of_images_and_volatile() {
    on_each("root_contract_containers_of_nothing_of_images_and_volatile", |it| {
        let of_nothing = it.make(&["create-container", ""]);
        let empty = it.make(&["create-image", ""]);
        let of_empty = it.make(&["create-container", &empty]);
        let layer = it.make(&["create-layer"]);
        let image = it.make(&["create-image", "-n", "image", &layer]);
        let (first, second) = (it.make(&["create-container", &image]), it.make(&["create-container", "image"]));
        let mut listed: Vec<String> = it.ok(&["containers"]).lines().map(str::to_owned).collect();
        let mut made = vec![of_nothing, of_empty, first.clone(), second];
        listed.sort();
        made.sort();
        assert_eq!(listed, made);
        let json: serde_json::Value = serde_json::from_str(&it.ok(&["container", "-j", &first])).unwrap();
        let its_layer = json[0]["layer"].as_str().unwrap();
        // By its layer, too.
        assert!(it.ok(&["container", its_layer]).contains(&format!("ID: {first}\n")));
        assert!(it.ok(&["layer", its_layer]).contains(&format!("Parent: {layer}\n")));
        assert!(it.ok(&["container", &first]).contains("Size: 0\n"));
        assert!(it.fails(&["create-container", "nothing"]).contains("image not known"));
        assert!(it.fails(&["create-layer", its_layer]).contains("would-be parent layer is a container"));

        let volatile = it.make(&["create-container", "--volatile", "image"]);
        let home = it.store.path(if it.transient { "run" } else { "root" });
        let record =
            |kind: &str| fs::read_to_string(home.join(format!("{}-{kind}/volatile-{kind}.json", it.driver()))).unwrap();
        assert!(record("containers").contains(&volatile) && record("containers").contains("\"Volatile\":true"));
        let json: serde_json::Value = serde_json::from_str(&it.ok(&["container", "-j", &volatile])).unwrap();
        let its_layer = json[0]["layer"].as_str().unwrap();
        assert!(record("layers").contains(its_layer));
        let path = it.ok(&["mount", &volatile]);
        fs::write(Path::new(path.trim_end()).join("kept"), "1").unwrap();
        it.ok(&["unmount", &volatile]);
        let path = it.ok(&["mount", &volatile]);
        assert_eq!(fs::read_to_string(Path::new(path.trim_end()).join("kept")).unwrap(), "1");
        it.ok(&["unmount", &volatile]);
        it.ok(&["delete-container", &volatile]);
        assert!(!record("layers").contains(its_layer) && !record("containers").contains(&volatile));
    });
}

#[test]
fn root_contract_what_is_in_use_is_not_deleted() {
    on_each("root_contract_what_is_in_use_is_not_deleted", |it| {
        let lower = it.make(&["create-layer", "-n", "lower"]);
        let upper = it.make(&["create-layer", "-n", "upper", "lower"]);
        let said = it.fails(&["delete-layer", "lower"]);
        assert!(said.contains(&format!("lower: used by layer {upper}: layer has children")), "{said}");
        let image = it.make(&["create-image", "-n", "image", "upper"]);
        let said = it.fails(&["delete-layer", "upper"]);
        assert!(said.contains(&format!("used by image {image}: layer is in use by an image")), "{said}");
        let container = it.make(&["create-container", "-n", "box", "image"]);
        let json: serde_json::Value = serde_json::from_str(&it.ok(&["container", "-j", "box"])).unwrap();
        let own = json[0]["layer"].as_str().unwrap();
        let said = it.fails(&["delete-layer", own]);
        assert!(said.contains(&format!("used by container {container}: layer is in use by a container")), "{said}");
        let said = it.fails(&["delete-image", "image"]);
        assert!(said.contains(&format!("image used by {container}: image is in use by a container")), "{said}");
        for (verb, text) in
            [("delete-layer", "a layer"), ("delete-image", "an image"), ("delete-container", "a container")]
        {
            assert_eq!(it.fails(&[verb, "nothing"]), format!("nothing: identifier is not {text}\n"));
        }
        assert_eq!(it.fails(&["delete-layer", "-j", "nothing"]), "{\"nothing\":\"identifier is not a layer\"}\n");
        it.ok(&["delete-container", "box"]);
        let out = it.store.command(&it.with(&["delete-image", "-t", "image"])).output().unwrap();
        assert_eq!(both(&out), format!("image: {upper}\nimage: {lower}\n"));
        assert_eq!(
            it.ok(&["delete-image", "-j", "-t", "image"]),
            format!("{{\"image\":{{\"deleted-layers\":[\"{upper}\",\"{lower}\"]}}}}\n")
        );
        // Without questions, and only what is named.
        it.ok(&["delete", "image"]);
        assert_eq!(it.ok(&["images"]), "");
        it.ok(&["delete", "lower"]);
        assert!(!it.exists("-l", "lower") && it.exists("-l", "upper"));
        it.ok(&["delete-layer", "upper"]);
        assert!(it.fails(&["delete", "nothing"]).contains("layer not known"));
    });
}

#[test]
fn root_contract_images_and_their_size() {
    on_each("root_contract_images_and_their_size", |it| {
        let item = it.file("item", &[7; 256]);
        let image = it.make(&["create-image", "-n", "wonderful"]);
        for key in ["random1", "random2"] {
            it.ok(&["set-image-data", "-f", &item, &image, key]);
        }
        assert_eq!(
            it.ok(&["image", "wonderful"]),
            format!("ID: {image}\nName: wonderful\nTop Layer: \nData: random1\nData: random2\nSize: 512\n")
        );
        // A layer's share is the size of its archive.
        let tar = it.store.path("layer.tar").display().to_string();
        let (dir, name) = (it.store.dir.path().display().to_string(), "item");
        run(Command::new("tar").args(["-cf", &tar, "-C", &dir, name]));
        let layer = it.make(&["import-layer", "-f", &tar]);
        let on_top = it.make(&["create-image", &layer]);
        let size = fs::metadata(&tar).unwrap().len();
        assert!(it.ok(&["image", &on_top]).contains(&format!("Top Layer: {layer}\nSize: {size}\n")));
    });
}

#[test]
fn root_contract_additional_stores() {
    on_each("root_contract_additional_stores", |it| {
        let below = TestStore::new(it.driver());
        below.in_memory();
        let below_root = below.path("root").display().to_string();
        // A store that holds nothing yet can be named, too.
        below.ok(&["layers"]);
        let option = format!("{}.imagestore={below_root}", it.driver());
        let short = format!(".imagestore={below_root}");
        let with = |words: &[&str], option: &str| {
            let words: Vec<String> =
                [&["--storage-opt", option], words].concat().into_iter().map(str::to_owned).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            it.ok(&words)
        };
        let ok = |words: &[&str]| with(words, &option);
        // Which layers go with it stands on standard error.
        let deletes = |image: &str| {
            let words = it.with(&["--storage-opt", &option, "delete-image", image]);
            let out = it.store.command(&words).output().unwrap();
            assert!(out.status.success() && out.stdout.is_empty(), "{}", both(&out));
            both(&out)
        };
        assert_eq!(ok(&["layers"]), "");
        let lower = below.ok(&["create-layer"]).trim_end().to_owned();
        let path = below.ok(&["mount", &lower]);
        fs::write(Path::new(path.trim_end()).join("layer1file1"), "1").unwrap();
        let mid = below.ok(&["create-layer", &lower]).trim_end().to_owned();
        let path = below.ok(&["mount", &mid]);
        fs::remove_file(Path::new(path.trim_end()).join("layer1file1")).unwrap();
        fs::write(Path::new(path.trim_end()).join("layer2file1"), "2").unwrap();
        below.ok(&["unmount", &mid]);
        below.ok(&["unmount", &lower]);
        let image = below.ok(&["create-image", "-n", "fooimage", "-n", "barimage", &mid]);
        let image = image.lines().next().unwrap();
        below.ok(&["shutdown"]);
        // Nothing can be written there from here on, and there are no lock files.
        for kind in ["layers", "images"] {
            fs::remove_file(below.path("root").join(format!("{}-{kind}/{kind}.lock", it.driver()))).unwrap();
        }
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(below.dir.path()));

        let upper = ok(&["create-layer", &mid]).trim_end().to_owned();
        let check = |object: &str| {
            let path = ok(&["mount", object]);
            let path = Path::new(path.trim_end());
            assert!(!path.join("layer1file1").exists());
            assert_eq!(fs::read_to_string(path.join("layer2file1")).unwrap(), "2");
            assert_eq!(ok(&["unmount", object]), format!("{object} mountpoint unmounted\n"));
        };
        check(&upper);
        assert!(ok(&["layer", &mid]).contains("Read Only: true\n") && !ok(&["layer", &upper]).contains("Read Only"));
        assert!(ok(&["image", image]).contains("Read Only: true\n"));
        let upper_image = ok(&["create-image", &upper]).trim_end().to_owned();
        let container = ok(&["create-container", &upper_image]).trim_end().to_owned();
        check(&container);
        ok(&["delete-container", &container]);
        let container = ok(&["create-container", "fooimage"]).trim_end().to_owned();
        check(&container);
        ok(&["delete-container", &container]);
        // A top layer that lies only there.
        let on_theirs = ok(&["create-image", &mid]).trim_end().to_owned();
        assert_eq!(deletes(&on_theirs), "");

        let exists = |object: &str| {
            let words = it.with(&["--storage-opt", &short, "exists", "-i", object]);
            it.store.command(&words).output().unwrap().status.success()
        };
        assert!(exists(image) && exists("fooimage") && exists("barimage"));
        with(&["add-names", "-n", "newimage", image], &short);
        assert!(exists("newimage") && exists("fooimage") && exists("barimage"));
        with(&["remove-names", "-n", "barimage", image], &short);
        assert!(exists(image) && exists("newimage") && exists("fooimage") && !exists("barimage"));
        assert!(!ok(&["image", image]).contains("Read Only"));
        assert_eq!(deletes(image), "");
        assert!(exists("barimage") && !exists("newimage"));
        let said = it.fails(&["--storage-opt", &option, "delete-image", image]);
        assert!(said.contains("read-only store"), "{said}");
        assert!(!it.exists("-i", image), "without the option nothing is seen of it");
        let path = it.ok(&["--storage-opt", &option, "get-image-dir", image]);
        assert!(Path::new(path.trim_end()).starts_with(it.store.path("root")) && Path::new(path.trim_end()).is_dir());
        ok(&["layers"]);
        assert!(Path::new(path.trim_end()).is_dir(), "it is nobody's left-over");
        let kept = Path::new(path.trim_end()).join("kept");
        fs::write(&kept, "1").unwrap();
        ok(&["add-names", "-n", "again", image]);
        assert!(kept.exists(), "the copy takes it over");
        ok(&["delete-image", "again"]);
        assert!(!kept.exists());
        assert_eq!(deletes(&upper_image), format!("{upper_image}: {upper}\n"));
        drop(below);
    });
}

#[test]
fn root_contract_split_store() {
    on_each("root_contract_split_store", |it| {
        let text = |name: &str| it.store.path(name).display().to_string();
        let (images, empty, again) = (text("images/"), text("empty"), text("images"));
        let item = it.file("item", &[1; 256]);
        let split = |words: &[&str]| {
            let words: Vec<&str> = [&["--image-store", &images], words].concat();
            it.ok(&words)
        };
        let image = split(&["create-image", "--name", "wonderful-image"]).lines().next().unwrap().to_owned();
        split(&["set-image-data", "-f", &item, &image, "random1"]);
        split(&["set-image-data", "-f", &item, &image, "random2"]);
        let shown = split(&["image", &image]);
        for line in [
            format!("ID: {image}"),
            "Name: wonderful-image".to_owned(),
            "Data: random1".to_owned(),
            "Data: random2".to_owned(),
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{shown}");
        }
        split(&["shutdown"]);
        // Another image store, or none, hides it.
        assert_eq!(it.fails(&["--image-store", &empty, "image", &image]), "");
        assert!(!it.exists("-i", &image));
        // storage.conf names one as well.
        let conf = it.file(
            "storage.conf",
            format!(
                "[storage]\ndriver = \"{}\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\nimagestore = \"{again}\"\n",
                it.driver(),
                text("root"),
                text("run"),
            )
            .as_bytes(),
        );
        let out = Command::new(support::DRIVERCTL)
            .env("CONTAINERS_STORAGE_CONF", &conf)
            .args(["exists", "-i", "wonderful-image"])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", both(&out));

        // The graph root's own images stay visible and can be deleted.
        let own = it.make(&["create-image", "--name", "own"]);
        it.ok(&["set-image-data", "-f", &item, &own, "random1"]);
        assert!(split(&["image", &own]).contains("Name: own\nTop Layer: \nData: random1\nSize: 256\n"));
        split(&["delete-image", &own]);
        assert!(!it.exists("-i", &own));

        // A read-only layer lies in the image store and can be used from there as from any other.
        let layer = split(&["create-layer", "--readonly"]).trim_end().to_owned();
        let store_of_images =
            |words: &[&str]| it.ok(&[&["--graph", &*again, "--run", &*text("run2")][..], words].concat());
        let path = store_of_images(&["mount", &layer]);
        assert!(Path::new(path.trim_end()).is_dir());
        assert_eq!(store_of_images(&["unmount", &layer]), format!("{layer} mountpoint unmounted\n"));
        store_of_images(&["shutdown"]);
        let writable = split(&["create-layer", &layer]).trim_end().to_owned();
        assert!(it.exists("-l", &writable) && !it.exists("-l", &layer));
        let path = split(&["mount", &writable]);
        fs::write(Path::new(path.trim_end()).join("file"), "1").unwrap();
        split(&["unmount", &writable]);
        assert_eq!(split(&["changes", &writable]), "Add \"/file\"\n");
        assert_eq!(Path::new(&again).join("overlay/l").is_dir(), it.driver() == "overlay");
        split(&["wipe"]);
        for root in [text("root"), again.clone()] {
            for kind in ["layers", "images"] {
                let path = Path::new(&root).join(format!("{}-{kind}/{kind}.json", it.driver()));
                assert_eq!(fs::read_to_string(path).unwrap_or_else(|_| "[]".to_owned()), "[]");
            }
        }
        let said = it.fails(&["--image-store", &text("root"), "layers"]);
        assert!(said.contains("another directory than the graph root"), "{said}");
    });
}

#[test]
fn root_contract_owners_of_parent_directories() {
    on_each("root_contract_owners_of_parent_directories", |it| {
        // Shifting at mount time would leave the layers without mappings.
        let run = |words: &[&str]| {
            let words = it.with(words);
            let mut command = it.store.command(&words);
            command.env("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes").output().unwrap()
        };
        let ok = |words: &[&str]| {
            let out = run(words);
            assert!(out.status.success() && out.stderr.is_empty(), "{words:?}: {}", both(&out));
            String::from_utf8(out.stdout).unwrap()
        };
        let plain = ok(&["create-layer"]).trim_end().to_owned();
        let layer = ok(&["create-layer", "--uidmap", "0:1000:10", "--gidmap", "0:0:10"]).trim_end().to_owned();
        ok(&["create-image", "-n", "image", &layer]);
        let container = ok(&["create-container", "-n", "plain", ""]).lines().next().unwrap().to_owned();
        let mapped =
            ok(&["create-container", "-n", "mapped", "--uidmap", "0:1000:10", "--gidmap", "0:1000:10", "image"]);
        let mapped = mapped.lines().next().unwrap();
        assert_eq!(ok(&["layer-parent-owners", &plain]), format!("ID: {plain}\n"));
        assert_eq!(
            ok(&["layer-parent-owners", "-j", &plain]),
            format!("{{\"ID\":\"{plain}\",\"UIDs\":null,\"GIDs\":null}}\n")
        );
        assert_eq!(ok(&["container-parent-owners", "plain"]), format!("ID: {container}\nUIDs: []\nGIDs: []\n"));
        let out = run(&["layer-parent-owners", &layer]);
        assert_eq!((out.status.code(), both(&out)), (Some(1), "LayerParentOwner: layer is not mounted\n".to_owned()));
        let out = run(&["container-parent-owners", "mapped"]);
        assert_eq!(both(&out), "ContainerParentOwner: layer is not mounted\n");
        ok(&["mount", &layer]);
        ok(&["mount", "mapped"]);
        assert_eq!(ok(&["layer-parent-owners", &layer]), format!("ID: {layer}\nUIDs: [0]\n"));
        assert_eq!(ok(&["container-parent-owners", "mapped"]), format!("ID: {mapped}\nUIDs: [0]\nGIDs: [0]\n"));
        assert_eq!(
            ok(&["container-parent-owners", "-j", "mapped"]),
            format!("{{\"ID\":\"{mapped}\",\"UIDs\":[0],\"GIDs\":[0]}}\n")
        );
        ok(&["unmount", &layer]);
        ok(&["unmount", "mapped"]);
    });
}

#[test]
fn root_contract_additional_stores_of_storage_conf() {
    on_each("root_contract_additional_stores_of_storage_conf", |it| {
        let text = |name: &str| it.store.path(name).display().to_string();
        let theirs = it.ok(&["--graph", &text("theirs"), "create-image", "-n", "image"]);
        let theirs = theirs.lines().next().unwrap();
        let conf = it.file(
            "storage.conf",
            format!(
                "[storage]\ndriver = \"{}\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n[storage.options]\nadditionalimagestores = [\"{}\"]\n",
                it.driver(), text("root"), text("run"), text("theirs"),
            )
            .as_bytes(),
        );
        let ok = |words: &[&str]| {
            let mut command = Command::new(support::DRIVERCTL);
            run(command.env("CONTAINERS_STORAGE_CONF", &conf).args(it.with(words)))
        };
        assert!(ok(&["image", "image"]).contains("Read Only: true"));
        ok(&["add-names", "-n", "more", "image"]);
        assert_eq!(ok(&["image", "more"]), format!("ID: {theirs}\nName: more\nName: image\nTop Layer: \nSize: 0\n"));
        ok(&["delete-image", "more"]);
        assert_eq!(ok(&["images", "-q"]), format!("{theirs}\n"));
        it.ok(&["--graph", &text("theirs"), "wipe"]);
        it.ok(&["--graph", &text("theirs"), "shutdown"]);
    });
}

#[test]
fn root_contract_ids_from_outside_never_become_paths() {
    on_each("root_contract_ids_from_outside_never_become_paths", |it| {
        for id in ["../x", "a/b", ".", "..", "a\nb", "a\u{1b}[31m"] {
            for words in
                [&["create-layer", "-i", id][..], &["create-image", "-i", id], &["create-container", "-i", id, ""]]
            {
                let said = it.fails(words);
                assert!(!said.trim_end().contains(['\n', '\u{1b}']), "{said:?}");
            }
        }
        assert_eq!(it.ok(&["layers"]), "");
        it.ok(&["create-layer", "--id", "layer-gzip"]);
        assert!(it.ok(&["layer", "layer-gzip"]).starts_with("ID: layer-gzip\n"));
    });
}

#[test]
fn peer_sees_the_names_data_and_texts_that_we_set_and_we_its() {
    if !have("containers-storage", "peer_sees_the_names_data_and_texts_that_we_set_and_we_its")
        || !in_own_mount_namespace("peer_sees_the_names_data_and_texts_that_we_set_and_we_its")
    {
        return;
    }
    for driver in ["overlay", "vfs"] {
        let store = TestStore::new(driver);
        store.in_memory();
        let it = Scene { store, transient: false };
        let peer = |words: &[&str]| run(&mut it.store.peer(words));
        let item = it.file("item", b"data");
        for (turn, (ours, theirs)) in [(true, false), (false, true)].into_iter().enumerate() {
            let do_it = |ours: bool, words: &[&str]| if ours { it.ok(words) } else { peer(words) };
            let first = |text: String| text.lines().next().unwrap().to_owned();
            let layer = first(do_it(ours, &["create-layer", "-n", &format!("l{turn}")]));
            let image = first(do_it(theirs, &["create-image", "-n", &format!("i{turn}"), &layer]));
            let container = first(do_it(ours, &["create-container", "-n", &format!("c{turn}"), &image]));
            for (kind, id) in [("layer", &layer), ("image", &image), ("container", &container)] {
                do_it(ours, &["set-names", "-n", &format!("{kind}{turn}"), id]);
                do_it(theirs, &["add-names", "-n", &format!("more-{kind}{turn}"), id]);
                do_it(theirs, &["set-metadata", "-m", "{\"a\":\"<é>\"}", id]);
                do_it(ours, &[&format!("set-{kind}-data"), "-f", &item, id, "manifest-A_b"]);
                for same in [
                    &["get-names", "-j", id][..],
                    &["metadata", "-j", id],
                    &[&format!("list-{kind}-data"), "-j", id],
                    &[&format!("get-{kind}-data"), id, "manifest-A_b"],
                    &[kind, "-j", id],
                ] {
                    let (mine, its) = (it.ok(same), peer(same));
                    assert_eq!(mine, its, "{driver}: {same:?}");
                }
                if kind != "layer" {
                    for what in ["size", "digest"] {
                        let words = [&*format!("get-{kind}-data-{what}"), id, "manifest-A_b"];
                        assert_eq!(it.ok(&words), peer(&words));
                    }
                }
            }
            let digest = sha256(&item);
            assert_eq!(it.ok(&["images-by-digest", "-j", &digest]), peer(&["images-by-digest", "-j", &digest]));
            for verb in ["get-container-dir", "get-container-run-dir"] {
                assert_eq!(it.ok(&[verb, &container]), peer(&[verb, &container]));
            }
        }
    }
}
