//! One store, used by the packaged containers-storage and by this driver.

use std::path::{Path, PathBuf};
use std::process::Command;

use graph_archive::idmap::{IdMappings, IdRange};
use graph_core::driver::{ApplyDiffOptions, CreateOptions, DriverExt, GetOptions};
use graph_core::registry::DriverSetup;
use graph_core::{Driver, LayerId};

use super::super::Overlay;
use super::support::{Place, id, may_mount};

/// Whether the test may mount and has the peer.
fn ready() -> bool {
    if Command::new("containers-storage").arg("version").output().is_err() {
        eprintln!("skipped: containers-storage is not installed");
        return false;
    }
    may_mount()
}

/// Runs the peer on the place's store, as a child of this thread and so in its mount namespace.
fn peer(place: &Place, words: &[&str]) -> String {
    let dir = place.dir.path();
    let output = Command::new("containers-storage")
        .args(["-g", dir.join("root").to_str().unwrap(), "-R", dir.join("run").to_str().unwrap(), "-s", "overlay"])
        .args(words)
        .env("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text.trim().to_owned()
}

/// Everything that a tree says of itself, the root's mode and times aside: the peer leaves out what archives say of those.
fn tell(root: &Path) -> String {
    let script = r#"cd "$1" && find . -printf '%P %y %m %U:%G %s %l %n %T@\n' | sed '/^ /s/^ d [0-9]* \([0-9:]*\) .*/ \1/' | LC_ALL=C sort
        find . -type f -exec sha256sum {} + | LC_ALL=C sort; getfattr -hdR -m - . 2>/dev/null | grep -v '^$'"#;
    let output = Command::new("sh").args(["-c", script, "sh"]).arg(root).output().unwrap();
    assert!(!output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Archives of a base and of two layers that change, replace and remove.
fn archives(dir: &Path) -> Vec<PathBuf> {
    let script = r#"set -e; cd "$1"
        mkdir -p base/dir/deep base/opaque base/gone; cd base
        echo one >dir/one; echo two >dir/deep/two; echo x >opaque/old; echo y >gone/file; ln dir/one hard; ln -s dir/one soft
        mkfifo pipe; mknod null c 1 3; echo s >setuid; chown 12:34 setuid; chmod 6755 setuid; chmod 1777 opaque
        truncate -s 1M sparse; printf end >>sparse; setfattr -n user.key -v value dir/one; chown 5:6 dir
        mkdir -p ../one/dir ../one/opaque ../two/dir; cd ../one
        echo changed >dir/one; : >dir/.wh.deep; : >opaque/.wh..wh..opq; echo new >opaque/new; : >.wh.gone
        cd ../two; mkdir dir/deep; echo again >dir/deep/again; : >dir/.wh.one
        for layer in base one two; do tar --xattrs --sort=name -C "$1/$layer" -cf "$1/$layer.tar" .; done"#;
    let output = Command::new("sh").args(["-c", script, "sh"]).arg(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ["base", "one", "two"].map(|layer| dir.join(format!("{layer}.tar"))).to_vec()
}

const LAYERS: [(&str, Option<&str>); 3] = [("base", None), ("one", Some("base")), ("two", Some("one"))];

fn import_with_the_peer(place: &Place, archives: &[PathBuf]) {
    for ((layer, parent), archive) in LAYERS.iter().zip(archives) {
        let mut words = vec!["create-layer", "-i", layer];
        words.extend(parent.iter());
        peer(place, &words);
        peer(place, &["applydiff", "-f", archive.to_str().unwrap(), layer]);
    }
}

fn import(driver: &Overlay, archives: &[PathBuf]) {
    for ((layer, parent), archive) in LAYERS.iter().zip(archives) {
        let parent = parent.map(id);
        let mut staged = driver.begin_staged(parent.as_ref(), &CreateOptions::default()).unwrap();
        let mut file = std::fs::File::open(archive).unwrap();
        staged.apply(&mut file, &mut ApplyDiffOptions::default()).unwrap();
        staged.flush().unwrap();
        staged.publish(&id(layer)).unwrap();
    }
}

/// The store's records, as far as the peer needs them to mount.
fn write_records(place: &Place, layers: &[(&str, Option<&str>)], mapped: Option<&str>) {
    let dir = place.dir.path().join("root/overlay-layers");
    std::fs::create_dir_all(&dir).unwrap();
    let records: Vec<String> = layers
        .iter()
        .map(|(layer, parent)| {
            let parent = parent.map(|parent| format!(r#""parent":"{parent}","#)).unwrap_or_default();
            let range = r#"[{"container_id":0,"host_id":100000,"size":65536}]"#;
            let maps =
                if mapped == Some(layer) { format!(r#","uidmap":{range},"gidmap":{range}"#) } else { String::new() };
            format!(r#"{{"id":"{layer}",{parent}"created":"2026-01-01T00:00:00Z"{maps}}}"#)
        })
        .collect();
    std::fs::write(dir.join("layers.json"), format!("[{}]", records.join(","))).unwrap();
}

fn as_the_peer_shows(place: &Place, layer: &str) -> String {
    let told = tell(Path::new(&peer(place, &["mount", layer])));
    peer(place, &["unmount", layer]);
    told
}

fn as_we_show(driver: &Overlay, layer: &LayerId) -> String {
    let mounted = driver.mount(layer).unwrap();
    let told = tell(mounted.path());
    mounted.put().unwrap();
    told
}

/// Ends what the peer leaves mounted.
fn shut_down(place: &Place) {
    peer(place, &["shutdown"]);
}

#[test]
fn root_peer_layers_and_ours_are_the_same_in_either_store() {
    if !ready() {
        return;
    }
    let sources = tempfile::tempdir().unwrap();
    let archives = archives(sources.path());
    let (theirs, ours) = (Place::new(), Place::new());
    import_with_the_peer(&theirs, &archives);
    let driver = ours.open();
    import(&driver, &archives);
    write_records(&ours, &LAYERS, None);
    let reader = theirs.open();
    for (layer, _) in LAYERS {
        let expected = as_the_peer_shows(&theirs, layer);
        assert_eq!(as_we_show(&reader, &id(layer)), expected, "the peer's {layer}, mounted by us");
        assert_eq!(as_we_show(&driver, &id(layer)), expected, "our {layer}, mounted by us");
        assert_eq!(as_the_peer_shows(&ours, layer), expected, "our {layer}, mounted by the peer");
    }
    // A child of either side's layers, made by the other.
    peer(&ours, &["create-layer", "-i", "their-child", "two"]);
    reader.create_read_write(&id("our-child"), Some(&id("two")), &CreateOptions::default()).unwrap();
    let expected = as_the_peer_shows(&theirs, "two");
    assert_eq!(as_we_show(&driver, &id("their-child")), expected);
    assert_eq!(as_we_show(&reader, &id("our-child")), expected);
    shut_down(&theirs);
    shut_down(&ours);
}

#[test]
fn root_peer_mounts_are_ours_to_unmount_and_the_reverse() {
    if !ready() {
        return;
    }
    let place = Place::new();
    peer(&place, &["create-layer", "-i", "base"]);
    peer(&place, &["create-layer", "-i", "child", "base"]);
    let path = PathBuf::from(peer(&place, &["mount", "child"]));
    std::fs::write(path.join("theirs"), b"").unwrap();
    let driver = place.open();
    let mounted = driver.get(&id("child"), &GetOptions::default()).unwrap();
    assert_eq!(mounted.path(), path);
    assert!(path.join("theirs").exists(), "the peer's mount is used");
    mounted.put().unwrap();
    assert!(path.join("theirs").exists(), "the peer's reference stays");
    driver.put(&id("child")).unwrap();
    assert!(!path.join("theirs").exists());
    peer(&place, &["unmount", "--force", "child"]);

    assert_eq!(driver.get(&id("child"), &GetOptions::default()).unwrap().persist(), path);
    std::fs::write(path.join("ours"), b"").unwrap();
    assert_eq!(PathBuf::from(peer(&place, &["mount", "child"])), path);
    assert!(path.join("ours").exists(), "our mount is used");
    peer(&place, &["unmount", "--force", "child"]);
    driver.put(&id("child")).unwrap();
    assert!(!path.join("ours").exists());
    shut_down(&place);
}

#[test]
fn root_peer_finds_layers_whose_links_we_made_again() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let sources = tempfile::tempdir().unwrap();
    import_with_the_peer(&place, &archives(sources.path()));
    let expected = as_the_peer_shows(&place, "two");
    shut_down(&place);
    // overlay-recreate: the links, then the files that name them, then the mount point.
    let links = place.home().join("l");
    for entry in std::fs::read_dir(&links).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(as_we_show(&place.open(), &id("two")), expected);
    assert_eq!(as_the_peer_shows(&place, "two"), expected);
    shut_down(&place);
    for (layer, _) in LAYERS {
        std::fs::remove_file(place.home().join(layer).join("link")).unwrap();
    }
    assert_eq!(as_we_show(&place.open(), &id("two")), expected);
    assert_eq!(as_the_peer_shows(&place, "two"), expected);
    shut_down(&place);
    // The peer of Debian 12 removes it itself when it unmounts.
    std::fs::remove_dir(place.home().join("two/merged")).ok();
    assert!(!place.home().join("two/merged").exists());
    assert_eq!(as_we_show(&place.open(), &id("two")), expected);
    assert_eq!(as_the_peer_shows(&place, "two"), expected);
    shut_down(&place);
}

#[test]
fn root_peer_shows_re_owned_layers_as_we_do() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let sources = tempfile::tempdir().unwrap();
    let setup = DriverSetup { disable_id_mapped_mounts: true, ..place.setup() };
    let driver = Overlay::open(&setup, "overlay").unwrap();
    import(&driver, &archives(sources.path()));
    let range = IdRange { container_id: 0, host_id: 100_000, size: 65_536 };
    let mapped = IdMappings { uids: vec![range], gids: vec![range] };
    driver.update_layer_id_map(&id("two"), &IdMappings::default(), &mapped, "").unwrap();
    write_records(&place, &LAYERS, Some("two"));
    let ours = as_we_show(&driver, &id("two"));
    assert!(ours.contains(" 100012:100034 "), "{ours}");
    assert!(!ours.contains(" 0:0 "), "{ours}");
    // Mounted without a container, the peer gives the root of any layer to root.
    let (root, below) = ours.split_once('\n').unwrap();
    assert_eq!(root, " 100000:100000");
    let theirs = as_the_peer_shows(&place, "two");
    assert_eq!(theirs.split_once('\n').unwrap().1, below);
    shut_down(&place);
}
