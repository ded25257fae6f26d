//! Notes of what a process has begun, which outlive it if it is killed.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use super::TempDirRoot;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::lockfile::OwnerLock;

/// Far more than anybody notes.
const LARGEST_NOTE: u64 = 1 << 24;

/// A file `<prefix>-<random>` beside the temporary directories, locked as long as this value lives, that goes when it is dropped.
/// Of a killed process it stays, unlocked. The peers pass it over.
pub struct Note {
    root: OwnedFd,
    path: PathBuf,
    name: OsString,
    lock: Option<OwnerLock>,
}

impl Note {
    /// Adds a line, whole or not at all as far as other processes see. It is not flushed: a power cut may lose it.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn add(&self, line: &str) -> Result<()> {
        let Some(lock) = &self.lock else { return Ok(()) };
        lock.file()
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|e| Error::io("write", self.path.join(&self.name), None, e))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        if let Err(error) = lock.remove(self.root.as_fd(), &self.name) {
            tracing::warn!(%error, path = %self.path.join(&self.name).display(), "removing a note");
        }
    }
}

impl fmt::Debug for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Note").field("path", &self.path.join(&self.name)).finish_non_exhaustive()
    }
}

/// Somebody's note.
#[derive(Debug)]
pub struct FoundNote {
    name: OsString,
    text: String,
    dead: Option<OwnerLock>,
}

impl FoundNote {
    /// Its complete lines.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'))
    }

    /// Whether its owner is dead. Nobody else can find that out as long as this value lives.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.dead.is_some()
    }
}

impl TempDirRoot {
    /// A new note, empty.
    ///
    /// # Errors
    /// I/O errors with the path. Nothing is left behind then.
    pub fn note(&self, prefix: &str) -> Result<Note> {
        let error = |source: io::Error| Error::io("make a note in", &self.path, None, source);
        let root = graph_sys::io::fcntl_dupfd_cloexec(&self.dir, 0).map_err(|e| error(e.into()))?;
        loop {
            let name = OsString::from(format!("{prefix}-{}", fsutil::random_name().map_err(error)?));
            // Whoever looks for notes may take a new one for a dead process's.
            if let Some(lock) = OwnerLock::create(self.dir.as_fd(), &name).map_err(error)? {
                return Ok(Note { root, path: self.path.clone(), name, lock: Some(lock) });
            }
        }
    }

    /// All notes of that prefix, of living and of dead processes.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn notes(&self, prefix: &str) -> Result<Vec<FoundNote>> {
        let names = fsutil::list(&self.dir).map_err(|e| Error::io("read directory", &self.path, None, e))?;
        let mut notes = Vec::new();
        for name in names {
            let is_one =
                name.to_str().is_some_and(|n| n.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-')));
            if !is_one {
                continue;
            }
            let error = |source: io::Error| Error::io("read", self.path.join(&name), None, source);
            let dead = OwnerLock::take_over(self.dir.as_fd(), &name).map_err(error)?;
            let bytes = fsutil::read_small(&self.dir, &name, LARGEST_NOTE).map_err(error)?.unwrap_or_default();
            notes.push(FoundNote { text: String::from_utf8_lossy(&bytes).into_owned(), name, dead });
        }
        Ok(notes)
    }

    /// Removes a note whose owner is dead.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn remove_note(&self, note: FoundNote) -> Result<()> {
        let Some(lock) = note.dead else { return Ok(()) };
        lock.remove(self.dir.as_fd(), &note.name).map_err(|e| Error::io("remove", self.path.join(&note.name), None, e))
    }
}
