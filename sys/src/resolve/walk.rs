//! Resolution component by component, for kernels without `openat2` and for paths over `PATH_MAX`.
//!
//! Every component is opened by `O_PATH | O_NOFOLLOW` below the descriptor of the one before it, so that nothing can be
//! followed by accident; links are read and their text is put in front of what is left. `..` is never given to the
//! kernel, since another process may move the directory out of the root meanwhile: the names that led to the parent
//! are walked again from the root.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, Result};

use super::Rule;
use crate::statfs::Magic;

/// As many links as the kernel follows in one path (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;
/// What is left of a path may not grow beyond this through links; the kernel's own bound is 40 links of 4 KiB.
const MAX_PENDING: usize = 1 << 20;
/// How often a walk starts anew when names on its way vanish or change their type.
const ATTEMPTS: usize = 64;

const STEP: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

pub(super) fn open(root: BorrowedFd<'_>, rule: Rule, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    for _ in 0..ATTEMPTS {
        match Walk::new(root, rule, path)?.run(flags, mode) {
            Err(Errno::AGAIN) => {}
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}

struct Walk<'a> {
    root: BorrowedFd<'a>,
    rule: Rule,
    /// Where we are; `None` is the root.
    current: Option<OwnedFd>,
    /// The names from the root to `current`, none of them a link, `.` or `..`.
    trail: Vec<Vec<u8>>,
    /// The rest of the path, in components; an empty last one stands for a slash at the end.
    pending: VecDeque<Vec<u8>>,
    pending_bytes: usize,
    links: usize,
    /// The mount of the root, where no other may be entered.
    mount: Option<u64>,
}

impl<'a> Walk<'a> {
    fn new(root: BorrowedFd<'a>, rule: Rule, path: &[u8]) -> Result<Self> {
        let mount = match rule {
            Rule::InRoot => None,
            Rule::Beneath if path.starts_with(b"/") => return Err(Errno::XDEV),
            Rule::Beneath => Some(crate::statx::reusable_mount_id(root)?),
        };
        let pending: VecDeque<_> = components(path).collect();
        let pending_bytes = path.len();
        Ok(Self { root, rule, current: None, trail: Vec::new(), pending, pending_bytes, links: 0, mount })
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.current.as_ref().map_or(self.root, AsFd::as_fd)
    }

    fn run(mut self, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        while let Some(name) = self.pending.pop_front() {
            self.pending_bytes = self.pending_bytes.saturating_sub(name.len());
            match &*name {
                b"" | b"." => {}
                b".." => self.up()?,
                _ if self.pending.is_empty() => {
                    // When it is a link, what it says is pending afterwards.
                    if let Some(found) = self.last(&name, flags, mode)? {
                        return Ok(found);
                    }
                }
                // A slash after a name that is to be created, whatever is there.
                _ if flags.contains(OFlags::CREATE) && self.pending.iter().all(Vec::is_empty) => {
                    return Err(Errno::ISDIR);
                }
                _ => self.down(name)?,
            }
        }
        // The path ended in `.`, `..` or a slash: the directory where we are.
        if flags.contains(OFlags::CREATE) && !flags.contains(OFlags::DIRECTORY) {
            return Err(if flags.contains(OFlags::EXCL) { Errno::EXIST } else { Errno::ISDIR });
        }
        rustix::fs::openat(self.here(), c".", flags | OFlags::NOFOLLOW, mode)
    }

    /// Opens one name below the current directory; the mount rule is kept.
    fn step(&self, name: &[u8]) -> Result<(OwnedFd, FileType)> {
        let found = rustix::fs::openat(self.here(), name, STEP, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        self.check_mount(&found)?;
        Ok((found, kind))
    }

    fn check_mount(&self, found: &OwnedFd) -> Result<()> {
        match self.mount {
            Some(mount) if crate::statx::reusable_mount_id(found)? != mount => Err(Errno::XDEV),
            _ => Ok(()),
        }
    }

    fn down(&mut self, name: Vec<u8>) -> Result<()> {
        let (found, kind) = self.step(&name)?;
        match kind {
            FileType::Directory => {
                self.current = Some(found);
                self.trail.push(name);
                Ok(())
            }
            FileType::Symlink => self.follow(&found),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn up(&mut self) -> Result<()> {
        if self.trail.pop().is_none() && self.rule == Rule::Beneath {
            return Err(Errno::XDEV);
        }
        // Of several `..` in a row only the last needs the walk.
        if self.pending.front().is_some_and(|next| &**next == b"..") {
            return Ok(());
        }
        self.current = None;
        for name in &self.trail {
            // These were directories a moment ago: anything else means that somebody renames under us.
            let found = match self.step(name) {
                Ok((found, FileType::Directory)) => found,
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => return Err(Errno::AGAIN),
                Err(error) => return Err(error),
            };
            self.current = Some(found);
        }
        Ok(())
    }

    /// Opens the last component; `None` when it is a link that is to be followed.
    fn last(&mut self, name: &[u8], flags: OFlags, mode: Mode) -> Result<Option<OwnedFd>> {
        // A new file is made at once, so that `O_EXCL` means what it says.
        if flags.contains(OFlags::CREATE) {
            let found = rustix::fs::openat(self.here(), name, flags | OFlags::NOFOLLOW, mode)?;
            self.check_mount(&found)?;
            return Ok(Some(found));
        }
        let (found, kind) = self.step(name)?;
        if kind == FileType::Symlink && !flags.contains(OFlags::NOFOLLOW) {
            self.follow(&found)?;
            return Ok(None);
        }
        if flags.contains(OFlags::PATH) {
            if flags.contains(OFlags::DIRECTORY) && kind != FileType::Directory {
                return Err(Errno::NOTDIR);
            }
            return Ok(Some(found));
        }
        let before = rustix::fs::fstat(&found)?;
        let opened = match rustix::fs::openat(self.here(), name, flags | OFlags::NOFOLLOW, mode) {
            Err(Errno::LOOP) if kind != FileType::Symlink => return Err(Errno::AGAIN),
            answer => answer?,
        };
        // The type decided whether to open it at all: a fifo that has taken a file's place must not pass. What
        // `O_TMPFILE` opens is a new file, of course.
        let after = rustix::fs::fstat(&opened)?;
        let unnamed = flags.contains(OFlags::TMPFILE);
        if !unnamed && (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino) {
            return Err(Errno::AGAIN);
        }
        Ok(Some(opened))
    }

    fn follow(&mut self, link: &OwnedFd) -> Result<()> {
        self.links += 1;
        // Links of procfs may jump anywhere. The few that do not are refused with them.
        if self.rule == Rule::Beneath || self.links > MAX_LINKS || crate::statfs::magic(link)? == Magic::PROC {
            return Err(Errno::LOOP);
        }
        let text = rustix::fs::readlinkat(link, c"", Vec::new())?.into_bytes();
        if text.is_empty() {
            return Err(Errno::NOENT);
        }
        self.pending_bytes = self.pending_bytes.saturating_add(text.len());
        if self.pending_bytes > MAX_PENDING {
            return Err(Errno::NAMETOOLONG);
        }
        if text.starts_with(b"/") {
            self.current = None;
            self.trail.clear();
        }
        for component in components(&text).collect::<Vec<_>>().into_iter().rev() {
            self.pending.push_front(component);
        }
        Ok(())
    }
}

/// The parts between slashes; one empty part at the end for slashes there.
fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let slash_at_end = path.ends_with(b"/");
    path.split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty())
        .map(<[u8]>::to_vec)
        .chain(slash_at_end.then(Vec::new))
}
