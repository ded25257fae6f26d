//! podman, buildah, skopeo and containers-storage on a test's store.
//!
//! Some machines lack the right to raise limits, so containers.conf raises none; crun refuses a second cgroup hierarchy
//! beside the first, so the test's own mount namespace has none.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{TestStore, have, run};

/// What the test runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Root of the machine.
    Root,
    /// Root of a user namespace, as below `podman unshare`.
    Namespace,
}

/// Engines on one store, with options of the storage driver.
pub struct Engines<'s> {
    pub store: &'s TestStore,
    privilege: Privilege,
    options: Vec<String>,
}

/// Whether all programs that these tests need are there.
pub fn tools(more: &[&str], test: &str) -> bool {
    ["podman", "buildah", "skopeo", "containers-storage", "crun", "busybox", "setcap", "setfattr", "python3"]
        .iter()
        .chain(more)
        .all(|tool| have(tool, test))
}

impl<'s> Engines<'s> {
    /// Prepares the mount namespace and the configuration. In a mount namespace of the test's own only.
    pub fn new(store: &'s TestStore, privilege: Privilege) -> Self {
        if Path::new("/sys/fs/cgroup/unified").is_dir() {
            run(Command::new("mount").args(["-t", "tmpfs", "none", "/sys/fs/cgroup/unified"]));
        }
        for dir in ["home", "xdg", "files"] {
            fs::create_dir_all(store.path(dir)).unwrap();
            fs::set_permissions(store.path(dir), PermissionsExt::from_mode(0o700)).unwrap();
        }
        let conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\",\"nproc=1000:1000\"]\n\
                    [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
        fs::write(store.path("containers.conf"), conf).unwrap();
        let text = |name: &str| store.path(name).display().to_string();
        let storage = format!(
            "[storage]\ndriver = \"{}\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            store.driver,
            text("root"),
            text("run")
        );
        fs::write(store.path("storage.conf"), storage).unwrap();
        Self { store, privilege, options: Vec::new() }
    }

    /// Adds an option of the storage driver, `overlay.key=value`, for every engine.
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    fn environment(&self, command: &mut Command) {
        let store = self.store;
        command.env("CONTAINERS_CONF", store.path("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", store.path("storage.conf"));
        command.env("BUILDAH_ISOLATION", "chroot").env("HOME", store.path("home"));
        command.env("XDG_RUNTIME_DIR", store.path("xdg"));
        command.env_remove("STORAGE_DRIVER").env_remove("STORAGE_OPTS");
        if self.privilege == Privilege::Namespace {
            command.env("_CONTAINERS_USERNS_CONFIGURED", "done");
            command.env("_CONTAINERS_ROOTLESS_UID", "100000").env("_CONTAINERS_ROOTLESS_GID", "100000");
        }
    }

    fn engine<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Command {
        let mut command = Command::new(program);
        command.arg("--root").arg(self.store.path("root")).arg("--runroot").arg(self.store.path("run"));
        command.args(["--storage-driver", self.store.driver]);
        for option in &self.options {
            command.args(["--storage-opt", option]);
        }
        if program == "podman" {
            command.args(["--runtime", "crun", "--events-backend=file", "--cgroup-manager=cgroupfs"]);
            command.arg("--log-level=error");
        }
        command.args(args);
        self.environment(&mut command);
        command
    }

    pub fn podman_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        self.engine("podman", args)
    }

    /// What podman says, without the newline.
    pub fn podman<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        run(&mut self.engine("podman", args)).trim_end().to_owned()
    }

    /// `podman run` with what a container needs on a test machine.
    pub fn podman_run(&self, args: &[&str]) -> String {
        self.podman(&[&["run", "--network=none", "--cgroups=disabled"], args].concat())
    }

    pub fn buildah_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        self.engine("buildah", args)
    }

    pub fn buildah<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        run(&mut self.engine("buildah", args)).trim_end().to_owned()
    }

    pub fn peer_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new("containers-storage");
        command.args(self.store.global());
        for option in &self.options {
            command.args(["--storage-opt", option]);
        }
        command.args(args);
        self.environment(&mut command);
        command
    }

    /// containers-storage on the same store.
    pub fn peer<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        run(&mut self.peer_command(args)).trim_end().to_owned()
    }

    /// Ours, with the same options.
    pub fn ours_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut words: Vec<&OsStr> = Vec::new();
        for option in &self.options {
            words.extend([OsStr::new("--storage-opt"), OsStr::new(option)]);
        }
        words.extend(args.iter().map(AsRef::as_ref));
        self.store.command(&words)
    }

    pub fn ours<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        run(&mut self.ours_command(args)).trim_end().to_owned()
    }

    /// skopeo's name of an image in the store.
    pub fn reference(&self, image: &str) -> String {
        let path = |name: &str| self.store.path(name).display().to_string();
        let options = if self.options.is_empty() { String::new() } else { format!(":{}", self.options.join(",")) };
        format!("containers-storage:[{}@{}+{}{options}]{image}", self.store.driver, path("root"), path("run"))
    }

    pub fn skopeo_copy(&self, from: &str, to: &str) {
        let mut command = Command::new("skopeo");
        command.args(["copy", "-q", from, to]);
        self.environment(&mut command);
        run(&mut command);
    }

    /// A shell script with `$P`, `$B` and `$C` for podman, buildah and containers-storage on this store, in `files`.
    pub fn script(&self, script: &str) -> String {
        let words = |mut command: Command| {
            let program = command.get_program().to_owned();
            let words: Vec<String> = std::iter::once(&*program)
                .chain(command.get_args())
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            command.env_clear();
            words.join(" ")
        };
        let mut shell = Command::new("sh");
        shell.args(["-euc", script]).current_dir(self.store.path("files"));
        shell.env("P", words(self.podman_command::<&str>(&[])));
        shell.env("B", words(self.buildah_command::<&str>(&[])));
        shell.env("C", words(self.peer_command::<&str>(&[])));
        self.environment(&mut shell);
        run(&mut shell)
    }

    /// Nothing of the store is mounted, but for the peers' home on itself.
    pub fn assert_nothing_mounted(&self) {
        let root = self.store.path("root");
        let home = root.join(self.store.driver).display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left: Vec<&str> = mounts
            .lines()
            .filter(|line| {
                let at = line.split(' ').nth(4).unwrap_or_default();
                Path::new(at).starts_with(&root) && at != home
            })
            .collect();
        assert!(left.is_empty(), "still mounted: {left:#?}");
    }
}

/// An image of one layer in the store: busybox and awkward files, made by buildah.
pub const BASE: &str = r#"
c=$($B from scratch); m=$($B mount $c)
mkdir -p $m/bin $m/etc/conf.d $m/usr/share/doc $m/tmp $m/proc $m/sys $m/dev $m/var/lib/data $m/opq/old
cp "$(command -v busybox)" $m/bin/busybox
for a in sh ls cat echo id stat touch mkdir rm ln sleep true; do ln -s busybox $m/bin/$a; done
echo 'root:x:0:0:root:/root:/bin/sh' >$m/etc/passwd; echo 'root:x:0:' >$m/etc/group
echo one >$m/etc/conf.d/a; echo two >$m/etc/conf.d/b; ln $m/etc/conf.d/a $m/etc/conf.d/hard
echo keep >$m/opq/keep; echo old >$m/opq/old/x; chmod 1777 $m/tmp
: >"$m/etc/naïve"; long=$(printf 'n%.0s' $(seq 1 180)); mkdir $m/usr/share/doc/$long; echo m >$m/usr/share/doc/$long/$long
cp $m/bin/busybox $m/bin/suid; chown 1000:1001 $m/bin/suid; chmod 4755 $m/bin/suid
mkfifo $m/var/fifo; truncate -s 1M $m/var/sparse; setfattr -n user.colour -v blue $m/etc/passwd
$B umount $c >/dev/null; $B config --cmd /bin/sh --env PATH=/bin $c; $B commit -q $c localhost/base:1 >/dev/null; $B rm $c >/dev/null
"#;

/// A second layer on it: deletions, an opaque directory, a renamed one, changed modes, a new hard link.
pub const APP: &str = r#"
c=$($B from localhost/base:1); m=$($B mount $c)
rm $m/etc/conf.d/b; rm -r $m/opq; mkdir $m/opq; echo new >$m/opq/new; mv $m/etc/conf.d $m/etc/conf2.d
chmod 700 $m/var/lib/data; echo more >>$m/etc/group; echo twice >$m/var/lib/data/f; ln $m/var/lib/data/f $m/var/lib/data/g
$B umount $c >/dev/null; $B commit -q $c localhost/app:1 >/dev/null; $B rm $c >/dev/null
"#;

/// Where a store's lists by us and by containers-storage are the same JSON.
pub fn assert_same_records(engines: &Engines<'_>) {
    for kind in ["layers", "images", "containers"] {
        assert_eq!(json(&engines.ours(&[kind, "-j"])), json(&engines.peer(&[kind, "-j"])), "{kind}");
    }
}

pub fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The `id`s of a list in JSON.
pub fn ids(list: &serde_json::Value) -> Vec<String> {
    let id = |record: &serde_json::Value| record["id"].as_str().unwrap().to_owned();
    list.as_array().map(|records| records.iter().map(id).collect()).unwrap_or_default()
}

/// Every file below a directory, with all that a layer says of it.
pub fn tree(path: impl AsRef<Path>) -> String {
    run(Command::new("python3").args(["-c", include_str!("tree.py")]).arg(path.as_ref()).env("TOLERATE_GHOSTS", "1"))
}

/// The digest of a file.
pub fn sha256(path: &PathBuf) -> String {
    let line = run(Command::new("sha256sum").arg(path));
    format!("sha256:{}", line.split_whitespace().next().unwrap())
}

/// The diff IDs of an OCI layout's only image.
pub fn diff_ids(layout: &Path) -> Vec<String> {
    let blob = |value: &serde_json::Value| {
        let digest = value["digest"].as_str().unwrap().replace(':', "/");
        json(&fs::read_to_string(layout.join("blobs").join(digest)).unwrap())
    };
    let index = json(&fs::read_to_string(layout.join("index.json")).unwrap());
    let config = blob(&blob(&index["manifests"][0])["config"]);
    config["rootfs"]["diff_ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

/// The sample image as an OCI layout, made in a store of its own.
pub fn layout(into: &Path, privilege: Privilege) {
    let store = TestStore::new("vfs");
    let engines = Engines::new(&store, privilege);
    engines.script(BASE);
    engines.script(APP);
    engines.skopeo_copy(&engines.reference("localhost/app:1"), &format!("oci:{}:app", into.display()));
}
