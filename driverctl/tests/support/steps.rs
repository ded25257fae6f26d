//! A command that is killed, or told of an error, at each of its steps: the system calls with which it changes something,
//! found by looking at one run of it, all of them. strace does both.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use super::{TestStore, run};

/// Calls that change files, mounts or what is on the disk.
const CHANGING: &str = "?mkdirat,?mkdir,?renameat,?renameat2,?rename,?unlinkat,?unlink,?rmdir,?symlinkat,?symlink,?linkat,\
    ?link,?write,?pwrite64,?ftruncate,?fallocate,?copy_file_range,?fchmod,?fchmodat,?fchmodat2,?fchown,\
    ?fchownat,?fdatasync,?fsync,?syncfs,?mount,?umount2,?move_mount,?fsmount,?mount_setattr,?utimensat,\
    ?setxattr,?fsetxattr,?removexattr,?fremovexattr,?mknodat,?setxattrat,?open_tree";

/// One call: its name, and which of a thread's calls of that name it is (from 1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    pub call: String,
    pub nth: usize,
}

/// What happens at a step, instead of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    Kill,
    /// The name of an errno.
    Error(&'static str),
}

fn traced(store: &TestStore, words: &[&str], flags: &[&str], out: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "signal=none", "--seccomp-bpf", "-e", &format!("trace={CHANGING}")]);
    command.args(flags).arg("-o").arg(out).arg(super::DRIVERCTL).args(store.global()).args(words);
    command.env_remove("STORAGE_DRIVER").env_remove("STORAGE_OPTS");
    command
}

/// The steps of a command, which is done by this.
pub fn steps(store: &TestStore, words: &[&str]) -> Vec<Step> {
    let trace = store.path("trace");
    run(&mut traced(store, words, &[], &trace));
    let text = std::fs::read_to_string(&trace).unwrap();
    let mut counts = std::collections::BTreeMap::new();
    let mut steps = BTreeSet::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
        if !call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let nth = counts.entry((thread.to_owned(), call.to_owned())).or_insert(0);
        *nth += 1;
        steps.insert(Step { call: call.to_owned(), nth: *nth });
    }
    steps.into_iter().collect()
}

/// Does the command, with the blow at that step.
pub fn strike(store: &TestStore, words: &[&str], step: &Step, blow: Blow) -> Output {
    let what = match blow {
        Blow::Kill => "signal=KILL".to_owned(),
        Blow::Error(errno) => format!("error={errno}"),
    };
    let inject = format!("inject={}:{what}:when={}", step.call, step.nth);
    traced(store, words, &["-e", &inject], Path::new("/dev/null")).output().unwrap()
}
