//! Layers whose files get other owners.

use graph_archive::idmap::{IdMappings, IdRange};

use super::diffs::shift_by;
use super::failure::{ensure, ensure_eq, ensure_kind};
use super::fixture::{CAPABILITY, request};
use super::{Archive, Case, Checked, Failure, Fixture, Snapshot};
use crate::driver::{ApplyDiffOptions, CreateOptions, DiffRequest, ReownRequest};
use crate::error::ErrorKind;
use crate::id::LayerId;

const TOPIC: &str = "owners";

pub(super) const CASES: &[Case] = &[
    Case { name: "owners_of_all_kinds_of_files", topic: TOPIC, needs: in_place, run: all_kinds_of_files },
    Case { name: "owners_changed_keep_the_archive", topic: TOPIC, needs: in_place, run: changed_keep_the_archive },
    Case { name: "owners_not_covered", topic: TOPIC, needs: in_place, run: not_covered },
    Case { name: "owners_of_unknown_layer", topic: TOPIC, needs: in_place, run: unknown_layer },
    Case { name: "reowned_child_has_no_changes", topic: TOPIC, needs: aside, run: child_has_no_changes },
    Case { name: "reowned_template_is_copied", topic: TOPIC, needs: aside, run: template_is_copied },
    Case { name: "reowned_dropped_or_existing", topic: TOPIC, needs: aside, run: dropped_or_existing },
    Case { name: "reowned_side_by_side", topic: TOPIC, needs: aside, run: side_by_side },
    Case { name: "reowned_again", topic: TOPIC, needs: aside, run: again },
];

/// Owners can be changed at all.
fn in_place(fixture: &Fixture) -> Result<(), String> {
    if !fixture.environment().owners {
        return Err("files cannot be given to other users here".to_owned());
    }
    let id = LayerId::new("probe").map_err(|error| error.to_string())?;
    let driver = fixture.driver();
    driver.create(&id, None, &CreateOptions::default()).map_err(|error| error.to_string())?;
    let result = driver.update_layer_id_map(&id, &IdMappings::default(), &shift_by(1000), "");
    driver.remove(&id).map_err(|error| error.to_string())?;
    match result {
        Err(error) if error.kind() == ErrorKind::Unsupported => Err("the driver does not change owners".to_owned()),
        // Any other failure is for the case to find.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// And aside, without a lock.
fn aside(fixture: &Fixture) -> Result<(), String> {
    in_place(fixture)?;
    let identity = IdMappings::default();
    let request = ReownRequest { parent: None, template: None, mappings: &identity };
    let begun = fixture.driver().begin_reowned(&request, &CreateOptions::default());
    match begun.map(drop) {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            Err("the driver changes the owners of published layers only".to_owned())
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn below() -> Vec<u8> {
    Archive::new()
        .owned_by(3, 4)
        .dir("shared", 0o2775)
        .file("shared/one", b"one")
        .link("shared/two", "shared/one")
        .file("gone", b"gone")
        .dir("hidden", 0o755)
        .file("hidden/old", b"old")
        .finish()
}

fn above(f: &Fixture) -> Vec<u8> {
    let environment = f.environment();
    let mut archive = Archive::new().owned_by(5, 6).dir("own", 0o1770).file("own/file", b"content");
    archive = archive.link("own/link", "own/file").symlink("own/symlink", "file").whiteout("", "gone");
    archive = archive.dir("hidden", 0o711).opaque("hidden").file("hidden/new", b"new");
    archive = archive.member("own/setuid", b'0', 0o6755, b"#!", "").member("own/pipe", b'6', 0o620, b"", "");
    if environment.user_xattrs {
        archive = archive.xattr("user.colour", b"blue").file("own/coloured", b"blue");
    }
    if environment.file_capabilities {
        archive = archive.xattr("security.capability", &CAPABILITY).file("own/capable", b"ping");
    }
    archive.finish()
}

/// Two layers of all kinds of things.
fn layers(f: &Fixture) -> Result<(LayerId, LayerId), Failure> {
    let base = f.layer_from("base", None, &below())?;
    let top = f.layer_from("top", Some(&base), &above(f))?;
    Ok((base, top))
}

fn shifted(before: &Snapshot, by: u32) -> Snapshot {
    let mut after = before.clone();
    for node in after.nodes.values_mut() {
        node.uid = node.uid.saturating_add(by);
        node.gid = node.gid.saturating_add(by);
    }
    after
}

fn by_mappings(f: &Fixture, asked: &DiffRequest<'_>) -> Result<(Vec<u8>, Vec<String>), Failure> {
    let mut archive = Vec::new();
    f.driver().diff(asked, &mut archive)?;
    let mut members: Vec<String> = super::tar::members(&archive)?.iter().map(|member| format!("{member:?}")).collect();
    members.sort_unstable();
    let changes = f.driver().changes(asked)?;
    members.extend(changes.iter().map(|change| format!("{change:?}")));
    Ok((archive, members))
}

fn all_kinds_of_files(f: &Fixture) -> Checked {
    let (base, top) = layers(f)?;
    let (below, before) = (f.snapshot(&base)?, f.snapshot(&top)?);
    ensure!(
        !before.nodes.contains_key(&b"gone"[..]) && !before.nodes.contains_key(&b"hidden/old"[..]),
        "what is hidden"
    );
    f.driver().update_layer_id_map(&top, &IdMappings::default(), &shift_by(2000), "")?;
    f.snapshot(&top)?.ensure_equals(&shifted(&before, 2000), "the layer with its new owners")?;
    f.snapshot(&base)?.ensure_equals(&below, "its parent")?;
    f.driver().update_layer_id_map(&top, &shift_by(2000), &shift_by(4000), "")?;
    f.snapshot(&top)?.ensure_equals(&shifted(&before, 4000), "the layer with owners changed twice")?;
    // A driver that was opened later sees the same.
    let again = f.open_again()?;
    let mounted = again.get(&top, &crate::driver::GetOptions::default())?;
    let found = super::Tree::new(mounted.path()).snapshot()?;
    mounted.put()?;
    found.ensure_equals(&shifted(&before, 4000), "the layer, opened again")
}

fn changed_keep_the_archive(f: &Fixture) -> Checked {
    let (base, top) = layers(f)?;
    let before = by_mappings(f, &request(&top, Some(&base)))?.1;
    let size = f.diff_size(&top, Some(&base))?;
    let host = shift_by(2000);
    f.driver().update_layer_id_map(&top, &IdMappings::default(), &host, "")?;
    let asked = DiffRequest { mappings: &host, ..request(&top, Some(&base)) };
    let after = by_mappings(f, &asked)?.1;
    // A whiteout may bear the time at which the archive was made.
    let untimed = |lines: Vec<String>| lines.into_iter().filter(|line| !line.contains(".wh.")).collect::<Vec<_>>();
    ensure_eq!(untimed(after), untimed(before), "archive and changes by the new mappings");
    ensure_eq!(f.driver().diff_size(&asked)?, size, "size of the differences");
    Ok(())
}

fn not_covered(f: &Fixture) -> Checked {
    let (_, top) = layers(f)?;
    let before = f.snapshot(&top)?;
    let range = vec![IdRange { container_id: 0, host_id: 4, size: 100 }];
    // On disk there are owners below 4, which these mappings know of no container's.
    let few = IdMappings { uids: range.clone(), gids: range };
    let result = f.driver().update_layer_id_map(&top, &few, &shift_by(1000), "");
    ensure_kind!(result, ErrorKind::Archive, "owners that the mappings do not cover");
    if f.driver().capabilities().staging {
        f.snapshot(&top)?.ensure_equals(&before, "the layer after the error")?;
    }
    Ok(())
}

fn unknown_layer(f: &Fixture) -> Checked {
    let unknown = LayerId::new("unknown")?;
    let result = f.driver().update_layer_id_map(&unknown, &IdMappings::default(), &shift_by(1000), "");
    ensure_kind!(result, ErrorKind::NotFound, "an unknown layer");
    ensure!(!f.driver().exists(&unknown)?, "the unknown layer exists now");
    Ok(())
}

fn reown(f: &Fixture, name: &str, asked: &ReownRequest<'_>, mappings: &IdMappings) -> Result<LayerId, Failure> {
    let id = LayerId::new(name)?;
    let options = CreateOptions { mappings: mappings.clone(), ..CreateOptions::default() };
    let mut staged = f.driver().begin_reowned(asked, &options)?;
    staged.flush()?;
    ensure!(!f.driver().exists(&id)?, "the layer exists before publishing");
    staged.publish(&id)?;
    Ok(id)
}

fn child_has_no_changes(f: &Fixture) -> Checked {
    let (base, top) = layers(f)?;
    let before = f.snapshot(&top)?;
    let (identity, host) = (IdMappings::default(), shift_by(3000));
    let asked = ReownRequest { parent: Some(&top), template: None, mappings: &identity };
    let child = reown(f, "child", &asked, &host)?;
    f.snapshot(&child)?.ensure_equals(&shifted(&before, 3000), "the child")?;
    f.snapshot(&top)?.ensure_equals(&before, "its parent")?;
    let asked = DiffRequest { mappings: &host, ..request(&child, Some(&top)) };
    let found = f.driver().changes(&asked)?;
    ensure!(found.is_empty(), "new owners show as changes: {found:?}");
    ensure_eq!(f.driver().diff_size(&asked)?, 0, "size of the differences");
    // What is written then is a change, and nothing else is.
    f.change(&child, |tree| tree.file("shared/new", "new").and_then(|()| tree.owner("shared/new", 3001, 3002)))?;
    let found: Vec<_> = f.driver().changes(&asked)?.into_iter().map(|change| change.path).collect();
    ensure!(found.iter().any(|path| path == b"/shared/new"), "the new file is no change: {found:?}");
    ensure!(found.iter().all(|path| path.starts_with(b"/shared")), "more than what was written: {found:?}");
    let archive = by_mappings(f, &asked)?.0;
    let copy = f.layer_from("copy", Some(&top), &archive)?;
    ensure_eq!(f.snapshot(&copy)?.nodes[&b"shared/new"[..]].uid, 1, "owner in the archive, by the mappings");
    ensure_eq!(f.snapshot(&base)?.names().len(), 6, "names of the base");
    Ok(())
}

fn template_is_copied(f: &Fixture) -> Checked {
    let (base, top) = layers(f)?;
    let before = f.snapshot(&top)?;
    let members = by_mappings(f, &request(&top, Some(&base)))?.1;
    let (identity, host) = (IdMappings::default(), shift_by(3000));
    let asked = ReownRequest { parent: Some(&base), template: Some(&top), mappings: &identity };
    let copy = reown(f, "copy", &asked, &host)?;
    f.snapshot(&copy)?.ensure_equals(&shifted(&before, 3000), "the copy")?;
    let asked = DiffRequest { mappings: &host, ..request(&copy, Some(&base)) };
    let untimed = |lines: Vec<String>| lines.into_iter().filter(|line| !line.contains(".wh.")).collect::<Vec<_>>();
    ensure_eq!(untimed(by_mappings(f, &asked)?.1), untimed(members), "archive and changes of the copy");
    // It does not need the template.
    f.driver().remove(&top)?;
    f.snapshot(&copy)?.ensure_equals(&shifted(&before, 3000), "the copy without its template")
}

fn dropped_or_existing(f: &Fixture) -> Checked {
    let (_, top) = layers(f)?;
    let (identity, before) = (IdMappings::default(), f.driver().list_layers()?);
    let options = CreateOptions { mappings: shift_by(3000), ..CreateOptions::default() };
    let asked = ReownRequest { parent: Some(&top), template: None, mappings: &identity };
    drop(f.driver().begin_reowned(&asked, &options)?);
    ensure_kind!(
        f.driver().begin_reowned(&asked, &options)?.publish(&top),
        ErrorKind::Exists,
        "publishing over a layer"
    );
    let unknown = LayerId::new("unknown")?;
    let asked = ReownRequest { parent: Some(&unknown), template: None, mappings: &identity };
    ensure_kind!(f.driver().begin_reowned(&asked, &options).map(drop), ErrorKind::NotFound, "an unknown parent");
    ensure_eq!(f.driver().list_layers()?, before, "the layers");
    Ok(())
}

fn side_by_side(f: &Fixture) -> Checked {
    let (base, top) = layers(f)?;
    let before = f.snapshot(&top)?;
    let identity = IdMappings::default();
    let copies: Vec<_> = std::thread::scope(|scope| {
        let work = |n: u32| {
            let identity = &identity;
            let (base, top) = (&base, &top);
            scope.spawn(move || {
                let asked = ReownRequest { parent: Some(base), template: Some(top), mappings: identity };
                reown(f, &format!("copy{n}"), &asked, &shift_by(1000 * n)).map(|id| (n, id))
            })
        };
        let threads: Vec<_> = (1..=3).map(work).collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    for copy in copies {
        let (n, id) = copy.map_err(|_| Failure::new("a thread panicked"))??;
        f.snapshot(&id)?.ensure_equals(&shifted(&before, 1000 * n), "a copy made beside others")?;
    }
    Ok(())
}

/// From one mapping to the next, then applied to as any layer is.
fn again(f: &Fixture) -> Checked {
    let (_, top) = layers(f)?;
    let before = f.snapshot(&top)?;
    let (identity, first, second) = (IdMappings::default(), shift_by(2000), shift_by(5000));
    let one = reown(f, "one", &ReownRequest { parent: Some(&top), template: None, mappings: &identity }, &first)?;
    let two = reown(f, "two", &ReownRequest { parent: Some(&one), template: None, mappings: &first }, &second)?;
    f.snapshot(&two)?.ensure_equals(&shifted(&before, 5000), "owners changed twice")?;
    let asked = DiffRequest { mappings: &second, parent_mappings: &first, ..request(&two, Some(&one)) };
    ensure_eq!(f.driver().changes(&asked)?, [], "changes");
    let archive = Archive::new().owned_by(7, 8).whiteout("own", "file").file("own/later", b"later").finish();
    let mut options = ApplyDiffOptions { mappings: second.clone(), ..ApplyDiffOptions::default() };
    f.driver().apply_diff(&two, Some(&one), &mut &archive[..], &mut options)?;
    let found = f.snapshot(&two)?;
    ensure!(!found.nodes.contains_key(&b"own/file"[..]), "a deleted file is there");
    let later = &found.nodes[&b"own/later"[..]];
    ensure_eq!((later.uid, later.gid), (5007, 5008), "owner of an applied file");
    ensure_eq!(f.driver().changes(&asked)?.len(), 3, "changes: the directory and two files in it");
    Ok(())
}
