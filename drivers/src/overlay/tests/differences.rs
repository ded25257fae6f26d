//! Changes and owners.

use std::os::unix::fs::MetadataExt;

use graph_archive::changes::ChangeKind;
use graph_archive::idmap::{IdMappings, IdRange};
use graph_core::driver::{CreateOptions, DiffRequest, DriverExt, GetOptions};
use graph_core::registry::DriverSetup;
use graph_core::{Driver, LayerId};

use super::super::Overlay;
use super::super::mount::Method;
use super::support::{Place, id, may_mount};

fn lines(driver: &Overlay, request: &DiffRequest<'_>) -> Vec<String> {
    let letter = |kind| match kind {
        ChangeKind::Modify => 'C',
        ChangeKind::Add => 'A',
        ChangeKind::Delete => 'D',
    };
    let changes = driver.changes(request).unwrap();
    changes.iter().map(|c| format!("{} {}", letter(c.kind), String::from_utf8_lossy(&c.path))).collect()
}

fn fill_base(place: &Place) {
    let diff = place.home().join("base/diff");
    std::fs::create_dir_all(diff.join("dir/below")).unwrap();
    for name in ["kept", "changed", "gone", "dir/below/file"] {
        std::fs::write(diff.join(name), name).unwrap();
    }
    std::fs::hard_link(diff.join("kept"), diff.join("link")).unwrap();
    for name in ["kept", "changed", "dir", "dir/below"] {
        std::os::unix::fs::chown(diff.join(name), Some(1000), Some(100)).unwrap();
    }
}

fn change(driver: &Overlay, layer: &LayerId) {
    let mounted = driver.mount(layer).unwrap();
    std::fs::write(mounted.path().join("changed"), "something else").unwrap();
    std::fs::write(mounted.path().join("new"), "new").unwrap();
    std::fs::remove_file(mounted.path().join("gone")).unwrap();
    std::fs::remove_dir_all(mounted.path().join("dir")).unwrap();
    mounted.put().unwrap();
}

const CHANGES: [&str; 4] = ["C /changed", "D /dir", "D /gone", "A /new"];

#[test]
fn root_both_ways_of_finding_changes_agree() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let mut driver = place.with_three_layers();
    fill_base(&place);
    change(&driver, &id("middle"));
    let (base, middle, top) = (id("base"), id("middle"), id("top"));
    for method in [Method::Descriptors, Method::Classic] {
        driver.method = method;
        for native in [true, false] {
            driver.features.native_diff.works = native;
            assert_eq!(lines(&driver, &DiffRequest::unmapped(&middle, Some(&base))), CHANGES, "native: {native}");
            assert_eq!(driver.diff_size(&DiffRequest::unmapped(&middle, Some(&base))).unwrap(), 14 + 3);
            assert_eq!(lines(&driver, &DiffRequest::unmapped(&top, Some(&middle))), [""; 0]);
            // Not the layer's own parent.
            assert_eq!(lines(&driver, &DiffRequest::unmapped(&top, Some(&base))), CHANGES);
            assert_eq!(
                lines(&driver, &DiffRequest::unmapped(&middle, None)),
                ["A /changed", "A /kept", "A /link", "A /new"]
            );
            assert_eq!(lines(&driver, &DiffRequest::unmapped(&base, None)).len(), 7);
        }
    }
}

#[test]
fn root_redirects_are_followed_by_comparing_trees() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let mut setup = place.setup();
    setup.options.push(("mountopt".into(), "metacopy=on".into()));
    let driver = Overlay::open(&setup, "overlay").unwrap();
    place.fill(&driver);
    fill_base(&place);
    let mounted = driver.mount(&id("middle")).unwrap();
    std::fs::rename(mounted.path().join("dir"), mounted.path().join("moved")).unwrap();
    mounted.put().unwrap();
    assert_eq!(
        lines(&driver, &DiffRequest::unmapped(&id("middle"), Some(&id("base")))),
        ["D /dir", "A /moved", "A /moved/below", "A /moved/below/file"]
    );
}

fn by(first: u32) -> IdMappings {
    let range = IdRange { container_id: 0, host_id: first, size: 65_536 };
    IdMappings { uids: vec![range], gids: vec![range] }
}

#[test]
fn root_other_owners_are_no_change() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let mut setup: DriverSetup = place.setup();
    setup.disable_id_mapped_mounts = true;
    let driver = Overlay::open(&setup, "overlay").unwrap();
    place.fill(&driver);
    fill_base(&place);
    change(&driver, &id("middle"));
    std::fs::write(place.home().join("base/diff/suid"), "x").unwrap();
    std::os::unix::fs::chown(place.home().join("base/diff/suid"), Some(5), Some(6)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o6755);
    std::fs::set_permissions(place.home().join("base/diff/suid"), mode).unwrap();

    let (none, mapped) = (IdMappings::default(), by(100_000));
    let (base, middle, top) = (id("base"), id("middle"), id("top"));
    driver.update_layer_id_map(&middle, &none, &mapped, "").unwrap();
    let again = by(300_000);
    driver.update_layer_id_map(&top, &mapped, &again, "").unwrap();
    let request =
        DiffRequest { id: &middle, mappings: &mapped, parent: Some(&base), parent_mappings: &none, mount_label: "" };
    assert_eq!(lines(&driver, &request), CHANGES);
    let of_top =
        DiffRequest { id: &top, mappings: &again, parent: Some(&middle), parent_mappings: &mapped, mount_label: "" };
    assert_eq!(lines(&driver, &of_top), [""; 0]);
    assert_eq!(driver.diff_size(&of_top).unwrap(), 0);

    for (layer, first) in [(&middle, 100_000), (&top, 300_000)] {
        let mounted = driver.mount(layer).unwrap();
        let stat = |name: &str| std::fs::symlink_metadata(mounted.path().join(name)).unwrap();
        let owner = |name: &str| (stat(name).uid(), stat(name).gid());
        assert_eq!(owner("kept"), (first + 1000, first + 100), "{layer}");
        assert_eq!(owner("changed"), (first + 1000, first + 100), "{layer}");
        assert_eq!(owner("new"), (first, first), "{layer}");
        assert_eq!(owner("."), (first, first), "{layer}");
        assert_eq!((owner("suid"), stat("suid").mode() & 0o7777), ((first + 5, first + 6), 0o6755), "{layer}");
        assert_eq!(stat("kept").ino(), stat("link").ino(), "{layer}");
        assert!(!mounted.path().join("gone").exists() && !mounted.path().join("dir").exists(), "{layer}");
        mounted.put().unwrap();
    }
    assert_eq!(std::fs::metadata(place.home().join("base/diff/kept")).unwrap().uid(), 1000);
    assert_eq!(std::fs::read_dir(place.home().join("tempdirs")).unwrap().count(), 0);

    // What is written afterwards is a change, and a mounted layer is not re-owned.
    let mounted = driver.get(&top, &GetOptions::default()).unwrap();
    std::fs::write(mounted.path().join("kept"), "x").unwrap();
    assert!(driver.update_layer_id_map(&top, &again, &by(200_000), "").is_err());
    mounted.put().unwrap();
    assert_eq!(lines(&driver, &of_top), ["C /kept"]);
    // A child starts from what its parent shows.
    driver
        .create(&id("child"), Some(&top), &CreateOptions { mappings: again.clone(), ..CreateOptions::default() })
        .unwrap();
    let mounted = driver.mount(&id("child")).unwrap();
    assert_eq!(std::fs::metadata(mounted.path().join("new")).unwrap().uid(), 300_000);
    mounted.put().unwrap();
    // An owner that the mappings leave out.
    let error = driver.update_layer_id_map(&id("child"), &by(500_000), &mapped, "").unwrap_err();
    assert!(error.to_string().contains("child"), "{error}");
    assert_eq!(std::fs::read_dir(place.home().join("tempdirs")).unwrap().count(), 0);
}
