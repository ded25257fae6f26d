//! `load` and `save` with every transport: what we save others load, and the reverse.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::process::Command;

use support::engines::{APP, BASE, Engines, Privilege, json, tools};
use support::{TestStore, both, in_own_mount_namespace, run};

#[test]
fn root_peer_images_go_through_every_transport_and_stay_the_same() {
    let name = "root_peer_images_go_through_every_transport_and_stay_the_same";
    if !tools(&[], name) || !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new("overlay");
    let engines = Engines::new(&store, Privilege::Root);
    engines.script(BASE);
    engines.script(APP);
    let file = |name: &str| store.path(&format!("files/{name}")).display().to_string();
    let id = json(&store.ok(&["image", "--json", "localhost/app:1"]))[0]["id"].as_str().unwrap().to_owned();

    for transport in ["docker-archive", "oci-archive", "oci", "dir"] {
        let target = format!("{transport}:{}", file(transport));
        let saved = store.ok(&["save", "localhost/app:1", &target]);
        assert!(saved.starts_with("sha256:"), "{saved}");
        // Podman's own reader, with all its checks of digests, takes it into an empty store.
        let theirs = TestStore::new("vfs");
        let reader = Engines::new(&theirs, Privilege::Root);
        reader.skopeo_copy(&target, &reader.reference("localhost/copy:1"));
        assert_eq!(json(&theirs.ok(&["images", "--json"]))[0]["id"], id.as_str(), "{transport}");
        if transport.ends_with("archive") {
            let loaded = reader.podman(&["load", "-q", "-i", &file(transport)]);
            assert!(loaded.contains("Loaded image"), "{transport}: {loaded}");
            // The same through a pipe, and into a file that is open already.
            let expected = std::fs::read(file(transport)).unwrap();
            for target in ["-", "/dev/stdout"] {
                let out =
                    store.command(&["save", "localhost/app:1", &format!("{transport}:{target}")]).output().unwrap();
                assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
                assert!(out.stdout == expected, "{transport}: {} bytes, not {}", out.stdout.len(), expected.len());
            }
            let redirected = std::fs::File::create(file("redirected")).unwrap();
            let words = ["save", "localhost/app:1", &format!("{transport}:-")];
            assert!(store.command(&words).stdout(redirected).status().unwrap().success());
            assert!(std::fs::read(file("redirected")).unwrap() == expected);
        }
        // And we take it, with the same ids of all layers.
        let ours = TestStore::new("vfs");
        let said = ours.ok(&["load", "--name", "localhost/again:1", &target]);
        assert_eq!(said, format!("{id}\n\tlocalhost/again:1\n"), "{transport}");
        let layers = |store: &TestStore| {
            let mut ids: Vec<String> = store.ok(&["layers", "-q"]).lines().map(str::to_owned).collect();
            ids.sort();
            ids
        };
        assert!(layers(&ours).iter().all(|layer| layers(&store).contains(layer)), "{transport}");

        // What skopeo writes is loaded, too.
        let written = format!("{transport}:{}", file(&format!("{transport}-theirs")));
        let named = if transport == "docker-archive" { format!("{written}:localhost/app:1") } else { written.clone() };
        engines.skopeo_copy(&engines.reference("localhost/app:1"), &named);
        let third = TestStore::new("overlay");
        let said = third.ok(&["load", "-n", "localhost/third:1", &written]);
        assert!(said.starts_with(&id), "{transport}: {said}");
    }

    // Several at once, and all of them back.
    let both_images = format!("docker-archive:{}", file("both.tar"));
    let digests = store.ok(&["save", "localhost/app:1", "localhost/base:1", &both_images]);
    assert_eq!(digests.lines().count(), 2, "{digests}");
    let other = TestStore::new("vfs");
    let said = other.fails(&["load", &both_images]);
    assert!(said.contains("there are: ") && said.contains("localhost/base:1"), "{said}");
    let loaded = other.ok(&["load", "--all", &both_images]);
    assert!(loaded.contains("\tlocalhost/app:1\n") && loaded.contains("\tlocalhost/base:1\n"), "{loaded}");
    let theirs = TestStore::new("vfs");
    let loaded = Engines::new(&theirs, Privilege::Root).podman(&["load", "-q", "-i", &file("both.tar")]);
    assert!(loaded.contains("localhost/app:1") && loaded.contains("localhost/base:1"), "{loaded}");
    // Two sources in one go.
    let more = TestStore::new("vfs");
    let two = [format!("{both_images}:localhost/app:1"), format!("{both_images}:localhost/base:1")];
    assert_eq!(json(&more.ok(&["load", "--json", &two[0], &two[1]])).as_array().unwrap().len(), 2);
}

#[test]
fn root_places_that_only_skopeo_reaches_say_so() {
    let name = "root_places_that_only_skopeo_reaches_say_so";
    if !in_own_mount_namespace(name) || !support::have("skopeo", name) {
        return;
    }
    let store = TestStore::new("vfs");
    // Nobody listens there.
    let said = store.fails(&["load", "docker://127.0.0.1:1/none:1"]);
    assert!(said.contains("docker://127.0.0.1:1/none:1: skopeo: "), "{said}");
    // Without skopeo the message says what is missing.
    let empty = store.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let out = store.command(&["load", "docker://127.0.0.1:1/none:1"]).env("PATH", &empty).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(both(&out).contains("is reached through skopeo, which is not installed"), "{}", both(&out));
    let left = run(Command::new("find").args(["/var/tmp", "-maxdepth", "1", "-name", "driverctl-[0-9]*-[0-9]*"]));
    let own: Vec<&str> = left.lines().filter(|line| !line.contains("test")).collect();
    // Other tests may run at the same time; ours are dead by now.
    let dead = |line: &&str| {
        let pid = line.rsplit('/').next().unwrap().split('-').nth(1).unwrap();
        !std::path::Path::new("/proc").join(pid).exists()
    };
    assert_eq!(own.into_iter().filter(dead).collect::<Vec<_>>(), Vec::<&str>::new());
}
