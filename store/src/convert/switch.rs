//! The moment in which the new store takes the old one's place, and what to do when a process dies in it.
//!
//! A journal beside the two says that it has begun, and what state the old store's lock files were in. Every step is a rename
//! that can be repeated. The new store goes in first, its driver's home last: until then whoever looks sees the old store
//! alone, and for one moment both, which is refused rather than guessed. Then the old store goes, its home first.

use std::path::PathBuf;

use graph_core::fsutil::{self, Durability};
use graph_core::lockfile::LockFile;
use graph_sys::fs::{RenameFlags, renameat_with};
use graph_sys::io::Errno;
use serde::{Deserialize, Serialize};

use super::{RECORDS, Work, copy, exists, refused, shown};
use crate::dirs::Dir;
use crate::error::{Error, Result, fault};
use crate::options::StoreOptions;
use crate::store::wait_for;

/// Directories of a conversion begin so.
const STAGING: &str = "converting-to-";
/// Old stores are put into directories that begin so.
const OLD: &str = "converted-from-";

/// What is on its way.
#[derive(Debug, Serialize, Deserialize)]
struct Journal {
    from: String,
    to: String,
    /// Name of the directory that the old store goes to.
    old: String,
    remove_old: bool,
    /// Contents of the old store's lock files: who wrote last.
    tokens: Vec<Vec<u8>>,
}

/// A conversion that was completed by whoever opened the store next.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) old: Option<PathBuf>,
}

pub(super) fn staging_name(to: &str) -> String {
    format!("{STAGING}{to}")
}

fn journal_names(root: &Dir) -> Result<Vec<String>> {
    let names = fsutil::list(root).map_err(|e| Error::io("read directory", root.path(), e))?;
    let journal = |name: &String| name.starts_with(STAGING) && name.ends_with(".json");
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).filter(journal).collect())
}

/// The names that a driver's store has in its graph root, the home last.
fn names(driver: &str) -> Vec<String> {
    let records = RECORDS.iter().map(|kind| format!("{driver}-{kind}"));
    records.chain([driver.to_owned()]).collect()
}

/// Refuses a graph root that has something of the new driver's already.
pub(super) fn check_free(root: &Dir, to: &str) -> Result<()> {
    for name in names(to) {
        if exists(root, &name)? {
            return Err(refused(format!(
                "{} is there already: the store cannot get the driver {to} beside it; remove it if nothing is in it",
                shown(root.path(), &name)
            )));
        }
    }
    Ok(())
}

/// Moves a directory; nothing happens when it is moved already.
fn go(from: &Dir, to: &Dir, name: &str) -> Result<()> {
    if !exists(from, name)? {
        return Ok(());
    }
    let failed = |error: Errno| Error::io("move into place", to.path().join(name), error);
    match renameat_with(from, name, to, name, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // A file system without that flag.
        Err(Errno::INVAL) if !exists(to, name)? => {
            graph_sys::fs::renameat(from, name, to, name).map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    fault("convert.moved")
}

/// Who wrote last to the old store, as its lock files say.
fn tokens(root: &Dir, options: &StoreOptions, from: &str) -> Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for kind in RECORDS {
        let dir = root.open_dir(&format!("{from}-{kind}"))?;
        all.push(dir.map(|dir| dir.read(&format!("{kind}.lock"))).transpose()?.flatten().unwrap_or_default());
    }
    let mounts = Dir::open(&options.run_root.join(format!("{from}-layers")))?;
    all.push(mounts.map(|dir| dir.read("mountpoints.lock")).transpose()?.flatten().unwrap_or_default());
    Ok(all)
}

impl Work<'_> {
    /// Makes the new store the store. Where the old one is now, unless it was removed.
    pub(super) fn switch(self) -> Result<Option<PathBuf>> {
        let to = self.to.name().to_owned();
        self.to.cleanup()?;
        drop(self.to);
        let path = self.new_root.path().to_owned();
        graph_sys::fs::syncfs(&self.new_root).map_err(|e| Error::io("flush the file system of", path, e))?;
        let mut old = format!("{OLD}{}", self.from);
        let mut number = 1_u32;
        while exists(&self.root, &old)? {
            number = number.saturating_add(1);
            old = format!("{OLD}{}-{number}", self.from);
        }
        let journal = Journal {
            from: self.from.to_owned(),
            to: to.clone(),
            old,
            remove_old: self.options.remove_old,
            tokens: tokens(&self.root, &self.store.options, self.from)?,
        };
        let name = format!("{}.json", staging_name(&to));
        let failed = |source| Error::Encode { path: self.root.path().join(&name), source };
        let bytes = serde_json::to_vec(&journal).map_err(failed)?;
        self.root.write(&name, &bytes, Durability::Full)?;
        fault("convert.journal-written")?;
        forward(&self.root, &self.store.options, &journal)
    }
}

/// Carries the change of places out, or what is left of it.
fn forward(root: &Dir, options: &StoreOptions, journal: &Journal) -> Result<Option<PathBuf>> {
    let staging = staging_name(&journal.to);
    if let Some(new_root) = root.open_dir(&staging)?.map(|dir| dir.open_dir("root")).transpose()?.flatten() {
        for name in names(&journal.to) {
            go(&new_root, root, &name)?;
        }
    }
    let old = root.make_dir(&journal.old)?;
    for name in names(&journal.from).iter().rev() {
        go(root, &old, name)?;
    }
    root.flush()?;
    old.flush()?;
    // What engines keep of containers until the next boot.
    let run = Dir::make(&options.run_root)?;
    if let Some(from) = run.open_dir(&format!("{}-containers", journal.from))? {
        let name = format!("{}-containers", journal.to);
        run.remove(&name)?;
        copy(&from, &run.make_dir(&name)?)?;
    }
    fault("convert.switched")?;
    if journal.remove_old {
        root.remove(&journal.old)?;
    }
    fault("convert.old-removed")?;
    root.remove(&staging)?;
    root.remove(&format!("{staging}.json"))?;
    root.flush()?;
    Ok((!journal.remove_old).then(|| root.path().join(&journal.old)))
}

/// Takes the new store out of the old one's place again.
fn back(root: &Dir, journal: &Journal) -> Result<()> {
    let staging = staging_name(&journal.to);
    let new_root = root.make_dir(&staging)?.make_dir("root")?;
    for name in names(&journal.to).iter().rev() {
        go(root, &new_root, name)?;
    }
    root.flush()?;
    root.remove(&format!("{staging}.json"))?;
    root.flush()
}

/// Completes a change of places in which a process died. To be called before a driver is chosen.
pub(crate) fn finish_interrupted(root: &Dir, options: &StoreOptions) -> Result<Option<Finished>> {
    if journal_names(root)?.is_empty() {
        return Ok(None);
    }
    let storage = LockFile::new(root.path().join("storage.lock"));
    let _storage = wait_for(&storage, options)?;
    let mut finished = None;
    for name in journal_names(root)? {
        let Some(bytes) = root.read(&name)? else { continue };
        let journal: Journal = serde_json::from_slice(&bytes)
            .map_err(|source| Error::Corrupt { path: root.path().join(&name), source })?;
        let names_are_names = [&journal.from, &journal.to, &journal.old]
            .iter()
            .all(|name| !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']));
        if !names_are_names || name != format!("{}.json", staging_name(&journal.to)) {
            return Err(refused(format!("{}: not a journal of this program", shown(root.path(), &name))));
        }
        let untouched = exists(root, &journal.from)?;
        if untouched && tokens(root, options, &journal.from)? != journal.tokens {
            tracing::warn!(
                from = %journal.from, to = %journal.to,
                "the old store was written to after a conversion was interrupted; the conversion has to be repeated"
            );
            back(root, &journal)?;
            continue;
        }
        let old = forward(root, options, &journal)?;
        finished = Some(Finished { from: journal.from, to: journal.to, old });
    }
    Ok(finished)
}

/// Where the store of that driver went, if it was converted and another driver has taken its place.
pub(crate) fn was_converted(root: &Dir, driver: &str) -> Result<Option<PathBuf>> {
    let old = format!("{OLD}{driver}");
    Ok((!exists(root, driver)? && exists(root, &old)?).then(|| root.path().join(old)))
}
