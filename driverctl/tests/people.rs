//! What people get and programs do not: tables, colours, completions, manual pages.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::process::{Command, Stdio};

use support::{DRIVERCTL, TestStore, have, in_own_mount_namespace, run};

/// Runs it on a terminal of its own.
fn on_terminal(store: &TestStore, words: &str, environment: &[(&str, &str)]) -> String {
    let line = format!("{DRIVERCTL} {} {words}", store.global().join(" "));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env_remove("NO_COLOR").env("TERM", "xterm").stdin(Stdio::null());
    run(command.envs(environment.iter().copied())).replace('\r', "")
}

#[test]
fn root_lists_are_tables_on_a_terminal_and_lines_in_a_pipe() {
    let name = "root_lists_are_tables_on_a_terminal_and_lines_in_a_pipe";
    if !have("script", name) || !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new("vfs");
    let base = store.ok(&["create-layer", "-n", "base"]).lines().next().unwrap().to_owned();
    let image = store.ok(&["create-image", "-n", "an-image", &base]).lines().next().unwrap().to_owned();
    store.ok(&["create-image", "-n", "evil"]);
    // We refuse such names; others may not.
    let records = store.path("root/vfs-images/images.json");
    let text = fs::read_to_string(&records).unwrap();
    fs::write(&records, text.replace("evil", "evil\\u001b]0;title\\u0007")).unwrap();
    store.ok(&["create-container", "-n", "a-container", "an-image"]);

    let plain = on_terminal(&store, "layers", &[("NO_COLOR", "1")]);
    let lines: Vec<&str> = plain.lines().collect();
    assert_eq!(lines.len(), 3, "{plain}");
    assert!(lines[0].starts_with("ID            PARENT        CREATED           "), "{plain}");
    let column = lines[0].find("NAMES").unwrap();
    assert_eq!(&lines[1][..12], &base[..12]);
    assert_eq!(&lines[1][column..], "base, image an-image");
    assert_eq!((&lines[2][14..26], &lines[2][column..]), (&base[..12], "container a-container"));
    assert!(!plain.contains('\x1b'), "{plain:?}");
    assert!(!on_terminal(&store, "layers", &[("TERM", "dumb")]).contains('\x1b'));

    let coloured = on_terminal(&store, "layers", &[]);
    let mut bare = coloured.clone();
    for code in ["\x1b[0m", "\x1b[1m", "\x1b[36m"] {
        bare = bare.replace(code, "");
    }
    assert!(coloured.contains("\x1b[36m") && bare.lines().map(str::trim_end).eq(lines.iter().copied()), "{coloured:?}");

    let images = on_terminal(&store, "images", &[]);
    assert!(images.contains(&image[..12]) && !images.contains(&image[..13]), "{images:?}");
    assert!(!images.contains("\x1b]") && !images.contains('\x07'), "a name reached the terminal: {images:?}");
    assert!(on_terminal(&store, "containers", &[]).contains("an-image"));
    assert!(on_terminal(&store, "layers -t", &[]).starts_with("(base)\n└─\x1b[36m"));
    assert_eq!(on_terminal(&store, "layers -q", &[]).lines().next(), Some(base.as_str()));
    // An unknown layer is named.
    let line = format!("{DRIVERCTL} {} mount nosuch", store.global().join(" "));
    let out = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("\"nosuch\""), "{out:?}");

    for verb in ["layers", "images", "containers", "status"] {
        let pipe = store.ok(&[verb]);
        assert!(!pipe.contains('\x1b') && !pipe.contains("CREATED"), "{pipe:?}");
    }
    assert_eq!(store.ok(&["layers"]).lines().next(), Some(base.as_str()));
}

#[test]
fn bash_completes_verbs_and_flags() {
    if !have("bash", "bash_completes_verbs_and_flags") {
        return;
    }
    // What the shell does when the tabulator is pressed behind the last word.
    let script = r#"
eval "$("$0" completions bash)"
try() { COMP_WORDS=(driverctl "$@"); COMP_CWORD=$#; COMPREPLY=(); _driverctl driverctl "${@: -1}" "$prev"; echo "${COMPREPLY[*]}"; }
try storage-l; try layers --tr; try create-layer --sub; try --graph /x apply-di
"#;
    let out = run(Command::new("bash").args(["-c", script, DRIVERCTL]));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "storage-layers");
    assert!(lines[1].split(' ').any(|word| word == "--tree"), "{out}");
    assert_eq!(lines[2], "--subuidmap --subgidmap");
    for (shell, word) in [("zsh", "#compdef driverctl"), ("fish", "complete -c driverctl")] {
        assert!(run(Command::new(DRIVERCTL).args(["completions", shell])).contains(word), "{shell}");
    }
}

#[test]
fn manual_pages_are_there_for_every_verb() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("made/here");
    run(Command::new(DRIVERCTL).arg("man-pages").arg(&pages));
    let help = run(Command::new(DRIVERCTL).arg("--help"));
    let verbs = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let verbs: Vec<&str> =
        verbs.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next()).collect();
    assert!(verbs.len() > 40, "{verbs:?}");
    for verb in &verbs {
        assert!(pages.join(format!("driverctl-{verb}.1")).is_file(), "{verb}");
    }
    let page = fs::read_to_string(pages.join("driverctl-mount.1")).unwrap();
    assert!(page.contains(".TH driverctl-mount 1") && page.contains("read\\-only"), "{page}");
    if have("groff", "manual_pages_are_there_for_every_verb") {
        for verb in verbs {
            let page = pages.join(format!("driverctl-{verb}.1"));
            let out = Command::new("groff").args(["-man", "-Tascii", "-ww", "-z"]).arg(page).output().unwrap();
            assert!(out.status.success() && out.stderr.is_empty(), "{verb}: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
}
