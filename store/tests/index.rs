//! Stores that are large enough for an index: every answer, and every file of records, is what it would be without; whatever
//! becomes of the index, at any time.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;

use graph_store::{CreateImage, CreateLayer, Store};
use serde_json::Value;
use support::{Place, isolated};

const LAYERS: usize = 120;

/// A small generator, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// What must be in the store: of each layer its parent, names and free text, in the order of the file.
type Model = Vec<(String, String, Vec<String>, String)>;

fn id(number: usize) -> String {
    format!(
        "{:08x}{}",
        number.wrapping_mul(2_654_435_761) & 0xffff_ffff,
        "0123456789abcdef".repeat(4).get(..56).unwrap()
    )
}

/// A store with layers on each other, some with names, all with a field that we do not know.
fn seeded(driver: &'static str) -> (Place, Model) {
    let place = Place::in_memory(driver);
    drop(place.open());
    let mut model = Model::new();
    let mut text = Vec::new();
    for n in 0..LAYERS {
        let parent = if n % 4 == 0 { String::new() } else { id(n - 1) };
        let names = if n % 3 == 0 { vec![format!("name-{n}")] } else { Vec::new() };
        let shown = [
            (!names.is_empty()).then(|| format!(r#""names":["name-{n}"],"#)),
            (!parent.is_empty()).then(|| format!(r#""parent":"{parent}","#)),
        ];
        text.push(format!(
            r#"{{"id":"{}",{}"created":"2026-11-21T06:52:14.1Z","diff-digest":"sha256:{}","later":{{"b":1.50,"a":[{n}]}}}}"#,
            id(n),
            shown.into_iter().flatten().collect::<String>(),
            id(n % 7)
        ));
        model.push((id(n), parent, names, String::new()));
    }
    fs::write(records(&place), format!("[{}]", text.join(","))).unwrap();
    (place, model)
}

fn records(place: &Place) -> PathBuf {
    place.root().join(format!("{0}-layers/layers.json", place.driver))
}

fn index(place: &Place) -> PathBuf {
    place.run().join(format!("{}-layers/layers.index", place.driver))
}

/// The file and every kind of question against the model, by a store that has just been opened.
fn check(place: &Place, model: &Model, what: &str) {
    let written: Vec<BTreeMap<String, Value>> = serde_json::from_slice(&fs::read(records(place)).unwrap()).unwrap();
    let strings = |value: Option<&Value>| -> Vec<String> {
        value.and_then(Value::as_array).into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let string = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let found: Model = written
        .iter()
        .map(|r| (string(r.get("id")), string(r.get("parent")), strings(r.get("names")), string(r.get("metadata"))))
        .collect();
    assert_eq!(found, *model, "{what}: the file");
    let seeded: Vec<String> = (0..LAYERS).map(id).collect();
    let unknown = |r: &&BTreeMap<String, Value>| seeded.contains(&string(r.get("id"))) && !r.contains_key("later");
    assert_eq!(written.iter().find(unknown), None, "{what}: a field that we do not know is lost");
    let store = place.open();
    for (id, parent, names, metadata) in model.iter().step_by(7).chain(model.last()) {
        let layer = store.layer(id).unwrap();
        assert_eq!((&layer.parent, &layer.names, &layer.metadata), (parent, names, metadata), "{what}: {id}");
        assert_eq!(store.layer(&id[..8]).unwrap().id, *id, "{what}: by prefix");
        for name in names {
            assert_eq!(store.layer(name).unwrap().id, *id, "{what}: by name");
        }
    }
    let same: Vec<&str> = written
        .iter()
        .filter(|r| string(r.get("diff-digest")) == format!("sha256:{}", id(3)))
        .map(|r| r["id"].as_str().unwrap())
        .collect();
    let mut by_digest: Vec<String> = store
        .layers_by_uncompressed_digest(&format!("sha256:{}", id(3)))
        .unwrap()
        .iter()
        .map(|layer| layer.id.clone())
        .collect();
    by_digest.sort_by_key(|id| same.iter().position(|other| other == id));
    assert_eq!(by_digest, same, "{what}: by digest");
    for unknown in ["nobody", "name-", &id(LAYERS + 500), "ffffffff"] {
        assert!(store.layer(unknown).is_err(), "{what}: {unknown}");
    }
    let all: Vec<String> = store.layers().unwrap().iter().map(|layer| layer.id.clone()).collect();
    assert_eq!(all, model.iter().map(|row| row.0.clone()).collect::<Vec<_>>(), "{what}: the list");
}

/// One change of the store and of the model.
fn change(store: &Store, model: &mut Model, dice: &mut Dice, round: usize) -> String {
    let at = dice.below(model.len());
    let target = model[at].0.clone();
    match dice.below(6) {
        0 => {
            let new = format!("{round:04x}{}", id(round + 1000).get(4..).unwrap());
            let names = vec![format!("new-{round}")];
            let options = CreateLayer {
                id: Some(new.clone()),
                parent: None,
                names: names.clone(),
                metadata: "made".to_owned(),
                ..CreateLayer::default()
            };
            store.create_layer(&options).unwrap();
            model.push((new.clone(), String::new(), names, "made".to_owned()));
            format!("{round}: create {new}")
        }
        1 => {
            let has_child = model.iter().any(|row| row.1 == target);
            let deleted = store.delete_layer(&target);
            assert_eq!(deleted.is_err(), has_child, "{round}: delete {target}: {deleted:?}");
            model.retain(|row| has_child || row.0 != target);
            format!("{round}: delete {target}")
        }
        2 => {
            let text = "m".repeat(dice.below(300));
            store.set_metadata(&target, &text).unwrap();
            model[at].3 = text;
            format!("{round}: metadata of {target}")
        }
        3 => {
            // A name of somebody else's, a new one, or none.
            let mut names = vec![format!("extra-{round}")];
            let other = dice.below(model.len());
            names.extend(model[other].2.first().cloned());
            store.set_names(&target, &names).unwrap();
            for (n, row) in model.iter_mut().enumerate() {
                if n == at {
                    row.2.clone_from(&names);
                } else {
                    row.2.retain(|name| !names.contains(name));
                }
            }
            format!("{round}: names of {target}")
        }
        4 => {
            // Taken, so nothing may change.
            let taken = CreateLayer { id: Some(target.clone()), ..CreateLayer::default() };
            store.create_layer(&taken).unwrap_err();
            if let Some(name) = model[at].2.first() {
                let taken = CreateLayer { names: vec![name.clone()], ..CreateLayer::default() };
                store.create_layer(&taken).unwrap_err();
            }
            format!("{round}: nothing")
        }
        _ => {
            store.set_layer_big_data(&target, "item", b"x").unwrap();
            format!("{round}: data of {target}")
        }
    }
}

/// Does something to the index.
fn damage(place: &Place, dice: &mut Dice, older: &[u8]) -> &'static str {
    let path = index(place);
    let Ok(bytes) = fs::read(&path) else { return "none" };
    match dice.below(8) {
        0 => fs::remove_file(&path).map(|()| "removed").unwrap(),
        1 => fs::write(&path, &bytes[..dice.below(bytes.len())]).map(|()| "cut").unwrap(),
        2 => fs::write(&path, vec![0; bytes.len()]).map(|()| "zeros").unwrap(),
        3 => fs::write(&path, older).map(|()| "an older one").unwrap(),
        4 => {
            fs::remove_file(&path).unwrap();
            symlink("/etc/passwd", &path).map(|()| "a link").unwrap()
        }
        5 => {
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).map(|()| "a directory").unwrap()
        }
        _ => {
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            for _ in 0..1 + dice.below(400) {
                let at = dice.below(bytes.len());
                file.write_all_at(&[bytes[at] ^ (1 << dice.below(8))], at as u64).unwrap();
            }
            "flipped bits"
        }
    }
}

#[test]
fn answers_and_files_are_the_same_with_an_index_and_whatever_becomes_of_it() {
    if !isolated() {
        return;
    }
    for (driver, seed) in [("overlay", 1), ("vfs", 2), ("overlay", 3)] {
        let (place, mut model) = seeded(driver);
        let mut dice = Dice(seed);
        check(&place, &model, "at first");
        assert!(index(&place).is_file(), "the store is large enough for an index");
        let older = fs::read(index(&place)).unwrap();
        let mut store = place.open();
        for round in 0..160 {
            let mut what = change(&store, &mut model, &mut dice, round);
            if round % 4 == 3 {
                what = format!("{driver}: {what}, then the index: {}", damage(&place, &mut dice, &older));
            }
            check(&place, &model, &what);
            if dice.below(3) > 0 {
                store = place.open();
            }
        }
        let path = index(&place);
        if path.is_dir() {
            fs::remove_dir(&path).unwrap();
        }
    }
}

#[test]
fn every_byte_of_an_index_may_be_wrong() {
    if !isolated() {
        return;
    }
    let (place, model) = seeded("vfs");
    check(&place, &model, "at first");
    let whole = fs::read(index(&place)).unwrap();
    let mut wrong = 0;
    for at in (0..whole.len()).step_by(61) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x15;
        fs::write(index(&place), &bytes).unwrap();
        let store = place.open();
        for (id, parent, ..) in model.iter().step_by(11) {
            assert_eq!(store.layer(id).unwrap().parent, *parent, "byte {at}");
        }
        assert!(store.layer("nobody").is_err());
        wrong += 1;
    }
    assert!(wrong > 100, "{wrong}");
}

#[test]
fn a_peer_and_a_script_may_write_in_between() {
    if !isolated() {
        return;
    }
    let (place, mut model) = seeded("vfs");
    let store = place.open();
    store.set_metadata(&model[5].0, "ours").unwrap();
    model[5].3 = "ours".to_owned();
    // As sed does it: no token, another file.
    let text = fs::read_to_string(records(&place)).unwrap().replace("name-9\"", "name-nine\"");
    fs::write(records(&place), text).unwrap();
    model[9].2 = vec!["name-nine".to_owned()];
    check(&place, &model, "after a script");
    assert_eq!(store.layer("name-nine").unwrap().id, model[9].0, "a store that was open all the time");
    if support::has_program("containers-storage") {
        place.peer(&["set-names", "-n", "theirs", &model[7].0]);
        model[7].2 = vec!["theirs".to_owned()];
        let mut now = model.clone();
        now[7].2 = vec!["theirs".to_owned()];
        assert_eq!(store.layer("theirs").unwrap().id, model[7].0);
        let made =
            store.create_image(&CreateImage { layer: Some("theirs".to_owned()), ..CreateImage::default() }).unwrap();
        assert_eq!(made.layer, model[7].0);
        let peers = place.peer(&["layers"]);
        assert!(model.iter().all(|row| peers.contains(&row.0)));
    }
}
