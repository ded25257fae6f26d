//! Whatever a layer holds: a child of it shows the same, and the diff of a changed child makes the same tree again.

#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, reason = "tests")]

use graph_core::conformance::{NodeKind, Snapshot, Tree};
use graph_core::driver::{ApplyDiffOptions, CreateOptions, DiffRequest, GetOptions};
use graph_core::registry::{DriverFactory, DriverSetup};
use graph_core::{Driver, LayerId};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    File(Vec<u8>),
    Directory,
    Symlink(String),
    Link(String),
    Fifo,
    Device(u32, u32),
    Remove,
    Owner(u32, u32),
    Mode(u32),
    Time(i64),
    Attribute(u8, Vec<u8>),
}

/// Few names, so that steps meet.
fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![Just("a"), Just("b"), Just("c d"), Just("ä")];
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Step::File),
        4 => Just(Step::Directory),
        1 => name().prop_map(Step::Symlink),
        2 => name().prop_map(Step::Link),
        1 => Just(Step::Fifo),
        1 => (1_u32..4000, 0_u32..200_000).prop_map(|(major, minor)| Step::Device(major, minor)),
        3 => Just(Step::Remove),
        2 => (0_u32..70_000, 0_u32..70_000).prop_map(|(uid, gid)| Step::Owner(uid, gid)),
        2 => (0_u32..0o10000).prop_map(Step::Mode),
        2 => (-1_000_000_000_i64..10_000_000_000).prop_map(Step::Time),
        1 => (any::<u8>(), prop::collection::vec(any::<u8>(), 0..32)).prop_map(|(key, value)| Step::Attribute(key % 4, value)),
    ]
}

fn steps() -> impl Strategy<Value = Vec<(String, Step)>> {
    prop::collection::vec((name(), step()), 0..40)
}

/// Steps that are not possible (nothing there, something there already) leave things as they are.
fn carry_out(tree: &Tree, steps: &[(String, Step)]) {
    for (name, step) in steps {
        let is_symlink = tree.at(name).is_symlink();
        let result = match step {
            // Not through links: they may lead anywhere.
            _ if tree.at(name).ancestors().skip(1).take(4).any(std::path::Path::is_symlink) => continue,
            Step::File(_) | Step::Mode(_) | Step::Attribute(..) if is_symlink => continue,
            Step::File(_) if tree.has(name) && !tree.at(name).is_file() => continue,
            Step::File(content) => tree.file(name, content),
            Step::Directory => tree.dir(name),
            Step::Symlink(target) => tree.symlink(name, target),
            Step::Link(existing) => tree.link(name, existing),
            Step::Fifo => tree.fifo(name),
            Step::Device(major, minor) => tree.device(name, NodeKind::CharDevice(*major, *minor)),
            Step::Remove => tree.remove(name),
            Step::Owner(uid, gid) => tree.owner(name, *uid, *gid),
            Step::Mode(mode) => tree.mode(name, *mode),
            Step::Time(seconds) => tree.time(name, *seconds),
            Step::Attribute(key, value) => tree.xattr(name, &format!("user.{key}"), value),
        };
        drop(result);
    }
}

fn with_tree<T>(driver: &dyn Driver, id: &LayerId, action: impl FnOnce(&Tree) -> T) -> T {
    let mounted = driver.get(id, &GetOptions::default()).unwrap();
    let result = action(&Tree::new(mounted.path()));
    mounted.put().unwrap();
    result
}

fn snapshot(driver: &dyn Driver, id: &LayerId) -> Snapshot {
    with_tree(driver, id, |tree| tree.snapshot().unwrap())
}

/// Without which names are one inode: a diff to a parent cannot tell of a new name for a file that it leaves out.
fn without_links(mut snapshot: Snapshot) -> Snapshot {
    for (name, node) in &mut snapshot.nodes {
        node.first_name.clone_from(name);
    }
    snapshot
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn root_vfs_keeps_everything(lower in steps(), upper in steps()) {
        if !graph_sys::process::geteuid().is_root() {
            eprintln!("skipped: needs root for owners and devices");
            return Ok(());
        }
        let temp = tempfile::tempdir().unwrap();
        let setup = DriverSetup { root: temp.path().join("root"), run_root: temp.path().join("run"), ..DriverSetup::default() };
        let driver = graph_drivers::vfs::Factory.open(&setup).unwrap();
        let id = |name: &str| LayerId::new(name).unwrap();
        let (base, child, copy) = (id("base"), id("child"), id("copy"));
        let create = |id: &LayerId, parent: Option<&LayerId>| driver.create_read_write(id, parent, &CreateOptions::default()).unwrap();

        create(&base, None);
        with_tree(&*driver, &base, |tree| carry_out(tree, &lower));
        let of_base = snapshot(&*driver, &base);
        create(&child, Some(&base));
        prop_assert_eq!(snapshot(&*driver, &child).differences(&of_base), Vec::<String>::new());

        with_tree(&*driver, &child, |tree| carry_out(tree, &upper));
        let expected = snapshot(&*driver, &child);
        let identity = graph_archive::IdMappings::default();
        for parent in [Some(&base), None] {
            let request =
                DiffRequest { id: &child, mappings: &identity, parent, parent_mappings: &identity, mount_label: "" };
            let mut diff = Vec::new();
            driver.diff(&request, &mut diff).unwrap();
            create(&copy, parent);
            driver.apply_diff(&copy, parent, &mut &diff[..], &mut ApplyDiffOptions::default()).unwrap();
            let (found, expected) = (snapshot(&*driver, &copy), expected.clone());
            let differences = match parent {
                Some(_) => without_links(found).differences(&without_links(expected)),
                None => found.differences(&expected),
            };
            prop_assert_eq!(differences, Vec::<String>::new());
            driver.remove(&copy).unwrap();
        }
        prop_assert_eq!(snapshot(&*driver, &base).differences(&of_base), Vec::<String>::new());
    }
}
