//! What this process gives to the files it makes.

use graph_sys::fs::{self, Mode, OFlags};

/// The mask of file modes, without changing it even for a moment: other threads make files too. Where `/proc` does not
/// tell (before Linux 4.7), all bits, so that every mode is set explicitly.
///
/// A mask that another thread changes while a layer is applied is not noticed.
pub(super) fn umask() -> Mode {
    let all = Mode::RWXU | Mode::RWXG | Mode::RWXO;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(file) = fs::openat(fs::CWD, "/proc/thread-self/status", flags, Mode::empty()) else { return all };
    let mut buffer = [0u8; 512];
    let Ok(size) = graph_sys::io::read(&file, &mut buffer) else { return all };
    let text = buffer.get(..size).unwrap_or_default();
    let field = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Umask:"));
    let digits = field.and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| u32::from_str_radix(digits.trim(), 8).ok()).map_or(all, Mode::from_raw_mode)
}

/// While it lives, files that this thread makes get an SELinux label.
#[derive(Debug)]
pub(super) struct FileLabel(std::os::fd::OwnedFd);

impl FileLabel {
    /// Sets the label; `None` where SELinux is not there, or does not know the label.
    pub(super) fn set(label: &str) -> Option<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let file = fs::openat(fs::CWD, "/proc/thread-self/attr/fscreate", flags, Mode::empty()).ok()?;
        graph_sys::io::write(&file, label.as_bytes()).ok()?;
        Some(Self(file))
    }
}

impl Drop for FileLabel {
    fn drop(&mut self) {
        // Writing nothing resets it. That cannot fail where setting it did not.
        let _reset = graph_sys::io::write(&self.0, b"");
    }
}
