//! Differences: as archives, as lists, as sizes; and what applying an archive does.

use graph_archive::apply::{ApplyObserver, ContentPlace};
use graph_archive::entry::Entry;
use graph_archive::idmap::{IdMappings, IdRange};

use super::failure::{ensure, ensure_eq, ensure_kind};
use super::fixture::request;
use super::{Archive, Case, Checked, Fixture, Tree, nothing, tar};
use crate::driver::{ApplyDiffOptions, CreateOptions, DiffRequest};
use crate::error::ErrorKind;
use crate::id::LayerId;

const TOPIC: &str = "diffs";

pub(super) const CASES: &[Case] = &[
    Case { name: "diff_apply", topic: TOPIC, needs: nothing, run: diff_apply },
    Case { name: "changes", topic: TOPIC, needs: nothing, run: changes },
    Case { name: "echo", topic: TOPIC, needs: nothing, run: echo },
    Case { name: "base_is_all_added", topic: TOPIC, needs: nothing, run: base_is_all_added },
    Case { name: "empty_diff", topic: TOPIC, needs: nothing, run: empty_diff },
    Case { name: "whiteouts_in_diff", topic: TOPIC, needs: nothing, run: whiteouts_in_diff },
    Case { name: "size_counts_what_is_there", topic: TOPIC, needs: nothing, run: size_counts_what_is_there },
    Case { name: "same_diff_again", topic: TOPIC, needs: nothing, run: same_diff_again },
    Case { name: "diff_while_mounted", topic: TOPIC, needs: nothing, run: diff_while_mounted },
    Case { name: "observer_sees_all", topic: TOPIC, needs: nothing, run: observer_sees_all },
    Case { name: "failing_observer", topic: TOPIC, needs: nothing, run: failing_observer },
    Case { name: "apply_report", topic: TOPIC, needs: super::layers::owners, run: apply_report },
    Case { name: "apply_whiteouts", topic: TOPIC, needs: nothing, run: apply_whiteouts },
    Case { name: "apply_type_changes", topic: TOPIC, needs: nothing, run: apply_type_changes },
    Case { name: "apply_twice", topic: TOPIC, needs: nothing, run: apply_twice },
    Case { name: "apply_bad_archives", topic: TOPIC, needs: nothing, run: apply_bad_archives },
    Case { name: "apply_stays_inside", topic: TOPIC, needs: nothing, run: apply_stays_inside },
    Case { name: "apply_shifts_ids", topic: TOPIC, needs: super::layers::owners, run: apply_shifts_ids },
    Case { name: "getter_opens_files", topic: TOPIC, needs: nothing, run: getter_opens_files },
    Case { name: "update_id_map", topic: TOPIC, needs: super::layers::owners, run: update_id_map },
];

/// Container ids 0 to 9,999 as host ids from `first`.
pub(super) fn shift_by(first: u32) -> IdMappings {
    let range = IdRange { container_id: 0, host_id: first, size: 10_000 };
    IdMappings { uids: vec![range], gids: vec![range] }
}

/// Bytes that depend on a seed and don't compress away.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(length)
    .collect()
}

fn many_files(tree: &Tree, count: u64, seed: u64) -> Checked {
    if !tree.has("directory-0") {
        tree.dir("directory-0")?;
    }
    for i in 0..count {
        let name = format!("directory-0/file-{i}");
        tree.file(&name, noise(seed + i, 64))?;
        tree.mode(&name, 0o755)?;
    }
    Ok(())
}

fn diff_apply(f: &Fixture) -> Checked {
    const COUNT: u64 = 10;
    let base = f.layer("base", None, |tree| {
        many_files(tree, COUNT, 3)?;
        tree.file("file-remove.txt", "test data")?;
        tree.dir("var")?;
        tree.dir("var/lib")
    })?;
    let upper = f.layer("upper", Some(&base), |tree| {
        many_files(tree, COUNT, 6)?;
        tree.remove("file-remove.txt")?;
        tree.remove("var/lib")
    })?;
    ensure_eq!(f.diff_size(&upper, Some(&base))?, COUNT * 64, "the diff's size");
    let diff = f.diff(&upper, Some(&base))?;
    let copy = LayerId::new("copy")?;
    f.driver().create(&copy, Some(&base), &CreateOptions::default())?;
    let report = f.apply(&copy, Some(&base), &diff)?;
    ensure_eq!(report.content_bytes, COUNT * 64, "bytes of content that apply reports");
    ensure_eq!(report.bytes, diff.len() as u64, "bytes of archive that apply reports");
    let (mounted, tree) = f.mount(&copy)?;
    for i in 0..COUNT {
        ensure_eq!(tree.read(format!("directory-0/file-{i}"))?, noise(6 + i, 64), "file {i}");
    }
    ensure!(!tree.has("file-remove.txt") && !tree.has("var/lib"), "removed things are back");
    ensure!(tree.has("var"), "the parent of a removed directory is gone");
    Ok(mounted.put()?)
}

fn changes(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| many_files(tree, 20, 3))?;
    let mut expected = vec!["C /directory-0".to_owned()];
    let upper = f.layer("upper", Some(&base), |tree| {
        for i in 0..20 {
            let name = format!("directory-0/file-{i}");
            match i % 3 {
                0 => {
                    tree.file(&name, noise(100 + i, 64))?;
                    expected.push(format!("C /{name}"));
                }
                1 => {
                    tree.file(format!("{name}-new"), "new")?;
                    expected.push(format!("A /{name}-new"));
                }
                _ => {
                    tree.remove(&name)?;
                    expected.push(format!("D /{name}"));
                }
            }
        }
        Ok(())
    })?;
    expected.sort_by(|a, b| a[2..].cmp(&b[2..]));
    ensure_eq!(f.changes(&upper, Some(&base))?, expected, "the changes");
    Ok(())
}

/// Removes the path at every depth and makes it anew in the next layer; nothing below shows twice.
fn echo(f: &Fixture) -> Checked {
    const DEPTH: usize = 10;
    let parts: Vec<String> =
        (1..DEPTH).map(|i| format!("subdir{i}")).chain(std::iter::once("file".to_owned())).collect();
    let path = |depth: usize| parts[..=depth].join("/");
    let make = |tree: &Tree, from: usize| {
        for depth in from..DEPTH - 1 {
            tree.dir(path(depth))?;
        }
        tree.file(path(DEPTH - 1), "test data")
    };
    let base = f.layer("base", None, |tree| {
        super::layers::fill_base(tree).or_else(|_| tree.file("a file", "Some data"))?;
        make(tree, 0)
    })?;
    let added: Vec<String> = (0..DEPTH).map(|depth| format!("A /{}", path(depth))).collect();
    let of_base: Vec<_> = f.changes(&base, None)?.into_iter().filter(|line| line.contains("/subdir")).collect();
    ensure_eq!(of_base, added, "changes of the base");
    for depth in 0..DEPTH {
        let above: Vec<String> = (0..depth).map(|i| format!("C /{}", path(i))).collect();
        let removed = f.layer(&format!("removed-{depth}"), Some(&base), |tree| tree.remove(path(depth)))?;
        let again = f.layer(&format!("again-{depth}"), Some(&removed), |tree| make(tree, depth))?;
        // Layers stay mounted during the comparison, as a running container's are.
        let (removed_mount, _) = f.mount(&removed)?;
        let (again_mount, _) = f.mount(&again)?;
        let mut expected = above.clone();
        expected.push(format!("D /{}", path(depth)));
        ensure_eq!(f.changes(&removed, Some(&base))?, expected, "changes where depth {depth} was removed");
        let mut expected = above;
        expected.extend(added[depth..].iter().cloned());
        ensure_eq!(f.changes(&again, Some(&removed))?, expected, "changes where depth {depth} was made anew");
        again_mount.put()?;
        removed_mount.put()?;
    }
    Ok(())
}

fn base_is_all_added(f: &Fixture) -> Checked {
    let id = f.layer("base", None, |tree| {
        tree.dir("empty")?;
        tree.dir("dir")?;
        tree.file("dir/file", "content")?;
        tree.symlink("link", "dir/file")?;
        tree.link("dir/second", "dir/file")?;
        tree.fifo("pipe")
    })?;
    let names = ["dir", "dir/file", "dir/second", "empty", "link", "pipe"];
    ensure_eq!(f.changes(&id, None)?, names.map(|name| format!("A /{name}")), "changes of the base");
    let members = f.diff_members(&id, None)?;
    let listed: Vec<_> = members.iter().map(|m| String::from_utf8_lossy(&m.name).into_owned()).collect();
    ensure_eq!(listed, ["dir/", "dir/file", "dir/second", "empty/", "link", "pipe"], "members of the base's diff");
    ensure_eq!(members[2].flag, b'1', "type flag of the second name");
    ensure_eq!(members[2].target, b"dir/file", "link target of the second name");
    Ok(())
}

fn empty_diff(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("file", "content"))?;
    let id = f.layer("layer", Some(&base), |_| Ok(()))?;
    ensure_eq!(f.changes(&id, Some(&base))?, [""; 0], "changes of an empty layer");
    ensure_eq!(f.diff_size(&id, Some(&base))?, 0, "diff size of an empty layer");
    ensure!(f.diff_members(&id, Some(&base))?.is_empty(), "an empty layer's diff has members");
    // Zero blocks only, or nothing at all, are valid and empty.
    for (name, archive) in [("zeros", vec![0; 1024]), ("nothing", Vec::new())] {
        let id = f.layer_from(name, Some(&base), &archive)?;
        ensure_eq!(f.snapshot(&id)?.names(), ["file"], "a layer from an archive of {name}");
    }
    Ok(())
}

fn whiteouts_in_diff(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        for dir in ["dir", "dir/sub", "other"] {
            tree.dir(dir)?;
            tree.file(format!("{dir}/file"), "base")?;
        }
        tree.file("file", "base")
    })?;
    let upper = f.layer("upper", Some(&base), |tree| {
        tree.remove("dir")?;
        tree.remove("file")?;
        tree.file("other/new", "new")
    })?;
    let names = |members: Vec<super::Member>| -> Vec<String> {
        members.iter().map(|member| String::from_utf8_lossy(&member.name).into_owned()).collect()
    };
    let mut listed = names(f.diff_members(&upper, Some(&base))?);
    listed.sort();
    ensure_eq!(listed, [".wh.dir", ".wh.file", "other/", "other/new"], "members where things were removed");
    ensure_eq!(
        f.changes(&upper, Some(&base))?,
        ["D /dir", "D /file", "C /other", "A /other/new"],
        "changes where things were removed"
    );
    // What comes back over a whiteout is an addition, and needs no opaque mark.
    let top = f.layer("top", Some(&upper), |tree| {
        tree.dir("dir")?;
        tree.file("dir/again", "top")
    })?;
    ensure_eq!(f.changes(&top, Some(&upper))?, ["A /dir", "A /dir/again"], "changes where a name came back");
    ensure_eq!(names(f.diff_members(&top, Some(&upper))?), ["dir/", "dir/again"], "members where a name came back");
    Ok(())
}

fn size_counts_what_is_there(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        tree.file("changed", noise(1, 1000))?;
        tree.file("removed", noise(2, 2000))?;
        tree.file("kept", noise(3, 3000))
    })?;
    ensure_eq!(f.diff_size(&base, None)?, 6000, "size of the base");
    let upper = f.layer("upper", Some(&base), |tree| {
        tree.file("changed", noise(4, 500))?;
        tree.remove("removed")?;
        tree.file("new", noise(5, 250))?;
        tree.link("new-too", "new")?;
        tree.dir("dir")
    })?;
    ensure_eq!(f.diff_size(&upper, Some(&base))?, 750, "size of a changed and an added file with two names");
    Ok(())
}

fn same_diff_again(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| many_files(tree, 5, 1))?;
    let upper = f.layer("upper", Some(&base), |tree| {
        many_files(tree, 3, 9)?;
        tree.remove("directory-0/file-4")
    })?;
    for (id, parent) in [(&base, None), (&upper, Some(&base)), (&upper, None)] {
        ensure!(f.diff(id, parent)? == f.diff(id, parent)?, "two diffs of {id} are different");
    }
    Ok(())
}

fn diff_while_mounted(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("file", "base"))?;
    let id = f.layer("layer", Some(&base), |_| Ok(()))?;
    let (mounted, tree) = f.mount(&id)?;
    tree.file("first", "content")?;
    ensure_eq!(f.changes(&id, Some(&base))?, ["A /first"], "changes while mounted");
    tree.file("second", "content")?;
    ensure_eq!(f.changes(&id, Some(&base))?, ["A /first", "A /second"], "changes after one more");
    ensure_eq!(f.diff_members(&id, Some(&base))?.len(), 2, "members while mounted");
    ensure!(tree.has("second"), "the comparison unmounted the layer");
    Ok(mounted.put()?)
}

#[derive(Default)]
struct Recorder {
    stream: Vec<u8>,
    content: Vec<u8>,
    names: Vec<Vec<u8>>,
    fail_at: Option<usize>,
}

impl Recorder {
    fn take(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.extend_from_slice(bytes);
        match self.fail_at {
            Some(limit) if self.stream.len() > limit => Err(std::io::Error::other("the observer has seen enough")),
            _ => Ok(()),
        }
    }
}

impl ApplyObserver for Recorder {
    fn raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.take(bytes)
    }
    fn begin(&mut self, entry: &Entry, _: ContentPlace) -> std::io::Result<()> {
        self.names.push(entry.path.clone());
        Ok(())
    }
    fn content(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.content.extend_from_slice(bytes);
        self.take(bytes)
    }
    fn lost(&mut self, _: &mut dyn std::io::Read, _: u64) -> std::io::Result<()> {
        Ok(())
    }
}

fn sample() -> Vec<u8> {
    Archive::new()
        .dir("dir/", 0o755)
        .file("dir/file", &noise(1, 1000))
        .xattr("user.key", b"value")
        .file("dir/more", b"more")
        .link("dir/link", "dir/file")
        .symlink("link", "dir/file")
        .file("dir/empty", b"")
        .finish()
}

/// Every byte of the stream, also what follows the end blocks, goes to the observer once and in order.
fn observer_sees_all(f: &Fixture) -> Checked {
    let id = LayerId::new("layer")?;
    f.driver().create(&id, None, &CreateOptions::default())?;
    let mut archive = sample();
    archive.extend_from_slice(&[0; 6000]);
    archive.extend_from_slice(b"trailing");
    let mut seen = Recorder::default();
    let mut options = ApplyDiffOptions { observer: Some(&mut seen), ..ApplyDiffOptions::default() };
    let report = f.driver().apply_diff(&id, None, &mut &archive[..], &mut options)?;
    ensure!(seen.stream == archive, "the observer saw {} bytes, the stream has {}", seen.stream.len(), archive.len());
    ensure_eq!(report.bytes, archive.len() as u64, "bytes reported");
    let names: Vec<_> = seen.names.iter().map(|name| String::from_utf8_lossy(name)).collect();
    ensure_eq!(names, ["dir/", "dir/file", "dir/more", "dir/link", "link", "dir/empty"], "members seen");
    ensure_eq!(seen.content.len(), 1004, "bytes of content seen");
    Ok(())
}

fn failing_observer(f: &Fixture) -> Checked {
    let id = LayerId::new("layer")?;
    f.driver().create(&id, None, &CreateOptions::default())?;
    let mut seen = Recorder { fail_at: Some(700), ..Recorder::default() };
    let mut options = ApplyDiffOptions { observer: Some(&mut seen), ..ApplyDiffOptions::default() };
    let result = f.driver().apply_diff(&id, None, &mut &sample()[..], &mut options);
    ensure!(result.is_err(), "apply_diff succeeds although its observer failed");
    Ok(())
}

fn apply_report(f: &Fixture) -> Checked {
    let id = LayerId::new("layer")?;
    f.driver().create(&id, None, &CreateOptions::default())?;
    let archive = Archive::new()
        .owned_by(5, 6)
        .dir("dir", 0o755)
        .owned_by(0, 0)
        .file("dir/file", b"12345")
        .owned_by(77, 88)
        .whiteout("dir", "gone")
        .finish();
    let report = f.apply(&id, None, &archive)?;
    ensure_eq!((report.entries, report.bytes, report.content_bytes), (3, archive.len() as u64, 5), "the report");
    ensure_eq!((report.uids, report.gids), (vec![0, 5], vec![0, 6]), "ids that the archive uses, whiteouts aside");
    Ok(())
}

fn apply_whiteouts(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        for dir in ["opaque", "kept", "kept/sub"] {
            tree.dir(dir)?;
            tree.file(format!("{dir}/file"), "base")?;
        }
        tree.file("gone", "base")
    })?;
    let archive = Archive::new()
        .whiteout("", "gone")
        .whiteout("", "never-there")
        // The mark stands after what it must not hide: only lower layers' things go.
        .dir("opaque", 0o700)
        .file("opaque/new", b"new")
        .opaque("opaque")
        .file("kept/new", b"new")
        .whiteout("kept", "sub")
        .finish();
    let id = f.layer_from("layer", Some(&base), &archive)?;
    let expected = ["kept", "kept/file", "kept/new", "opaque", "opaque/new"];
    ensure_eq!(f.snapshot(&id)?.names(), expected, "the layer");
    let changes = f.changes(&id, Some(&base))?;
    for line in ["D /gone", "D /kept/sub", "A /opaque/new", "A /kept/new"] {
        ensure!(changes.iter().any(|change| change == line), "{line:?} is not in {changes:?}");
    }
    let copy = f.layer_from("copy", Some(&base), &f.diff(&id, Some(&base))?)?;
    f.snapshot(&copy)?.ensure_equals(&f.snapshot(&id)?, "the diff applied again")
}

fn apply_type_changes(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| {
        tree.file("file-to-dir", "base")?;
        tree.dir("dir-to-file")?;
        tree.file("dir-to-file/file", "base")?;
        tree.symlink("link-to-dir", "dir-to-file")?;
        tree.dir("dir-to-link")?;
        tree.file("dir-to-link/file", "base")
    })?;
    let archive = Archive::new()
        .dir("file-to-dir", 0o755)
        .file("file-to-dir/file", b"new")
        .file("dir-to-file", b"new")
        .dir("link-to-dir", 0o755)
        .file("link-to-dir/file", b"new")
        .symlink("dir-to-link", "link-to-dir")
        .finish();
    let id = f.layer_from("layer", Some(&base), &archive)?;
    let expected = ["dir-to-file", "dir-to-link", "file-to-dir", "file-to-dir/file", "link-to-dir", "link-to-dir/file"];
    ensure_eq!(f.snapshot(&id)?.names(), expected, "the layer");
    ensure_eq!(f.snapshot(&base)?.names().len(), 6, "names of the parent");
    Ok(())
}

fn apply_twice(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("base", "base"))?;
    let id = f.layer_from("layer", Some(&base), &sample())?;
    let before = f.snapshot(&id)?;
    f.apply(&id, Some(&base), &sample())?;
    f.snapshot(&id)?.ensure_equals(&before, "the same archive applied twice")
}

/// Bad input is an error of its own kind, and the layer can still be removed.
fn apply_bad_archives(f: &Fixture) -> Checked {
    let base = f.layer("base", None, |tree| tree.file("file", "base"))?;
    let good = sample();
    let bad: [(&str, Vec<u8>); 5] = [
        ("cut in a header", good[..700].to_vec()),
        ("cut in content", good[..512 * 3].to_vec()),
        ("junk", noise(1, 4096)),
        ("whiteout of nothing", Archive::new().file("dir/.wh.", b"").finish()),
        ("missing link target", Archive::new().link("link", "nowhere").finish()),
    ];
    for (what, archive) in bad {
        let id = LayerId::new("bad")?;
        f.driver().create(&id, Some(&base), &CreateOptions::default())?;
        let result = f.driver().apply_diff(&id, Some(&base), &mut &archive[..], &mut ApplyDiffOptions::default());
        ensure_kind!(result, ErrorKind::Archive, "{what}");
        f.driver().remove(&id)?;
        ensure!(!f.driver().exists(&id)?, "the layer stays after an archive that is {what}");
    }
    ensure_eq!(f.snapshot(&base)?.names(), ["file"], "the parent");
    Ok(())
}

/// Names that climb are refused or stay below the root; links are followed nowhere but in it.
fn apply_stays_inside(f: &Fixture) -> Checked {
    let victim = Tree::new(f.place().join("victim"));
    std::fs::create_dir(victim.at(""))?;
    victim.file("file", "theirs")?;
    let before = victim.snapshot()?;
    let up = "../".repeat(20);
    let absolute = victim.at("").to_string_lossy().into_owned();
    let climbing = format!("{up}{}", absolute.trim_start_matches('/'));
    let archives = [
        Archive::new().file(&format!("{climbing}/new"), b"x"),
        Archive::new().file(&format!("{absolute}/new"), b"x"),
        Archive::new().symlink("link", &absolute).file("link/new", b"x"),
        Archive::new().symlink("link", &climbing).file("link/new", b"x"),
        Archive::new().symlink("link", &format!("{absolute}/file")).file("link", b"x"),
        Archive::new().link("link", &format!("{climbing}/file")).file("link", b"x"),
        Archive::new().symlink("link", &absolute).whiteout("link", "file"),
        Archive::new().symlink("link", &absolute).opaque("link"),
        Archive::new().symlink("link", &absolute).dir("link", 0o700),
        Archive::new().dir("dir", 0o755).whiteout("dir/../../..", "file"),
    ];
    for (number, archive) in archives.into_iter().enumerate() {
        let id = LayerId::new(format!("layer-{number}"))?;
        f.driver().create(&id, None, &CreateOptions::default())?;
        // Whether it is an error is the archive crate's policy; that nothing outside is touched is the contract.
        drop(f.driver().apply_diff(&id, None, &mut &archive.finish()[..], &mut ApplyDiffOptions::default()));
        victim.snapshot()?.ensure_equals(&before, &format!("somebody else's directory after archive {number}"))?;
    }
    Ok(())
}

fn apply_shifts_ids(f: &Fixture) -> Checked {
    let mappings = shift_by(1000);
    let id = LayerId::new("layer")?;
    let options = CreateOptions { mappings: mappings.clone(), ..CreateOptions::default() };
    f.driver().create(&id, None, &options)?;
    let archive = Archive::new().owned_by(1, 2).dir("dir", 0o755).owned_by(3, 4).file("dir/file", b"x").finish();
    let mut apply = ApplyDiffOptions { mappings: mappings.clone(), ..ApplyDiffOptions::default() };
    f.driver().apply_diff(&id, None, &mut &archive[..], &mut apply)?;
    let found = f.snapshot(&id)?;
    let owner = |name: &str| found.nodes.get(name.as_bytes()).map(|node| (node.uid, node.gid));
    ensure_eq!(owner("dir"), Some((1001, 1002)), "owner of the directory on disk");
    ensure_eq!(owner("dir/file"), Some((1003, 1004)), "owner of the file on disk");
    let mut out = Vec::new();
    let asked = DiffRequest { mappings: &mappings, ..request(&id, None) };
    f.driver().diff(&asked, &mut out)?;
    let owners: Vec<_> = tar::members(&out)?.iter().map(|member| (member.uid, member.gid)).collect();
    ensure_eq!(owners, [(1, 2), (3, 4)], "owners in the diff");

    let unmapped = Archive::new().owned_by(20_000, 0).file("file", b"x").finish();
    let result = f.driver().apply_diff(&id, None, &mut &unmapped[..], &mut apply);
    ensure_kind!(result, ErrorKind::Archive, "an id outside the mappings");
    Ok(())
}

fn getter_opens_files(f: &Fixture) -> Checked {
    use std::io::Read;
    let secret = f.place().join("secret");
    std::fs::write(&secret, "secret")?;
    let archive = Archive::new()
        .dir("dir", 0o755)
        .file("dir/file", b"content")
        .symlink("escape", "../../../../../../../../..")
        .finish();
    let id = f.layer_from("layer", None, &archive)?;
    let getter = f.driver().diff_getter(&id)?;
    let mut content = String::new();
    for name in ["dir/file", "./dir/file", "/dir/file"] {
        content.clear();
        getter.get(name.as_bytes())?.read_to_string(&mut content)?;
        ensure_eq!(content, "content", "the file {name:?}");
    }
    let missing = getter.get(b"dir/missing");
    let not_found = |error: &graph_archive::Error| matches!(error, graph_archive::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
    ensure!(missing.as_ref().is_err_and(not_found), "a missing file gives {missing:?}");
    for name in [format!("escape{}", secret.display()), format!("../../../../..{}", secret.display())] {
        ensure!(getter.get(name.as_bytes()).is_err(), "{name:?} leads out of the layer");
    }
    Ok(())
}

/// New owners on disk are no change of the layer.
fn update_id_map(f: &Fixture) -> Checked {
    let fill = |tree: &Tree| {
        tree.dir("dir")?;
        tree.file("dir/file", "content")?;
        tree.link("dir/link", "dir/file")?;
        tree.owner("dir/file", 1, 2)?;
        tree.file("setuid", "content")?;
        tree.mode("setuid", 0o4755)?;
        tree.symlink("symlink", "dir")
    };
    let base = f.layer("base", None, fill)?;
    let id = f.layer("layer", Some(&base), |_| Ok(()))?;
    let before = f.snapshot(&id)?;
    let host = shift_by(1000);
    if let Err(error) = f.driver().update_layer_id_map(&id, &IdMappings::default(), &host, "") {
        return if error.kind() == ErrorKind::Unsupported { Ok(()) } else { Err(error.into()) };
    }
    let mut expected = before.clone();
    for node in expected.nodes.values_mut() {
        node.uid += 1000;
        node.gid += 1000;
    }
    f.snapshot(&id)?.ensure_equals(&expected, "the layer with its new owners")?;
    f.snapshot(&base)?.ensure_equals(&before, "its parent")?;
    let asked = DiffRequest { mappings: &host, ..request(&id, Some(&base)) };
    let found = f.driver().changes(&asked)?;
    ensure!(found.is_empty(), "new owners show as changes: {found:?}");
    // And back: the old owners again.
    f.driver().update_layer_id_map(&id, &host, &IdMappings::default(), "")?;
    f.snapshot(&id)?.ensure_equals(&before, "the layer with its old owners")
}
