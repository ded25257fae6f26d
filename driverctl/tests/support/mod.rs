//! A throw-away store and the `driverctl` that was built with the tests.

#![allow(unreachable_pub, reason = "one test program, several files")]
#![allow(dead_code, reason = "every test file uses its own part")]
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests work on paths of their own and say what they skip"
)]

pub mod engines;

pub mod seed;
pub mod steps;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The program under test.
pub const DRIVERCTL: &str = env!("CARGO_BIN_EXE_driverctl");

/// A store in a temporary directory, in a mount namespace of its own: every command runs below an `unshare --mount` of
/// its own unless the whole test does, so that a test that fails leaves no mount behind.
pub struct TestStore {
    pub dir: TempDir,
    pub driver: &'static str,
}

impl TestStore {
    pub fn new(driver: &'static str) -> Self {
        // Overlay cannot stack on an overlay, and /tmp may be one.
        let base = if Path::new("/var/tmp").is_dir() { "/var/tmp" } else { "/tmp" };
        let dir = tempfile::Builder::new().prefix("driverctl-test-").tempdir_in(base).unwrap();
        Self { dir, driver }
    }

    /// Puts the store into memory, for tests that wait for the disk a hundred times and do not test disks. Root of a mount
    /// namespace of its own only.
    pub fn in_memory(&self) {
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(self.dir.path()));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn global(&self) -> Vec<String> {
        let text = |name| self.path(name).display().to_string();
        ["--graph", &text("root"), "--run", &text("run"), "--storage-driver", self.driver].map(str::to_owned).to_vec()
    }

    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(DRIVERCTL);
        command.args(self.global()).args(args).env_remove("STORAGE_DRIVER").env_remove("STORAGE_OPTS");
        command
    }

    /// A peer on the same store.
    pub fn peer<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new("containers-storage");
        command.args(self.global()).args(args);
        command
    }

    /// Runs a verb that must succeed and be silent on standard error; its standard output.
    pub fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        let out = self.command(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        let words: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
        assert!(out.status.success(), "driverctl {words:?}: {}: {stderr}", out.status);
        assert_eq!(stderr, "", "driverctl {words:?} succeeded and complained");
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs a verb that must fail with status 1; what it said, both streams.
    pub fn fails<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        let out = self.command(args).output().unwrap();
        let words: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
        assert_eq!(out.status.code(), Some(1), "driverctl {words:?}: {out:?}");
        both(&out)
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        drop(self.command(&["shutdown", "--force"]).output());
        // The peer leaves its home bind-mounted on itself.
        for driver in ["overlay", "vfs"] {
            drop(Command::new("umount").arg(self.path("root").join(driver)).output());
        }
        drop(Command::new("umount").args(["--lazy"]).arg(self.dir.path()).output());
    }
}

pub fn both(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n")
}

/// Whether that program is installed; says what is skipped when it isn't.
pub fn have(program: &str, what: &str) -> bool {
    let found =
        Command::new("sh").args(["-c", "command -v \"$0\"", program]).output().is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("skipped: {what}: {program} is not installed");
    }
    found
}

pub fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(out.status.success(), "{command:?}: {}: {}", out.status, both(&out));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

const INSIDE: &str = "DRIVERCTL_TEST_INSIDE";

fn again(mut command: Command, test: &str) {
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture", "--test-threads=1"]);
    let out = command.env(INSIDE, "1").output().unwrap();
    for line in String::from_utf8_lossy(&out.stderr).lines().filter(|line| line.starts_with("skipped: ")) {
        eprintln!("{line}");
    }
    assert!(out.status.success(), "{}", both(&out));
}

/// Moves the test into a mount namespace of its own by running itself again; true in the process that does the work.
pub fn in_own_mount_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !is_root() {
        eprintln!("skipped: {test}: needs root");
        return false;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    again(command, test);
    false
}

/// Runs its arguments as root of a new user namespace of 65,536 ids, in a mount namespace that belongs to it. Somebody has to
/// hold the namespace until it is entered, and mapped ids have to be entered, as an exec without them loses all rights.
const USER_NAMESPACE: &str = "unshare --user sleep 1000 & pid=$!; trap 'kill $pid' EXIT; \
    while [ \"$(readlink /proc/self/ns/user)\" = \"$(readlink /proc/$pid/ns/user)\" ]; do sleep 0.01; done; \
    echo 0 100000 65536 >/proc/$pid/uid_map && echo 0 100000 65536 >/proc/$pid/gid_map && \
    nsenter --target $pid --user --setuid 0 --setgid 0 unshare --mount --propagation private \"$@\"";

/// Moves the test into user and mount namespaces of its own, where it is root of 65,536 ids and nothing else.
pub fn in_own_user_namespace(test: &str) -> bool {
    in_own_user_namespace_with(test, |_| ())
}

/// The same, with more in the environment.
pub fn in_own_user_namespace_with(test: &str, environment: impl FnOnce(&mut Command)) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !is_root() {
        eprintln!("skipped: {test}: needs root to map ids");
        return false;
    }
    let mut command = Command::new("sh");
    command.args(["-c", USER_NAMESPACE, "sh"]);
    environment(&mut command);
    again(command, test);
    false
}

/// A tar of many small files in many directories, as package trees are.
pub fn many_files_tar(path: &Path, directories: usize, files_each: usize) -> usize {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    let mut entries = 0;
    let mut header = |kind: tar::EntryType, mode: u32, size: u64| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(size);
        entries += 1;
        header
    };
    let mut top = header(tar::EntryType::Directory, 0o755, 0);
    tar.append_data(&mut top, "node_modules/", std::io::empty()).unwrap();
    for directory in 0..directories {
        let mut dir = header(tar::EntryType::Directory, 0o755, 0);
        tar.append_data(&mut dir, format!("node_modules/package-{directory:04}/"), std::io::empty()).unwrap();
        for file in 0..files_each {
            let content =
                format!("module.exports = {directory}{file};\n").repeat(1 + (directory * 31 + file * 17) % 200);
            let mut entry = header(tar::EntryType::Regular, 0o644, content.len() as u64);
            let name = format!("node_modules/package-{directory:04}/file-{file:03}.js");
            tar.append_data(&mut entry, name, content.as_bytes()).unwrap();
        }
    }
    tar.finish().unwrap();
    entries
}

/// `driverctl check` finds nothing.
pub fn check_clean(store: &TestStore) {
    let help = run(Command::new(DRIVERCTL).arg("--help"));
    if help.lines().any(|line| line.trim_start().starts_with("check ")) {
        store.ok(&["check"]);
    } else {
        eprintln!("skipped: check: the verb is not there yet");
    }
}

/// An OCI layout of one layer.
pub fn make_layout(layout: &Path, tar: &str) {
    let script = r#"
import hashlib, json, os, sys
out, tar = sys.argv[1], open(sys.argv[2], "rb").read()
os.makedirs(out + "/blobs/sha256")
def blob(data, kind):
    digest = hashlib.sha256(data).hexdigest()
    open(f"{out}/blobs/sha256/{digest}", "wb").write(data)
    return {"mediaType": kind, "digest": "sha256:" + digest, "size": len(data)}
layer = blob(tar, "application/vnd.oci.image.layer.v1.tar")
config = blob(json.dumps({"architecture": "amd64", "os": "linux", "config": {},
    "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}).encode(), "application/vnd.oci.image.config.v1+json")
manifest = blob(json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": config, "layers": [layer]}).encode(), "application/vnd.oci.image.manifest.v1+json")
manifest["annotations"] = {"org.opencontainers.image.ref.name": "1"}
json.dump({"schemaVersion": 2, "manifests": [manifest]}, open(out + "/index.json", "w"))
json.dump({"imageLayoutVersion": "1.0.0"}, open(out + "/oci-layout", "w"))
"#;
    run(Command::new("python3").args(["-c", script]).arg(layout).arg(tar));
}
