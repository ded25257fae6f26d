//! Stores of the aufs driver, on kernels with AUFS and without: the graph directory of an old Docker becomes an overlay store.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn shell(dir: &Path, script: &str) -> Output {
    Command::new("unshare").args(["--mount", "sh", "-ec", script]).current_dir(dir).output().unwrap()
}

fn run(dir: &Path, script: &str) -> String {
    let output = shell(dir, &format!("export PATH={}:$PATH\n{script}", bin()));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}\n{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn bin() -> String {
    Path::new(env!("CARGO_BIN_EXE_driverctl")).parent().unwrap().display().to_string()
}

fn is_root() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|status| std::os::unix::fs::MetadataExt::uid(&status) == 0);
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// As Docker left it: contents with AUFS's marks, lists of the layers below, and its own records of two of the layers.
const DOCKER: &str = r#"
mkdir -p g/aufs/diff/base/etc g/aufs/diff/base/old g/aufs/diff/next/old g/aufs/diff/top/etc g/aufs/layers
mkdir -p g/aufs/mnt/base g/aufs/mnt/next g/aufs/mnt/top
: > g/aufs/layers/base; echo base > g/aufs/layers/next; printf 'next\nbase\n' > g/aufs/layers/top
cd g/aufs/diff
echo root > base/etc/passwd; echo gone > base/etc/gone; echo 1 > base/old/one; echo 2 > base/old/two
: > next/old/.wh..wh..opq; echo 3 > next/old/three; echo plain > next/file
: > top/.wh..wh.aufs; mkdir -m 700 top/.wh..wh.plnk top/.wh..wh.orph
ln top/.wh..wh.aufs top/etc/.wh.gone; ln top/.wh..wh.aufs top/.wh.file; echo changed > top/etc/passwd
"#;

#[test]
fn root_the_directory_of_an_old_docker_becomes_an_overlay_store() {
    if !is_root() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    run(dir, DOCKER);
    let ctl = "driverctl --graph $PWD/g --run $PWD/r";
    let converted = run(dir, &format!("{ctl} convert --from aufs --to overlay"));
    assert!(converted.contains("converted from aufs to overlay: 3 layers, 0 images, 0 containers"), "{converted}");
    let shown = run(
        dir,
        &format!(
            "m=$({ctl} -s overlay mount top); cd $m; find . -mindepth 1 | sort; cat etc/passwd old/three; cd /; cd {0}; {ctl} -s overlay unmount top >/dev/null",
            dir.display()
        ),
    );
    assert_eq!(shown, "./etc\n./etc/passwd\n./old\n./old/three\nchanged\n3\n");
    let changes = run(dir, &format!("{ctl} -s overlay changes top"));
    assert!(changes.contains("Delete \"/etc/gone\"") && changes.contains("Delete \"/file\""), "{changes}");
    // The old one is as it was.
    assert!(dir.join("g/converted-from-aufs/aufs/diff/top/.wh.file").exists());
}

/// With Docker's records each layer must give the archive that it came from; one that was damaged does not, and nothing
/// changes.
#[test]
fn root_recorded_diff_ids_are_verified() {
    if !is_root() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    // A layer with a tar-split, made by ourselves on vfs, whose content and records are then laid out as Docker has them.
    run(
        dir,
        r#"
mkdir tree; echo some > tree/file; ln tree/file tree/link; mkdir tree/d; tar -C tree -cf blob.tar .
driverctl --graph $PWD/v --run $PWD/rv -s vfs import-layer --id one --file blob.tar > /dev/null
mkdir -p g/aufs/layers g/aufs/mnt/one g/aufs/diff; cp -a v/vfs/dir/one g/aufs/diff/one; : > g/aufs/layers/one
db=g/image/aufs/layerdb/sha256/0123; mkdir -p $db
printf one > $db/cache-id; printf sha256:$(sha256sum blob.tar | cut -d' ' -f1) > $db/diff
cp v/vfs-layers/one.tar-split.gz $db/tar-split.json.gz
cp -a g damaged; echo evil > damaged/aufs/diff/one/file
"#,
    );
    run(dir, "driverctl --graph $PWD/g --run $PWD/r convert --from aufs --to overlay");
    let layer = fs::read_to_string(dir.join("g/overlay-layers/layers.json")).unwrap();
    let sum = run(dir, "sha256sum blob.tar | cut -d' ' -f1");
    assert!(layer.contains(&format!("\"diff-digest\":\"sha256:{}\"", sum.trim())), "{layer}");
    run(dir, "driverctl --graph $PWD/g --run $PWD/r -s overlay diff -f out.tar one && cmp out.tar blob.tar");
    let refused =
        shell(dir, &format!("{}/driverctl --graph $PWD/damaged --run $PWD/r convert --from aufs --to overlay", bin()));
    assert!(!refused.status.success());
    assert!(!dir.join("damaged/overlay").exists() && dir.join("damaged/aufs/diff/one").exists());
}

/// A store of ours on aufs, and back again.
#[test]
fn root_stores_go_to_aufs_only_where_the_kernel_has_it() {
    if !is_root() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let listed = fs::read_to_string("/proc/filesystems").unwrap();
    if listed.lines().any(|line| line.split_whitespace().next_back() == Some("aufs")) {
        eprintln!("skipped: this kernel has AUFS");
        return;
    }
    let output = shell(temp.path(), &format!("{}/driverctl --graph $PWD/g --run $PWD/r -s aufs status", bin()));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("AUFS was not found in /proc/filesystems"), "{text}");
    // Chosen by nobody, though it comes second.
    let status = run(temp.path(), "mkdir -p h/aufs; driverctl --graph $PWD/g --run $PWD/r status");
    assert!(status.contains("Driver Name: overlay") || status.contains("overlay"), "{status}");
}
