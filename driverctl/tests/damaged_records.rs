//! Records that are cut off, doubled, edited by hand or in foreign encodings; read-only file systems; locks of others and of
//! other times: a clear word, and nothing lost.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{TestStore, both, have, in_own_mount_namespace, run};

/// Runs a test on each driver, in memory.
fn on_each(test: &str, scene: impl Fn(&TestStore)) {
    if !in_own_mount_namespace(test) {
        return;
    }
    for driver in ["overlay", "vfs"] {
        let store = TestStore::new(driver);
        store.in_memory();
        scene(&store);
    }
}

fn make(store: &TestStore, words: &[&str]) -> String {
    store.ok(words).lines().next().unwrap().to_owned()
}

fn records(store: &TestStore, kind: &str) -> PathBuf {
    store.path("root").join(format!("{}-{kind}/{kind}.json", store.driver))
}

#[test]
fn root_files_that_are_no_records_are_named_and_stay_as_they_are() {
    on_each("root_files_that_are_no_records_are_named_and_stay_as_they_are", |store| {
        make(store, &["create-layer", "-n", "layer"]);
        make(store, &["create-image", "-n", "image", "layer"]);
        make(store, &["create-container", "-n", "box", "image"]);
        for (kind, list) in [("layers", "layers"), ("images", "images"), ("containers", "containers")] {
            let path = records(store, kind);
            let good = fs::read(&path).unwrap();
            let text = String::from_utf8(good.clone()).unwrap();
            let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let with_mark = [&[0xff, 0xfe][..], &utf16].concat();
            let not_text =
                text.replace("\"names\":[\"", "\"names\":[\"\u{1}").replace('\u{1}', "\u{fffd}").into_bytes();
            let broken: Vec<u8> = not_text
                .windows(1)
                .enumerate()
                .filter(|(at, _)| !not_text[*at..].starts_with(b"\xbf\xbd"))
                .map(|(_, byte)| byte[0])
                .collect();
            let deep = format!("[{}", "[".repeat(100_000));
            for (what, bytes) in [
                ("cut off", good[..good.len() / 2].to_vec()),
                ("UTF-16", utf16.clone()),
                ("UTF-16 with a mark", with_mark),
                ("bytes that are no text", broken),
                ("a mark of UTF-8", [b"\xef\xbb\xbf", &*good].concat()),
                ("an object", b"{\"id\":\"x\"}".to_vec()),
                ("numbers for texts", b"[{\"id\":1}]".to_vec()),
                ("zeros", vec![0; 4096]),
                ("brackets without end", deep.into_bytes()),
            ] {
                fs::write(&path, &bytes).unwrap();
                let said = store.fails(&[list]);
                assert!(
                    said.contains(&path.display().to_string()) && said.contains("damaged records"),
                    "{what}: {said}"
                );
                assert!(said.lines().count() == 1 && said.contains("line "), "{what}: {said}");
                store.fails(&["create-container", "-n", "other", "image"]);
                assert_eq!(fs::read(&path).unwrap(), bytes, "{what}: the file stays");
            }
            fs::write(&path, &good).unwrap();
            assert!(store.ok(&[list]).lines().count() >= 1);
            // Nothing at all is no records, as for the peers.
            if kind == "containers" {
                fs::write(&path, b"").unwrap();
                assert_eq!(store.ok(&[list]), "");
                fs::write(&path, &good).unwrap();
            }
        }
        store.ok(&["delete-container", "box"]);
        store.ok(&["wipe"]);
        assert_eq!(store.ok(&["layers"]), "");
    });
}

#[test]
fn root_records_that_clash_are_stepped_over_and_kept() {
    on_each("root_records_that_clash_are_stepped_over_and_kept", |store| {
        for (kind, list, show, words) in [
            ("layers", "layers", "layer", &["create-layer"][..]),
            ("images", "images", "image", &["create-image"]),
            ("containers", "containers", "container", &["create-container", ""]),
        ] {
            let (verb, rest) = words.split_first().unwrap();
            let first = make(store, &[&[*verb, "-n", "shared"], rest].concat());
            let second = make(store, words);
            let path = records(store, kind);
            let text = fs::read_to_string(&path).unwrap();
            let body = text.strip_prefix('[').unwrap().strip_suffix(']').unwrap();
            // A second record of one id, one without an id, one with its id spelled otherwise.
            let doubled = format!("{{\"new\":{{\"b\":1.50}},\"id\":\"{first}\",\"names\":[\"doubled\"]}}");
            let extra = [doubled, "{\"names\":[\"nobody\"],\"x\":1e3}".to_owned(), "{\"ID\":\"y\"}".to_owned()];
            fs::write(&path, format!("[{body},{}]", extra.join(","))).unwrap();
            let out = store.command(&["--debug", list]).output().unwrap();
            let said = both(&out);
            assert!(out.status.success(), "{said}");
            assert!(said.contains(&format!("ID \"{first}\" is ignored")) && said.contains("without an ID"), "{said}");
            assert_eq!(String::from_utf8_lossy(&out.stdout).matches(&*first).count(), 1);
            // A rewrite keeps them, byte for byte.
            assert!(store.command(&["add-names", "-n", "added", &first]).output().unwrap().status.success());
            let now = fs::read_to_string(&path).unwrap();
            assert!(extra.iter().all(|record| now.contains(&**record)) && now.contains("\"added\""), "{now}");
            fs::write(&path, &text).unwrap();

            // A name of two records belongs to the later one, for good, and that is said once.
            let shared =
                text.replace(&format!("\"id\":\"{second}\""), &format!("\"id\":\"{second}\",\"names\":[\"shared\"]"));
            assert_ne!(shared, text);
            fs::write(&path, shared).unwrap();
            let out = store.command(&["--debug", show, "shared"]).output().unwrap();
            let said = both(&out);
            assert!(out.status.success() && said.contains(&format!("ID: {second}")), "{said}");
            assert!(said.contains(&format!("{first} and {second} both had the name \"shared\"")), "{said}");
            assert!(store.ok(&["get-names", &first]).is_empty());
            assert_eq!(store.ok(&["get-names", &second]), "shared\n");
            store.ok(&["delete", &first]);
            store.ok(&["delete", &second]);
        }
    });
}

#[test]
fn root_layers_without_parents_and_layers_in_circles_hinder_nobody() {
    on_each("root_layers_without_parents_and_layers_in_circles_hinder_nobody", |store| {
        let base = make(store, &["create-layer", "-n", "base"]);
        let top = make(store, &["create-layer", "-n", "top", "base"]);
        make(store, &["create-image", "-n", "image", "top"]);
        let good = make(store, &["create-layer", "-n", "good"]);
        let path = records(store, "layers");
        let text = fs::read_to_string(&path).unwrap();
        let gone = "0".repeat(63) + "f";
        for damaged in [
            text.replace(&format!("\"parent\":\"{base}\""), &format!("\"parent\":\"{gone}\"")),
            text.replace(&format!("\"parent\":\"{base}\""), &format!("\"parent\":\"{top}\"")),
            text.replace("\"names\":[\"base\"]", &format!("\"names\":[\"base\"],\"parent\":\"{top}\"")),
        ] {
            assert_ne!(damaged, text);
            fs::write(&path, &damaged).unwrap();
            for words in [
                &["layers"][..],
                &["layers", "--tree"],
                &["layer", "top"],
                &["images"],
                &["image", "image"],
                &["tree"],
                &["du"],
                &["diff", "-u", "-f", "/dev/null", "top"],
                &["changes", "top"],
                &["mount", "top"],
                &["unmount", "--force", "top"],
                &["create-container", "-n", "box", "image"],
                &["delete-layer", "base"],
            ] {
                let begun = Instant::now();
                let out = store.command(words).output().unwrap();
                assert!(out.status.code().is_some() && begun.elapsed() < Duration::from_secs(20), "{words:?}: {out:?}");
                assert!(out.status.success() || !both(&out).trim().is_empty(), "{words:?}: fails without a word");
            }
            store.ok(&["mount", "good"]);
            store.ok(&["unmount", "good"]);
            drop(store.command(&["delete-container", "box"]).output());
            assert!(store.ok(&["layers"]).contains(&good));
            fs::write(&path, &text).unwrap();
            // What could be deleted in the damaged store is gone for good.
            if store.command(&["mount", "top"]).output().unwrap().status.success() {
                store.ok(&["unmount", "--force", "top"]);
            }
        }
        // A circle can be got rid of.
        let circle = text.replace("\"names\":[\"base\"]", &format!("\"names\":[\"base\"],\"parent\":\"{top}\""));
        fs::write(&path, circle).unwrap();
        store.ok(&["wipe"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "[]");
    });
}

#[test]
fn root_a_read_only_graph_root_can_be_read() {
    on_each("root_a_read_only_graph_root_can_be_read", |store| {
        let file = store.path("file");
        fs::write(&file, "data").unwrap();
        let (dir, tar) = (store.dir.path().display().to_string(), store.path("tar").display().to_string());
        run(Command::new("tar").args(["-cf", &tar, "-C", &dir, "file"]));
        let layer = make(store, &["import-layer", "-n", "layer", "-f", &tar]);
        make(store, &["create-image", "-n", "image", "layer"]);
        store.ok(&["set-image-data", "-f", file.to_str().unwrap(), "image", "manifest"]);
        make(store, &["create-container", "-n", "box", "image"]);
        store.ok(&["shutdown"]);
        // The graph root alone: a file system of its own, as read-only media are.
        let root = store.path("root");
        run(Command::new("mount").args(["--bind"]).arg(&root).arg(&root));
        for locks in [true, false] {
            if !locks {
                run(Command::new("mount").args(["-o", "remount,bind,rw"]).arg(&root));
                run(Command::new("sh").args(["-c", "rm \"$0\"/*.lock \"$0\"/*/*.lock"]).arg(&root));
            }
            run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&root));
            // With what an earlier command found out of the kernel, and without.
            for _ in 0..2 {
                for words in [
                    &["layers"][..],
                    &["images"],
                    &["containers"],
                    &["layer", "layer"],
                    &["image", "image"],
                    &["container", "box"],
                    &["get-names", "image"],
                    &["metadata", "layer"],
                    &["exists", "-i", "image"],
                    &["status"],
                    &["tree"],
                    &["du"],
                    &["diffsize", "layer"],
                ] {
                    assert!(!store.ok(words).is_empty(), "{words:?}");
                }
                assert_eq!(store.ok(&["get-image-data", "image", "manifest"]), "data");
                assert_eq!(store.ok(&["changes", "layer"]), "Add \"/file\"\n");
                let out = store.command(&["diff", "-u", "layer"]).output().unwrap();
                assert_eq!(out.stdout, fs::read(&tar).unwrap());
                let mounted = store.ok(&["mount", "--read-only", "layer"]);
                assert_eq!(fs::read_to_string(PathBuf::from(mounted.trim_end()).join("file")).unwrap(), "data");
                assert_eq!(store.ok(&["unmount", "layer"]), "layer mountpoint unmounted\n");
                for words in [
                    &["create-layer"][..],
                    &["import-layer", "-f", &tar],
                    &["create-image"],
                    &["create-container", "image"],
                    &["set-names", "-n", "x", "layer"],
                    &["set-metadata", "-m", "x", "layer"],
                    &["delete-container", "box"],
                    &["delete-image", "image"],
                    &["delete-layer", &layer],
                ] {
                    let said = store.fails(words);
                    assert!(said.contains("Read-only file system"), "{words:?}: {said}");
                }
                fs::remove_dir_all(store.path("run")).unwrap();
            }
        }
        run(Command::new("umount").arg(&root));
        store.ok(&["wipe"]);
    });
}

#[test]
fn root_who_holds_a_lock_is_said_after_a_second_and_only_then() {
    let test = "root_who_holds_a_lock_is_said_after_a_second_and_only_then";
    if !have("python3", test) {
        return;
    }
    on_each(test, |store| {
        let layer = make(store, &["create-layer", "-n", "layer"]);
        let lock = records(store, "layers").with_extension("lock");
        for (seconds, told) in [("0.3", false), ("1.8", true)] {
            // The classic lock of the peers, by another process.
            let hold = "import fcntl,sys,time\nf=open(sys.argv[1],'r+b')\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint('held',flush=True)\ntime.sleep(float(sys.argv[2]))";
            let mut holder = Command::new("python3");
            let mut holder = holder.args(["-c", hold]).arg(&lock).arg(seconds).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "held\n");
            let out = store.command(&["layers"]).output().unwrap();
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).starts_with(&*layer), "{said}");
            if told {
                assert_eq!(said.lines().count(), 1, "{said}");
                let (pid, path) = (holder.id().to_string(), lock.display().to_string());
                assert!(said.contains(&path) && said.contains(&pid) && said.contains("python3"), "{said}");
            } else {
                assert_eq!(said, "");
            }
            holder.wait().unwrap();
        }
    });
}

#[test]
fn root_lock_files_of_other_times_are_taken() {
    on_each("root_lock_files_of_other_times_are_taken", |store| {
        make(store, &["create-layer", "-n", "layer"]);
        make(store, &["create-image", "-n", "image", "layer"]);
        make(store, &["create-container", "-n", "box", "image"]);
        let long: Vec<u8> = (0..200).collect();
        let hex = b"0123456789abcdef".repeat(4);
        for content in [&b""[..], &4242_u64.to_le_bytes(), b"pid\n", &hex, &long, &[0; 64]] {
            for kind in ["layers", "images", "containers"] {
                fs::write(records(store, kind).with_extension("lock"), content).unwrap();
            }
            fs::write(store.path("root/storage.lock"), content).unwrap();
            assert!(store.ok(&["layer", "layer"]).contains("Name: layer\n"));
            for object in ["layer", "image", "box"] {
                store.ok(&["set-metadata", "-m", &format!("{content:?}"), object]);
                assert_eq!(store.ok(&["metadata", "-q", object]), format!("{content:?}\n"));
            }
            for kind in ["layers", "images", "containers"] {
                let mut token = [0; 64];
                let mut file = fs::File::open(records(store, kind).with_extension("lock")).unwrap();
                file.read_exact(&mut token).unwrap();
                assert!(!content.starts_with(&token), "{kind}: a new token");
            }
        }
        // What somebody writes without a token is seen all the same.
        let path = records(store, "images");
        let text = fs::read_to_string(&path).unwrap().replace("\"image\"", "\"edited\"");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        assert_eq!(store.ok(&["exists", "-i", "edited"]), "edited: true\n");
    });
}

#[test]
fn root_unknown_fields_of_all_kinds_survive() {
    on_each("root_unknown_fields_of_all_kinds_survive", |store| {
        make(store, &["create-layer", "-n", "layer"]);
        make(store, &["create-image", "-n", "image", "layer"]);
        make(store, &["create-container", "-n", "box", "image"]);
        make(store, &["create-container", "--volatile", "-n", "volatile", "image"]);
        store.ok(&["mount", "box"]);
        let field = "\"x-new\":{\"b\": 1.50, \"a\":[1e3,-0,\"<é>\\u00e9\"],\"huge\":123456789012345678901234567890}";
        let volatile = |kind: &str| records(store, kind).with_file_name(format!("volatile-{kind}.json"));
        let mounts = store.path("run").join(format!("{}-layers/mountpoints.json", store.driver));
        let files = [
            records(store, "layers"),
            records(store, "images"),
            records(store, "containers"),
            volatile("layers"),
            volatile("containers"),
            mounts.clone(),
        ];
        for path in &files {
            let text = fs::read_to_string(path).unwrap().replace("{\"id\":", &format!("{{{field},\"id\":"));
            assert!(text.contains(field), "{path:?}: {text}");
            fs::write(path, text).unwrap();
        }
        // Every record is changed.
        for object in ["layer", "image", "box", "volatile"] {
            store.ok(&["set-metadata", "-m", "changed", object]);
            store.ok(&["add-names", "-n", &format!("{object}2"), object]);
        }
        for container in ["box", "volatile"] {
            let json: serde_json::Value = serde_json::from_str(&store.ok(&["container", "-j", container])).unwrap();
            store.ok(&["set-metadata", "-m", "changed", json[0]["layer"].as_str().unwrap()]);
        }
        store.ok(&["mount", "box"]);
        for path in &files {
            let text = fs::read_to_string(path).unwrap();
            let records = text.matches("\"id\":").count();
            assert_eq!(text.matches(field).count(), records, "{path:?}: {text}");
        }
        store.ok(&["unmount", "--force", "box"]);
    });
}
