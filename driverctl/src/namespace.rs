//! An ordinary user becomes root of a user namespace: with the ids that `/etc/subuid` and `/etc/subgid` give, and with mounts
//! of its own. What the process was called for then happens in there.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Error, Result, bail};
use graph_archive::IdRange;
use graph_core::config::variable;
use graph_core::subid::{SubIdKind, SubIds};

use crate::output;

/// Whether this process is an ordinary user's and has not been here before.
pub(crate) fn is_ordinary_user() -> bool {
    let configured = std::env::vars_os().any(|(name, _)| name == variable::USERNS_CONFIGURED);
    !configured && !graph_sys::process::geteuid().is_root()
}

/// Programs with the privilege to write id maps; they look themselves whether `/etc/subuid` allows what is asked for. They have to
/// run outside of the namespace, so the shell that waits for the word is started before it is entered.
const WRITE_MAPS: &str = r#"read -r go && newuidmap "$1" $2 && newgidmap "$1" $3"#;

/// Why there is no namespace to work in.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) error: Error,
    /// This process cannot go on as the user that it was.
    pub(crate) half_way: bool,
}

/// Starts this program anew inside, with the same words. Returns only if that is not possible.
pub(crate) fn start_again() -> Refused {
    let (uid, gid) = (graph_sys::process::geteuid().as_raw(), graph_sys::process::getegid().as_raw());
    let before = |error| Refused { error, half_way: false };
    let inside = |error| Refused { error, half_way: true };
    let helper = match prepare(uid, gid) {
        Ok(helper) => helper,
        Err(error) => return before(error),
    };
    if let Err(error) = graph_sys::namespace::user_namespace() {
        // Dropping its input ends it.
        drop(helper.wait_with_output());
        return before(Error::new(std::io::Error::from(error)).context("make a user namespace"));
    }
    if let Err(error) = take_ids(helper) {
        return inside(error);
    }
    let mut words = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(words.next().unwrap_or_default()).args(words);
    command.env(variable::USERNS_CONFIGURED, "done");
    command.env(variable::ROOTLESS_UID, uid.to_string()).env(variable::ROOTLESS_GID, gid.to_string());
    inside(Error::new(command.exec()).context("start this program again in a user namespace"))
}

/// Looks which ids there are, and starts what can write them down.
fn prepare(uid: u32, gid: u32) -> Result<Child> {
    let name = user_name(uid).unwrap_or_default();
    let (uids, gids) = (map(SubIdKind::User, &name, uid, uid)?, map(SubIdKind::Group, &name, uid, gid)?);
    // Asked for nothing, it says how it wants to be asked.
    Command::new("newuidmap").stdin(Stdio::null()).output().context("newuidmap (package uidmap)")?;
    Command::new("sh")
        .args(["-c", WRITE_MAPS, "sh", &std::process::id().to_string(), &uids, &gids])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start sh")
}

/// Gives the word, and waits until the ids are there.
fn take_ids(mut helper: Child) -> Result<()> {
    if let Some(mut input) = helper.stdin.take() {
        // If it is gone already, its last words say why.
        input.write_all(b"go\n").ok();
    }
    let out = helper.wait_with_output().context("wait for newuidmap")?;
    if !out.status.success() {
        bail!("newuidmap: {}", output::safe(String::from_utf8_lossy(&out.stderr).trim()));
    }
    Ok(())
}

/// The words of `newuidmap`: the user is 0, the ids behind it follow from 1 on.
fn map(kind: SubIdKind, name: &str, uid: u32, own: u32) -> Result<String> {
    let ranges = SubIds::read(kind, kind.file())?.mapping(name, Some(uid))?;
    let mut words = format!("0 {own} 1");
    for IdRange { container_id, host_id, size } in ranges {
        words.push_str(&format!(" {} {host_id} {size}", container_id.saturating_add(1)));
    }
    Ok(words)
}

/// The name of a user in `/etc/passwd`.
fn user_name(uid: u32) -> Option<String> {
    let text = std::fs::read(Path::new("/etc/passwd")).ok()?;
    String::from_utf8_lossy(&text).lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}
