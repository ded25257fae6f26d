//! Running a program as root of a user namespace that maps 65,536 ids.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The host's id of the namespace's root.
pub(crate) const FIRST_ID: u32 = 100_000;
/// Ids in the namespace.
pub(crate) const IDS: u32 = 65_536;

/// Keeps the namespace while nothing else is in it.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        // It only waits; if it has ended already there is nothing to kill.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs `program` (this very binary, as a rule) in a new user namespace and in a new mount namespace of it.
///
/// Needs root. The program is started by descriptor, since the namespace's root may not reach it by name.
pub(crate) fn run(program: &Path, arguments: &[&str]) -> Result<ExitStatus> {
    let holder = Command::new("unshare")
        .args(["--user", "--", "sh", "-c", "read -r _"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("starting unshare")?;
    let mut holder = Holder(holder);
    let pid = holder.0.id();
    let own = fs::read_link("/proc/self/ns/user")?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::read_link(format!("/proc/{pid}/ns/user")).map_or(true, |namespace| namespace == own) {
        if Instant::now() > deadline || holder.0.try_wait()?.is_some() {
            bail!("no user namespace can be made here");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let map = format!("0 {FIRST_ID} {IDS}");
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), &map).with_context(|| format!("writing {file}"))?;
    }
    let binary = File::open(program).with_context(|| format!("opening {}", program.display()))?;
    graph_sys::io::fcntl_setfd(&binary, graph_sys::io::FdFlags::empty())?;
    Command::new("nsenter")
        .args(["--target", &pid.to_string(), "--user", "--setuid", "0", "--setgid", "0", "--"])
        .args(["unshare", "--mount", "--propagation", "private", "--"])
        .arg(format!("/proc/self/fd/{}", binary.as_raw_fd()))
        .args(arguments)
        .stdin(Stdio::null())
        .current_dir("/")
        .status()
        .context("starting nsenter")
}
