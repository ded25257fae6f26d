//! What layers change, and layers made of changes.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::Row;
use crate::ground::{Ground, merged, random_file};

pub(crate) const ROWS: &[Row] = &[
    Row::new("changes", changes).everywhere(),
    Row::new("diff", diff).everywhere(),
    Row::new("diffsize", diff_size).everywhere(),
    Row::new("apply-diff", apply_diff).everywhere(),
    Row::new("apply-diff-flags-behind-the-verb", flags_behind),
    Row::new("apply-diff-from-staging-directory", staging_directory).only("overlay").everywhere(),
    Row::new("apply-junk", apply_junk).everywhere(),
    Row::new("apply-zeros", apply_zeros),
    Row::new("import-layer", import_layer).everywhere(),
];

fn changes(ground: &Ground) {
    let layers = ground.populate();
    ground.check_changes(&layers);
    for layer in &layers {
        ground.mount(layer);
    }
    ground.check_changes(&layers);
    for layer in &layers {
        ground.ok(&["unmount", layer]);
    }
}

fn diff(ground: &Ground) {
    let layers = ground.populate();
    ground.check_diffs(&layers);
    for layer in &layers {
        ground.mount(layer);
    }
    ground.check_diffs(&layers);
    for layer in &layers {
        ground.ok(&["unmount", layer]);
    }
    // Without a file the archive is all there is on standard output.
    let out = ground.storage(&["--debug=false", "diff", &layers[0]]).output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    assert_eq!(out.stdout, fs::read(ground.path("lower.tar")).unwrap());
    for flag in ["-b", "--bz2", "--xz"] {
        assert!(ground.fails(&["diff", flag, &layers[0]]).contains("unsupported compression format tar."));
    }
    assert_eq!(ground.fails(&["diff", "nosuch"]), "layer not known");
}

fn diff_size(ground: &Ground) {
    for layer in ground.populate() {
        let size: u64 = ground.ok(&["diffsize", &layer]).parse().unwrap();
        assert!(size > 0, "{layer}");
    }
}

/// Deletes the three layers and makes the same again of their archives.
fn apply_diff(ground: &Ground) {
    let layers = ground.populate();
    ground.check_diffs(&layers);
    for layer in layers.iter().rev() {
        assert_eq!(ground.ok(&["delete-layer", layer]), "");
    }
    let mut parent = String::new();
    let layers = ["lower.tar", "middle.tar", "upper.tar"].map(|name| {
        parent = ground.id(&["create-layer", &parent]);
        assert_eq!(ground.ok(&["applydiff", "-f", &ground.text(name), &parent]), "");
        parent.clone()
    });
    let archives = ["lower.tar", "upper.tar"].map(|name| fs::read(ground.path(name)).unwrap());
    ground.check_changes(&layers);
    ground.check_diffs(&layers);
    let again = ["lower.tar", "upper.tar"].map(|name| fs::read(ground.path(name)).unwrap());
    assert!(archives == again, "not the bytes that were put in");
}

/// Once the global flags come last, and the archive on standard input.
fn flags_behind(ground: &Ground) {
    let layers = ground.populate();
    ground.check_diffs(&layers);
    let copy = ground.id(&["create-layer"]);
    let (graph, run) = (ground.text("root"), ground.text("runroot"));
    let mut command = ground.bare();
    command.args(["apply-diff", "--graph", &graph, "--run", &run, "-s", ground.driver]);
    if ground.transient {
        command.arg("--transient-store");
    }
    let answer = merged(command.args(["-f", &ground.text("lower.tar"), &copy]));
    assert!(answer.status.success() && answer.output.is_empty(), "{answer:?}");
    let again = ground.id(&["create-layer"]);
    let input = fs::File::open(ground.path("lower.tar")).unwrap();
    let out = ground.storage(&["--debug=false", "applydiff", &again]).stdin(input).output().unwrap();
    assert!(out.status.success() && out.stdout.is_empty() && out.stderr.is_empty(), "{out:?}");
    let changes = ground.sorted_by_second_word(&["changes", &layers[0]]);
    for layer in [&copy, &again] {
        assert_eq!(ground.sorted_by_second_word(&["changes", layer]), changes);
    }
}

/// A directory becomes a layer's content; nothing but a configuration file says which store.
fn staging_directory(ground: &Ground) {
    let source = ground.path("source");
    fs::create_dir(&source).unwrap();
    for name in ["file1", "file2", "file3"] {
        random_file(&source.join(name));
    }
    let status = ground.run(&["status"]);
    let value = |key: &str| status.lines().iter().find_map(|line| line.strip_prefix(key).map(str::to_owned)).unwrap();
    let conf = ground.path("storage.conf");
    let text = format!(
        "[storage]\ndriver=\"overlay\"\ngraphroot=\"{}\"\nrunroot=\"{}\"\n\n[storage.options]\npull_options = {{enable_partial_images = \"true\" }}\n",
        value("Root: "),
        value("Run Root: ")
    );
    fs::write(&conf, text).unwrap();
    let bare = |words: &[&str]| {
        let mut command = ground.bare();
        if ground.transient {
            command.arg("--transient-store");
        }
        let answer = merged(command.env("CONTAINERS_STORAGE_CONF", &conf).args(words));
        assert!(answer.status.success(), "{words:?}: {answer:?}");
        answer.output
    };
    let layer = bare(&["create-layer"]);
    assert_eq!(bare(&["applydiff-using-staging-dir", &layer, source.to_str().unwrap()]), "");
    bare(&["create-image", "--name", "safe-image", &layer]);
    bare(&["create-container", "--name", "foo", "safe-image"]);
    let mounted = bare(&["mount", "foo"]);
    for name in ["file1", "file2", "file3"] {
        let copy = fs::read(std::path::Path::new(&mounted).join(name)).unwrap();
        assert!(copy == fs::read(source.join(name)).unwrap(), "{name}");
    }
    bare(&["unmount", "foo"]);
    let changes = bare(&["changes", &layer]);
    assert_eq!(changes.lines().count(), 3, "{changes}");
}

/// Text is no archive, however it is compressed.
fn apply_junk(ground: &Ground) {
    let text = fs::read("/etc/os-release").unwrap();
    let short = b"this is not enough for the header of an archive\n";
    for program in ["cat", "gzip", "bzip2", "xz", "zstd"] {
        let layer = format!("layer-{program}");
        ground.debugged(&["create-layer", "--id", &layer]);
        for (content, only) in [(&text[..], None), (short, Some("unexpected EOF"))] {
            compress(program, content, &ground.path("junkfile"));
            let answer = ground.run(&["apply-diff", "--file", "junkfile", &layer]);
            assert_eq!(answer.status.code(), Some(1), "{program}: {answer:?}");
            let said = |text: &str| answer.output.contains(text);
            let right = only.map_or_else(|| said("invalid tar header") || said("unexpected EOF"), said);
            assert!(right, "{program}: {answer:?}");
        }
        assert_eq!(ground.ok(&["changes", &layer]), "");
    }
}

/// Zeros are an archive of nothing, and nothing is one, too.
fn apply_zeros(ground: &Ground) {
    for size in [1024, 0] {
        fs::write(ground.path("zeros"), vec![0; size]).unwrap();
        let layer = ground.id(&["create-layer"]);
        assert_eq!(ground.ok(&["apply-diff", "-f", "zeros", &layer]), "");
        let record: serde_json::Value = serde_json::from_str(&ground.ok(&["layer", "-j", &layer])).unwrap();
        let expected = if size == 0 { serde_json::Value::Null } else { size.into() };
        assert_eq!(record[0]["diff-size"], expected, "{record}");
        assert_eq!(ground.ok(&["diff", "-u", &layer]), "\0".repeat(size));
    }
}

/// As `apply-diff`, in one step, also of an archive that comes compressed.
fn import_layer(ground: &Ground) {
    let layers = ground.populate();
    ground.check_diffs(&layers);
    for layer in layers.iter().rev() {
        ground.ok(&["delete-layer", layer]);
    }
    let lower = ground.id(&["import-layer", "-f", &ground.text("lower.tar")]);
    let mid = ground.id(&["import-layer", "-f", &ground.text("middle.tar"), &lower]);
    let upper =
        ground.id(&["import-layer", "--id=upper-layer", "-n", "n1", "-n=n2", "-f", &ground.text("upper.tar"), &mid]);
    assert_eq!(upper, "upper-layer");
    assert_eq!(ground.ok(&["layer", "n2"]).lines().last(), Some("Name: n2"));
    let layers = [lower, mid, upper];
    ground.check_changes(&layers);
    ground.check_diffs(&layers);
    // What came compressed goes out so, unless it is asked for otherwise.
    let out = ground.storage(&["--debug=false", "diff", &layers[1]]).output().unwrap();
    assert!(out.stdout.starts_with(&[0x1f, 0x8b]), "not compressed");
    let record: serde_json::Value = serde_json::from_str(&ground.ok(&["layer", "-j", &layers[1]])).unwrap();
    let plain = ground.storage(&["--debug=false", "diff", "-u", &layers[1]]).output().unwrap().stdout;
    assert_eq!(record[0]["diff-size"], plain.len());
    assert_eq!(record[0]["compression"], 2);
    let sum = merged(Command::new("sh").args(["-c", "gzip -dc <\"$0\" | sha256sum", &ground.text("middle.tar")]));
    assert_eq!(record[0]["diff-digest"], format!("sha256:{}", sum.output.split(' ').next().unwrap()));
}

fn compress(program: &str, content: &[u8], to: &std::path::Path) {
    let file = fs::File::create(to).unwrap();
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(file).spawn().unwrap();
    child.stdin.take().unwrap().write_all(content).unwrap();
    assert!(child.wait().unwrap().success(), "{program}");
}
