//! What layers come to on disk: whiteouts, links, replaced things and attributes, in both forms.

#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking
#![allow(clippy::disallowed_methods)] // trees are looked at by path, as their users do

mod apply_support;

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use apply_support::{
    Member, Node, Tree, apply_plain, apply_with, dir, file, link, member, messages, mount, node, overlay, symlink,
    tree, xattrs,
};
use graph_archive::apply::{
    ApplyObserver, ApplyOptions, ContentPlace, OverlayOptions, Style, WhiteoutForm, XattrNamespace,
};
use graph_archive::{Entry, EntryKind, ErrorKind, IdMappings, IdRange, SparseRun, Timestamp};

/// Applies `layers` one after the other in the plain form, and one by one in the overlay form, where they can be mounted;
/// both trees are the same, and are given back.
fn stack(layers: &[Vec<Member>]) -> Tree {
    let scratch = tempfile::tempdir().unwrap();
    let (plain, mut lowers) = (scratch.path().join("plain"), Vec::new());
    let mut seen = None;
    for (number, layer) in layers.iter().enumerate() {
        apply_plain(&plain, layer).unwrap();
        let diff = scratch.path().join(format!("layer{number}"));
        apply_with(&diff, layer, overlay(XattrNamespace::Trusted, WhiteoutForm::CharDevice, &lowers)).unwrap();
        lowers.insert(0, diff);
        let plain = tree(&plain);
        if let Some(mounted) = mount(&lowers, XattrNamespace::Trusted, &scratch.path().join("empty")) {
            let mut mounted = tree(&mounted.path).nodes;
            let mut plain = plain.nodes.clone();
            // The root's time is the one at which it was made, here, where no layer states it.
            mounted.remove(Path::new(""));
            plain.remove(Path::new(""));
            assert_eq!(plain, mounted, "layer {number}");
        }
        seen = Some(plain);
    }
    seen.unwrap()
}

fn files(paths: &[&str]) -> Vec<Member> {
    paths.iter().map(|path| if path.ends_with('/') { dir(path) } else { file(path, path) }).collect()
}

fn in_tree<'t>(tree: &'t Tree, path: &str) -> &'t Node {
    &tree.nodes[Path::new(path)]
}

#[test]
fn docker_change_layers() {
    let start = [
        ".baz",
        "bar/",
        "bar/bax",
        "bar/bay/",
        "baz",
        "foo/",
        "foo/.abc",
        "foo/.bcd/",
        "foo/.bcd/a",
        "foo/cde/",
        "foo/cde/def",
        "foo/cde/efg",
        "foo/fgh",
        "foobar",
    ];
    let table: [(&[&str], &[&str]); 3] = [
        (
            &[".bay", ".wh.baz", "foo/", "foo/.bce", "foo/.wh..wh..opq", "foo/cde/", "foo/cde/efg"],
            &[".bay", ".baz", "bar", "bar/bax", "bar/bay", "foo", "foo/.bce", "foo/cde", "foo/cde/efg", "foobar"],
        ),
        (
            &[".bay", ".wh..baz", ".wh.foobar", "foo/", "foo/.abc", "foo/.wh.cde", "bar/"],
            &[".bay", "bar", "bar/bax", "bar/bay", "baz", "foo", "foo/.abc", "foo/.bcd", "foo/.bcd/a", "foo/fgh"],
        ),
        (&[".abc", ".wh..wh..opq", "foobar"], &[".abc", "foobar"]),
    ];
    for (change, expected) in table {
        assert_eq!(stack(&[files(&start), files(change)]).paths(), expected, "{change:?}");
    }
}

#[test]
fn whiteouts_hit_lower_layers_wherever_they_stand() {
    let lower = ["d/", "d/low", "d/sub/", "d/sub/low", "x"];
    let table: [(&[&str], &[&str]); 14] = [
        (&["d/low", "d/.wh.low"], &["d", "d/low", "d/sub", "d/sub/low", "x"]),
        (&["d/new", ".wh.d"], &["d", "d/new", "x"]),
        (&[".wh.d", "d/new"], &["d", "d/new", "x"]),
        (&[".wh.d", "d/", "d/a"], &["d", "d/a", "x"]),
        (&["d/", "d/a", ".wh.d"], &["d", "d/a", "x"]),
        (&["d/sub/new", "d/.wh..wh..opq"], &["d", "d/sub", "d/sub/new", "x"]),
        (&["d/.wh..wh..opq", "d/sub/new"], &["d", "d/sub", "d/sub/new", "x"]),
        (&["d/.wh..wh..opq"], &["d", "x"]),
        (&[".wh..wh..opq"], &[]),
        (&["d/new", ".wh..wh..opq"], &["d", "d/new"]),
        (&[".wh.missing", "missing/.wh.x", "x/.wh.y"], &["d", "d/low", "d/sub", "d/sub/low", "x"]),
        (&["d/.wh.sub", "d/sub"], &["d", "d/low", "d/sub", "x"]),
        (&["d", "d/"], &["d", "x"]),
        (&[".wh.x", ".wh.d", ".wh..wh.plnk", ".wh..wh.plnk/1.2", ".wh..wh.aufs"], &[]),
    ];
    for (layer, expected) in table {
        assert_eq!(stack(&[files(&lower), files(layer)]).paths(), expected, "{layer:?}");
    }
    // Through a symbolic link of the lower layer.
    let mut linked = files(&lower);
    linked.push(symlink("l", "d"));
    assert_eq!(stack(&[linked.clone(), files(&["l/.wh.low"])]).paths(), ["d", "d/sub", "d/sub/low", "l", "x"]);
    assert_eq!(stack(&[linked.clone(), files(&["l/.wh..wh..opq"])]).paths(), ["d", "l", "x"]);
    assert_eq!(stack(&[linked, files(&[".wh.l"])]).paths(), ["d", "d/low", "d/sub", "d/sub/low", "x"]);
}

#[test]
fn parents_keep_their_times_and_implied_ones_have_fixed_attributes() {
    let lower = vec![
        dir("d").mode(0o2711).owner(3, 4).time(123, 456).xattr("trusted.x", "y").xattr("user.x", "z"),
        file("d/gone", ""),
        file("d/kept", ""),
    ];
    for change in [vec![file("d/.wh.gone", "")], vec![file("d/new", "")], vec![file("d/.wh..wh..opq", "")]] {
        let stack = stack(&[lower.clone(), change]);
        let found = in_tree(&stack, "d");
        assert_eq!((found.mode & 0o7777, found.uid, found.gid, found.mtime), (0o2711, 3, 4, (123, 456)));
        assert_eq!(found.xattrs.len(), 2);
        // A setgid directory does not give its group to what a layer puts in.
        if let Some(new) = stack.nodes.get(Path::new("d/new")) {
            assert_eq!((new.gid, new.mode & 0o7777), (0, 0o644));
        }
    }
    // What a removed directory was like is gone with it.
    let again = stack(&[lower, vec![file("d/a/new", ""), file(".wh.d", "")]]);
    for path in ["d", "d/a"] {
        let found = in_tree(&again, path);
        assert_eq!((found.mode & 0o7777, found.uid, found.mtime, found.xattrs.len()), (0o755, 0, (0, 0), 0), "{path}");
    }
    let implied = stack(&[vec![file("a/b/c/file", "")]]);
    for path in ["a", "a/b", "a/b/c"] {
        assert_eq!((in_tree(&implied, path).mode, in_tree(&implied, path).mtime), (0o40755, (0, 0)));
    }
}

#[test]
fn a_later_member_replaces_an_earlier_one() {
    assert_eq!(in_tree(&stack(&[vec![file("f", "1"), file("f", "2")]]), "f").content, b"2");
    assert_eq!(stack(&[vec![dir("d"), file("d/x", ""), file("d", ""), dir("d")]]).paths(), ["d"]);
    assert_eq!(stack(&[vec![file("n", ""), file("n/a/b", "")]]).paths(), ["n", "n/a", "n/a/b"]);
    assert_eq!(stack(&[vec![file("n", "")], vec![file("n/a/b", "")]]).paths(), ["n", "n/a", "n/a/b"]);
    // The target of a replaced link is not touched.
    let target = [dir("t"), file("t/x", "kept"), symlink("s", "t")];
    let replaced = stack(&[target.to_vec(), vec![dir("s"), file("s/y", "")]]);
    assert_eq!(replaced.paths(), ["s", "s/y", "t", "t/x"]);
    assert_eq!(stack(&[target.to_vec(), vec![symlink("t", "s2")]]).paths(), ["s", "t"]);
    // A stated directory has its attributes anew, and none of the old ones.
    let old = dir("d").mode(0o700).owner(5, 6).xattr("trusted.old", "1").xattr("user.old", "1");
    let restated = stack(&[vec![old, file("d/x", "")], vec![dir("d").mode(0o1777).time(-6, 500_000_000)]]);
    let found = in_tree(&restated, "d");
    assert_eq!((found.mode & 0o7777, found.uid, found.mtime), (0o1777, 0, (-6, 500_000_000)));
    assert!(found.xattrs.is_empty());
    assert_eq!(restated.paths(), ["d", "d/x"]);
}

#[test]
fn a_hard_link_states_owner_mode_and_times_of_its_target() {
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let target = || {
        file("f", "x").owner(1, 2).mode(0o4711).time(7, 8).xattr("user.x", "y").xattr("security.capability", capability)
    };
    let again = || link("l", "f").owner(3, 4).mode(0o2750).time(9, 10).xattr("user.z", "w");
    let words = |tree: &Tree| {
        let found = in_tree(tree, "f");
        let names: Vec<&str> = found.xattrs.keys().map(String::as_str).collect();
        (found.mode & 0o7777, found.uid, found.gid, found.mtime, names.join(" "))
    };
    let all = "security.capability user.x user.z".to_owned();
    assert_eq!(words(&stack(&[vec![target(), again()]])), (0o2750, 3, 4, (9, 10), all.clone()));
    assert_eq!(words(&stack(&[vec![target()], vec![again()]])), (0o2750, 3, 4, (9, 10), all), "of a lower layer");
    let before = "security.capability user.x".to_owned();
    assert_eq!(words(&stack(&[vec![again(), target()]])), (0o4711, 1, 2, (7, 8), before), "the last statement wins");
}

/// Found by the fuzz target `apply`: the plain tree changed names that the layer doesn't know of.
#[test]
fn a_hard_link_leaves_other_names_of_a_lower_file_alone() {
    type Words = (u32, u32, (i64, i64), String);
    let words = |tree: &Tree, path: &str| -> Words {
        let found = in_tree(tree, path);
        (found.mode & 0o7777, found.uid, found.mtime, String::from_utf8(found.content.clone()).unwrap())
    };
    let was = (0o640, 1, (5, 6), "text".to_owned());
    let is = (0o4755, 2, (7, 8), "text".to_owned());
    let stated = |member: Member| member.owner(2, 2).mode(0o4755).time(7, 8);
    let file_of_three = || {
        let old = |member: Member| member.owner(1, 1).mode(0o640).time(5, 6);
        vec![dir("d"), old(file("d/a", "text")), old(link("d/b", "d/a")), old(link("c", "d/a"))]
    };
    let linked = stack(&[file_of_three(), vec![stated(link("l", "d/a"))]]);
    for (path, expected) in [("l", &is), ("d/a", &is), ("d/b", &was), ("c", &was)] {
        assert_eq!(words(&linked, path), *expected, "{path}");
    }
    assert_eq!(linked.groups(), [[Path::new("c"), Path::new("d/b")], [Path::new("d/a"), Path::new("l")]]);
    assert_eq!(linked.nodes.len(), 6, "nothing else: {:?}", linked.paths());

    // Two links to one name, and one to a link, are one file; links to two names of a file are two.
    let again = vec![link("l", "d/a"), link("m", "d/a"), link("k", "m"), stated(link("o", "d/b"))];
    let linked = stack(&[file_of_three(), again]);
    let groups = [["d/a", "k", "l", "m"].map(Path::new).to_vec(), ["d/b", "o"].map(Path::new).to_vec()];
    assert_eq!(linked.groups(), groups);
    assert_eq!((words(&linked, "o"), words(&linked, "c")), (is.clone(), was.clone()));

    // A link to itself states the name alone.
    let itself = stack(&[file_of_three(), vec![stated(link("d/a", "d/a"))]]);
    assert_eq!((words(&itself, "d/a"), words(&itself, "d/b"), words(&itself, "c")), (is, was.clone(), was));

    // Neither symbolic links nor devices and pipes are another matter.
    for lower in [symlink("a", "x"), member("a", EntryKind::Fifo), symlink("a", "y").xattr("trusted.x", "y")] {
        let tree = stack(&[vec![lower.owner(1, 1), link("b", "a").owner(1, 1)], vec![link("c", "a").owner(2, 2)]]);
        assert_eq!(["a", "b", "c"].map(|path| in_tree(&tree, path).uid), [2, 1, 2]);
        assert_eq!(in_tree(&tree, "a").xattrs, in_tree(&tree, "b").xattrs);
    }
}

#[test]
fn hard_links() {
    let lower =
        vec![file("d/f", "content").owner(1, 2).mode(0o4711).time(7, 8).xattr("user.x", "y"), symlink("s", "d/f")];
    type Case = (&'static str, Vec<Vec<Member>>, &'static [&'static [&'static str]]);
    let table: [Case; 10] = [
        ("to a file", vec![vec![file("f", ""), link("l", "f")]], &[&["f", "l"]]),
        (
            "absolute and climbing",
            vec![vec![file("f", ""), link("l", "/f"), link("m", "../../f")]],
            &[&["f", "l", "m"]],
        ),
        ("to a symbolic link", vec![vec![symlink("s", "nowhere"), link("l", "s")]], &[&["l", "s"]]),
        ("before its target", vec![vec![link("l", "d/f"), file("d/f", "")]], &[&["d/f", "l"]]),
        (
            "chain backwards",
            vec![vec![link("a", "b"), link("b", "c"), link("c", "d"), file("d", "")]],
            &[&["a", "b", "c", "d"]],
        ),
        ("to a lower layer", vec![lower.clone(), vec![link("l", "d/f"), link("d/m", "l")]], &[&["d/f", "d/m", "l"]]),
        ("to a lower symbolic link", vec![lower.clone(), vec![link("l", "s")]], &[&["l", "s"]]),
        ("through a lower symbolic link", vec![lower, vec![symlink("e", "d"), link("l", "e/f")]], &[&["d/f", "l"]]),
        ("over something", vec![vec![file("f", ""), dir("l"), file("l/x", ""), link("l", "f")]], &[&["f", "l"]]),
        ("over its target's directory", vec![vec![dir("d"), file("d/f", "kept"), link("d", "d/f")]], &[]),
    ];
    for (case, layers, groups) in table {
        let scratch = tempfile::tempdir().unwrap();
        let (plain, mut lowers) = (scratch.path().join("plain"), Vec::new());
        for (number, layer) in layers.iter().enumerate() {
            apply_plain(&plain, layer).unwrap_or_else(|error| panic!("{case}: {}", messages(&error)));
            let diff = scratch.path().join(format!("layer{number}"));
            apply_with(&diff, layer, overlay(XattrNamespace::Trusted, WhiteoutForm::CharDevice, &lowers)).unwrap();
            lowers.insert(0, diff);
        }
        let expected: Vec<Vec<&Path>> = groups.iter().map(|group| group.iter().map(Path::new).collect()).collect();
        assert_eq!(tree(&plain).groups(), expected, "{case}");
        if let Some(mounted) = mount(&lowers, XattrNamespace::Trusted, &scratch.path().join("empty")) {
            assert_eq!(tree(&mounted.path).groups(), expected, "{case}");
            let mut trees = [tree(&mounted.path).nodes, tree(&plain).nodes];
            trees.iter_mut().for_each(|tree| drop(tree.remove(Path::new(""))));
            assert_eq!(trees[0], trees[1], "{case}");
        }
    }
    // A rewritten name leaves the others alone.
    let linked = stack(&[vec![file("f", "old").owner(1, 1), link("l", "f").owner(1, 1)], vec![file("f", "new")]]);
    assert_eq!((in_tree(&linked, "l").uid, in_tree(&linked, "l").content.as_slice()), (1, &b"old"[..]));
    assert!(linked.groups().is_empty());
    // A target that a whiteout has removed is no target.
    let removed = [file(".wh.f", ""), link("l", "f")];
    let scratch = tempfile::tempdir().unwrap();
    apply_plain(scratch.path(), &[file("f", "")]).unwrap();
    assert!(messages(&apply_plain(scratch.path(), &removed).unwrap_err()).contains("does not exist"));
}

#[test]
fn modes_owners_times_devices_and_attributes() {
    // The capability of ping: cap_net_raw+ep.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let made = stack(&[vec![
        file("suid", "x").mode(0o4755).owner(10, 20),
        file("sgid", "x").mode(0o2755),
        file("open", "x").mode(0o666),
        file("shut", "x").mode(0),
        dir("tmp").mode(0o1777),
        dir("set").mode(0o2775).owner(0, 33),
        file("set/in", ""),
        dir("set/sub"),
        file("caps", "x").owner(5, 5).xattr("security.capability", capability),
        file("attr", "x").xattr("user.mime_type", "text/plain").xattr("user.empty", "").xattr("trusted.t", b"\0\xff"),
        member("null", EntryKind::CharDevice { major: 1, minor: 3 }).mode(0o666).owner(1, 2),
        member("big", EntryKind::CharDevice { major: 300, minor: 70_000 }),
        member("disk", EntryKind::BlockDevice { major: 8, minor: 0 }).mode(0o660),
        member("pipe", EntryKind::Fifo).mode(0o622).time(77, 0),
        symlink("sym", "suid").owner(9, 9).time(-1, 999_999_999).xattr("trusted.s", "1"),
        file("before", "").time(-6, 500_000_000),
        file("exact", "").time(1000, 987_654_321),
        file("epoch", "").time(0, 0),
    ]]);
    let mode = |path| in_tree(&made, path).mode;
    assert_eq!([mode("suid"), mode("sgid"), mode("open"), mode("shut")], [0o104755, 0o102755, 0o100666, 0o100000]);
    assert_eq!([mode("tmp"), mode("set"), mode("set/sub")], [0o41777, 0o42775, 0o40755]);
    assert_eq!((in_tree(&made, "set").gid, in_tree(&made, "set/in").gid, in_tree(&made, "set/sub").gid), (33, 0, 0));
    assert_eq!((in_tree(&made, "suid").uid, in_tree(&made, "suid").gid), (10, 20));
    assert_eq!(in_tree(&made, "caps").xattrs["security.capability"], capability);
    assert_eq!(in_tree(&made, "attr").xattrs.len(), 3);
    assert_eq!(in_tree(&made, "sym").xattrs["trusted.s"], b"1");
    assert_eq!(mode("null"), 0o20666);
    assert_eq!(in_tree(&made, "big").rdev, rustix_makedev(300, 70_000));
    assert_eq!((mode("pipe"), in_tree(&made, "pipe").mtime), (0o10622, (77, 0)));
    assert_eq!((in_tree(&made, "sym").uid, in_tree(&made, "sym").mtime), (9, (-1, 999_999_999)));
    assert_eq!(in_tree(&made, "before").mtime, (-6, 500_000_000));
    assert_eq!(in_tree(&made, "exact").mtime, (1000, 987_654_321));
    assert_eq!(in_tree(&made, "epoch").mtime, (0, 0));
}

fn rustix_makedev(major: u32, minor: u32) -> u64 {
    graph_sys::fs::makedev(major, minor)
}

#[test]
fn default_access_lists_are_not_inherited() {
    // u::rwx,u:7:rwx,g::r-x,m::rwx,o::r-x
    let acl = |id: u32| {
        let mut acl = vec![2, 0, 0, 0];
        for (tag, permissions, id) in
            [(1u16, 7u16, u32::MAX), (2, 7, id), (4, 5, u32::MAX), (0x10, 7, u32::MAX), (0x20, 5, u32::MAX)]
        {
            acl.extend(tag.to_le_bytes());
            acl.extend(permissions.to_le_bytes());
            acl.extend(id.to_le_bytes());
        }
        acl
    };
    let lower = vec![
        dir("d").mode(0o775).xattr("system.posix_acl_default", acl(7)).xattr("system.posix_acl_access", acl(7)),
        file("d/f", "").mode(0o640),
        dir("d/e").mode(0o750),
    ];
    let made = stack(&[lower.clone(), vec![file("d/g", "").mode(0o600), file("d/i/j", "")]]);
    assert_eq!(in_tree(&made, "d").xattrs["system.posix_acl_default"], acl(7));
    for (path, mode) in [("d/f", 0o640), ("d/e", 0o750), ("d/g", 0o600), ("d/i", 0o755), ("d/i/j", 0o644)] {
        assert_eq!((in_tree(&made, path).mode & 0o7777, in_tree(&made, path).xattrs.len()), (mode, 0), "{path}");
    }
    // The ids in it are mapped as owners are.
    let scratch = tempfile::tempdir().unwrap();
    let options = ApplyOptions { mappings: shifted(), ..ApplyOptions::default() };
    apply_with(scratch.path(), &lower, options).unwrap();
    assert_eq!(xattrs(&scratch.path().join("d"))["system.posix_acl_access"], acl(100_007));
}

fn shifted() -> IdMappings {
    let range = IdRange { container_id: 0, host_id: 100_000, size: 1000 };
    IdMappings { uids: vec![range], gids: vec![IdRange { host_id: 200_000, ..range }] }
}

#[test]
fn ids_are_mapped() {
    let scratch = tempfile::tempdir().unwrap();
    let mut capability = vec![1, 0, 0, 3, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    capability[20..].copy_from_slice(&42u32.to_le_bytes());
    let layer = [
        file("a/f", "").owner(1, 2),
        symlink("s", "x").owner(999, 999),
        file("c", "").xattr("security.capability", &capability),
    ];
    let report =
        apply_with(scratch.path(), &layer, ApplyOptions { mappings: shifted(), ..ApplyOptions::default() }).unwrap();
    let owner = |path: &str| (node(&scratch.path().join(path)).uid, node(&scratch.path().join(path)).gid);
    assert_eq!([owner("a"), owner("a/f"), owner("s")], [(100_000, 200_000), (100_001, 200_002), (100_999, 200_999)]);
    capability[20..].copy_from_slice(&100_042u32.to_le_bytes());
    assert_eq!(xattrs(&scratch.path().join("c"))["security.capability"], capability);
    assert_eq!((report.uids, report.gids), (vec![0, 1, 999], vec![0, 2, 999]));

    let unmapped = [file("f", "").owner(1000, 0)];
    let error = apply_with(scratch.path(), &unmapped, ApplyOptions { mappings: shifted(), ..ApplyOptions::default() })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unmapped);
    assert_eq!(error.to_string(), "container ID 1000 cannot be mapped to a host ID (entry \"f\")");
    // The last id means "no change" to chown, so nobody can have it.
    let last = IdMappings { uids: vec![IdRange { container_id: 0, host_id: u32::MAX, size: 1 }], gids: vec![] };
    let options = ApplyOptions { mappings: last, ..ApplyOptions::default() };
    assert_eq!(apply_with(scratch.path(), &[file("f", "")], options).unwrap_err().kind(), ErrorKind::Unmapped);
}

#[test]
fn attributes_of_the_machine_and_of_overlays() {
    let layer = [
        file("f", "").xattr("security.selinux", "garbage").xattr("user.kept", "1").xattr("bogus.a", "1"),
        dir("d").xattr("trusted.overlay.opaque", "y").xattr("user.overlay.opaque", "y"),
    ];
    let scratch = tempfile::tempdir().unwrap();
    let report = apply_plain(&scratch.path().join("plain"), &layer).unwrap();
    assert_eq!(xattrs(&scratch.path().join("plain/f")).keys().collect::<Vec<_>>(), ["user.kept"]);
    assert!(xattrs(&scratch.path().join("plain/d")).is_empty());
    assert_eq!(report.notices.len(), 3, "{:?}", report.notices);
    for (namespace, other) in [(XattrNamespace::Trusted, "user"), (XattrNamespace::User, "trusted")] {
        let active = if other == "user" { "trusted" } else { "user" };
        let lower = scratch.path().join(format!("{active}-lower"));
        let upper = scratch.path().join(active);
        apply_plain(&lower, &[file("d/shown", "")]).unwrap();
        apply_with(&upper, &layer, overlay(namespace, WhiteoutForm::CharDevice, std::slice::from_ref(&lower))).unwrap();
        let found = xattrs(&upper.join("d"));
        let expected = [format!("{active}.overlay.overlay.opaque"), format!("{other}.overlay.opaque")];
        assert!(expected.iter().all(|name| found.contains_key(name)) && found.len() == 2, "{found:?}");
        // It does not act, and it shows.
        if let Some(mounted) = mount(&[upper, lower], namespace, &scratch.path().join("empty")) {
            assert!(mounted.path.join("d/shown").exists());
            assert_eq!(xattrs(&mounted.path.join("d"))[&format!("{active}.overlay.opaque")], b"y");
        }
    }
}

#[test]
fn whiteouts_on_disk() {
    let scratch = tempfile::tempdir().unwrap();
    let lower = scratch.path().join("lower");
    apply_plain(&lower, &files(&["d1/", "d1/f1", "d2/", "d2/f1", "d3/", "d3/f1", "d3/f2"])).unwrap();
    let layer = [
        dir("d1").mode(0o700),
        file("d1/.wh..wh..opq", ""),
        file("d1/f1", "").mode(0o600),
        dir("d2").mode(0o750),
        file("d2/f1", "").mode(0o660),
        dir("d3").mode(0o700),
        file("d3/.wh.f1", ""),
        file("d3/.wh.nothing", ""),
    ];
    for (namespace, prefix) in [(XattrNamespace::Trusted, "trusted"), (XattrNamespace::User, "user")] {
        for form in [WhiteoutForm::CharDevice, WhiteoutForm::Xattr] {
            let upper = scratch.path().join(format!("{prefix}-{form:?}"));
            apply_with(&upper, &layer, overlay(namespace, form, std::slice::from_ref(&lower))).unwrap();
            let made = tree(&upper);
            assert_eq!(made.paths(), ["d1", "d1/f1", "d2", "d2/f1", "d3", "d3/f1"]);
            let opaque = format!("{prefix}.overlay.opaque");
            assert_eq!(in_tree(&made, "d1").xattrs.get(&opaque), Some(&b"y".to_vec()));
            assert!(in_tree(&made, "d2").xattrs.is_empty());
            let whiteout = in_tree(&made, "d3/f1");
            match form {
                WhiteoutForm::CharDevice => {
                    assert_eq!((whiteout.mode, whiteout.rdev), (0o20000, 0));
                    assert!(in_tree(&made, "d3").xattrs.is_empty());
                }
                WhiteoutForm::Xattr => {
                    assert_eq!((whiteout.mode & 0o170_000, whiteout.content.len()), (0o100_000, 0));
                    assert!(whiteout.xattrs.contains_key(&format!("{prefix}.overlay.whiteout")));
                    assert_eq!(in_tree(&made, "d3").xattrs.get(&opaque), Some(&b"x".to_vec()));
                }
            }
            for (path, mode) in [("d1", 0o700), ("d1/f1", 0o600), ("d2", 0o750), ("d2/f1", 0o660), ("d3", 0o700)] {
                assert_eq!(in_tree(&made, path).mode & 0o7777, mode, "{path}");
            }
        }
    }
}

/// With lower layers that are not at hand every whiteout is written down.
#[test]
fn whiteouts_over_unknown_layers() {
    let unknown = || ApplyOptions {
        style: Style::Overlay(OverlayOptions { lowers_unknown: true, ..OverlayOptions::default() }),
        ..ApplyOptions::default()
    };
    let is_whiteout = |node: &Node| node.mode == 0o20000 && node.rdev == 0;
    let is_opaque = |node: &Node| node.xattrs.get("trusted.overlay.opaque").is_some_and(|value| value == b"y");
    // Members; what is there; what of it is a whiteout; what is opaque.
    type Case = (&'static [&'static str], &'static [&'static str], &'static [&'static str], &'static [&'static str]);
    let table: [Case; 9] = [
        (
            &["whiteout-noparent/a/b/.wh.c"],
            &["whiteout-noparent", "whiteout-noparent/a", "whiteout-noparent/a/b", "whiteout-noparent/a/b/c"],
            &["whiteout-noparent/a/b/c"],
            &[],
        ),
        (&["opaque-noparent/a/.wh..wh..opq"], &["opaque-noparent", "opaque-noparent/a"], &[], &["opaque-noparent/a"]),
        (&["f", "f/.wh..wh..opq"], &["f"], &[], &["f"]),
        (&[".wh.x", "x/.wh..wh..opq"], &["x"], &[], &["x"]),
        (&["d/.wh.x", "d/.wh..wh..opq", "d/.wh.y"], &["d"], &[], &["d"]),
        (&[".wh.d", "d/foo/bar", "d/abc/def"], &["d", "d/abc", "d/abc/def", "d/foo", "d/foo/bar"], &[], &["d"]),
        (&[".wh.d", "d/", "d/a"], &["d", "d/a"], &[], &["d"]),
        (&["d/a", ".wh.d"], &["d", "d/a"], &[], &["d"]),
        (&[".wh.foo", "foo/.wh.bar"], &["foo"], &["foo"], &[]),
    ];
    for (layer, there, whiteouts, opaques) in table {
        let scratch = tempfile::tempdir().unwrap();
        apply_with(scratch.path(), &files(layer), unknown()).unwrap();
        let made = tree(scratch.path());
        let those = |is: &dyn Fn(&Node) -> bool| -> Vec<PathBuf> {
            made.nodes.iter().filter(|(_, node)| is(node)).map(|(path, _)| path.clone()).collect()
        };
        assert_eq!(made.paths(), there, "{layer:?}");
        assert_eq!(those(&is_whiteout), whiteouts.iter().map(PathBuf::from).collect::<Vec<_>>(), "{layer:?}");
        assert_eq!(those(&is_opaque), opaques.iter().map(PathBuf::from).collect::<Vec<_>>(), "{layer:?}");
    }
}

#[test]
fn a_forced_mask_keeps_the_truth_in_an_attribute() {
    let scratch = tempfile::tempdir().unwrap();
    let layer = [
        file("f", "x").owner(1, 2).mode(0o4755),
        dir("d").owner(3, 4).mode(0o1777),
        file("d/i/g", ""),
        symlink("s", "f").owner(5, 6),
        link("l", "f"),
        member("null", EntryKind::CharDevice { major: 1, minor: 3 }).mode(0o666),
        member("disk", EntryKind::BlockDevice { major: 8, minor: 1 }).mode(0o660).owner(0, 6),
        member("pipe", EntryKind::Fifo).mode(0o600),
    ];
    let options = ApplyOptions { force_mask: Some(0o700), ..ApplyOptions::default() };
    apply_with(scratch.path(), &layer, options).unwrap();
    let made = tree(scratch.path());
    let stat = |path| in_tree(&made, path).xattrs.get("user.containers.override_stat").cloned().unwrap_or_default();
    let table = [
        ("", "0:0:0755:dir"),
        ("f", "1:2:04755:file"),
        ("l", "1:2:04755:file"),
        ("d", "3:4:01777:dir"),
        ("d/i", "0:0:0755:dir"),
        ("null", "0:0:0666:char-1-3"),
        ("disk", "0:6:0660:block-8-1"),
        ("pipe", "0:0:0600:pipe"),
        ("s", ""),
    ];
    for (path, expected) in table {
        assert_eq!(String::from_utf8(stat(path)).unwrap(), expected, "{path}");
        let found = in_tree(&made, path);
        assert_eq!((found.uid, found.gid), (0, 0), "{path}");
        if path != "s" {
            assert_eq!(found.mode & 0o7777, 0o700, "{path}");
        }
    }
    assert_eq!(in_tree(&made, "null").mode & 0o170_000, 0o100_000);
}

#[test]
fn devices_are_left_out_in_a_user_namespace() {
    let scratch = tempfile::tempdir().unwrap();
    let options = || ApplyOptions { in_user_namespace: true, ..ApplyOptions::default() };
    let null = || member("null", EntryKind::CharDevice { major: 1, minor: 3 });
    let report = apply_with(scratch.path(), &[file("null", "old"), null(), file("f", "")], options()).unwrap();
    assert_eq!(tree(scratch.path()).paths(), ["f"]);
    assert_eq!(report.notices.len(), 1);
}

#[test]
fn holes_stay_holes() {
    let scratch = tempfile::tempdir().unwrap();
    let mut sparse = file("sparse", vec![0; 4 << 20]);
    sparse.content[1 << 20..(1 << 20) + 4096].fill(7);
    sparse.entry.sparse = Some(vec![SparseRun { offset: 1 << 20, length: 4096 }]);
    apply_plain(scratch.path(), &[sparse.clone()]).unwrap();
    let made = std::fs::metadata(scratch.path().join("sparse")).unwrap();
    assert_eq!((made.len(), std::fs::read(scratch.path().join("sparse")).unwrap()), (4 << 20, sparse.content));
    assert!(made.blocks() < 100, "{} blocks", made.blocks());
}

/// Notes what an observer is told.
#[derive(Debug, Default)]
struct Notes {
    stream: Vec<u8>,
    begun: Vec<(Vec<u8>, ContentPlace)>,
    lost: Vec<Vec<u8>>,
}

impl ApplyObserver for Notes {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.extend_from_slice(bytes);
        Ok(())
    }
    fn begin(&mut self, entry: &Entry, place: ContentPlace) -> io::Result<()> {
        self.begun.push((entry.path.clone(), place));
        Ok(())
    }
    fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.raw(bytes)
    }
    fn lost(&mut self, content: &mut dyn Read, size: u64) -> io::Result<()> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        assert_eq!(bytes.len() as u64, size);
        self.lost.push(bytes);
        Ok(())
    }
}

#[test]
fn an_observer_sees_the_stream_and_what_is_lost() {
    let scratch = tempfile::tempdir().unwrap();
    apply_plain(scratch.path(), &[file("old", "of a lower layer"), symlink("s", ".")]).unwrap();
    let mut sparse = file("sparse", vec![0; 1 << 20]);
    sparse.entry.sparse = Some(vec![]);
    let layer = [
        file("old", "1"),
        file("old", "2"),
        dir("d"),
        file("d/x", "in d"),
        file("d", "3"),
        file("s/y", "through a link"),
        file(".wh.nothing", "content of a whiteout"),
        sparse,
        link("d", "old"),
    ];
    let mut notes = Notes::default();
    let options = ApplyOptions { observer: Some(&mut notes), ..ApplyOptions::default() };
    let report = apply_with(scratch.path(), &layer, options).unwrap();
    assert!(notes.stream == apply_support::tar(&layer));
    assert_eq!(report.bytes, notes.stream.len() as u64);
    assert_eq!(notes.lost, [b"1".to_vec(), b"in d".to_vec(), b"3".to_vec()]);
    let nowhere: Vec<_> = notes
        .begun
        .iter()
        .filter(|(_, place)| *place == ContentPlace::Nowhere)
        .map(|(path, _)| path.as_slice())
        .collect();
    assert_eq!(nowhere, [&b"s/y"[..], b".wh.nothing", b"sparse"]);
    assert_eq!(notes.begun.len(), layer.len());
}

#[test]
fn access_times() {
    let scratch = tempfile::tempdir().unwrap();
    let mut stated = file("stated", "");
    stated.entry.metadata.atime = Some(Timestamp { seconds: 5, nanoseconds: 6 });
    apply_plain(scratch.path(), &[stated, file("not", "").time(7, 8)]).unwrap();
    let atime = |path| {
        let metadata = std::fs::metadata(scratch.path().join(path)).unwrap();
        (metadata.atime(), metadata.atime_nsec())
    };
    assert_eq!((atime("stated"), atime("not")), ((5, 6), (7, 8)));
}

/// A hostile layer may repeat its whiteouts without making them dearer each time.
#[test]
fn whiteouts_said_again_and_again_are_cheap() {
    let lower = files(&["d/", "d/low"]);
    let mut layer: Vec<_> = (0..3000).map(|number| file(format!("d/{number}"), "")).collect();
    for _ in 0..3000 {
        layer.extend([file("d/.wh..wh..opq", ""), file(".wh.d", "")]);
    }
    for form in ["plain", "overlay"] {
        let scratch = tempfile::tempdir().unwrap();
        let (below, root) = (scratch.path().join("lower"), scratch.path().join("root"));
        let options = if form == "plain" {
            apply_plain(&root, &lower).unwrap();
            ApplyOptions::default()
        } else {
            apply_plain(&below, &lower).unwrap();
            overlay(XattrNamespace::Trusted, WhiteoutForm::CharDevice, &[below])
        };
        let start = std::time::Instant::now();
        apply_with(&root, &layer, options).unwrap();
        // Going through the directory each time would take minutes.
        assert!(start.elapsed().as_secs() < 30, "{form}: {:?}", start.elapsed());
        assert_eq!(std::fs::read_dir(root.join("d")).unwrap().count(), 3000, "{form}");
    }
}
