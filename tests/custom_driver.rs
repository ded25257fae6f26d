//! `examples/custom_driver.rs`: a driver of somebody else's is chosen by storage.conf, shown, and keeps the contract.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Examples lie beside the directory of the tests.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples/custom_driver")
}

/// A directory with a storage.conf that ends in `more`.
fn fixture(driver: &str, more: &str) -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("graphdriver-custom-").tempdir_in("/var/tmp").unwrap();
    let at = dir.path().display();
    let conf = format!("[storage]\n{driver}graphroot = \"{at}/graph\"\nrunroot = \"{at}/run\"\n{more}");
    std::fs::write(dir.path().join("storage.conf"), conf).unwrap();
    dir
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(example()).arg(dir.join("storage.conf")).args(arguments).output().unwrap();
    if !output.status.success() {
        eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    output
}

#[test]
fn storage_conf_chooses_it_and_status_tells_why() {
    let dir = fixture("driver = \"hardcopy\"\n", "[storage.options.hardcopy]\nnote = \"mine\"\ncolour = 1\n");
    let refused = run(dir.path(), &["status"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("hardcopy.colour: unknown option"));

    let dir =
        fixture("driver = \"hardcopy\"\n", "[storage.options.hardcopy]\nnote = \"mine\"\n[storage.options]\nx = 1\n");
    let output = run(dir.path(), &["status"]);
    assert!(output.status.success());
    let at = dir.path().display();
    let text = String::from_utf8(output.stdout).unwrap();
    let backing = text.lines().find(|line| line.starts_with("Backing Filesystem: ")).unwrap();
    let expected = format!(
        "Configuration: {at}/storage.conf\n\
         Notice: {at}/storage.conf:8: unknown key storage.options.x\n\
         Root: {at}/graph\n\
         Driver Name: hardcopy (it was asked for by name)\n\
         Driver Options: [hardcopy.note=mine]\n\
         {backing}\n\
         Candidate: hardcopy: chosen\n\
         Candidate: overlay: not tried: another was chosen first\n\
         Candidate: aufs: not tried: another was chosen first\n\
         Candidate: vfs: not tried: another was chosen first\n\
         Layers: 0\n\
         Note: mine\n"
    );
    assert_eq!(text, expected);

    // Without a name the store's own driver is found again, before any other is tried.
    let conf = std::fs::read_to_string(dir.path().join("storage.conf")).unwrap();
    std::fs::write(dir.path().join("storage.conf"), conf.replace("driver = \"hardcopy\"\n", "")).unwrap();
    let text = String::from_utf8(run(dir.path(), &["status"]).stdout).unwrap();
    assert!(text.contains("Driver Name: hardcopy (the store was made with it)\n"), "{text}");
    assert!(text.contains("Candidate: hardcopy: chosen (has layers here)\n"), "{text}");
}

#[test]
fn it_passes_the_conformance_suite() {
    let dir = fixture("driver = \"hardcopy\"\n", "");
    let place = dir.path().join("place");
    let output = run(dir.path(), &["conformance", place.to_str().unwrap()]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let passed = text.lines().filter(|line| line.starts_with("passed")).count();
    for line in text.lines().filter(|line| line.starts_with("skipped")) {
        eprintln!("{line}");
    }
    assert!(passed > 40, "only {passed} cases were run:\n{text}");
    assert!(!place.exists());
}
