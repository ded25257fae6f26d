//! Running the system's programs.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program to its end; its standard error is in the error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Whether a program can be found, where a shell would look and in the administrator's directories.
pub(crate) fn exists(name: &str) -> bool {
    let find = format!("PATH=$PATH:/usr/sbin:/sbin command -v {name}");
    Command::new("sh").args(["-c", &find]).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A command that is also looked for in the administrator's directories.
pub(crate) fn administrative(name: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "PATH=$PATH:/usr/sbin:/sbin exec \"$0\" \"$@\"", name]);
    command
}
