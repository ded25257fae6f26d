//! What the kernel can do.

use std::path::Path;

use graph_core::{Error, Result, fsutil};
use graph_sys::statfs::{self, Magic};

use super::layout::Home;
use crate::support::context::Context;

/// containers/storage's words for a kernel without AUFS.
pub(super) const NOT_FOUND: &str = "AUFS was not found in /proc/filesystems";

/// containers/storage's words for a process that is root in a user namespace only.
pub(super) const NOT_IN_USER_NAMESPACE: &str = "AUFS cannot be used in non-init user namespace";

/// Where the module tells about itself.
const MODULE: &str = "/sys/module/aufs";

/// Whether the kernel stacks directories by AUFS for this process; the reason why not.
pub(super) fn usable(rootless: bool) -> Result<(), &'static str> {
    let listed = fsutil::read_small_path(Path::new("/proc/filesystems"), 1 << 20).unwrap_or_default();
    if !lists_aufs(&listed) {
        return Err(NOT_FOUND);
    }
    if rootless && !allows_user_namespaces() {
        return Err(NOT_IN_USER_NAMESPACE);
    }
    Ok(())
}

/// Whether a list as in /proc/filesystems has AUFS. (`nodev`, a tabulator, the name.)
pub(super) fn lists_aufs(file_systems: &[u8]) -> bool {
    let mut lines = file_systems.split(|byte| *byte == b'\n');
    lines.any(|line| line.split(u8::is_ascii_whitespace).next_back() == Some(b"aufs"))
}

/// The module's parameter `allow_userns`, which is off unless the kernel was told otherwise when it was started.
fn allows_user_namespaces() -> bool {
    read_line("parameters/allow_userns").is_some_and(|value| matches!(value.as_str(), "Y" | "y" | "1"))
}

/// The module's version.
pub(super) fn version() -> Option<String> {
    read_line("version")
}

fn read_line(name: &str) -> Option<String> {
    let bytes = fsutil::read_small_path(&Path::new(MODULE).join(name), 4096).ok()?;
    let line = String::from_utf8(bytes).ok()?;
    Some(line.trim().to_owned()).filter(|line| !line.is_empty())
}

/// Refuses file systems whose directories cannot be branches.
pub(super) fn check_backing(home: &Home) -> Result<()> {
    let magic = statfs::magic(home.diff()).at("statfs", home.path(), None)?;
    if matches!(magic, Magic::AUFS | Magic::BTRFS | Magic::ECRYPTFS | Magic::OVERLAY) {
        let name = magic.name().unwrap_or("this file system");
        return Err(Error::IncompatibleFs { context: format!("aufs over {name} at {}", home.path().display()) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_file_systems() {
        assert!(lists_aufs(b"nodev\tsysfs\nnodev\taufs\n\text4\n"));
        assert!(lists_aufs(b"nodev\taufs"));
        for without in [&b""[..], b"nodev\tsysfs\n\text4\n", b"nodev\taufs2\n", b"nodev\txaufs\n", b"aufs nodev\n"] {
            assert!(!lists_aufs(without));
        }
    }
}
