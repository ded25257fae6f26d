//! Making, listing and removing layers.

use std::collections::BTreeSet;

use graph_archive::idmap::IdMappings;

use super::failure::{ensure, ensure_eq, ensure_kind};
use super::fixture::request;
use super::{Case, Checked, Fixture, Snapshot, Tree, nothing};
use crate::driver::{ApplyDiffOptions, CreateOptions, GetOptions};
use crate::error::ErrorKind;
use crate::id::LayerId;

const TOPIC: &str = "layers";

pub(super) const CASES: &[Case] = &[
    Case { name: "create_empty", topic: TOPIC, needs: nothing, run: create_empty },
    Case { name: "create_base", topic: TOPIC, needs: owners, run: create_base },
    Case { name: "create_snap", topic: TOPIC, needs: owners, run: create_snap },
    Case { name: "create_from_template", topic: TOPIC, needs: nothing, run: create_from_template },
    Case { name: "list_layers", topic: TOPIC, needs: nothing, run: list_layers },
    Case { name: "create_over_existing", topic: TOPIC, needs: nothing, run: create_over_existing },
    Case { name: "create_without_parent_layer", topic: TOPIC, needs: nothing, run: create_without_parent_layer },
    Case { name: "unknown_layer", topic: TOPIC, needs: nothing, run: unknown_layer },
    Case { name: "remove_twice", topic: TOPIC, needs: nothing, run: remove_twice },
    Case { name: "remove_later", topic: TOPIC, needs: nothing, run: remove_later },
    Case { name: "same_id_again", topic: TOPIC, needs: nothing, run: same_id_again },
    Case { name: "path_like_ids", topic: TOPIC, needs: nothing, run: path_like_ids },
    Case { name: "odd_ids", topic: TOPIC, needs: nothing, run: odd_ids },
    Case { name: "open_again", topic: TOPIC, needs: nothing, run: open_again },
    Case { name: "siblings_are_apart", topic: TOPIC, needs: nothing, run: siblings_are_apart },
    Case { name: "root_for_mapped_layer", topic: TOPIC, needs: owners, run: root_for_mapped_layer },
    Case { name: "storage_opt", topic: TOPIC, needs: nothing, run: storage_opt },
    Case { name: "quota", topic: TOPIC, needs: quotas, run: quota },
    Case { name: "status_and_metadata", topic: TOPIC, needs: nothing, run: status_and_metadata },
    Case { name: "disk_usage", topic: TOPIC, needs: nothing, run: disk_usage },
    Case { name: "additional_store", topic: TOPIC, needs: additional_stores, run: additional_store },
];

pub(super) fn owners(fixture: &Fixture) -> Result<(), String> {
    if fixture.environment().owners { Ok(()) } else { Err("files cannot be given to other users here".into()) }
}

fn quotas(fixture: &Fixture) -> Result<(), String> {
    if fixture.driver().capabilities().quotas { Ok(()) } else { Err("the driver has no quotas here".into()) }
}

fn additional_stores(fixture: &Fixture) -> Result<(), String> {
    if fixture.driver().capabilities().additional_stores {
        Ok(())
    } else {
        Err("the driver has no additional stores".into())
    }
}

/// What graphtest calls the base: a sticky directory of another owner and a setuid file.
pub(super) fn fill_base(tree: &Tree) -> Checked {
    tree.dir("a subdir")?;
    tree.owner("a subdir", 1, 2)?;
    tree.mode("a subdir", 0o1705)?;
    tree.file("a file", "Some data")?;
    tree.mode("a file", 0o4222)
}

fn verify_base(found: &Snapshot, root_mode: u32) -> Checked {
    ensure_eq!(found.names(), ["a file", "a subdir"], "the base's names");
    let node = |name: &str| found.nodes.get(name.as_bytes()).cloned().unwrap_or_else(|| unreachable!("listed above"));
    ensure_eq!((node("").mode, node("").uid, node("").gid), (root_mode, 0, 0), "mode and owner of the root");
    let subdir = node("a subdir");
    ensure_eq!((subdir.mode, subdir.uid, subdir.gid), (0o1705, 1, 2), "mode and owner of the directory");
    let file = node("a file");
    ensure_eq!((file.mode, file.uid, file.gid), (0o4222, 0, 0), "mode and owner of the file");
    ensure_eq!(file.kind, super::NodeKind::File(b"Some data".to_vec()), "the file");
    Ok(())
}

fn create_empty(f: &Fixture) -> Checked {
    let id = LayerId::new("empty")?;
    ensure!(!f.driver().exists(&id)?, "a layer exists before it is created");
    f.driver().create(&id, None, &CreateOptions::default())?;
    ensure!(f.driver().exists(&id)?, "the new layer does not exist");
    let found = f.snapshot(&id)?;
    ensure!(found.names().is_empty(), "a new layer holds {:?}", found.names());
    let root = &found.nodes[&b""[..]];
    ensure_eq!((root.mode, root.uid, root.gid), (0o555, 0, 0), "mode and owner of the root");
    Ok(())
}

fn create_base(f: &Fixture) -> Checked {
    let id = f.layer("base", None, fill_base)?;
    verify_base(&f.snapshot(&id)?, 0o555)
}

fn create_snap(f: &Fixture) -> Checked {
    let base = f.layer("base2", None, fill_base)?;
    let snap = f.layer("snap2", Some(&base), |_| Ok(()))?;
    verify_base(&f.snapshot(&snap)?, 0o555)?;
    f.change(&snap, |tree| tree.mode("", 0o711))?;
    let second = f.layer("second-snap", Some(&snap), |_| Ok(()))?;
    verify_base(&f.snapshot(&second)?, 0o711)?;
    verify_base(&f.snapshot(&base)?, 0o555)
}

fn create_from_template(f: &Fixture) -> Checked {
    let base = f.layer("base3", None, |tree| tree.file("a file", "base"))?;
    let snap = f.layer("snap3", Some(&base), |tree| tree.file("testfile.txt", "test data"))?;
    let identity = IdMappings::default();
    let before = f.snapshot(&snap)?;
    for (name, read_write) in [("copy", true), ("read-only-copy", false)] {
        let id = LayerId::new(name)?;
        let options = CreateOptions::default();
        f.driver().create_from_template(&id, &snap, &identity, Some(&base), &identity, &options, read_write)?;
        f.snapshot(&id)?.ensure_equals(&before, "the copy of a template")?;
        ensure_eq!(f.changes(&id, Some(&snap))?, [""; 0], "changes of {name} to its template");
        ensure_eq!(f.changes(&id, Some(&base))?, ["A /testfile.txt"], "changes of {name} to the template's parent");
    }
    ensure_eq!(f.changes(&snap, Some(&base))?, ["A /testfile.txt"], "changes of the template");
    f.change(&LayerId::new("copy")?, |tree| tree.file("testfile.txt", "other"))?;
    f.snapshot(&snap)?.ensure_equals(&before, "the template after its copy was changed")?;
    ensure_eq!(f.snapshot(&base)?.names(), ["a file"], "the base");

    let (id, missing) = (LayerId::new("no-template")?, LayerId::new("missing")?);
    ensure_kind!(
        f.driver().create_from_template(&id, &missing, &identity, None, &identity, &CreateOptions::default(), true),
        ErrorKind::NotFound,
        "a template that does not exist"
    );
    ensure!(!f.driver().exists(&id)?, "a layer without template exists");
    Ok(())
}

fn list_layers(f: &Fixture) -> Checked {
    ensure!(f.driver().list_layers()?.is_empty(), "a new driver has layers");
    let base = f.layer("base", None, |_| Ok(()))?;
    let mid = f.layer("mid", Some(&base), |_| Ok(()))?;
    let upper = f.layer("upper", Some(&mid), |_| Ok(()))?;
    ensure_eq!(f.driver().list_layers()?, [base, mid, upper.clone()], "the layers, sorted");
    f.driver().remove(&upper)?;
    ensure_eq!(f.driver().list_layers()?.len(), 2, "layers after removing one");
    Ok(())
}

fn create_over_existing(f: &Fixture) -> Checked {
    let id = f.layer("base", None, |tree| tree.file("kept", "content"))?;
    let before = f.snapshot(&id)?;
    let options = CreateOptions::default();
    ensure_kind!(f.driver().create(&id, None, &options), ErrorKind::Exists, "create over a layer");
    ensure_kind!(
        f.driver().create_read_write(&id, None, &options),
        ErrorKind::Exists,
        "create_read_write over a layer"
    );
    ensure_kind!(f.driver().create(&id, Some(&id), &options), ErrorKind::Exists, "a layer as its own parent");
    f.snapshot(&id)?.ensure_equals(&before, "a layer that was to be created again")
}

fn create_without_parent_layer(f: &Fixture) -> Checked {
    let (id, parent) = (LayerId::new("child")?, LayerId::new("missing")?);
    let options = CreateOptions::default();
    ensure_kind!(f.driver().create(&id, Some(&parent), &options), ErrorKind::NotFound, "create");
    ensure_kind!(f.driver().create_read_write(&id, Some(&parent), &options), ErrorKind::NotFound, "create_read_write");
    ensure_kind!(f.driver().create(&id, Some(&id), &options), ErrorKind::NotFound, "a layer as its own parent");
    ensure!(!f.driver().exists(&id)?, "the layer exists without its parent");
    ensure!(f.driver().list_layers()?.is_empty(), "a layer is listed that could not be made");
    Ok(())
}

fn unknown_layer(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |_| Ok(()))?;
    let id = LayerId::new("missing")?;
    let driver = f.driver();
    ensure_kind!(driver.get(&id, &GetOptions::default()), ErrorKind::NotFound, "get");
    ensure_kind!(driver.metadata(&id), ErrorKind::NotFound, "metadata");
    ensure_kind!(driver.read_write_disk_usage(&id), ErrorKind::NotFound, "read_write_disk_usage");
    ensure_kind!(driver.diff_getter(&id), ErrorKind::NotFound, "diff_getter");
    for parent in [None, Some(&base)] {
        let request = request(&id, parent);
        ensure_kind!(driver.diff(&request, &mut std::io::sink()), ErrorKind::NotFound, "diff");
        ensure_kind!(driver.changes(&request), ErrorKind::NotFound, "changes");
        ensure_kind!(driver.diff_size(&request), ErrorKind::NotFound, "diff_size");
    }
    let request = request(&base, Some(&id));
    ensure_kind!(driver.diff(&request, &mut std::io::sink()), ErrorKind::NotFound, "diff to an unknown parent");
    ensure_kind!(driver.changes(&request), ErrorKind::NotFound, "changes to an unknown parent");
    let archive = super::Archive::new().file("file", b"").finish();
    ensure_kind!(
        driver.apply_diff(&id, None, &mut &archive[..], &mut ApplyDiffOptions::default()),
        ErrorKind::NotFound,
        "apply_diff"
    );
    ensure!(!driver.exists(&id)?, "asking for a layer made it");
    Ok(())
}

fn remove_twice(f: &Fixture) -> Checked {
    let id = f.layer("base", None, |tree| tree.file("file", "content"))?;
    f.driver().remove(&id)?;
    ensure!(!f.driver().exists(&id)?, "a removed layer exists");
    ensure_kind!(f.driver().get(&id, &GetOptions::default()), ErrorKind::NotFound, "get of a removed layer");
    f.driver().remove(&id)?;
    f.driver().deferred_remove(&id)?.finish()?;
    f.driver().remove(&LayerId::new("never-there")?)?;
    Ok(())
}

fn remove_later(f: &Fixture) -> Checked {
    let deep = |tree: &Tree| {
        tree.dir("dir")?;
        tree.file("dir/file", "content")?;
        // Without its owner's search right, a plain recursive removal would stop here without privileges.
        tree.mode("dir", 0o000)
    };
    let first = f.layer("first", None, deep)?;
    let second = f.layer("second", None, deep)?;
    let kept = f.layer("kept", None, deep)?;

    let removal = f.driver().deferred_remove(&first)?;
    ensure!(!f.driver().exists(&first)?, "the layer exists after deferred_remove");
    ensure_eq!(f.driver().list_layers()?, [kept.clone(), second.clone()], "the layers after deferred_remove");
    // The id is free at once.
    let again = f.layer("first", None, |_| Ok(()))?;
    removal.finish()?;
    ensure!(f.driver().exists(&again)?, "finish removed a new layer of the same id");
    f.driver().remove(&again)?;

    drop(f.driver().deferred_remove(&second)?);
    for root in f.driver().temp_dir_roots() {
        if root.exists() {
            let left = std::fs::read_dir(&root)?.count();
            ensure_eq!(left, 0, "things left in {} after a removal was dropped", root.display());
        }
    }
    ensure_eq!(f.driver().list_layers()?, [kept], "the layers at the end");
    Ok(())
}

fn same_id_again(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("base", "base"))?;
    let id = f.layer("layer", Some(&base), |tree| tree.file("old", "old"))?;
    f.driver().remove(&id)?;
    let id = f.layer("layer", None, |tree| tree.file("new", "new"))?;
    ensure_eq!(f.snapshot(&id)?.names(), ["new"], "a layer under the id of a removed one");
    Ok(())
}

fn path_like_ids(f: &Fixture) -> Checked {
    for text in ["", ".", "..", "../x", "/x", "a/b", "a/../../b", "a\0b", "a\nb", &"x".repeat(256)] {
        ensure!(LayerId::new(text).is_err(), "{text:?} is taken for a layer's id");
    }
    ensure!(f.driver().list_layers()?.is_empty(), "a layer was made");
    Ok(())
}

/// Ids that a driver might use itself, or that a shell or a mount option would split, either work or are refused.
fn odd_ids(f: &Fixture) -> Checked {
    let other = f.layer("base", None, |tree| tree.file("file", "content"))?;
    let before = f.snapshot(&other)?;
    let long = "x".repeat(255);
    let odd = [
        "l",
        "staging",
        "tempdirs",
        "dir",
        "mnt",
        "diff",
        "backingFsBlockDev",
        ".has-mount-program",
        "-o",
        "a b",
        "a:b",
        "a,b",
        "a=b",
        "a\\b",
        "\"",
        "%s",
        "ä",
        "😀",
        ".wh.x",
        "temp-dir-1",
        "lock-1",
        "metadata",
        &long,
    ];
    for text in odd {
        let id = LayerId::new(text)?;
        match f.driver().create_read_write(&id, Some(&other), &CreateOptions::default()) {
            Ok(()) => {
                f.change(&id, |tree| tree.file("odd", text))?;
                ensure!(f.driver().list_layers()?.contains(&id), "{text:?} is not listed");
                let child = f.layer("child", Some(&id), |tree| tree.file("more", ""))?;
                ensure_eq!(f.snapshot(&child)?.names(), ["file", "more", "odd"], "a child of {text:?}");
                ensure_eq!(f.changes(&id, Some(&other))?, ["A /odd"], "changes of {text:?}");
                f.driver().remove(&child)?;
                f.driver().remove(&id)?;
            }
            Err(error) => {
                ensure!(
                    matches!(
                        error.kind(),
                        ErrorKind::InvalidArgument | ErrorKind::Unsupported | ErrorKind::Exists | ErrorKind::Config
                    ),
                    "{text:?} gives an error that is no refusal: {error}"
                );
                ensure!(!f.driver().exists(&id)?, "{text:?} was refused, but exists");
                f.driver().remove(&id)?;
            }
        }
        f.snapshot(&other)?.ensure_equals(&before, &format!("another layer after {text:?}"))?;
    }
    Ok(())
}

fn open_again(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("file", "content"))?;
    let child = f.layer("child", Some(&base), |tree| tree.file("more", "content"))?;
    let expected = f.snapshot(&child)?;
    let again = f.open_again()?;
    ensure_eq!(again.list_layers()?, [base, child.clone()], "the layers of a driver opened again");
    let mounted = again.get(&child, &GetOptions::default())?;
    Tree::new(mounted.path()).snapshot()?.ensure_equals(&expected, "a layer of a driver opened again")?;
    mounted.put()?;
    f.snapshot(&child)?.ensure_equals(&expected, "the layer afterwards")
}

fn siblings_are_apart(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        tree.file("file", "base")?;
        tree.dir("dir")?;
        tree.file("dir/file", "base")
    })?;
    let before = f.snapshot(&base)?;
    let one = f.layer("one", Some(&base), |tree| {
        tree.file("file", "one")?;
        tree.remove("dir")
    })?;
    let two = f.layer("two", Some(&base), |tree| tree.file("dir/file", "two"))?;
    ensure_eq!(f.snapshot(&one)?.names(), ["file"], "the first child");
    ensure_eq!(f.snapshot(&two)?.names(), ["dir", "dir/file", "file"], "the second child");
    f.snapshot(&base)?.ensure_equals(&before, "the parent after its children were changed")?;
    f.driver().remove(&one)?;
    f.driver().remove(&two)?;
    f.snapshot(&base)?.ensure_equals(&before, "the parent after its children were removed")
}

/// The root of a base layer belongs to the root of the layer's mappings.
fn root_for_mapped_layer(f: &Fixture) -> Checked {
    let id = LayerId::new("mapped")?;
    let options = CreateOptions { mappings: super::diffs::shift_by(1000), ..CreateOptions::default() };
    f.driver().create(&id, None, &options)?;
    let found = f.snapshot(&id)?;
    let root = &found.nodes[&b""[..]];
    ensure_eq!((root.mode, root.uid, root.gid), (0o555, 1000, 1000), "mode and owner of the root");
    Ok(())
}

fn storage_opt(f: &Fixture) -> Checked {
    let id = LayerId::new("limited")?;
    let with = |key: &str, value: &str| CreateOptions {
        storage_opt: [(key.to_owned(), value.to_owned())].into(),
        ..CreateOptions::default()
    };
    let mut refused = vec![with("no-such-option", "1"), with("size", "not a number")];
    if !f.driver().capabilities().quotas {
        refused.push(with("size", "50M"));
    }
    for options in refused {
        let result = f.driver().create_read_write(&id, None, &options);
        ensure!(result.is_err(), "{:?} is taken", options.storage_opt);
        ensure!(!f.driver().exists(&id)?, "{:?} is refused, but the layer exists", options.storage_opt);
    }
    Ok(())
}

fn quota(f: &Fixture) -> Checked {
    let id = LayerId::new("limited")?;
    let storage_opt = [("size".to_owned(), "50M".to_owned())].into();
    f.driver().create_read_write(&id, None, &CreateOptions { storage_opt, ..CreateOptions::default() })?;
    let (mounted, tree) = f.mount(&id)?;
    tree.file("fits", vec![1; 10 << 20])?;
    ensure!(tree.file("too-big", vec![1; 100 << 20]).is_err(), "100 MiB go into a layer limited to 50 MiB");
    Ok(mounted.put()?)
}

fn status_and_metadata(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |_| Ok(()))?;
    let child = f.layer("child", Some(&base), |_| Ok(()))?;
    let status = f.driver().status()?;
    let keys: BTreeSet<_> = status.iter().map(|(key, _)| key).collect();
    ensure_eq!(keys.len(), status.len(), "different keys in {status:?}");
    ensure!(status.iter().all(|(key, value)| !key.is_empty() && !value.contains('\n')), "odd lines in {status:?}");
    ensure_eq!(f.driver().status()?, status, "the status asked for again");
    for id in [&base, &child] {
        let metadata = f.driver().metadata(id)?;
        ensure!(metadata.keys().all(|key| !key.is_empty()), "a key is empty in {metadata:?}");
        ensure_eq!(f.driver().metadata(id)?, metadata, "the metadata asked for again");
    }
    ensure!(!f.driver().name().is_empty(), "the driver has no name");
    Ok(())
}

fn disk_usage(f: &Fixture) -> Checked {
    let size = 1 << 20;
    let id = f.layer("base", None, |_| Ok(()))?;
    let empty = f.driver().read_write_disk_usage(&id)?;
    f.change(&id, |tree| {
        tree.file("file", vec![1; size])?;
        tree.link("link", "file")?;
        tree.dir("dir")
    })?;
    let full = f.driver().read_write_disk_usage(&id)?;
    let (bytes, inodes) = (full.size.saturating_sub(empty.size), full.inodes.saturating_sub(empty.inodes));
    // A hard link is no second file; directories may count with what they take.
    ensure!(bytes >= size as u64 && bytes < size as u64 + 65_536, "a file of 1 MiB adds {bytes} bytes");
    ensure_eq!(inodes, 2, "inodes added by a file with two names and a directory");
    Ok(())
}

/// A store that belongs to somebody else: its layers can be seen and stacked on, but not changed.
fn additional_store(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("file", "theirs"))?;
    let below = f.layer("below", Some(&base), |tree| tree.file("more", "theirs"))?;
    let before = f.snapshot(&below)?;
    let store = f.root().to_string_lossy().into_owned();
    let (driver, _) = f.open_elsewhere("mine", &[("imagestore", &store)])?;
    ensure_eq!(driver.additional_image_stores(), [f.root()], "the additional stores");
    ensure!(driver.exists(&below)?, "a layer of the additional store does not exist");
    ensure!(driver.list_layers()?.is_empty(), "a layer of the additional store is listed as the driver's own");

    let mounted = driver.get(&below, &GetOptions { options: vec!["ro".into()], ..GetOptions::default() })?;
    Tree::new(mounted.path()).snapshot()?.ensure_equals(&before, "a layer of the additional store")?;
    mounted.put()?;

    let mine = LayerId::new("mine")?;
    driver.create_read_write(&mine, Some(&below), &CreateOptions::default())?;
    let mounted = driver.get(&mine, &GetOptions::default())?;
    Tree::new(mounted.path()).file("file", "mine")?;
    mounted.put()?;
    let changes = driver.changes(&request(&mine, Some(&below)))?;
    ensure_eq!(changes.len(), 1, "changes of a layer upon the additional store");
    ensure_eq!(driver.list_layers()?, std::slice::from_ref(&mine), "the driver's own layers");

    // Removing means the driver's own layers; whether this is an error or does nothing, theirs stays.
    drop(driver.remove(&below));
    drop(driver.deferred_remove(&below));
    ensure!(driver.exists(&below)?, "a layer of the additional store was removed");
    driver.remove(&mine)?;
    driver.cleanup()?;
    f.snapshot(&below)?.ensure_equals(&before, "the additional store's layer afterwards")
}
