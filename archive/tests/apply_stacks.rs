//! Plain extraction of a stack of layers gives the tree that the kernel's overlay shows of the layers extracted one by
//! one: for random stacks of layers made to meet in a few names.

#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking
#![allow(clippy::disallowed_methods)] // trees are looked at by path, as their users do
#![allow(clippy::print_stderr)] // skipped tests say why

mod apply_support;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use apply_support::{Member, apply_with, dir, file, link, member, messages, mount, overlay, symlink, tree};
use graph_archive::EntryKind;
use graph_archive::apply::{ApplyOptions, WhiteoutForm, XattrNamespace};
use proptest::prelude::*;

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|parts| parts.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        path(),
        path().prop_map(|path| format!("/{path}")),
        path().prop_map(|path| format!("../{path}")),
        Just("..".to_owned()),
        Just("/".to_owned()),
    ]
}

fn whiteout(path: &str, name: Option<&str>) -> Member {
    let (parent, last) =
        path.rsplit_once('/').map_or((String::new(), path), |(parent, last)| (format!("{parent}/"), last));
    match name {
        Some(name) => file(format!("{path}/{name}"), ""),
        None => file(format!("{parent}.wh.{last}"), ""),
    }
}

fn one_member() -> impl Strategy<Value = Member> {
    let attributes =
        (0..3u32, 0..3u32, prop::sample::select(vec![0o755, 0o700, 0o640, 0o4755, 0o2750, 0o1777, 0]), -2..4i64);
    let xattr = prop_oneof![
        3 => Just(None),
        1 => Just(Some(("trusted.layer", "1"))),
        1 => Just(Some(("user.layer", "2"))),
        1 => Just(Some(("security.layer", "3"))),
    ];
    let made = prop_oneof![
        4 => (path(), "[xy]{0,3}").prop_map(|(path, content)| file(path, content)),
        5 => path().prop_map(dir),
        2 => (path(), target()).prop_map(|(path, target)| symlink(path, target)),
        2 => (path(), path()).prop_map(|(path, target)| link(path, target)),
        1 => path().prop_map(|path| member(path, EntryKind::Fifo)),
        1 => path().prop_map(|path| member(path, EntryKind::CharDevice { major: 1, minor: 3 })),
        1 => Just(dir("./")),
    ];
    let made = (made, attributes, xattr).prop_map(|(made, (uid, gid, mode, time), xattr)| {
        let made = made.owner(uid * 1000, gid * 1000).mode(mode).time(time * 1_000_000, 123_456_789);
        // User attributes exist on files and directories only, and links have none of their own.
        match (xattr, made.entry.kind) {
            (_, EntryKind::HardLink) | (None, _) => made,
            (Some((name, _)), kind)
                if name.starts_with("user.") && !matches!(kind, EntryKind::File | EntryKind::Directory) =>
            {
                made
            }
            (Some((name, value)), _) => made.xattr(name, value),
        }
    });
    prop_oneof![
        6 => made,
        2 => path().prop_map(|path| whiteout(&path, None)),
        1 => path().prop_map(|path| whiteout(&path, Some(".wh..wh..opq"))),
        1 => Just(file(".wh..wh..opq", "")),
    ]
}

fn stack() -> impl Strategy<Value = Vec<Vec<Member>>> {
    prop::collection::vec(prop::collection::vec(one_member(), 0..9), 1..5).prop_map(|mut layers| {
        // Otherwise the root would have the time at which the test made it.
        layers[0].insert(0, dir("./"));
        layers
    })
}

/// A member in a line.
fn line(member: &Member) -> String {
    let Member { entry, content } = member;
    let metadata = &entry.metadata;
    format!(
        "{:?} {} -> {} {:o} {}:{} {:?} {:?} {:?}",
        entry.kind,
        String::from_utf8_lossy(&entry.path),
        String::from_utf8_lossy(&entry.link_target),
        metadata.mode,
        metadata.uid,
        metadata.gid,
        metadata.mtime.seconds,
        metadata.xattrs,
        String::from_utf8_lossy(content),
    )
}

fn compare(layers: &[Vec<Member>], namespace: XattrNamespace, whiteout: WhiteoutForm) -> Result<(), TestCaseError> {
    let in_user_namespace = graph_sys::userns::is_in_user_namespace().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let plain = scratch.path().join("plain");
    let mut lowers: Vec<PathBuf> = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let diff = scratch.path().join(format!("layer{number}"));
        let options = ApplyOptions { in_user_namespace, ..ApplyOptions::default() };
        let by_plain = apply_with(&plain, layer, options).map_err(|error| messages(&error));
        let options = ApplyOptions { in_user_namespace, ..overlay(namespace, whiteout, &lowers) };
        let by_overlay = apply_with(&diff, layer, options).map_err(|error| messages(&error));
        let shown: Vec<_> = layers.iter().map(|layer| layer.iter().map(line).collect::<Vec<_>>()).collect();
        prop_assert_eq!(by_plain.as_ref().err(), by_overlay.as_ref().err(), "layer {} of {:#?}", number, shown);
        if by_plain.is_err() {
            return Ok(());
        }
        lowers.insert(0, diff);
        let Some(mounted) = mount(&lowers, namespace, &scratch.path().join("empty")) else { return Ok(()) };
        let (plain, mounted) = (tree(&plain), tree(&mounted.path));
        prop_assert_eq!(plain.groups(), mounted.groups(), "layer {} of {:#?}", number, shown);
        prop_assert_eq!(plain.nodes, mounted.nodes, "layer {} of {:#?}", number, shown);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn root_trusted_with_devices(layers in stack()) {
        compare(&layers, XattrNamespace::Trusted, WhiteoutForm::CharDevice)?;
    }

    #[test]
    fn root_user_with_devices(layers in stack()) {
        compare(&layers, XattrNamespace::User, WhiteoutForm::CharDevice)?;
    }

    #[test]
    fn root_trusted_with_attributes(layers in stack()) {
        compare(&layers, XattrNamespace::Trusted, WhiteoutForm::Xattr)?;
    }

    #[test]
    fn root_user_with_attributes(layers in stack()) {
        compare(&layers, XattrNamespace::User, WhiteoutForm::Xattr)?;
    }
}

/// The same in a user namespace with all ids, where devices and attributes of the system are refused.
#[test]
fn root_in_a_user_namespace() {
    let this = std::env::current_exe().unwrap();
    let mut child = Command::new("unshare")
        .args(["--user", "--mount", "sh", "-c", "echo ready; read go; exec \"$@\"", "sh"])
        .arg(this)
        .args(["root_user_with_devices", "root_user_with_attributes", "--exact"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut ready = [0; 6];
    if out.read_exact(&mut ready).is_err() {
        eprintln!("skipped: no user namespace can be made here: {:?}", child.wait_with_output().unwrap());
        return;
    }
    for map in ["uid_map", "gid_map"] {
        if let Err(error) = std::fs::write(format!("/proc/{}/{map}", child.id()), "0 0 65536\n") {
            drop(child.stdin.take());
            child.wait().unwrap();
            eprintln!("skipped: ids cannot be mapped here: {error}");
            return;
        }
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    assert!(text.contains("2 passed"), "{text}");
}
