//! Getting layers and putting them back.

use std::sync::Barrier;

use super::failure::{ensure, ensure_eq, ensure_kind};
use super::{Case, Checked, Failure, Fixture, Tree, nothing};
use crate::driver::{GetOptions, Mounted};
use crate::error::ErrorKind;
use crate::id::LayerId;

const TOPIC: &str = "mounts";

pub(super) const CASES: &[Case] = &[
    Case { name: "get_counts_references", topic: TOPIC, needs: nothing, run: get_counts_references },
    Case { name: "guard_puts", topic: TOPIC, needs: nothing, run: guard_puts },
    Case { name: "persist_and_put", topic: TOPIC, needs: nothing, run: persist_and_put },
    Case { name: "writes_stay", topic: TOPIC, needs: nothing, run: writes_stay },
    Case { name: "read_only_shows_all", topic: TOPIC, needs: nothing, run: read_only_shows_all },
    Case { name: "read_only_refuses_writes", topic: TOPIC, needs: read_only_mounts, run: read_only_refuses_writes },
    Case { name: "unknown_mount_option", topic: TOPIC, needs: nothing, run: unknown_mount_option },
    Case { name: "many_layers_mounted", topic: TOPIC, needs: nothing, run: many_layers_mounted },
    Case { name: "concurrent_gets", topic: TOPIC, needs: nothing, run: concurrent_gets },
    Case { name: "put_after_cleanup", topic: TOPIC, needs: nothing, run: put_after_cleanup },
    Case { name: "volatile", topic: TOPIC, needs: volatile, run: volatile_mount },
    Case { name: "remove_while_mounted", topic: TOPIC, needs: nothing, run: remove_while_mounted },
    Case { name: "mappings_that_cannot_be_shown", topic: TOPIC, needs: nothing, run: mappings_that_cannot_be_shown },
    Case { name: "shifted_mount", topic: TOPIC, needs: shifts_ids, run: shifted_mount },
];

fn read_only_mounts(fixture: &Fixture) -> Result<(), String> {
    if fixture.driver().capabilities().read_only_mounts {
        Ok(())
    } else {
        Err("the driver cannot refuse writes to a read-only mount".into())
    }
}

fn volatile(fixture: &Fixture) -> Result<(), String> {
    if fixture.driver().capabilities().volatile { Ok(()) } else { Err("the driver has no volatile mounts here".into()) }
}

fn shifts_ids(fixture: &Fixture) -> Result<(), String> {
    let driver = fixture.driver();
    if !driver.capabilities().shifts_ids {
        return Err("the driver cannot shift ids at mount time here".into());
    }
    if driver.supports_shifting(&super::diffs::shift_by(1000)) {
        Ok(())
    } else {
        Err("the driver does not shift by 1000".into())
    }
}

/// Whether the driver mounts at all: a path that is the layer's own directory needs no unmounting.
fn is_mount_point(path: &std::path::Path) -> Result<bool, Failure> {
    let path = path.to_string_lossy();
    Ok(std::fs::read_to_string("/proc/self/mountinfo")?.lines().any(|line| line.split(' ').nth(4) == Some(&*path)))
}

fn get_counts_references(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("base", "content"))?;
    let id = f.layer("layer", Some(&base), |tree| tree.file("file", "content"))?;
    let options = GetOptions::default();
    let first = f.driver().get(&id, &options)?;
    let path = first.path().to_path_buf();
    ensure!(path.is_absolute(), "the path {} is relative", path.display());
    let mounts = is_mount_point(&path)?;
    let second = f.driver().get(&id, &options)?;
    ensure_eq!(second.path(), path, "the path of the second get");
    first.put()?;
    ensure!(Tree::new(&path).has("file"), "the layer is gone with the first of two references");
    Tree::new(&path).file("written", "with one reference left")?;
    second.put()?;
    ensure!(!is_mount_point(&path)?, "the layer is still mounted after the last put");
    let third = f.driver().get(&id, &options)?;
    ensure_eq!(third.path(), path, "the path of a later get");
    ensure_eq!(is_mount_point(&path)?, mounts, "mounted again as before");
    ensure!(Tree::new(&path).has("written"), "what was written is gone");
    Ok(third.put()?)
}

fn guard_puts(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("file", "content"))?;
    let id = f.layer("layer", Some(&base), |_| Ok(()))?;
    let path = {
        let one = f.driver().get(&id, &GetOptions::default())?;
        let two = f.driver().get(&id, &GetOptions::default())?;
        drop(one);
        ensure!(Tree::new(two.path()).has("file"), "a dropped guard took the other's reference");
        two.path().to_path_buf()
    };
    ensure!(!is_mount_point(&path)?, "the layer is still mounted after its guards are gone");
    Ok(())
}

fn persist_and_put(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("file", "content"))?;
    let id = f.layer("layer", Some(&base), |_| Ok(()))?;
    let path = f.driver().get(&id, &GetOptions::default())?.persist();
    ensure!(Tree::new(&path).has("file"), "the layer is gone after persist");
    let again = f.driver().get(&id, &GetOptions::default())?;
    ensure_eq!(again.path(), path, "the path of a get beside a persisted one");
    again.put()?;
    ensure!(Tree::new(&path).has("file"), "put of another reference took the persisted one");
    f.driver().put(&id)?;
    ensure!(!is_mount_point(&path)?, "the layer is still mounted after put");
    Ok(())
}

fn writes_stay(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("kept", "base"))?;
    let id = f.layer("layer", Some(&base), |tree| {
        tree.file("new", "new")?;
        tree.dir("dir")?;
        tree.file("dir/deep", "deep")
    })?;
    f.change(&id, |tree| tree.remove("kept"))?;
    ensure_eq!(f.snapshot(&id)?.names(), ["dir", "dir/deep", "new"], "the layer");
    ensure_eq!(f.snapshot(&base)?.names(), ["kept"], "its parent");
    Ok(())
}

fn read_only() -> GetOptions {
    GetOptions { options: vec!["ro".into()], ..GetOptions::default() }
}

fn read_only_shows_all(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        tree.file("gone", "base")?;
        tree.file("kept", "base")
    })?;
    let id = f.layer("layer", Some(&base), |tree| {
        tree.remove("gone")?;
        tree.file("new", "new")
    })?;
    for (id, names) in [(&base, ["gone", "kept"]), (&id, ["kept", "new"])] {
        let mounted = f.driver().get(id, &read_only())?;
        ensure_eq!(Tree::new(mounted.path()).snapshot()?.names(), names, "{id} mounted read-only");
        mounted.put()?;
    }
    Ok(())
}

fn read_only_refuses_writes(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("file", "base"))?;
    let id = f.layer("layer", Some(&base), |_| Ok(()))?;
    for id in [&base, &id] {
        let mounted = f.driver().get(id, &read_only())?;
        let tree = Tree::new(mounted.path());
        for (what, result) in [
            ("making a file", tree.file("new", "new")),
            ("writing a file", tree.file("file", "changed")),
            ("changing a mode", tree.mode("file", 0o600)),
            ("removing a file", tree.remove("file")),
        ] {
            ensure!(result.is_err(), "{what} works in {id} mounted read-only");
        }
        mounted.put()?;
    }
    // The next mount is writable again.
    f.change(&id, |tree| tree.file("file", "changed"))
}

fn unknown_mount_option(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("file", "base"))?;
    let id = f.layer("layer", Some(&base), |_| Ok(()))?;
    let options = GetOptions { options: vec!["no-such-option=1".into()], ..GetOptions::default() };
    ensure!(f.driver().get(&id, &options).is_err(), "an unknown mount option is taken");
    // The failed get holds no reference.
    let (mounted, tree) = f.mount(&id)?;
    ensure!(tree.has("file"), "the layer is not mounted after a failed get");
    let path = mounted.path().to_path_buf();
    mounted.put()?;
    ensure!(!is_mount_point(&path)?, "a failed get left a reference");
    Ok(())
}

fn many_layers_mounted(f: &Fixture) -> Checked {
    let mut ids: Vec<LayerId> = Vec::new();
    for i in 0..10 {
        let parent = ids.last();
        ids.push(f.layer(&format!("layer-{i}"), parent, |tree| tree.file(format!("file-{i}"), "content"))?);
    }
    let mounted: Vec<Mounted<'_>> =
        ids.iter().map(|id| f.driver().get(id, &GetOptions::default())).collect::<Result<_, _>>()?;
    for (i, mount) in mounted.iter().enumerate() {
        ensure_eq!(Tree::new(mount.path()).snapshot()?.names().len(), i + 1, "files in layer {i}");
    }
    for mount in mounted {
        mount.put()?;
    }
    Ok(())
}

fn concurrent_gets(f: &Fixture) -> Checked {
    const THREADS: usize = 8;
    let base = f.layer("base", None, |tree| tree.file("file", "content"))?;
    let id = f.layer("layer", Some(&base), |_| Ok(()))?;
    let start = Barrier::new(THREADS);
    let results: Vec<Result<(), Failure>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (start, id) = (&start, &id);
                scope.spawn(move || {
                    start.wait();
                    for round in 0..25 {
                        let mounted = f.driver().get(id, &GetOptions::default())?;
                        let tree = Tree::new(mounted.path());
                        ensure!(tree.has("file"), "thread {thread}, round {round}: the layer is not mounted");
                        mounted.put()?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(Failure::new("a thread panicked"))))
            .collect()
    });
    results.into_iter().collect::<Result<(), Failure>>()?;
    let (mounted, _) = f.mount(&id)?;
    let path = mounted.path().to_path_buf();
    mounted.put()?;
    ensure!(!is_mount_point(&path)?, "references were lost or counted twice");
    Ok(())
}

fn put_after_cleanup(f: &Fixture) -> Checked {
    let id = f.layer("base", None, |tree| tree.file("file", "content"))?;
    f.driver().cleanup()?;
    f.driver().cleanup()?;
    f.change(&id, |tree| tree.file("more", "content"))?;
    ensure_kind!(f.driver().get(&LayerId::new("missing")?, &read_only()), ErrorKind::NotFound, "get after clean-up");
    Ok(())
}

/// A driver that sees that a layer is mounted refuses to remove it; one that has no mounts takes the directory away.
fn remove_while_mounted(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("file", "content"))?;
    let id = f.layer("layer", Some(&base), |_| Ok(()))?;
    let (mounted, tree) = f.mount(&id)?;
    if f.driver().remove(&id).is_err() {
        ensure!(f.driver().exists(&id)?, "the removal was refused, but the layer is gone");
        ensure!(tree.has("file"), "the removal was refused, but the mount is gone");
        tree.file("more", "content")?;
    }
    mounted.put()?;
    f.driver().remove(&id)?;
    ensure!(!f.driver().exists(&id)?, "the layer stays after its last put");
    ensure_eq!(f.snapshot(&base)?.names(), ["file"], "the parent");
    Ok(())
}

/// Mappings are never silently ignored.
fn mappings_that_cannot_be_shown(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("file", "content"))?;
    let id = f.layer("layer", Some(&base), |_| Ok(()))?;
    let mappings = super::diffs::shift_by(1000);
    let options = GetOptions { mappings: mappings.clone(), ..GetOptions::default() };
    if f.driver().supports_shifting(&mappings) {
        return Ok(f.driver().get(&id, &options)?.put()?);
    }
    ensure_kind!(f.driver().get(&id, &options), ErrorKind::Unsupported, "mappings that cannot be shown");
    let unshifted = GetOptions { disable_shifting: true, ..options };
    let mounted = f.driver().get(&id, &unshifted)?;
    ensure!(Tree::new(mounted.path()).has("file"), "the layer is not there with shifting switched off");
    Ok(mounted.put()?)
}

fn volatile_mount(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("file", "content"))?;
    let id = f.layer("layer", Some(&base), |_| Ok(()))?;
    // Twice: the kernel's marker of a volatile mount must not stop the next one after a proper put.
    for round in 0..2 {
        let mounted = f.driver().get(&id, &GetOptions { volatile: true, ..GetOptions::default() })?;
        Tree::new(mounted.path()).file(format!("round-{round}"), "content")?;
        mounted.put()?;
    }
    ensure_eq!(f.snapshot(&id)?.names(), ["file", "round-0", "round-1"], "the layer");
    Ok(())
}

fn shifted_mount(f: &Fixture) -> Checked {
    let fill = |tree: &Tree| {
        tree.file("file", "content")?;
        tree.owner("file", 1, 2)?;
        tree.file("setuid", "content")?;
        tree.mode("setuid", 0o4755)
    };
    let base = f.layer("base", None, fill)?;
    let id = f.layer("layer", Some(&base), |_| Ok(()))?;
    let before = f.snapshot(&id)?;
    let options = GetOptions { mappings: super::diffs::shift_by(1000), ..GetOptions::default() };
    // For writing, what is in the layer itself may stay as it is on disk; what is below may not.
    let read_only = GetOptions { options: vec!["ro".into()], ..options.clone() };
    for (id, options) in [(&base, &read_only), (&id, &read_only), (&id, &options)] {
        let mounted = f.driver().get(id, options)?;
        let found = Tree::new(mounted.path()).snapshot()?;
        let file = &found.nodes[&b"file"[..]];
        ensure_eq!((file.uid, file.gid), (1001, 1002), "owner of a shifted file in {id}");
        let setuid = &found.nodes[&b"setuid"[..]];
        ensure_eq!((setuid.uid, setuid.gid, setuid.mode), (1000, 1000, 0o4755), "a shifted setuid file in {id}");
        mounted.put()?;
    }
    let unshifted = GetOptions { disable_shifting: true, ..options };
    let mounted = f.driver().get(&id, &unshifted)?;
    let mut found = Tree::new(mounted.path()).snapshot()?;
    mounted.put()?;
    // A layer that was mounted for writing may have been given to the container's root for good.
    let root = before.nodes[&b""[..]].clone();
    found.nodes.insert(Vec::new(), root);
    found.ensure_equals(&before, "the layer with shifting switched off")
}
