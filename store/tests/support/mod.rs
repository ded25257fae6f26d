//! A throw-away store, the peer's command line on it, and small archives to fill it with.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use graph_store::{Store, StoreOptions};

/// The drivers that every test is run with.
pub(crate) const DRIVERS: [&str; 2] = ["overlay", "vfs"];

/// A store's two roots below a temporary directory, in a mount namespace of the test's own thread.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) driver: &'static str,
}

/// Gives the thread its own mounts, and says why a test is skipped where that cannot be had.
pub(crate) fn isolated() -> bool {
    match graph_sys::namespace::private_mounts() {
        Ok(()) => true,
        Err(error) => {
            eprintln!("skipped: no mount namespace of our own ({error}); run as root");
            false
        }
    }
}

/// Whether a program is here; otherwise says that the test is skipped.
pub(crate) fn has_program(name: &str) -> bool {
    let there = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        eprintln!("skipped: {name} is not installed");
    }
    there
}

impl Place {
    pub(crate) fn new(driver: &'static str) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), driver }
    }

    /// One in memory, where there is room for that: for tests that make hundreds of stores and would wait for the disk
    /// most of the time.
    pub(crate) fn in_memory(driver: &'static str) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { dir, driver }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn options(&self) -> StoreOptions {
        StoreOptions {
            root: self.root(),
            run_root: self.run(),
            driver: Some(self.driver.to_owned()),
            ..StoreOptions::default()
        }
    }

    pub(crate) fn open(&self) -> Store {
        let store = Store::open(self.options(), &graph_drivers::registry().unwrap()).unwrap();
        assert_eq!(store.warnings(), [] as [String; 0]);
        store
    }

    /// The same with other options.
    pub(crate) fn open_with(&self, options: StoreOptions) -> Store {
        let store = Store::open(options, &graph_drivers::registry().unwrap()).unwrap();
        assert_eq!(store.warnings(), [] as [String; 0]);
        store
    }

    /// The records of a kind, as text.
    pub(crate) fn json(&self, kind: &str) -> String {
        let path = self.root().join(format!("{}-{kind}/{kind}.json", self.driver));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    fn peer_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("containers-storage");
        command.arg("--graph").arg(self.root()).arg("--run").arg(self.run()).args(["-s", self.driver]).args(words);
        command
    }

    /// Output of the peer's command line, which must succeed.
    pub(crate) fn peer(&self, words: &[&str]) -> String {
        String::from_utf8(self.peer_bytes(words)).unwrap().trim_end().to_owned()
    }

    pub(crate) fn peer_bytes(&self, words: &[&str]) -> Vec<u8> {
        let output = self.peer_command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    pub(crate) fn peer_fails(&self, words: &[&str]) -> String {
        let output = self.peer_command(words).output().unwrap();
        assert!(!output.status.success(), "{words:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// What lies in a directory, sorted; nothing where there is none.
    pub(crate) fn names_in(&self, below: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.dir.path().join(below)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Nothing that no record knows: neither in the driver, nor beside the records, nor in the directories for
    /// temporary things.
    pub(crate) fn assert_no_leftovers(&self, store: &Store) {
        let mut known: Vec<String> = store.layers().unwrap().iter().map(|layer| layer.id.clone()).collect();
        known.sort();
        let driver: Vec<String> = store.driver().list_layers().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(driver, known, "the driver's layers and the records");
        let layers = format!("root/{}-layers", self.driver);
        for name in self.names_in(&layers) {
            let owner = name.strip_suffix(".tar-split.gz").unwrap_or(&name).to_owned();
            let own = ["layers.json", "layers.lock", "volatile-layers.json", "tmp"].contains(&name.as_str());
            assert!(own || known.contains(&owner), "{layers}/{name} belongs to nobody");
        }
        assert_eq!(self.names_in(&format!("{layers}/tmp")), [] as [&str; 0]);
        let images: Vec<String> = store.images().unwrap().iter().map(|image| image.id.clone()).collect();
        let containers: Vec<String> = store.containers().unwrap().iter().map(|c| c.id.clone()).collect();
        for (at, known) in [("root", &images), ("root", &containers), ("run", &containers)] {
            let kind = if std::ptr::eq(known, &images) { "images" } else { "containers" };
            for name in self.names_in(&format!("{at}/{}-{kind}", self.driver)) {
                let own = name.ends_with(".json") || name.ends_with(".lock") || known.contains(&name);
                assert!(own, "{at}/{}-{kind}/{name} belongs to nobody", self.driver);
            }
        }
        let ids: Vec<&str> = known.iter().map(String::as_str).collect();
        for container in store.containers().unwrap() {
            assert!(ids.contains(&container.layer.as_str()), "container {} has no layer", container.id);
        }
        for image in store.images().unwrap() {
            assert!(image.layer.is_empty() || ids.contains(&image.layer.as_str()), "image {} has no layer", image.id);
            for mapped in &image.mapped_layers {
                assert!(ids.contains(&mapped.as_str()), "image {} has no mapped layer {mapped}", image.id);
            }
        }
        for root in store.driver().temp_dir_roots() {
            let left: Vec<_> =
                std::fs::read_dir(&root).map(|d| d.flatten().map(|e| e.path()).collect()).unwrap_or_default();
            assert_eq!(left, [] as [PathBuf; 0]);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Mounts go with the thread's namespace, but the directory is removed before that.
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let here = self.dir.path().to_str().unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| point.starts_with(here));
        for point in points.collect::<Vec<_>>().into_iter().rev() {
            drop(Command::new("umount").args(["-l", point]).stderr(Stdio::null()).status());
        }
    }
}

/// A shell script run in an empty directory, and the directory packed by GNU tar.
pub(crate) fn tar_of(script: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("umask 022; {script}");
    assert!(Command::new("sh").args(["-ec", &script]).current_dir(dir.path()).status().unwrap().success(), "{script}");
    let output = Command::new("tar")
        .args(["--numeric-owner", "--sort=name", "--format=pax", "-cf", "-", "."])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

/// Three layers on each other: files, then deletions and an opaque directory, then changes.
pub(crate) fn three_layers() -> [Vec<u8>; 3] {
    [
        tar_of(
            "mkdir -p dir/sub opaque; echo one >dir/one; echo two >dir/sub/two; echo old >opaque/old; ln dir/one hard; \
             ln -s dir/one link; echo gone >gone; chmod 4755 dir/one; dd if=/dev/zero of=big bs=1024 count=300 2>/dev/null",
        ),
        tar_of("mkdir -p opaque dir; touch .wh.gone opaque/.wh..wh..opq; echo new >opaque/new; touch dir/.wh.sub"),
        tar_of("mkdir dir; echo changed >dir/one; mkdir gone; echo back >gone/back"),
    ]
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip").args(["-nc"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output.stdout
}

/// Everything below a directory: type, mode, owner, size or target, content.
pub(crate) fn tree(root: &Path) -> String {
    let script =
        r#"find . -mindepth 1 -printf '%p %y %m %U:%G %l\n' | sort; find . -type f | sort | xargs -r sha256sum"#;
    let output = Command::new("sh").args(["-ec", script]).current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
