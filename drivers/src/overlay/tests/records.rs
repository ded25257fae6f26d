//! The files of a layer, and their repair.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use graph_archive::idmap::{IdMappings, IdRange};
use graph_core::driver::CreateOptions;
use graph_core::registry::DriverSetup;
use graph_core::{Driver, Error};

use super::super::Overlay;
use super::super::layout::LinkId;
use super::super::parents::{ensure_links, parents};
use super::support::{Place, id};

fn mode(path: &std::path::Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_files_of_a_layer_are_those_of_the_peers() {
    let place = Place::new();
    let driver = Overlay::open(&DriverSetup { options: Vec::new(), ..place.setup() }, "overlay").unwrap();
    place.fill(&driver);
    let home = place.home();
    for (name, expected) in [
        ("base", 0o700),
        ("base/diff", 0o555),
        ("base/empty", 0o700),
        ("base/work", 0o700),
        ("base/merged", 0o700),
        ("base/link", 0o644),
        ("middle/diff", 0o555),
        ("middle/lower", 0o644),
        ("middle/lower-layers", 0o644),
        ("l", 0o755),
        ("", 0o700),
    ] {
        assert_eq!(mode(&home.join(name)), expected, "{name}");
    }
    for absent in ["base/lower", "base/lower-layers", "middle/empty"] {
        assert!(!home.join(absent).exists(), "{absent}");
    }
    let (base, middle) = (place.text("base/link"), place.text("middle/link"));
    assert_eq!(base.len(), 26);
    assert!(base.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b)), "{base}");
    assert_eq!(place.text("top/lower"), format!("l/{middle}:l/{base}"));
    assert_eq!(place.text("top/lower-layers"), "middle:base");
    assert_eq!(std::fs::read_link(home.join("l").join(&base)).unwrap(), std::path::Path::new("../base/diff"));
    assert_eq!(driver.list_layers().unwrap(), [id("base"), id("middle"), id("top")]);

    driver.remove(&id("top")).unwrap();
    driver.remove(&id("top")).unwrap();
    assert_eq!(std::fs::read_dir(home.join("l")).unwrap().count(), 2);
    assert!(!driver.exists(&id("top")).unwrap());
}

#[test]
fn a_child_starts_with_its_parents_root() {
    let place = Place::new();
    let driver = place.open();
    driver.create(&id("base"), None, &CreateOptions::default()).unwrap();
    let diff = place.home().join("base/diff");
    std::os::unix::fs::chown(&diff, Some(7), Some(8)).unwrap();
    std::fs::set_permissions(&diff, std::fs::Permissions::from_mode(0o1711)).unwrap();
    driver.create(&id("child"), Some(&id("base")), &CreateOptions::default()).unwrap();
    let child = std::fs::metadata(place.home().join("child/diff")).unwrap();
    assert_eq!((child.mode() & 0o7777, child.uid(), child.gid()), (0o1711, 7, 8));
    assert_eq!(child.mtime(), std::fs::metadata(&diff).unwrap().mtime());

    let range = IdRange { container_id: 0, host_id: 100_000, size: 65_536 };
    let mappings = IdMappings { uids: vec![range], gids: vec![range] };
    let options = CreateOptions { mappings, ..CreateOptions::default() };
    driver.create(&id("mapped"), None, &options).unwrap();
    for name in ["mapped", "mapped/diff", "mapped/work", "mapped/merged", "mapped/empty", "mapped/link"] {
        let stat = std::fs::metadata(place.home().join(name)).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (100_000, 100_000), "{name}");
    }
}

#[test]
fn a_hidden_root_shows_its_real_mode_to_the_child() {
    let place = Place::new();
    let mut setup = place.setup();
    setup.options = vec![("force_mask".into(), "700".into())];
    let masked = super::super::Overlay::open(&setup, "overlay").unwrap();
    masked.create(&id("base"), None, &CreateOptions::default()).unwrap();
    assert_eq!(mode(&place.home().join("base/diff")), 0o700);
    let error = masked.create_read_write(&id("rw"), None, &CreateOptions::default()).unwrap_err();
    assert!(error.to_string().contains("force_mask"), "{error}");
    place.open().create(&id("child"), Some(&id("base")), &CreateOptions::default()).unwrap();
    assert_eq!(mode(&place.home().join("child/diff")), 0o555);
}

#[test]
fn a_failed_create_leaves_nothing() {
    let place = Place::new();
    let driver = place.with_three_layers();
    let count = || {
        let entries = |name: &str| std::fs::read_dir(place.home().join(name)).unwrap().count();
        (entries("l"), driver.list_layers().unwrap().len())
    };
    let before = count();
    assert!(matches!(driver.create(&id("top"), None, &CreateOptions::default()), Err(Error::LayerExists { .. })));
    assert!(matches!(
        driver.create(&id("orphan"), Some(&id("nobody")), &CreateOptions::default()),
        Err(Error::LayerUnknown { .. })
    ));
    for name in ["l", "tempdirs", "staging", "a:b"] {
        assert!(driver.create(&id(name), None, &CreateOptions::default()).is_err(), "{name}");
        assert!(!driver.exists(&id(name)).unwrap(), "{name}");
    }
    let quota =
        CreateOptions { storage_opt: [("size".to_owned(), "1G".to_owned())].into(), ..CreateOptions::default() };
    assert!(driver.create_read_write(&id("quota"), None, &quota).unwrap_err().to_string().contains("size"));
    assert_eq!(count(), before);
}

#[test]
fn the_driver_refuses_a_too_deep_chain() {
    let place = Place::new();
    let driver = place.open();
    let mut parent = None;
    for n in 0..=500 {
        let layer = id(&format!("layer-{n}"));
        driver.create(&layer, parent.as_ref(), &CreateOptions::default()).unwrap();
        parent = Some(layer);
    }
    let error = driver.create(&id("too-deep"), parent.as_ref(), &CreateOptions::default()).unwrap_err();
    assert!(matches!(error, Error::TooDeep { depth: 501, limit: 500, .. }), "{error}");
}

fn chain_of_top(place: &Place) -> graph_core::Result<Vec<graph_core::LayerId>> {
    let driver = place.open();
    let top = driver.homes.require(&id("top"))?;
    let chain = parents(&driver.homes, &top)?;
    ensure_links(&driver.homes, &top, &chain)?;
    Ok(chain)
}

fn assert_records_are_whole(place: &Place) {
    let home = place.home();
    let link = |layer: &str| place.text(&format!("{layer}/link"));
    for layer in ["base", "middle", "top"] {
        let target = std::fs::read_link(home.join("l").join(link(layer))).unwrap();
        assert_eq!(target, std::path::PathBuf::from(format!("../{layer}/diff")));
    }
    assert_eq!(std::fs::read_dir(home.join("l")).unwrap().count(), 3, "a second link for one layer");
    assert_eq!(place.text("top/lower"), format!("l/{}:l/{}", link("middle"), link("base")));
    assert_eq!(place.text("middle/lower"), format!("l/{}", link("base")));
}

#[test]
fn what_is_lost_of_the_records_is_made_again() {
    let empty = |path: std::path::PathBuf| std::fs::write(path, b"").unwrap();
    type Damage<'d> = (&'d str, &'d dyn Fn(&std::path::Path));
    let no_l = |home: &std::path::Path| {
        for entry in std::fs::read_dir(home.join("l")).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    };
    let no_link = |home: &std::path::Path| {
        for layer in ["base", "middle", "top"] {
            std::fs::remove_file(home.join(layer).join("link")).unwrap();
        }
    };
    let damages: &[Damage<'_>] = &[
        ("nothing", &|_| {}),
        ("l/*", &no_l),
        ("*/link", &no_link),
        ("l/* and */link", &|home| {
            no_l(home);
            no_link(home);
        }),
        ("l itself", &|home| std::fs::remove_dir_all(home.join("l")).unwrap()),
        ("lower", &|home| std::fs::remove_file(home.join("top/lower")).unwrap()),
        ("empty lower", &|home| empty(home.join("top/lower"))),
        ("empty lower-layers", &|home| empty(home.join("top/lower-layers"))),
        ("lower-layers", &|home| std::fs::remove_file(home.join("top/lower-layers")).unwrap()),
        ("empty link", &|home| empty(home.join("top/link"))),
        ("truncated lower-layers", &|home| std::fs::write(home.join("top/lower-layers"), b"middle").unwrap()),
        ("truncated lower", &|home| {
            let lower = std::fs::read_to_string(home.join("top/lower")).unwrap();
            std::fs::write(home.join("top/lower"), &lower[..28]).unwrap();
        }),
        ("l/* and lower-layers", &|home| {
            no_l(home);
            std::fs::remove_file(home.join("top/lower-layers")).unwrap();
        }),
        ("zeros", &|home| std::fs::write(home.join("top/lower"), [0; 57]).unwrap()),
    ];
    for (what, damage) in damages {
        let place = Place::new();
        drop(place.with_three_layers());
        damage(&place.home());
        assert_eq!(chain_of_top(&place).unwrap(), [id("middle"), id("base")], "{what}");
        if *what == "l/* and */link" {
            // The middle layer's own lower is put in order when it is mounted itself.
            let driver = place.open();
            let middle = driver.homes.require(&id("middle")).unwrap();
            ensure_links(&driver.homes, &middle, &parents(&driver.homes, &middle).unwrap()).unwrap();
        }
        assert_records_are_whole(&place);
        if !what.ends_with("lower-layers") || what.starts_with("empty") || what.starts_with("trunc") {
            assert_eq!(place.text("top/lower-layers"), "middle:base", "{what}");
        }
    }
}

#[test]
fn what_cannot_be_known_is_an_error_that_says_what_to_do() {
    type Damage<'d> = &'d dyn Fn(&std::path::Path);
    let damages: &[Damage<'_>] = &[
        &|home| {
            std::fs::write(home.join("top/lower"), b"").unwrap();
            std::fs::remove_file(home.join("top/lower-layers")).unwrap();
        },
        &|home| {
            std::fs::write(home.join("top/lower"), b"").unwrap();
            std::fs::write(home.join("top/lower-layers"), b"").unwrap();
        },
        // Both agree with the parent they name: nobody can tell.
        &|home| std::fs::write(home.join("top/lower-layers"), b"base").unwrap(),
    ];
    for damage in damages {
        let place = Place::new();
        drop(place.with_three_layers());
        damage(&place.home());
        let error = chain_of_top(&place).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("layers.json"), "{error}");
    }
}

#[test]
fn links_are_26_characters_of_base32_and_never_the_same() {
    let (one, other) = (LinkId::random().unwrap(), LinkId::random().unwrap());
    assert_ne!(one, other);
    assert!(LinkId::parse("../x").is_none() && LinkId::parse("").is_none() && LinkId::parse(one.as_str()).is_some());
}
