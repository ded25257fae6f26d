//! A diff applied to a sibling gives the same tree, whatever the layer holds and however it changed.

use super::failure::{ensure, ensure_eq};
use super::fixture::CAPABILITY;
use super::{Case, Checked, Fixture, NodeKind, Tree, nothing};
use crate::id::LayerId;

const TOPIC: &str = "roundtrip";

pub(super) const CASES: &[Case] = &[
    Case { name: "everything_in_a_base", topic: TOPIC, needs: nothing, run: everything_in_a_base },
    Case { name: "everything_changed", topic: TOPIC, needs: nothing, run: everything_changed },
    Case { name: "devices", topic: TOPIC, needs: devices, run: device_nodes },
    Case { name: "hard_links", topic: TOPIC, needs: nothing, run: hard_links },
    Case { name: "xattrs", topic: TOPIC, needs: user_xattrs, run: xattrs },
    Case { name: "capabilities", topic: TOPIC, needs: file_capabilities, run: capabilities },
    Case { name: "type_changes", topic: TOPIC, needs: nothing, run: type_changes },
    Case { name: "directory_metadata_only", topic: TOPIC, needs: super::layers::owners, run: directory_metadata_only },
    Case { name: "directory_xattr_only", topic: TOPIC, needs: user_xattrs, run: directory_xattr_only },
    Case { name: "file_metadata_only", topic: TOPIC, needs: super::layers::owners, run: file_metadata_only },
    Case { name: "names_that_come_back", topic: TOPIC, needs: nothing, run: names_that_come_back },
    Case { name: "long_and_odd_names", topic: TOPIC, needs: nothing, run: long_and_odd_names },
    Case { name: "diff_to_a_grandparent", topic: TOPIC, needs: nothing, run: diff_to_a_grandparent },
    Case { name: "diff_to_a_stranger", topic: TOPIC, needs: nothing, run: diff_to_a_stranger },
    Case { name: "renamed_directory", topic: TOPIC, needs: nothing, run: renamed_directory },
    Case { name: "socket_is_left_out", topic: TOPIC, needs: nothing, run: socket_is_left_out },
];

fn devices(fixture: &Fixture) -> Result<(), String> {
    if fixture.environment().devices { Ok(()) } else { Err("devices cannot be made here".into()) }
}

fn user_xattrs(fixture: &Fixture) -> Result<(), String> {
    if fixture.environment().user_xattrs { Ok(()) } else { Err("files cannot have user attributes here".into()) }
}

fn file_capabilities(fixture: &Fixture) -> Result<(), String> {
    if fixture.environment().file_capabilities { Ok(()) } else { Err("files cannot have capabilities here".into()) }
}

/// The diff of `id` to `parent`, applied upon `parent`, gives the tree of `id`; changes and diff tell the same.
fn round_trip(f: &Fixture, id: &LayerId, parent: Option<&LayerId>) -> Checked {
    let diff = f.diff(id, parent)?;
    let copy = f.layer_from(&format!("copy-of-{id}"), parent, &diff)?;
    let expected = f.snapshot(id)?;
    f.snapshot(&copy)?.ensure_equals(&expected, &format!("the diff of {id} applied again"))?;
    agree(f, id, parent)?;
    // What was applied differs from the parent in the same things.
    ensure_eq!(f.changes(&copy, parent)?, f.changes(id, parent)?, "changes of the copy and of {id}");
    ensure_eq!(f.changes(&copy, Some(id))?, [""; 0], "changes from {id} to its copy");
    f.driver().remove(&copy)?;
    Ok(())
}

/// Every change is a member of the diff, and every member a change.
fn agree(f: &Fixture, id: &LayerId, parent: Option<&LayerId>) -> Checked {
    let mut members = std::collections::BTreeSet::new();
    let mut opaque = Vec::new();
    let mut content = 0;
    for member in f.diff_members(id, parent)? {
        let name = String::from_utf8_lossy(&member.name).into_owned();
        content += member.size;
        if member.flag == b'2' {
            // The size of a symbolic link is that of its target, as lstat(2) and containers/storage count it.
            content += member.target.len() as u64;
        }
        let name = name.trim_end_matches('/');
        let (directory, base) = name.rsplit_once('/').map_or(("", name), |(directory, base)| (directory, base));
        if base == ".wh..wh..opq" {
            opaque.push(format!("D /{directory}/"));
            continue;
        }
        let slash = if directory.is_empty() { "" } else { "/" };
        let line = match base.strip_prefix(".wh.") {
            Some(gone) => format!("D /{directory}{slash}{gone}"),
            None => format!("+ /{name}"),
        };
        ensure!(members.insert(line.clone()), "{line:?} is in the diff twice");
    }
    let mut changes: std::collections::BTreeSet<_> = f
        .changes(id, parent)?
        .iter()
        .map(|line| if line.starts_with('D') { line.clone() } else { format!("+{}", &line[1..]) })
        .collect();
    // A driver may say of a directory that all it had is gone, instead of naming each thing; as peers do, also of one that
    // had nothing.
    for directory in opaque {
        changes.retain(|line| !line.starts_with(&directory));
    }
    ensure_eq!(members, changes, "members of the diff and changes of {id}");
    ensure_eq!(f.diff_size(id, parent)?, content, "diff size and content of the diff of {id}");
    Ok(())
}

fn everything(f: &Fixture, tree: &Tree) -> Checked {
    tree.dir("dir")?;
    tree.dir("dir/empty")?;
    tree.mode("dir", 0o2750)?;
    tree.file("dir/file", "content")?;
    tree.file("dir/nothing", "")?;
    tree.file("dir/big", vec![7; 3 << 20])?;
    tree.link("dir/hard", "dir/file")?;
    tree.symlink("dir/soft", "../dir/file")?;
    tree.symlink("dangling", "/no/where")?;
    tree.fifo("pipe")?;
    tree.file("setuid", "x")?;
    tree.mode("setuid", 0o6755)?;
    tree.file("no-rights", "x")?;
    tree.mode("no-rights", 0o000)?;
    tree.dir("sticky")?;
    tree.mode("sticky", 0o1777)?;
    if f.environment().owners {
        tree.owner("dir/file", 12, 34)?;
        tree.owner("dangling", 56, 78)?;
        tree.owner("pipe", 9, 10)?;
        tree.owner("setuid", 3, 4)?;
    }
    if f.environment().user_xattrs {
        tree.xattr("dir/file", "user.key", b"value\0with\nbytes \xff")?;
        tree.xattr("dir", "user.directory", b"")?;
    }
    if f.environment().file_capabilities {
        tree.xattr("setuid", "security.capability", &CAPABILITY)?;
        tree.mode("setuid", 0o6755)?;
    }
    if f.environment().devices {
        tree.device("null", NodeKind::CharDevice(1, 3))?;
        tree.device("loop", NodeKind::BlockDevice(7, 259))?;
    }
    // Old, before the epoch, and far in the future.
    tree.time("dir/file", 1)?;
    tree.time("dangling", 1_234_567_890)?;
    tree.time("pipe", -86_400)?;
    tree.time("setuid", 5_000_000_000)?;
    tree.time("dir/empty", 1_000_000_000)?;
    tree.time("dir", 1_100_000_000)
}

fn everything_in_a_base(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| everything(f, tree))?;
    round_trip(f, &base, None)?;
    // A child shows the same, and nothing as changed.
    let child = f.layer("child", Some(&base), |_| Ok(()))?;
    f.snapshot(&child)?.ensure_equals(&f.snapshot(&base)?, "a child without changes")?;
    ensure_eq!(f.changes(&child, Some(&base))?, [""; 0], "changes of a child without changes");
    // And a diff to nothing holds all of the chain.
    round_trip(f, &child, None)
}

fn everything_changed(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| everything(f, tree))?;
    let upper = f.layer("upper", Some(&base), |tree| {
        tree.file("dir/file", "changed through one of two names")?;
        tree.file("dir/big", vec![8; 1 << 20])?;
        tree.remove("dangling")?;
        tree.symlink("dangling", "/else/where")?;
        tree.remove("pipe")?;
        tree.remove("dir/empty")?;
        tree.mode("setuid", 0o755)?;
        tree.dir("new")?;
        tree.file("new/file", "new")?;
        tree.remove("sticky")?;
        tree.file("sticky", "now a file")
    })?;
    round_trip(f, &upper, Some(&base))?;
    round_trip(f, &upper, None)
}

fn device_nodes(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        tree.device("null", NodeKind::CharDevice(1, 3))?;
        tree.device("gone", NodeKind::CharDevice(1, 5))?;
        tree.device("big-numbers", NodeKind::BlockDevice(259, 250_000))
    })?;
    round_trip(f, &base, None)?;
    let upper = f.layer("upper", Some(&base), |tree| {
        tree.remove("gone")?;
        tree.remove("null")?;
        tree.device("null", NodeKind::CharDevice(1, 7))
    })?;
    ensure_eq!(f.changes(&upper, Some(&base))?, ["D /gone", "C /null"], "changes of devices");
    round_trip(f, &upper, Some(&base))
}

fn hard_links(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        tree.dir("a")?;
        tree.dir("z")?;
        tree.file("z/first", "linked")?;
        tree.link("a/second", "z/first")?;
        tree.link("third", "z/first")?;
        tree.symlink("soft", "z/first")?;
        tree.link("soft-too", "soft")?;
        tree.fifo("pipe")?;
        tree.link("pipe-too", "pipe")
    })?;
    round_trip(f, &base, None)?;
    let upper = f.layer("upper", Some(&base), |tree| {
        tree.file("new", "new")?;
        tree.link("a/new-too", "new")
    })?;
    round_trip(f, &upper, Some(&base))?;
    // One name less, the others stay.
    let removed = f.layer("removed", Some(&base), |tree| tree.remove("a/second"))?;
    let copy = f.layer_from("copy", Some(&base), &f.diff(&removed, Some(&base))?)?;
    f.snapshot(&copy)?.ensure_equals(&f.snapshot(&removed)?, "one name of three removed")?;
    // A link to a lower layer's file, made by an archive.
    let archive = super::Archive::new().link("to-lower", "z/first").finish();
    let linked = f.layer_from("linked", Some(&base), &archive)?;
    let (mounted, tree) = f.mount(&linked)?;
    ensure_eq!(tree.read("to-lower")?, b"linked", "a hard link to a lower layer's file");
    Ok(mounted.put()?)
}

fn xattrs(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        tree.file("file", "content")?;
        tree.xattr("file", "user.one", b"1")?;
        tree.xattr("file", "user.binary", &[0, 255, 10, 61])?;
        tree.dir("dir")?;
        tree.xattr("dir", "user.dir", &[b'x'; 1000])
    })?;
    round_trip(f, &base, None)?;
    let upper = f.layer("upper", Some(&base), |tree| tree.xattr("file", "user.one", b"2"))?;
    ensure_eq!(f.changes(&upper, Some(&base))?, ["C /file"], "changes of an attribute");
    round_trip(f, &upper, Some(&base))
}

fn capabilities(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        tree.file("ping", "content")?;
        tree.mode("ping", 0o755)?;
        tree.xattr("ping", "security.capability", &CAPABILITY)
    })?;
    round_trip(f, &base, None)?;
    let upper = f.layer("upper", Some(&base), |tree| {
        tree.file("plain", "content")?;
        tree.xattr("plain", "security.capability", &CAPABILITY)
    })?;
    round_trip(f, &upper, Some(&base))
}

fn type_changes(f: &Fixture) -> Checked {
    let kinds = ["file", "dir", "full", "link", "pipe"];
    let make = |tree: &Tree, name: &str, kind: &str| match kind {
        "file" => tree.file(name, "content"),
        "dir" => tree.dir(name),
        "full" => {
            tree.dir(name)?;
            tree.file(format!("{name}/inside"), "content")
        }
        "link" => tree.symlink(name, "somewhere"),
        _ => tree.fifo(name),
    };
    let pairs: Vec<(&str, &str)> =
        kinds.iter().flat_map(|from| kinds.iter().map(|to| (*from, *to))).filter(|(from, to)| from != to).collect();
    let base = f.layer("base", None, |tree| {
        pairs.iter().try_for_each(|(from, to)| make(tree, &format!("{from}-to-{to}"), from))
    })?;
    let upper = f.layer("upper", Some(&base), |tree| {
        pairs.iter().try_for_each(|(from, to)| {
            let name = format!("{from}-to-{to}");
            tree.remove(&name)?;
            make(tree, &name, to)
        })
    })?;
    round_trip(f, &upper, Some(&base))
}

fn directory_metadata_only(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        for dir in ["owner", "mode", "time", "kept"] {
            tree.dir(dir)?;
            tree.file(format!("{dir}/file"), "content")?;
            tree.time(dir, 1_000_000_000)?;
        }
        Ok(())
    })?;
    let upper = f.layer("upper", Some(&base), |tree| {
        tree.owner("owner", 5, 6)?;
        tree.mode("mode", 0o700)?;
        tree.time("time", 1_000_000_001)
    })?;
    // Whether a directory's new time alone is a change is the driver's choice; owner and mode are.
    let changes: Vec<_> = f.changes(&upper, Some(&base))?.into_iter().filter(|line| line != "C /time").collect();
    ensure_eq!(changes, ["C /mode", "C /owner"], "changes of directories");
    round_trip(f, &upper, Some(&base))
}

fn directory_xattr_only(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        tree.dir("dir")?;
        tree.xattr("dir", "user.key", b"old")?;
        tree.file("dir/file", "content")
    })?;
    let upper = f.layer("upper", Some(&base), |tree| tree.xattr("dir", "user.key", b"new"))?;
    ensure_eq!(f.changes(&upper, Some(&base))?, ["C /dir"], "changes");
    round_trip(f, &upper, Some(&base))
}

fn file_metadata_only(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        for file in ["owner", "mode", "time", "kept"] {
            tree.file(file, "content")?;
            tree.time(file, 1_000_000_000)?;
        }
        tree.symlink("link", "kept")
    })?;
    let upper = f.layer("upper", Some(&base), |tree| {
        tree.owner("owner", 5, 6)?;
        tree.mode("mode", 0o600)?;
        tree.time("time", 1_000_000_001)?;
        tree.owner("link", 7, 8)
    })?;
    ensure_eq!(f.changes(&upper, Some(&base))?, ["C /link", "C /mode", "C /owner", "C /time"], "changes");
    round_trip(f, &upper, Some(&base))
}

fn names_that_come_back(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        for dir in ["dir", "dir/sub", "dir/sub/deep"] {
            tree.dir(dir)?;
            tree.file(format!("{dir}/one"), "base")?;
            tree.file(format!("{dir}/two"), "base")?;
        }
        tree.file("file", "base")
    })?;
    // Removed and made anew in the same layer: an opaque directory, on overlay.
    let opaque = f.layer("opaque", Some(&base), |tree| {
        tree.remove("dir/sub")?;
        tree.dir("dir/sub")?;
        tree.file("dir/sub/two", "opaque")
    })?;
    round_trip(f, &opaque, Some(&base))?;
    // A name hidden by the opaque directory comes back in the layer above.
    let back = f.layer("back", Some(&opaque), |tree| {
        tree.file("dir/sub/one", "back")?;
        tree.dir("dir/sub/deep")?;
        tree.file("dir/sub/deep/two", "back")
    })?;
    let expected = ["C /dir", "C /dir/sub", "A /dir/sub/deep", "A /dir/sub/deep/two", "A /dir/sub/one"];
    let changes: Vec<_> = f.changes(&back, Some(&opaque))?.into_iter().filter(|line| line != "C /dir").collect();
    ensure_eq!(changes, expected[1..], "changes of names that come back");
    round_trip(f, &back, Some(&opaque))?;
    // Removed, made anew and removed again.
    let gone = f.layer("gone", Some(&back), |tree| tree.remove("dir"))?;
    round_trip(f, &gone, Some(&back))?;
    let again = f.layer("again", Some(&gone), |tree| {
        tree.dir("dir")?;
        tree.file("dir/sub", "now a file")
    })?;
    round_trip(f, &again, Some(&gone))?;
    for parent in [&base, &opaque, &back] {
        round_trip(f, &again, Some(parent))?;
    }
    Ok(())
}

fn long_and_odd_names(f: &Fixture) -> Checked {
    use std::os::unix::ffi::OsStrExt;
    let long = "n".repeat(250);
    let base = f.layer("base", None, |tree| {
        let mut path = String::new();
        for _ in 0..8 {
            path.push_str(&long);
            tree.dir(&path)?;
            path.push('/');
        }
        tree.file(format!("{path}file"), "deep")?;
        // XFS takes no longer one.
        tree.symlink("long-target", "t/".repeat(500))?;
        for name in [" ", "new\nline", "tab\t", "-dash", "quote\"'", "back\\slash", "ä€😀", "wh.x", "..x", "a=b", "#"]
        {
            tree.file(name, name)?;
        }
        tree.file(std::ffi::OsStr::from_bytes(b"not-utf8-\xff\xfe"), "x")?;
        tree.file("h".repeat(99), "99")?;
        tree.file("h".repeat(100), "100")?;
        tree.file("h".repeat(101), "101")
    })?;
    round_trip(f, &base, None)
}

fn diff_to_a_grandparent(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        tree.dir("dir")?;
        tree.file("dir/one", "base")?;
        tree.file("dir/two", "base")?;
        tree.file("three", "base")
    })?;
    let mid = f.layer("mid", Some(&base), |tree| {
        tree.remove("dir/one")?;
        tree.file("four", "mid")
    })?;
    let top = f.layer("top", Some(&mid), |tree| {
        tree.remove("three")?;
        tree.file("dir/two", "top is longer")
    })?;
    let changes = ["C /dir", "D /dir/one", "C /dir/two", "A /four", "D /three"];
    ensure_eq!(f.changes(&top, Some(&base))?, changes, "changes to the grandparent");
    round_trip(f, &top, Some(&base))?;
    round_trip(f, &top, None)
}

fn diff_to_a_stranger(f: &Fixture) -> Checked {
    let one = f.layer("one", None, |tree| {
        tree.dir("dir")?;
        tree.file("dir/one", "one")?;
        tree.file("both", "one")
    })?;
    let two = f.layer("two", None, |tree| {
        tree.dir("dir")?;
        tree.file("dir/two", "two is longer")?;
        tree.file("both", "two is longer")
    })?;
    round_trip(f, &one, Some(&two))?;
    round_trip(f, &two, Some(&one))
}

fn renamed_directory(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        tree.dir("old")?;
        tree.dir("old/sub")?;
        tree.file("old/sub/file", "content")
    })?;
    let id = f.layer("layer", Some(&base), |tree| {
        match std::fs::rename(tree.at("old"), tree.at("new")) {
            // Overlay without redirect_dir leaves it to the program to copy.
            Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                tree.dir("new")?;
                tree.dir("new/sub")?;
                tree.file("new/sub/file", tree.read("old/sub/file")?)?;
                tree.remove("old")
            }
            other => Ok(other?),
        }
    })?;
    ensure_eq!(
        f.changes(&id, Some(&base))?,
        ["A /new", "A /new/sub", "A /new/sub/file", "D /old"],
        "changes of a renamed directory"
    );
    round_trip(f, &id, Some(&base))
}

fn socket_is_left_out(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("file", "content"))?;
    let id = f.layer("layer", Some(&base), |tree| {
        tree.file("new", "content")?;
        graph_sys::fs::mknodat(
            graph_sys::fs::CWD,
            tree.at("socket"),
            graph_sys::fs::FileType::Socket,
            graph_sys::fs::Mode::from_raw_mode(0o600),
            0,
        )?;
        Ok(())
    })?;
    let mut out = Vec::new();
    let report = f.driver().diff(&super::fixture::request(&id, Some(&base)), &mut out)?;
    let names: Vec<_> = super::tar::members(&out)?.into_iter().map(|member| member.name).collect();
    ensure_eq!(names, [b"new".to_vec()], "members of a diff with a socket");
    ensure!(!report.notices.is_empty(), "the left-out socket is not reported");
    Ok(())
}
