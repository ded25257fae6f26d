//! Long chains of layers.

use super::failure::{ensure, ensure_eq, ensure_kind};
use super::{Case, Checked, Fixture, nothing};
use crate::driver::{CreateOptions, GetOptions};
use crate::error::ErrorKind;
use crate::id::LayerId;

const TOPIC: &str = "deep";

pub(super) const CASES: &[Case] = &[
    Case { name: "deep_layer_read", topic: TOPIC, needs: nothing, run: deep_layer_read },
    Case { name: "deepest_chain", topic: TOPIC, needs: has_a_limit, run: deepest_chain },
    Case { name: "deep_whiteouts", topic: TOPIC, needs: nothing, run: deep_whiteouts },
];

fn has_a_limit(fixture: &Fixture) -> Result<(), String> {
    match fixture.driver().capabilities().max_depth {
        None => Err("the driver has no limit of depth".into()),
        Some(limit) if limit > 2_000 => Err(format!("the driver's limit of {limit} layers is too high to try")),
        Some(_) => Ok(()),
    }
}

fn deep_layer_read(f: &Fixture) -> Checked {
    let count = f.driver().capabilities().max_depth.map_or(128, |limit| limit.min(128));
    let mut id = f.layer("layer-0", None, |tree| tree.file("testfile.txt", "test data"))?;
    for i in 1..=count {
        let parent = id;
        let name = format!("layer-{i}");
        id = f.layer(&name, Some(&parent), |tree| {
            tree.file("top-id", &name)?;
            tree.dir(&name)?;
            tree.file(format!("{name}/layer-id"), &name)?;
            tree.file(format!("{name}/parent-id"), parent.as_str())
        })?;
    }
    let (mounted, tree) = f.mount(&id)?;
    ensure_eq!(tree.read("top-id")?, id.as_str().as_bytes(), "top-id");
    for i in (1..=count).rev() {
        let name = format!("layer-{i}");
        ensure_eq!(tree.read(format!("{name}/layer-id"))?, name.as_bytes(), "{name}/layer-id");
        let parent = format!("layer-{}", i - 1);
        ensure_eq!(tree.read(format!("{name}/parent-id"))?, parent.as_bytes(), "{name}/parent-id");
    }
    ensure_eq!(tree.read("testfile.txt")?, b"test data", "the lowest layer's file");
    Ok(mounted.put()?)
}

/// A chain as long as the driver says works, and one layer more is refused with the right error.
fn deepest_chain(f: &Fixture) -> Checked {
    let limit = f.driver().capabilities().max_depth.unwrap_or_default();
    let mut id = f.layer("layer-0", None, |tree| tree.file("lowest", "lowest"))?;
    for i in 1..=limit {
        let parent = id;
        id = LayerId::new(format!("layer-{i}"))?;
        f.driver().create_read_write(&id, Some(&parent), &CreateOptions::default())?;
    }
    f.change(&id, |tree| {
        ensure_eq!(tree.read("lowest")?, b"lowest", "the lowest layer's file");
        tree.file("lowest", "changed")
    })?;
    ensure_eq!(
        f.changes(&id, Some(&LayerId::new(format!("layer-{}", limit - 1))?))?,
        ["C /lowest"],
        "the top's changes"
    );
    let read_only = GetOptions { options: vec!["ro".into()], ..GetOptions::default() };
    f.driver().get(&id, &read_only)?.put()?;

    let beyond = LayerId::new("beyond")?;
    let made = f.driver().create_read_write(&beyond, Some(&id), &CreateOptions::default());
    if made.is_ok() {
        ensure_kind!(f.driver().get(&beyond, &GetOptions::default()), ErrorKind::TooDeep, "{} layers below", limit + 1);
    } else {
        ensure_kind!(made, ErrorKind::TooDeep, "{} layers below", limit + 1);
        ensure!(!f.driver().exists(&beyond)?, "the layer that is too deep exists");
    }
    Ok(())
}

/// Every layer adds a file and every third removes its parent's; the top shows what is left.
fn deep_whiteouts(f: &Fixture) -> Checked {
    let mut id = f.layer("layer-0", None, |tree| tree.file("file-00", "0"))?;
    let mut expected = vec!["file-00".to_owned()];
    for i in 1..40 {
        let parent = id;
        let removed = format!("file-{:02}", i - 1);
        let name = format!("file-{i:02}");
        id = f.layer(&format!("layer-{i}"), Some(&parent), |tree| {
            if i % 3 == 0 {
                tree.remove(&removed)?;
            }
            tree.file(&name, &name)
        })?;
        expected.push(name);
        if i % 3 == 0 {
            expected.retain(|name| *name != removed);
        }
    }
    ensure_eq!(f.snapshot(&id)?.names(), expected, "files of the top");
    Ok(())
}
