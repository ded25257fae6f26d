//! The same command lines on two equal stores, ours and the packaged peer's: exit statuses, outputs and error texts.
//!
//! Where we differ on purpose the table says so, and the specification of the command line says why.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::{TestStore, both, have, in_own_mount_namespace};

/// How the two have to agree. Exit statuses always do.
#[derive(Clone, Copy, Debug)]
enum Agree {
    /// The same standard output; of errors, we say at least the peer's last words.
    Whole,
    /// The same lines in any order: the peer's order is that of a hash table.
    Lines,
    /// The same status; the outputs differ for a reason, and ours has this in it.
    Ours(&'static str),
}
use Agree::{Lines, Ours, Whole};

/// `@` stands for the directory of the archives.
const TABLE: &[(&str, Agree)] = &[
    // An empty store. (Later peers print null for no layers, as we do.)
    ("layers", Whole),
    ("layers --json", Ours("null\n")),
    ("layers --tree", Whole),
    ("images", Whole),
    ("images -j", Whole),
    ("containers", Whole),
    ("containers -j", Whole),
    // Layers.
    ("create-layer --id base -n bn", Whole),
    ("create-layer -r --id ro -n x -n=y -n x base", Whole),
    ("createlayer -j --id js bn", Whole),
    ("create-layer --id base", Whole),
    ("create-layer -n bn", Whole),
    ("create-layer nosuch", Whole),
    ("import-layer --id l1 -f @/one.tar", Whole),
    ("import-layer --id l2 --name two --file=@/two.tar l1", Whole),
    ("importlayer -j --id gz -f @/one.tar.gz base", Whole),
    ("import-layer --id bad -f @/junk", Ours("layer bad: unexpected EOF")),
    ("import-layer --id bad -f @/cut.tar", Ours("layer bad: unexpected EOF")),
    ("import-layer --id bad -f @/none", Ours("/none")),
    ("create-layer --id empty", Whole),
    ("applydiff -f @/one.tar empty", Whole),
    ("apply-diff -f @/junk js", Ours("layer js: unexpected EOF")),
    ("applydiff -f @/one.tar nosuch", Whole),
    ("layers", Whole),
    ("layers -j", Whole),
    ("layers -t", Whole),
    ("layer l1 two", Whole),
    ("layer l1 nosuch", Whole),
    ("layer -j l1 l2 gz", Whole),
    // Differences.
    ("changes l1", Lines),
    ("changes two", Lines),
    ("changes l2 l1", Lines),
    ("changes -j ro", Whole),
    ("changes nosuch", Whole),
    ("diffsize l1", Whole),
    ("diff-size l2", Whole),
    ("diffsize l2 l1", Whole),
    ("diffsize empty", Whole),
    ("diffsize nosuch", Whole),
    ("diff -u l1", Whole),
    ("diff l2", Whole),
    ("diff --uncompressed gz", Whole),
    ("diff -u -f @/out.tar l1", Whole),
    ("diff -b l1", Whole),
    ("diff -x l1", Whole),
    ("diff nosuch", Whole),
    ("diff l1 nosuch", Ours("layer not known")),
    // Copies. (1.43 has no --chown.)
    ("copy @/one.tar empty:/copied", Whole),
    ("copy @/one empty:/tree", Whole),
    ("copy empty:/tree/d js:/tree", Whole),
    ("copy empty:/tree @/copied-out", Whole),
    ("copy @/one nosuch:/x", Whole),
    ("copy nosuch:/x @/y", Whole),
    ("copy @/nosuch empty:/x", Ours("error copying")),
    ("changes empty", Lines),
    ("changes js", Lines),
    // Mounts. (Names of layers only we mount.)
    ("mount l1", Whole),
    ("mount l1 nosuch", Whole),
    ("mount -j l1", Whole),
    ("mount nosuch", Whole),
    ("mount --option nosuid l1", Whole),
    ("mounted l1 l2", Whole),
    ("mounted -j l1", Whole),
    ("mounted nosuch", Whole),
    ("layers -t", Whole),
    ("shutdown", Whole),
    ("unmount l1", Whole),
    ("unmount l1", Whole),
    ("umount -j l1", Whole),
    ("unmount l1", Whole),
    ("mounted l1", Whole),
    ("mount l2", Whole),
    ("mount l2", Whole),
    ("unmount --force l2", Whole),
    ("mounted l2", Whole),
    ("unmount nosuch", Whole),
    // Images.
    ("create-image -n im --id i1 l2", Whole),
    ("createimage -j --id i2 -m meta base", Whole),
    ("create-image --id i3 --digest sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", Whole),
    ("create-image --id i1 l2", Whole),
    ("create-image -n im", Whole),
    ("create-image nosuch", Whole),
    ("create-image --digest nonsense", Whole),
    ("images", Whole),
    ("images -q", Whole),
    ("images -j", Whole),
    ("image im", Whole),
    ("image i3", Whole),
    ("image nosuch", Whole),
    ("image -j im i2", Whole),
    ("layers", Whole),
    ("layers -t", Whole),
    ("delete-layer l2", Whole),
    ("delete-layer base", Whole),
    ("delete-layer nosuch", Whole),
    ("delete-layer -j nosuch", Whole),
    // Containers.
    ("create-container -n c --id c1 im", Whole),
    ("create-container -j --id c3 -m mm i2", Whole),
    ("create-container --id c1 im", Whole),
    ("create-container -n c im", Whole),
    ("create-container nosuch", Whole),
    ("containers", Whole),
    ("container c", Whole),
    ("container -j c c3", Whole),
    ("container nosuch", Whole),
    ("mount im", Whole),
    ("exists im", Whole),
    ("exists -l im", Whole),
    ("exists -i im", Whole),
    ("exists -c im", Whole),
    ("exists -c c", Whole),
    ("exists -ic im c", Lines),
    ("exists -q l1", Whole),
    ("exists -j l1 nosuch", Whole),
    ("exists nosuch", Whole),
    ("delete-image -t i3", Whole),
    ("delete-image im", Whole),
    ("delete-image nosuch", Whole),
    ("delete-container nosuch", Whole),
    ("delete-container -j nosuch", Whole),
    ("delete-container c", Whole),
    ("deletecontainer -j c3", Whole),
    ("delete-image -t im", Whole),
    ("delete-image -j i3", Whole),
    ("delete-image i1", Whole),
    ("deletelayer js ro gz", Whole),
    ("create-image --id i5 -n five empty", Whole),
    ("create-container --id c5 i5", Whole),
    ("delete nosuch", Whole),
    ("delete -j nosuch", Whole),
    ("delete five", Whole),
    ("delete -j c5", Whole),
    ("delete empty", Whole),
    ("layers", Whole),
    ("images", Whole),
    ("containers", Whole),
    // Words that mean nothing.
    ("layers --nosuch", Whole),
    ("layers -tx", Whole),
    ("layers ---x", Whole),
    ("layers -=x", Whole),
    ("layers -t=maybe", Whole),
    ("layers --tree=F --debug=0", Whole),
    ("layers --help", Ours("Usage: ")),
    ("layers -h", Ours("Usage: ")),
    ("-h", Ours("Usage: ")),
    ("--help", Ours("Usage: ")),
    ("--graph", Ours("flag needs an argument: --graph")),
    ("", Ours(": unrecognized command.")),
    ("-", Whole),
    ("--debug=maybe layers", Ours("invalid boolean value \"maybe\" for  --debug")),
    ("create-layer -i", Whole),
    ("--nosuch layers", Ours("flag provided but not defined: --nosuch")),
    ("create-layer --id", Whole),
    ("layers --tree=maybe", Ours("invalid boolean value")),
    ("nosuch", Ours("nosuch: unrecognized command.")),
    ("layer", Ours("layer: more arguments required.")),
    ("create-layer a b", Ours("create-layer: too many arguments")),
    ("create-layer --uidmap 0:1", Whole),
    ("create-layer --uidmap 0:1:2 --hostuidmap", Whole),
    ("create-layer --subuidmap nosuch-user", Whole),
    ("--storage-driver nosuch layers", Whole),
    ("--storage-opt foo layers", Ours("unable to parse key/value option: foo")),
    ("--storage-opt nosuch.foo=1 layers", Ours("error initializing: ")),
    ("wipe", Whole),
    ("wipe -j", Whole),
    ("layers", Whole),
    ("shutdown -j", Whole),
];

fn archives(dir: &Path) {
    let script = r#"
set -eu
cd "$0"; mkdir one two
mkdir one/d; echo a >one/d/a; ln one/d/a one/d/hard; echo b >one/b; chmod 4755 one/b; ln -s b one/l; mkfifo one/p
mkdir two/d; : >two/d/.wh.a; echo n >two/n; mkdir two/e; : >two/e/.wh..wh..opq
tar -C one --sort=name --mtime=@1000000000 -cf one.tar d b l p; tar -C two --sort=name --mtime=@1000000001 -cf two.tar d n e
gzip -nk one.tar; echo 'junk junk junk' >junk; head -c 700 one.tar >cut.tar
"#;
    let out = Command::new("sh").args(["-c", script]).arg(dir).output().unwrap();
    assert!(out.status.success(), "{}", both(&out));
}

/// The output without what has to differ: where the store is, random ids, times of creation.
fn plain(bytes: &[u8], root: &Path) -> String {
    let text = String::from_utf8_lossy(bytes).replace(&root.display().to_string(), "STORE");
    let mut parts = text.split("\"created\":\"");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("\"created\":\"T\"");
        out.push_str(part.split_once('"').map_or("", |(_, rest)| rest));
    }
    let mut words = String::new();
    for line in out.split_inclusive(|c: char| !c.is_ascii_hexdigit()) {
        let (hex, end) = line.split_at(line.trim_end_matches(|c: char| !c.is_ascii_hexdigit()).len());
        words.push_str(if hex.len() == 64 { "ID" } else { hex });
        words.push_str(end);
    }
    // The peer forgets the last line's end now and then.
    words.trim_end().to_owned()
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn compare(driver: &'static str, name: &str) {
    if !have("containers-storage", name) || !in_own_mount_namespace(name) {
        return;
    }
    let (ours, theirs) = (TestStore::new(driver), TestStore::new(driver));
    let dir: PathBuf = ours.path("archives");
    fs::create_dir(&dir).unwrap();
    archives(&dir);
    let mut wrong = Vec::new();
    for (line, agree) in TABLE {
        let words: Vec<String> = line.split(' ').map(|word| word.replace('@', &dir.display().to_string())).collect();
        let run = |mut command: Command| -> Output { command.stdin(Stdio::null()).output().unwrap() };
        let (our, their) = (run(ours.command(&words)), run(theirs.peer(&words)));
        let our_out = plain(&our.stdout, ours.dir.path());
        let their_out = plain(&their.stdout, theirs.dir.path());
        let their_error = plain(&their.stderr, theirs.dir.path());
        let our_error = plain(&our.stderr, ours.dir.path());
        // What the peer logs is no part of its contract; the cause is what its last line ends with.
        let last = their_error.lines().rfind(|line| !line.starts_with("time=") && !line.starts_with("See '"));
        let cause = last.and_then(|line| line.rsplit(": ").next()).unwrap_or_default();
        let agreed = match agree {
            Whole => our_out == their_out && our_error.contains(cause),
            Lines => sorted(&our_out) == sorted(&their_out) && our_error.contains(cause),
            Ours(text) => both(&our).contains(text),
        };
        let silent = !our.status.success() || our.stderr.is_empty() || line.starts_with("delete-image");
        if !agreed || !silent || our.status.code() != their.status.code() {
            wrong.push(format!(
                "{line}\n  ours:   {:?} {our_out:?} {our_error:?}\n  theirs: {:?} {their_out:?} {their_error:?}",
                our.status.code(),
                their.status.code()
            ));
        }
    }
    assert!(wrong.is_empty(), "{driver}: {} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn root_peer_vfs_command_lines_agree() {
    compare("vfs", "root_peer_vfs_command_lines_agree");
}

#[test]
fn root_peer_overlay_command_lines_agree() {
    compare("overlay", "root_peer_overlay_command_lines_agree");
}
