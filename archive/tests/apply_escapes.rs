//! Nothing outside the root is read, made, changed or removed, whatever the archive says and whoever else is at work.

#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking
#![allow(clippy::disallowed_methods)] // trees are looked at by path, as their users do

mod apply_support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use apply_support::{
    Member, Tree, apply_plain, apply_with, dir, file, link, member, messages, name, overlay, symlink, tree,
};
use graph_archive::EntryKind;
use graph_archive::apply::{ApplyOptions, WhiteoutForm, XattrNamespace};

/// `outside/root` is applied to; canaries stand beside it, above it, and where absolute names lead.
struct Yard {
    scratch: tempfile::TempDir,
}

impl Yard {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let yard = Self { scratch };
        for (path, content) in [
            ("victim/hello", "hello"),
            ("victim/below/deep", "deep"),
            ("outside/victim/hello", "hello"),
            ("outside/canary", "canary"),
            ("canary", "canary"),
        ] {
            let path = yard.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        std::fs::create_dir(yard.root()).unwrap();
        yard
    }
    fn path(&self) -> &Path {
        self.scratch.path()
    }
    fn root(&self) -> PathBuf {
        self.path().join("outside/root")
    }
    /// All but the root, with link counts of inodes as part of what is compared by grouping.
    fn outside(&self) -> Tree {
        let mut all = tree(self.path());
        let root = name(b"outside/root");
        all.nodes.retain(|path, _| !path.starts_with(&root));
        all.same.retain(|path, _| !path.starts_with(&root));
        // The directory that holds the root sees nothing of what happens in it.
        all
    }
    /// Applies in both forms, and in the overlay form over an older layer too; asserts that nothing outside changed.
    fn attack(layers: &[&[Member]]) -> Vec<Result<Tree, String>> {
        let mut results = Vec::new();
        for form in ["plain", "trusted", "user"] {
            let yard = Yard::new();
            let before = yard.outside();
            let mut lowers = Vec::new();
            let mut result = Ok(());
            let mut root = yard.root();
            for (number, layer) in layers.iter().enumerate() {
                let options = match form {
                    "plain" => ApplyOptions::default(),
                    "trusted" => overlay(XattrNamespace::Trusted, WhiteoutForm::CharDevice, &lowers),
                    _ => overlay(XattrNamespace::User, WhiteoutForm::Xattr, &lowers),
                };
                if form != "plain" {
                    root = yard.root().join(format!("layer{number}"));
                }
                result = apply_with(&root, layer, options).map(|_| ());
                lowers.insert(0, root.clone());
                if result.is_err() {
                    break;
                }
            }
            assert_eq!(yard.outside(), before, "{form}");
            results.push(result.map(|()| tree(&root)).map_err(|error| messages(&error)));
        }
        results
    }
}

#[test]
fn breakout_matrix() {
    let victim = "../victim";
    let cases: Vec<(&str, Vec<Member>)> = vec![
        ("dotdot name", vec![file("../victim/x", "x")]),
        ("rooted dotdot name", vec![file("/../victim/x", "x")]),
        ("absolute name", vec![file("/victim/hello", "x")]),
        ("many dotdots", vec![file("../../../../../../../victim/hello", "x")]),
        ("dotdot inside", vec![dir("a"), file("a/../../victim/hello", "x")]),
        ("hard link out", vec![link("x", "../victim/hello")]),
        ("rooted hard link out", vec![link("x", "/../victim/hello")]),
        ("hard link to dir", vec![link("loop", victim), file("loop/x", "x")]),
        ("hard link to dir, symlink through", vec![link("loop", victim), symlink("s", "loop/hello"), file("s", "x")]),
        ("hard link to dir, hard link through", vec![link("loop", victim), link("h", "loop/hello")]),
        ("hard link to dir, file over", vec![link("loop", victim), file("loop", "x")]),
        ("symlink to dir", vec![symlink("loop", victim), file("loop/x", "x")]),
        ("symlink to dir, overwrite", vec![symlink("loop", victim), file("loop/hello", "x")]),
        ("symlink, symlink through", vec![symlink("loop", victim), symlink("s", "loop/hello"), file("s", "x")]),
        ("symlink, hard link through", vec![symlink("loop", victim), link("h", "loop/hello"), file("h", "x")]),
        ("symlink, file over", vec![symlink("loop", "../victim/hello"), file("loop", "x")]),
        ("symlink in path", vec![symlink("dir/loophole", "../../victim"), file("dir/loophole/newdir/newfile", "x")]),
        ("symlink, directory through", vec![symlink("loop", victim), dir("loop/below").mode(0).owner(7, 7)]),
        ("symlink restated as dir", vec![symlink("loop", victim), dir("loop").mode(0).owner(7, 7)]),
        ("symlink, whiteout through", vec![symlink("loop", victim), file("loop/.wh.hello", "")]),
        ("symlink, opaque through", vec![symlink("loop", victim), file("loop/.wh..wh..opq", "")]),
        (
            "chained symlinks",
            vec![symlink("a", ".."), symlink("b", "a/.."), symlink("c", "b/victim"), file("c/x", "x")],
        ),
        ("absolute symlink", vec![symlink("loop", "/victim"), file("loop/hello", "x")]),
        ("proc symlink", vec![symlink("p", "/proc/self/cwd"), file("p/x", "x")]),
        ("xattr through symlink", vec![symlink("loop", "../victim/hello").xattr("trusted.x", "1")]),
        ("link to symlink out", vec![symlink("s", "../victim/hello"), link("h", "s"), file("h", "x")]),
        ("forward link through symlink", vec![link("h", "s/hello"), symlink("s", victim)]),
        (
            "device through symlink",
            vec![symlink("loop", victim), member("loop/hello", EntryKind::CharDevice { major: 1, minor: 3 })],
        ),
        ("fifo through symlink", vec![symlink("loop", victim), member("loop/hello", EntryKind::Fifo)]),
    ];
    for (case, members) in cases {
        // All in one layer, and every member in a layer of its own, so that the links are those of lower layers.
        let one: Vec<&[Member]> = vec![&members];
        let many: Vec<&[Member]> = members.chunks(1).collect();
        for layers in [one, many] {
            let results = Yard::attack(&layers);
            eprintln!("{case}: {:?}", results.iter().map(|tree| tree.as_ref().map(Tree::paths)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn names_land_inside_the_root() {
    for (path, lands) in [("/../file", "file"), ("../file", "file"), ("a/../../file", "file"), ("/a/./b//c", "a/b/c")] {
        for result in Yard::attack(&[&[file(path, "x")]]) {
            assert!(result.unwrap().nodes.contains_key(Path::new(lands)), "{path}");
        }
    }
}

#[test]
fn symlinks_are_resolved_inside_the_root() {
    for target in ["/", "/../", "../../../../../../../../../../../../../../../..", "/./.././..", "..", "../", "."] {
        for layers in [
            vec![vec![symlink("link", target), file("link/file", "x")]],
            vec![vec![symlink("link", target)], vec![file("link/file", "x")]],
        ] {
            let layers: Vec<&[Member]> = layers.iter().map(Vec::as_slice).collect();
            for result in Yard::attack(&layers) {
                assert!(result.unwrap().nodes.contains_key(Path::new("file")), "{target}");
            }
        }
    }
    let results = Yard::attack(&[&[symlink("l", "/tmp/x"), file("l/victim", "x")]]);
    for result in results {
        let found = result.unwrap();
        assert_eq!(found.nodes[Path::new("tmp/x/victim")].content, b"x");
        assert_eq!(found.nodes[Path::new("l")].content, b"/tmp/x");
    }
    for result in Yard::attack(&[&[symlink("l", "nowhere/deep"), file("l/b/c", "x")]]) {
        assert_eq!(result.unwrap().paths(), ["l", "nowhere", "nowhere/deep", "nowhere/deep/b", "nowhere/deep/b/c"]);
    }
}

#[test]
fn what_cannot_be_inside_is_an_error() {
    let long = "x".repeat(256);
    let table: Vec<(Vec<Member>, &str)> = vec![
        (vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "")], "too many levels of symbolic links"),
        (vec![file(&long, "")], "invalid member name"),
        (vec![file(format!("a/{long}/b"), "")], "invalid member name"),
        (vec![symlink("a", &long), file("a/x", "")], "invalid member name"),
        (vec![symlink("./", "/")], "the layer's root must be a directory"),
        (vec![symlink("/.", "..")], "the layer's root must be a directory"),
        (vec![file("..", "")], "the layer's root must be a directory"),
        (vec![link("/", "x")], "the layer's root must be a directory"),
        (vec![link("x", "/")], "hard link target is a directory"),
        (vec![dir("d"), link("x", "d")], "hard link target is a directory"),
        (vec![link("x", "nothing")], "hard link target does not exist"),
        (vec![link("x", "x")], "hard link target does not exist"),
        (vec![link("x", "../victim/hello")], "hard link target does not exist"),
        (vec![file(".wh..", "")], "invalid whiteout name"),
        (vec![file(".wh...", "")], "invalid whiteout name"),
        (vec![dir("d"), file("d/.wh..", "")], "invalid whiteout name"),
        (vec![dir("d"), file("d/.wh...", "")], "invalid whiteout name"),
        (vec![file(".wh.", "")], "invalid whiteout name"),
        (vec![file(".wh.d/x", "")], "invalid whiteout name"),
        (vec![member("dev", EntryKind::CharDevice { major: 0, minor: 0 })], "would become a whiteout"),
        // Would be 0:0 once it is cut to what Linux has.
        (
            vec![member("dev", EntryKind::CharDevice { major: 0x1000, minor: 0 })],
            "device number is not a number that fits",
        ),
        (
            vec![member("dev", EntryKind::CharDevice { major: 0, minor: 0x10_0000 })],
            "device number is not a number that fits",
        ),
        (vec![file("f", "").owner(u32::MAX, 0)], "uid is not a number that fits"),
        (vec![file("f", "").xattr("user.".to_owned() + &long, "")], "invalid extended attribute name"),
        (vec![file("f", "").xattr("user.flood", vec![0; 70_000])], "set extended attribute of"),
    ];
    for (members, message) in table {
        for result in Yard::attack(&[&members]) {
            let error = result.map(|tree| tree.nodes).unwrap_err();
            assert!(error.contains(message), "{error} for {message}");
        }
    }
}

#[test]
fn deep_names_work_however_deep() {
    let path = vec!["d"; 3000].join("/");
    // Such a tree is too deep for paths, so it is only removed again, by the removal that needs none.
    let yard = Yard::new();
    let report = apply_plain(&yard.root(), &[file(&path, "x"), file(format!("{path}2"), "y")]).unwrap();
    assert_eq!(report.entries, 2);
    let outside = std::fs::File::open(yard.path().join("outside")).unwrap();
    graph_sys::remove::remove_tree(&outside, "root").unwrap();
    assert!(!yard.root().exists());
}

#[test]
fn directories_swapped_for_symlinks_meanwhile_lead_nowhere() {
    let yard = Yard::new();
    let before = yard.outside();
    let root = yard.root();
    let stop = AtomicBool::new(false);
    let victim = yard.path().join("victim");
    std::thread::scope(|scope| {
        // Swaps d/e for a symbolic link out of the root, and back, as fast as it can.
        scope.spawn(|| {
            let (real, spare) = (root.join("d/e"), root.join("spare"));
            while !stop.load(Ordering::Relaxed) {
                let _lost = std::fs::rename(&real, &spare);
                let _lost = std::os::unix::fs::symlink(&victim, &real);
                std::thread::yield_now();
                let _lost = std::fs::remove_file(&real);
                let _lost = std::fs::rename(&spare, &real);
            }
        });
        let mut outcomes = [0u32; 2];
        for round in 0..300 {
            let layer = [
                dir("d"),
                dir("d/e").mode(0o700),
                file("d/e/hello", format!("{round}")),
                file("d/e/.wh.below", ""),
                file("d/e/below/deep", "x"),
                link("d/e/h", "d/e/hello"),
                file("d/e/hello", "again"),
                file("d/e/.wh..wh..opq", ""),
                dir("d/e/below").owner(7, 7).mode(0o777),
                symlink("d/e/s", "hello"),
                file("d/e/../e/hello", "x").xattr("trusted.x", "y"),
            ];
            outcomes[usize::from(apply_plain(&root, &layer).is_err())] += 1;
        }
        stop.store(true, Ordering::Relaxed);
        eprintln!("{} layers applied, {} refused", outcomes[0], outcomes[1]);
    });
    assert_eq!(yard.outside(), before);
}
