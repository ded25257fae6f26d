//! storage.conf and the environment, as the command line follows them and tells of them.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use support::{DRIVERCTL, both, in_own_mount_namespace, is_root};
use tempfile::TempDir;

/// A home directory with configuration files. The files of this machine's `/etc` and `/usr/share` do not count, as the
/// user's own main file comes first; drop-ins there would.
struct Home {
    dir: TempDir,
}

impl Home {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("driverctl-config-").tempdir_in("/var/tmp").unwrap();
        let home = Self { dir };
        for (name, text) in files {
            home.write(name, text);
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `@` stands for the home directory.
    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, self.expand(text)).unwrap();
    }

    fn expand(&self, text: &str) -> String {
        text.replace('@', &self.dir.path().display().to_string())
    }

    fn run(&self, variables: &[(&str, &str)], args: &[&str]) -> Output {
        let mut command = Command::new(DRIVERCTL);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.dir.path());
        command.env("XDG_CONFIG_HOME", self.path("xdg"));
        command.envs(variables.iter().map(|(name, value)| (name, self.expand(value))));
        command.args(args.iter().map(|arg| self.expand(arg))).output().unwrap()
    }

    /// The pairs that `status` prints, the home directory written as `@`.
    fn status(&self, variables: &[(&str, &str)], args: &[&str]) -> Vec<(String, String)> {
        let out = self.run(variables, &[args, &["status", "--json"]].concat());
        assert!(out.status.success() && out.stderr.is_empty(), "{variables:?} {args:?}: {}", both(&out));
        let text = String::from_utf8(out.stdout).unwrap().replace(&self.dir.path().display().to_string(), "@");
        serde_json::from_str(&text).unwrap()
    }

    /// What a failing `status` says.
    fn refused(&self, variables: &[(&str, &str)], args: &[&str]) -> String {
        let out = self.run(variables, &[args, &["status"]].concat());
        assert_eq!(out.status.code(), Some(1), "{variables:?} {args:?}: {}", both(&out));
        both(&out).replace(&self.dir.path().display().to_string(), "@")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        drop(self.run(&[], &["shutdown", "--force"]));
    }
}

fn values<'s>(status: &'s [(String, String)], key: &str) -> Vec<&'s str> {
    status.iter().filter(|(k, _)| k == key).map(|(_, value)| value.as_str()).collect()
}

const MAIN: &str = "xdg/containers/storage.conf";
const STORE: &str = "[storage]\ngraphroot = \"@/root\"\nrunroot = \"@/run\"\n";

#[test]
fn root_files_are_merged_and_status_tells_which() {
    if !in_own_mount_namespace("root_files_are_merged_and_status_tells_which") {
        return;
    }
    let home = Home::new(&[
        (MAIN, &format!("{STORE}driver = \"vfs\"\ncolour = \"blue\"\n")),
        ("xdg/containers/storage.conf.d/10-stores.conf", "[storage.options]\nadditionalimagestores = [\"@/a\"]\n"),
        (
            "xdg/containers/storage.conf.d/20-more.conf",
            "[storage.options]\nadditionalimagestores = [{append=true}, \"@/b\"]\n[storage.options.nosuch]\nx = 1\n",
        ),
        ("xdg/containers/storage.conf.d/30-not.txt", "[storage]\ndriver = \"nosuch\"\n"),
    ]);
    for store in ["a", "b"] {
        fs::create_dir_all(home.path(store)).unwrap();
    }
    let status = home.status(&[], &[]);
    assert_eq!(values(&status, "Root"), ["@/root"]);
    assert_eq!(values(&status, "Run Root"), ["@/run"]);
    assert_eq!(values(&status, "Driver Name"), ["vfs"]);
    assert_eq!(values(&status, "Chosen Because"), ["it was asked for by name"]);
    assert_eq!(values(&status, "Asked For By"), [format!("@/{MAIN}:4")]);
    let files = "@/xdg/containers/storage.conf, @/xdg/containers/storage.conf.d/10-stores.conf, \
                 @/xdg/containers/storage.conf.d/20-more.conf";
    assert_eq!(values(&status, "Configuration Files"), [files]);
    assert_eq!(
        values(&status, "Configuration Notice"),
        [
            format!("@/{MAIN}:5: unknown key storage.colour"),
            "@/xdg/containers/storage.conf.d/20-more.conf:3: unknown key storage.options.nosuch".to_owned(),
        ]
    );
    let options = values(&status, "Driver Options").concat();
    assert!(options.contains("@/a") && options.contains("@/b"), "both stores: {options}");
    assert!(home.path("root/vfs-layers").is_dir());

    // One file named by a variable stands alone.
    home.write("alone.conf", &STORE.replace("@/root", "@/other"));
    let status = home.status(&[("CONTAINERS_STORAGE_CONF", "@/alone.conf"), ("STORAGE_DRIVER", "vfs")], &[]);
    assert_eq!(values(&status, "Root"), ["@/other"]);
    assert_eq!(values(&status, "Configuration Files"), ["@/alone.conf"]);
    assert_eq!(values(&status, "Asked For By"), ["$STORAGE_DRIVER"]);
    assert_eq!(values(&status, "Configuration Notice"), [""; 0]);
}

#[test]
fn root_variables_and_flags_override_files() {
    if !in_own_mount_namespace("root_variables_and_flags_override_files") {
        return;
    }
    let home = Home::new(&[(
        MAIN,
        &format!(
            "{STORE}driver = \"vfs\"\n[storage.options.overlay]\nmountopt = \"nodev\"\n[storage.options.vfs]\nsync = \"none\"\n"
        ),
    )]);
    let driver = |variables: &[(&str, &str)], args: &[&str]| {
        let status = home.status(variables, args);
        (values(&status, "Driver Name").concat(), values(&status, "Driver Options").concat())
    };
    let pair = |driver: &str, options: &str| (driver.to_owned(), options.to_owned());
    assert_eq!(driver(&[], &[]), pair("vfs", "[vfs.sync=none]"));
    assert_eq!(driver(&[("STORAGE_DRIVER", "overlay")], &[]), pair("overlay", "[overlay.mountopt=nodev]"));
    let opts = ("STORAGE_OPTS", "overlay.mountopt=nosuid,vfs.ignore_chown_errors=true");
    assert_eq!(driver(&[opts], &[]).0, "vfs");
    assert!(driver(&[opts], &[]).1.contains("vfs.ignore_chown_errors=true"));
    assert!(!driver(&[opts], &[]).1.contains("sync"), "the variable replaces the files' options");
    // With a flag the configured driver and its options are not meant.
    assert_eq!(driver(&[], &["--storage-driver", "overlay"]), pair("overlay", "[]"));
    let status = home.status(&[], &["-s", "vfs", "--graph", "@/flag"]);
    assert_eq!(values(&status, "Root"), ["@/flag"]);
    assert_eq!(values(&status, "Run Root"), ["@/run"]);
    assert_eq!(values(&status, "Asked For By"), ["--storage-driver"]);

    let shifts =
        |variables: &[(&str, &str)]| values(&home.status(variables, &["-s", "overlay"]), "Supports shifting").concat();
    assert_eq!(shifts(&[("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes")]), "false");
    assert_eq!(shifts(&[("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "no")]), shifts(&[]));
}

#[test]
fn root_what_is_wrong_is_told_with_its_place() {
    if !is_root() {
        eprintln!("skipped: root_what_is_wrong_is_told_with_its_place: needs root");
        return;
    }
    let home = Home::new(&[(MAIN, &format!("{STORE}driver = \"vfs\"\n"))]);
    home.write("bad.conf", "[storage]\n\ndriver = 7\n");
    let conf = |path| [("CONTAINERS_STORAGE_CONF", path)];
    assert_eq!(
        home.refused(&conf("@/bad.conf"), &[]),
        "error initializing: @/bad.conf:3: storage.driver must be a string, not an integer\n"
    );
    let missing = home.refused(&conf("@/none.conf"), &[]);
    assert!(missing.contains("@/none.conf: No such file or directory"), "{missing}");
    // Both roots given: nothing of the configuration is asked for.
    let out = home.run(&conf("@/bad.conf"), &["-g", "@/x", "-R", "@/y", "-s", "vfs", "layers"]);
    assert!(out.status.success(), "{}", both(&out));

    for (driver, option, text) in [
        ("overlay", "foo=1", "overlay: unknown option overlay.foo"),
        ("overlay", "overlay.foo=1", "overlay: unknown option overlay.foo"),
        ("overlay", "btrfs.min_space=1", "overlay: unknown option btrfs.min_space"),
        (
            "overlay",
            "overlay.imagestore=@/none",
            "overlay: can't stat imageStore dir @/none: stat @/none: no such file or directory",
        ),
        ("overlay", "overlay.size=bogus", "overlay.size: \"bogus\" is not a size"),
        ("overlay", "overlay.ignore_chown_errors=maybe", "overlay.ignore_chown_errors: \"maybe\" is not a boolean"),
        ("vfs", "vfs.foo=1", "vfs driver does not support vfs.foo options"),
        ("vfs", "vfs.mountopt=nodev", "vfs driver does not support mount options"),
        ("vfs", "overlay.mountopt=nodev", "vfs: unknown option overlay.mountopt"),
        ("vfs", "foo", "unable to parse key/value option: foo"),
        ("vfs", "nosuch.x=1", "no driver is called nosuch"),
        ("nosuch", ".size=1", "failed to GetDriver graph nosuch @/x: driver not supported"),
    ] {
        let said = home.refused(&[], &["-g", "@/x", "-R", "@/y", "-s", driver, "--storage-opt", option]);
        assert!(said.starts_with("error initializing: ") && said.contains(text), "{driver} {option}: {said}");
    }
}

#[test]
fn root_a_stores_own_driver_is_never_replaced_silently() {
    if !in_own_mount_namespace("root_a_stores_own_driver_is_never_replaced_silently") {
        return;
    }
    let home = Home::new(&[(MAIN, STORE)]);
    // Nothing there: the first that works, and that is never vfs.
    let status = home.status(&[], &[]);
    assert_eq!(values(&status, "Driver Name"), ["overlay"]);
    assert_eq!(values(&status, "Chosen Because"), ["the first one that works here"]);
    assert_eq!(
        home.status(&[], &[])
            .iter()
            .filter(|(k, v)| k == "Chosen Because" && v == "the store was made with it")
            .count(),
        1
    );

    let made_with = |directories: &[&str]| {
        let graph = format!("@/graph-{}", directories.join("-"));
        for directory in directories {
            fs::create_dir_all(home.expand(&format!("{graph}/{directory}"))).unwrap();
        }
        let said = home.refused(&[], &["-g", &graph]);
        let entries = fs::read_dir(home.expand(&graph)).unwrap().map(Result::unwrap);
        let found = entries.filter(|entry| entry.file_type().unwrap().is_dir()).count();
        assert_eq!(found, directories.len(), "nothing else was begun: {said}");
        said
    };
    let said = made_with(&["vfs"]);
    assert!(said.contains("was made with vfs") && said.contains("-s vfs"), "{said}");
    let said = made_with(&["vfs", "overlay"]);
    assert!(said.contains("contains several valid graphdrivers: overlay, vfs; Please cleanup or explicitly choose storage driver (-s <DRIVER>)"), "{said}");
    let said = made_with(&["btrfs", "btrfs-layers"]);
    assert!(said.contains("was made with the driver btrfs") && said.contains("driver not supported"), "{said}");
    // With a list that has it, vfs is no surprise.
    home.write("list.conf", "[storage]\ngraphroot = \"@/listed\"\nrunroot = \"@/run\"\ndriver_priority = [\"vfs\"]\n");
    let status = home.status(&[("CONTAINERS_STORAGE_CONF", "@/list.conf")], &[]);
    assert_eq!(values(&status, "Driver Name"), ["vfs"]);
}
