//! Fixtures: files in a directory that stands for `/`, an environment, and what comes out.

#![allow(clippy::type_complexity, reason = "tables of cases")]

use std::os::unix::fs::MetadataExt;

use super::*;

/// A root directory with `files` in it, and root's environment with `variables` on it. `@` stands for the directory.
fn fixture(files: &[(&str, &str)], variables: &[(&str, &str)]) -> (tempfile::TempDir, Environment) {
    let root = tempfile::tempdir().unwrap();
    let at = root.path().to_str().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text.replace('@', at)).unwrap();
    }
    let environment = Environment {
        variables: variables.iter().map(|(k, v)| ((*k).to_owned(), v.replace('@', at))).collect(),
        home: Some(root.path().join("home")),
        system_root: root.path().to_path_buf(),
        ..Environment::root()
    };
    (root, environment)
}

fn user(environment: Environment) -> Environment {
    Environment { uid: 1000, rootless: true, ..environment }
}

fn load(environment: &Environment, order: SearchOrder) -> Resolved {
    Resolved::load(environment, &LoadOptions { order, ..LoadOptions::default() }).unwrap()
}

/// The error's text without the fixture's directory.
fn error(files: &[(&str, &str)], variables: &[(&str, &str)]) -> String {
    let (root, environment) = fixture(files, variables);
    let error = Resolved::load(&environment, &LoadOptions::default()).unwrap_err();
    error.to_string().replace(root.path().to_str().unwrap(), "@")
}

const ETC: &str = "etc/containers/storage.conf";
const USR: &str = "usr/share/containers/storage.conf";
const HOME: &str = "home/.config/containers/storage.conf";

#[test]
fn nothing_configured() {
    let (root, environment) = fixture(&[], &[]);
    let resolved = load(&environment, SearchOrder::V1_63);
    assert_eq!(resolved.graph_root, root.path().join("var/lib/containers/storage"));
    assert_eq!(resolved.run_root, root.path().join("run/containers/storage"));
    assert_eq!((resolved.driver.as_deref(), resolved.files.len(), resolved.notices.len()), (None, 0, 0));
    assert_eq!((resolved.auto_userns_min_size, resolved.auto_userns_max_size), (1024, 65_536));
    assert_eq!(resolved.all_driver_options(), [""; 0]);
}

#[test]
fn which_main_file_wins() {
    let file = |driver: &str| format!("[storage]\ndriver = \"{driver}\"\n");
    let (home, etc, usr) = (file("home"), file("etc"), file("usr"));
    let all =
        [(HOME, home.as_str()), (ETC, &etc), (USR, &usr), ("x/containers/storage.conf", "[storage]\ndriver='xdg'")];
    // (files, XDG_CONFIG_HOME set, rootless, driver in the 1.60 order, driver in the 1.63 order)
    let cases: [(&[_], bool, bool, Option<&str>, Option<&str>); 7] = [
        (&all[..3], false, false, Some("etc"), Some("home")),
        (&all, true, false, Some("xdg"), Some("xdg")),
        (&all[1..3], true, false, Some("etc"), Some("etc")),
        (&all[2..3], false, false, Some("usr"), Some("usr")),
        (&all[..3], false, true, Some("home"), Some("home")),
        // Not a driver that a 1.60 rootless user takes over.
        (&all[1..3], false, true, None, Some("etc")),
        (&all[..0], false, true, None, None),
    ];
    for (n, (files, xdg, rootless, old, new)) in cases.into_iter().enumerate() {
        let variables: &[_] = if xdg { &[(variable::XDG_CONFIG_HOME, "@/x")] } else { &[] };
        let (_root, environment) = fixture(files, variables);
        let environment = if rootless { user(environment) } else { environment };
        assert_eq!(load(&environment, SearchOrder::V1_60).driver.as_deref(), old, "case {n}");
        assert_eq!(load(&environment, SearchOrder::V1_63).driver.as_deref(), new, "case {n}");
    }
}

#[test]
fn drop_ins_are_merged_by_base_name() {
    let list = |item: &str, append: &str| format!("[storage.options]\nadditionalimagestores = [\"{item}\"{append}]\n");
    let (first, second, third) = (list("/a", ""), list("/b", ", {append=true}"), list("/c", ""));
    let files = [
        (ETC, "[storage]\ndriver = \"overlay\"\n[storage.options.overlay]\nmountopt = \"nodev\"\nsize = \"1G\"\n"),
        ("usr/share/containers/storage.conf.d/10-stores.conf", first.as_str()),
        ("etc/containers/storage.conf.d/20-stores.conf", &second),
        // Once a file has said it, later ones append too.
        ("home/.config/containers/storage.conf.d/30-stores.conf", &third),
        ("usr/share/containers/storage.conf.d/50-replaced.conf", "[storage]\ndriver = \"never read\"\n"),
        ("etc/containers/storage.conf.d/50-replaced.conf", "[storage.options.overlay]\nsize = \"2G\"\n"),
        ("etc/containers/storage.rootful.conf.d/60.conf", "[storage.options.overlay]\ninodes = \"7\"\n"),
        ("etc/containers/storage.rootless.conf.d/60.conf", "[storage.options.overlay]\ninodes = \"8\"\n"),
        ("etc/containers/storage.rootless.conf.d/1000/70.conf", "[storage.options.overlay]\nsync = \"none\"\n"),
        ("etc/containers/storage.conf.d/readme.txt", "not toml"),
    ];
    let (root, environment) = fixture(&files, &[]);
    let resolved = load(&environment, SearchOrder::V1_63);
    let stores = ["overlay.imagestore=/a", "overlay.imagestore=/b", "overlay.imagestore=/c"];
    let expected = |more: &[&str]| stores.iter().chain(more).copied().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        resolved.driver_options("overlay"),
        expected(&["overlay.inodes=7", "overlay.mountopt=nodev", "overlay.size=2G"])
    );
    assert_eq!(resolved.files.len(), 6);
    let size = "storage.options.overlay.size";
    let path = root.path().join("etc/containers/storage.conf.d/50-replaced.conf");
    assert_eq!(resolved.origin(size), Origin::File { path, line: 2 });
    assert_eq!(resolved.origin("storage.options.overlay.force_mask"), Origin::Default);

    let resolved = load(&user(environment.clone()), SearchOrder::V1_63);
    let more = ["overlay.inodes=8", "overlay.mountopt=nodev", "overlay.size=2G", "overlay.sync=none"];
    assert_eq!(resolved.driver_options("overlay"), expected(&more));

    // No drop-ins in the old order, and none beside an explicit file.
    assert_eq!(load(&environment, SearchOrder::V1_60).files, [root.path().join(ETC)]);
    let mut explicit = environment;
    explicit.variables.insert(variable::CONTAINERS_STORAGE_CONF.to_owned(), format!("{}/{ETC}", root.path().display()));
    assert_eq!(load(&explicit, SearchOrder::V1_63).files, [root.path().join(ETC)]);
}

#[test]
fn variables_come_on_top() {
    let files = [
        (ETC, "[storage]\ndriver = \"overlay\"\ngraphroot = \"/g\"\n[storage.options.overlay]\nmountopt = \"nodev\"\n"),
        ("own.conf", "[storage]\ndriver = \"btrfs\"\n"),
        ("over.conf", "[storage]\ntransient_store = true\n"),
    ];
    let cases: [(&[(&str, &str)], &str, &[&str]); 5] = [
        (&[], "overlay", &["overlay.mountopt=nodev"]),
        (&[(variable::STORAGE_DRIVER, "vfs")], "vfs", &["overlay.mountopt=nodev"]),
        (&[(variable::STORAGE_DRIVER, "")], "overlay", &["overlay.mountopt=nodev"]),
        (&[(variable::STORAGE_OPTS, "overlay.size=1G,.inodes=5")], "overlay", &["overlay.size=1G", ".inodes=5"]),
        (&[(variable::STORAGE_OPTS, "")], "overlay", &[]),
    ];
    for (variables, driver, options) in cases {
        let (_root, environment) = fixture(&files, variables);
        let resolved = load(&environment, SearchOrder::V1_63);
        assert_eq!(resolved.driver.as_deref(), Some(driver));
        assert_eq!(resolved.all_driver_options(), options, "{variables:?}");
    }
    let (_root, environment) = fixture(
        &files,
        &[
            (variable::CONTAINERS_STORAGE_CONF, "@/own.conf"),
            (variable::CONTAINERS_STORAGE_CONF_OVERRIDE, "@/over.conf"),
        ],
    );
    let resolved = load(&environment, SearchOrder::V1_63);
    assert_eq!((resolved.driver.as_deref(), resolved.transient_store), (Some("btrfs"), true));
    assert!(!load(&environment, SearchOrder::V1_60).transient_store);
    let missing = error(&[], &[(variable::CONTAINERS_STORAGE_CONF, "@/none.conf")]);
    assert_eq!(missing, "read configuration file @/none.conf");
}

#[test]
fn rootless_users_have_their_own_directories() {
    let shipped = "[storage]\ndriver = \"overlay\"\ngraphroot = \"/var/lib/containers/storage\"\nrunroot = \"/run/containers/storage\"\n";
    let (root, environment) = fixture(&[(USR, shipped)], &[(variable::XDG_RUNTIME_DIR, "/run/user/1000")]);
    for order in [SearchOrder::V1_60, SearchOrder::V1_63] {
        let resolved = load(&user(environment.clone()), order);
        assert_eq!(resolved.graph_root, root.path().join("home/.local/share/containers/storage"));
        assert_eq!(resolved.run_root, Path::new("/run/user/1000/containers"));
        assert_eq!(resolved.driver.as_deref(), Some("overlay"));
    }
    // Root in somebody's user namespace uses the system's.
    let nested = Environment { rootless: true, ..environment };
    assert_eq!(load(&nested, SearchOrder::V1_63).graph_root, Path::new("/var/lib/containers/storage"));

    let path = "[storage]\nrootless_storage_path = \"/stores/$UID/x\"\n";
    let (root, environment) = fixture(&[(ETC, path)], &[(variable::TMPDIR, "@/tmp"), (variable::ROOTLESS_UID, "1234")]);
    let own = std::fs::metadata(root.path()).unwrap().uid();
    let environment = Environment { uid: own, rootless: true, ..environment };
    let resolved = load(&environment, SearchOrder::V1_60);
    assert_eq!(resolved.graph_root, Path::new("/stores/1234/x"));
    assert_eq!(resolved.run_root, root.path().join("tmp/storage-run-1234/containers"));
    std::fs::create_dir_all(root.path().join("tmp/storage-run-1234")).unwrap();
    let other = Environment { uid: own + 1, ..environment };
    let error = Resolved::load(&other, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains(&format!("belongs to user {own}, not to {}", own + 1)), "{error}");
}

#[test]
fn specific_beats_generic_and_each_driver_takes_what_it_knows() {
    let text = "[storage.options]\nsize = \"1G\"\nmountopt = \"nodev\"\nignore_chown_errors = \"true\"\nforce_mask = 0o700\n\
                additionallayerstores = [\"/l:ref\"]\n\
                [storage.options.overlay]\nmountopt = \"nodev,metacopy=on\"\nskip_mount_home = true\n\
                [storage.options.zfs]\nfsname = \"tank\"\n";
    let (_root, environment) = fixture(&[(ETC, text)], &[]);
    let resolved = load(&environment, SearchOrder::V1_63);
    let layers = |driver: &str| format!("{driver}.additionallayerstore=/l:ref");
    let overlay = [
        layers("overlay"),
        "overlay.force_mask=700".to_owned(),
        "overlay.ignore_chown_errors=true".to_owned(),
        "overlay.mountopt=nodev,metacopy=on".to_owned(),
        "overlay.size=1G".to_owned(),
        "overlay.skip_mount_home=true".to_owned(),
    ];
    assert_eq!(resolved.driver_options("overlay2"), overlay);
    assert_eq!(resolved.driver_options("vfs"), [layers("vfs"), "vfs.ignore_chown_errors=true".to_owned()]);
    let zfs = ["zfs.fsname=tank", "zfs.mountopt=nodev", "zfs.size=1G"].map(str::to_owned);
    assert_eq!(resolved.driver_options("zfs").get(1..), Some(&zfs[..]));
    let picked = crate::options::options_for("zfs", &resolved.all_driver_options(), []).unwrap();
    assert_eq!(picked.len(), 4);
}

#[test]
fn another_drivers_table_is_handed_on_when_it_is_known() {
    let text =
        "[storage]\ndriver = \"hardcopy\"\n[storage.options.hardcopy]\ncolour = \"red\"\ndepth = 3\nfast = true\n";
    let (root, environment) = fixture(&[(ETC, text)], &[]);
    let options = LoadOptions { drivers: vec!["hardcopy".to_owned()], ..LoadOptions::default() };
    let resolved = Resolved::load(&environment, &options).unwrap();
    let expected = ["hardcopy.colour=red", "hardcopy.depth=3", "hardcopy.fast=true"];
    assert_eq!(
        (resolved.driver_options("hardcopy"), resolved.notices.len()),
        (expected.map(str::to_owned).to_vec(), 0)
    );
    assert_eq!(resolved.all_driver_options(), expected);
    let unknown = load(&environment, SearchOrder::V1_63);
    assert_eq!(unknown.driver_options("hardcopy"), [""; 0]);
    let notices: Vec<String> = unknown.notices.iter().map(ToString::to_string).collect();
    assert_eq!(notices, [format!("{}/{ETC}:3: unknown key storage.options.hardcopy", root.path().display())]);
}

#[test]
fn every_key_is_taken_and_unknown_ones_are_reported_with_their_line() {
    let mut text = String::from("colour = 1\n");
    let mut table = "";
    for (key, kind) in keys::KEYS {
        let (path, name) = key.rsplit_once('.').unwrap();
        if path != table {
            table = path;
            text.push_str(&format!("[{path}]\nnosuch = 1\n"));
        }
        let value = match kind {
            keys::Kind::Text | keys::Kind::Mask => "\"/x\"",
            keys::Kind::BoolText | keys::Kind::Bool => "\"true\"",
            keys::Kind::Number => "5",
            keys::Kind::List => "[\"/x\"]",
            keys::Kind::Table => "{enable_partial_images = \"true\", convert_images = false}",
        };
        text.push_str(&format!("{name} = {value}\n"));
    }
    text.push_str("[storage.options.thinpool]\nanything = 1\n[other]\n");
    // The two would be one directory.
    let text = text.replacen("imagestore = \"/x\"", "imagestore = \"/y\"", 1);
    let (_root, environment) = fixture(&[(ETC, &text)], &[]);
    let resolved = load(&environment, SearchOrder::V1_63);
    assert_eq!(resolved.origins().count(), keys::KEYS.len());
    let lines: Vec<usize> =
        text.lines().enumerate().filter(|(_, l)| l.contains("nosuch")).map(|(n, _)| n + 1).collect();
    let noticed: Vec<String> = resolved.notices.iter().map(|notice| notice.origin.to_string()).collect();
    let wanted = [1].into_iter().chain(lines).chain([text.lines().count()]);
    let wanted: Vec<usize> = wanted.collect();
    assert_eq!(noticed.len(), wanted.len());
    for (notice, line) in noticed.iter().zip(wanted) {
        assert!(notice.ends_with(&format!("storage.conf:{line}")), "{notice} {line}");
    }
    assert_eq!(resolved.pull_options.get("convert_images").map(String::as_str), Some("false"));
    assert!(resolved.transient_store && resolved.disable_volatile);
    assert_eq!((resolved.auto_userns_min_size, resolved.root_auto_userns_user.as_str()), (5, "/x"));
}

#[test]
fn what_is_wrong_is_told_with_file_and_line() {
    for (text, message) in [
        ("[storage]\ndriver = 1\n", "2: storage.driver must be a string, not an integer"),
        ("[storage]\n\ndriver = \n", "3: string values must be quoted, expected literal string"),
        (
            "[storage]\ndriver_priority = \"overlay\"\n",
            "2: storage.driver_priority must be an array of strings, not a string",
        ),
        (
            "[storage]\ndriver_priority = [1]\n",
            "2: storage.driver_priority must be an array of strings; this is an integer",
        ),
        (
            "[storage]\ndriver_priority = [\"a\",\n {add=true}]\n",
            "3: in storage.driver_priority, a table may only be {append=true} or {append=false}",
        ),
        (
            "[storage]\ntransient_store = \"maybe\"\n",
            "2: storage.transient_store must be \"true\" or \"false\", not \"maybe\"",
        ),
        ("[storage]\ntransient_store = 1\n", "2: storage.transient_store must be a boolean, not an integer"),
        ("storage = 1\n", "1: storage must be a table"),
        (
            "[storage.options]\nauto-userns-min-size = -1\n",
            "2: storage.options.auto-userns-min-size must be a whole number from 0 to 4294967295, not an integer",
        ),
        (
            "[storage.options]\nforce_mask = 0o10000\n",
            "2: storage.options.force_mask must be permissions up to 0o7777, or a string, not an integer",
        ),
        (
            "[storage.options]\npull_options = {a = 1}\n",
            "2: storage.options.pull_options.a must be a string, not an integer",
        ),
        ("[storage]\ngraphroot = \"relative\"\n", "2: \"relative\" is not an absolute path"),
        (
            "[storage]\ngraphroot = \"/x\"\nimagestore = \"/x\"\n",
            "3: imagestore /x must either be not set or be a different than graphroot",
        ),
    ] {
        let found = error(&[(ETC, text)], &[]);
        if message.contains("quoted") {
            assert!(found.starts_with("@/etc/containers/storage.conf:3: "), "{found}");
        } else {
            assert_eq!(found, format!("@/{ETC}:{message}"));
        }
    }
}

#[test]
fn paths_are_expanded_and_links_in_them_resolved() {
    let text =
        "[storage]\ndriver = \"overlay2\"\ngraphroot = \"@/link/store\"\nrunroot = \"${XDG_RUNTIME_DIR}/../r\"\n";
    let (root, environment) = fixture(&[(ETC, text)], &[(variable::XDG_RUNTIME_DIR, "/nowhere/run")]);
    let real = root.path().canonicalize().unwrap();
    std::fs::create_dir_all(root.path().join("real/store")).unwrap();
    std::os::unix::fs::symlink("real", root.path().join("link")).unwrap();
    let resolved = load(&environment, SearchOrder::V1_63);
    assert_eq!((resolved.graph_root, resolved.run_root), (real.join("real/store"), PathBuf::from("/nowhere/r")));
    assert_eq!(resolved.driver.as_deref(), Some("overlay"));
    assert!(resolved.notices.iter().any(|notice| notice.text == "overlay2 is now called overlay"));
}

#[test]
fn the_packaged_file_is_understood() {
    let path = Path::new(USR);
    let Ok(text) = std::fs::read_to_string(Path::new("/").join(path)) else {
        eprintln!("skipped: no /{USR} on this machine");
        return;
    };
    let (_root, environment) = fixture(&[(USR, &text)], &[]);
    let resolved = load(&environment, SearchOrder::V1_63);
    assert_eq!(resolved.notices, []);
    assert!(resolved.origins().count() > 0);
}
