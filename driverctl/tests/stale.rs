//! A store on a network file system whose files went away below us (ESTALE): every command says what it did to which file,
//! or does without; nothing is taken for gone because of it, and afterwards all is as it was.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use support::{TestStore, both, have, in_own_mount_namespace, many_files_tar, run};

const CALLS: &str = "openat,openat2,newfstatat,statx,getdents64,mkdirat,renameat,renameat2,unlinkat,readlinkat";

fn traced(store: &TestStore, words: &[&str], flags: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-y", "-e", "signal=none", "-e", &format!("trace={CALLS}")]).args(flags);
    command.arg("-o").arg(store.path("trace")).arg(support::DRIVERCTL).args(store.global()).args(words);
    command.env_remove("STORAGE_DRIVER").env_remove("STORAGE_OPTS");
    command
}

/// The calls about files of the store: name, which one of that name in its thread, and what strace wrote.
fn calls(store: &TestStore, words: &[&str]) -> Vec<(String, usize, String)> {
    run(&mut traced(store, words, &[]));
    let text = fs::read_to_string(store.path("trace")).unwrap();
    let here = format!("{}/r", store.dir.path().display());
    let mut counts = BTreeMap::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
        let nth: &mut usize = counts.entry((thread.to_owned(), call.to_owned())).or_default();
        *nth += 1;
        if rest.contains(&here) {
            calls.push((call.to_owned(), *nth, rest.to_owned()));
        }
    }
    calls
}

#[test]
fn root_stale_files_are_named() {
    let name = "root_stale_files_are_named";
    if !have("strace", name) || !in_own_mount_namespace(name) {
        return;
    }
    for driver in ["overlay", "vfs"] {
        let store = TestStore::new(driver);
        store.in_memory();
        let tar = store.path("layer.tar");
        many_files_tar(&tar, 2, 2);
        store.ok(&["import-layer", "--id", "base", "--file", &tar.display().to_string()]);
        store.ok(&["create-layer", "--id", "top", "base"]);
        for words in [&["layers", "-q"][..], &["diff", "-u", "--file", "/dev/null", "base"], &["changes", "top"]] {
            let expected = store.ok(words);
            let (mut failed, mut without) = (0, 0);
            for (call, nth, line) in calls(&store, words) {
                let inject = format!("inject={call}:error=ESTALE:when={nth}");
                let out = traced(&store, words, &["-e", &inject]).output().unwrap();
                let text = both(&out);
                let what = format!("{driver}: {words:?}: ESTALE from {line}: {text}");
                assert!(!text.contains("panicked") && out.status.code().is_some(), "{what}");
                if out.status.success() {
                    without += 1;
                    assert_eq!(String::from_utf8_lossy(&out.stdout), expected, "{what}");
                } else {
                    failed += 1;
                    assert!(text.to_lowercase().contains("stale file handle"), "{what}");
                    // Which file: its whole path, or its path in the layer and the layer.
                    let named = text.contains(&store.dir.path().display().to_string())
                        || text.contains("layer base: ")
                        || text.contains("layer top: ");
                    assert!(named, "{what}");
                }
            }
            assert_eq!(store.ok(&["layers", "-q"]), "base\ntop\n", "{driver}: {words:?}");
            eprintln!("{driver}: {words:?}: {failed} failed, {without} did without");
            assert!(failed > 0);
        }
        store.ok(&["check"]);
    }
}
