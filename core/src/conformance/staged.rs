//! Layers that are filled outside every lock and published by a rename.

use super::failure::{ensure, ensure_eq, ensure_kind};
use super::{Archive, Case, Checked, Fixture, Member};
use crate::driver::{ApplyDiffOptions, CreateOptions};
use crate::error::ErrorKind;
use crate::id::LayerId;

const TOPIC: &str = "staged";

pub(super) const CASES: &[Case] = &[
    Case { name: "staged_publish", topic: TOPIC, needs: staging, run: publish },
    Case { name: "staged_equals_created", topic: TOPIC, needs: staging, run: equals_created },
    Case { name: "staged_dropped", topic: TOPIC, needs: staging, run: dropped },
    Case { name: "staged_over_existing", topic: TOPIC, needs: staging, run: over_existing },
    Case { name: "staged_without_parent_layer", topic: TOPIC, needs: staging, run: without_parent_layer },
    Case { name: "staged_bad_archive", topic: TOPIC, needs: staging, run: bad_archive },
    Case { name: "staged_side_by_side", topic: TOPIC, needs: staging, run: side_by_side },
];

fn staging(fixture: &Fixture) -> Result<(), String> {
    if fixture.driver().capabilities().staging { Ok(()) } else { Err("the driver does not stage layers".into()) }
}

fn archive() -> Vec<u8> {
    Archive::new()
        .owned_by(0, 0)
        .dir("dir", 0o2750)
        .file("dir/new", b"new")
        .whiteout("", "gone")
        .symlink("link", "dir/new")
        .link("dir/hard", "dir/new")
        .finish()
}

fn base(f: &Fixture) -> Result<LayerId, super::Failure> {
    f.layer("base", None, |tree| {
        tree.mode("", 0o711)?;
        tree.file("gone", "base")?;
        tree.file("kept", "base")
    })
}

fn publish(f: &Fixture) -> Checked {
    let base = base(f)?;
    let id = LayerId::new("layer")?;
    let mut staged = f.driver().begin_staged(Some(&base), &CreateOptions::default())?;
    let report = staged.apply(&mut &archive()[..], &mut ApplyDiffOptions::default())?;
    ensure_eq!((report.entries, report.bytes), (5, archive().len() as u64), "the report");
    staged.flush()?;
    ensure_eq!(f.driver().list_layers()?, std::slice::from_ref(&base), "the layers before publishing");
    ensure!(!f.driver().exists(&id)?, "the layer exists before publishing");
    staged.publish(&id)?;
    ensure_eq!(f.driver().list_layers()?, [base.clone(), id.clone()], "the layers after publishing");
    ensure_eq!(f.snapshot(&id)?.names(), ["dir", "dir/hard", "dir/new", "kept", "link"], "the published layer");
    let child = f.layer("child", Some(&id), |tree| tree.file("more", "child"))?;
    ensure_eq!(f.snapshot(&child)?.names().len(), 6, "names of a child");
    // A staged layer without a parent, and nothing applied.
    let empty = LayerId::new("empty")?;
    f.driver().begin_staged(None, &CreateOptions::default())?.publish(&empty)?;
    let found = f.snapshot(&empty)?;
    let root = &found.nodes[&b""[..]];
    ensure_eq!((found.names().len(), root.mode, root.uid, root.gid), (0, 0o555, 0, 0), "an empty staged layer");
    Ok(())
}

/// The diff's members but for their times: a whiteout may bear the time at which it was made.
fn members(f: &Fixture, id: &LayerId, parent: Option<&LayerId>) -> Result<Vec<Member>, super::Failure> {
    let mut members = f.diff_members(id, parent)?;
    for member in &mut members {
        member.records.retain(|key, _| !key.ends_with(b"time"));
    }
    Ok(members)
}

/// Both ways of making a layer give the same one.
fn equals_created(f: &Fixture) -> Checked {
    let base = base(f)?;
    for parent in [None, Some(&base)] {
        let created = f.layer_from("created", parent, &archive())?;
        let id = LayerId::new("staged")?;
        let mut staged = f.driver().begin_staged(parent, &CreateOptions::default())?;
        staged.apply(&mut &archive()[..], &mut ApplyDiffOptions::default())?;
        staged.publish(&id)?;
        f.snapshot(&id)?.ensure_equals(&f.snapshot(&created)?, "the staged layer")?;
        ensure_eq!(f.changes(&id, parent)?, f.changes(&created, parent)?, "changes of the staged layer");
        ensure_eq!(members(f, &id, parent)?, members(f, &created, parent)?, "members of the staged layer's diff");
        f.driver().remove(&created)?;
        f.driver().remove(&id)?;
    }
    Ok(())
}

fn nothing_staged(f: &Fixture) -> Checked {
    for root in f.driver().temp_dir_roots() {
        if root.exists() {
            let left: Vec<_> = std::fs::read_dir(&root)?.flatten().map(|entry| entry.path()).collect();
            ensure!(left.is_empty(), "left behind: {left:?}");
        }
    }
    Ok(())
}

fn dropped(f: &Fixture) -> Checked {
    let base = base(f)?;
    let mut staged = f.driver().begin_staged(Some(&base), &CreateOptions::default())?;
    staged.apply(&mut &archive()[..], &mut ApplyDiffOptions::default())?;
    drop(staged);
    drop(f.driver().begin_staged(None, &CreateOptions::default())?);
    ensure_eq!(f.driver().list_layers()?, [base], "the layers after a staged one was dropped");
    nothing_staged(f)
}

fn over_existing(f: &Fixture) -> Checked {
    let base = base(f)?;
    let before = f.snapshot(&base)?;
    let mut staged = f.driver().begin_staged(None, &CreateOptions::default())?;
    staged.apply(&mut &archive()[..], &mut ApplyDiffOptions::default())?;
    ensure_kind!(staged.publish(&base), ErrorKind::Exists, "publishing over a layer");
    f.snapshot(&base)?.ensure_equals(&before, "the layer that was there")?;
    nothing_staged(f)
}

fn without_parent_layer(f: &Fixture) -> Checked {
    let missing = LayerId::new("missing")?;
    ensure_kind!(
        f.driver().begin_staged(Some(&missing), &CreateOptions::default()),
        ErrorKind::NotFound,
        "staging upon a layer that does not exist"
    );
    let base = base(f)?;
    let staged = f.driver().begin_staged(Some(&base), &CreateOptions::default())?;
    f.driver().remove(&base)?;
    let id = LayerId::new("orphan")?;
    ensure_kind!(staged.publish(&id), ErrorKind::NotFound, "publishing upon a layer that has gone meanwhile");
    ensure!(!f.driver().exists(&id)?, "the orphan exists");
    nothing_staged(f)
}

fn bad_archive(f: &Fixture) -> Checked {
    let good = archive();
    let cut = &good[..good.len() - 1024 - 700];
    let mut staged = f.driver().begin_staged(None, &CreateOptions::default())?;
    ensure_kind!(
        staged.apply(&mut &cut[..], &mut ApplyDiffOptions::default()),
        ErrorKind::Archive,
        "an archive that ends early"
    );
    drop(staged);
    ensure!(f.driver().list_layers()?.is_empty(), "a layer stays after a bad archive");
    nothing_staged(f)
}

fn side_by_side(f: &Fixture) -> Checked {
    let base = base(f)?;
    let options = CreateOptions::default();
    let mut staged = (0..5).map(|_| f.driver().begin_staged(Some(&base), &options)).collect::<Result<Vec<_>, _>>()?;
    for (i, layer) in staged.iter_mut().enumerate() {
        let archive = Archive::new().file(&format!("file-{i}"), b"x").finish();
        layer.apply(&mut &archive[..], &mut ApplyDiffOptions::default())?;
    }
    for (i, layer) in staged.into_iter().enumerate().rev() {
        layer.publish(&LayerId::new(format!("layer-{i}"))?)?;
    }
    for i in 0..5 {
        let names = f.snapshot(&LayerId::new(format!("layer-{i}"))?)?.names();
        ensure_eq!(names, [format!("file-{i}"), "gone".into(), "kept".into()], "layer {i}");
    }
    nothing_staged(f)
}
