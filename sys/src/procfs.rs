//! Reading the small files of `/proc/self`, with a check that it is procfs that answers.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, Result};

/// `f_type` of procfs.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// Opens `/proc/<path>`; `EXDEV` when something other than procfs is mounted there.
pub(crate) fn open(path: &str, flags: OFlags) -> Result<OwnedFd> {
    let file = rustix::fs::openat(CWD, format!("/proc/{path}"), flags | OFlags::CLOEXEC, Mode::empty())?;
    #[allow(clippy::cast_sign_loss, reason = "the magic numbers are bit patterns, signed on some architectures only")]
    let kind = rustix::fs::fstatfs(&file)?.f_type as u64;
    if kind == PROC_SUPER_MAGIC { Ok(file) } else { Err(Errno::XDEV) }
}

/// The whole content of `/proc/thread-self/<path>`, which is this thread's view where threads differ.
pub(crate) fn read(path: &str) -> Result<Vec<u8>> {
    let file = open(&format!("thread-self/{path}"), OFlags::RDONLY)?;
    read_all(&file)
}

/// The names in a directory of procfs that are numbers.
pub(crate) fn numbers(dir: &OwnedFd) -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    let mut buffer = crate::getdents::DirBuffer::new();
    let mut entries = buffer.entries(dir)?;
    while let Some(entry) = entries.next() {
        numbers.extend(std::str::from_utf8(entry?.name).ok().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(numbers)
}

/// The path that the kernel shows for a descriptor.
pub(crate) fn link_of(file: BorrowedFd<'_>) -> Result<Vec<u8>> {
    rustix::fs::readlinkat(CWD, format!("/proc/thread-self/fd/{}", file.as_raw_fd()), Vec::new())
        .map(std::ffi::CString::into_bytes)
}

/// The whole content of a file whose size `stat` does not tell.
pub(crate) fn read_all(file: &OwnedFd) -> Result<Vec<u8>> {
    let mut content = Vec::with_capacity(4096);
    loop {
        if content.spare_capacity_mut().is_empty() {
            content.reserve(content.capacity());
        }
        match rustix::io::read(file, rustix::buffer::spare_capacity(&mut content)) {
            Ok(0) => return Ok(content),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
