//! Counted mounts within a process, the same way containers/storage counts them (its `RefCounter`).
//!
//! A mount may already be there when this process first asks for it, made by another process or by an earlier one that
//! left it behind on purpose. Such a mount counts as one reference that is not ours: `get` then uses it without mounting,
//! and the matching `put` leaves it. A `put` without a `get` gives that foreign reference up and so unmounts.
//!
//! Unlike containers/storage's, the counter calls mount and unmount itself, holding a lock of that one path. So two threads that
//! want the same layer wait for one mount, and none sees a path that is counted but not yet mounted; layers do not wait for
//! each other.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use graph_sys::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

use crate::error::{Error, Result};

/// Tells whether something is mounted at a path.
pub trait MountCheck: Send + Sync {
    /// Whether `path` is a mount point now. A path that does not exist is none.
    ///
    /// # Errors
    /// The system's, other than that the path does not exist.
    fn is_mounted(&self, path: &Path) -> io::Result<bool>;
}

impl<F> MountCheck for F
where
    F: Fn(&Path) -> io::Result<bool> + Send + Sync,
{
    fn is_mounted(&self, path: &Path) -> io::Result<bool> {
        self(path)
    }
}

/// Any mount counts: statx(2) says whether the path is the root of a mount (`STATX_ATTR_MOUNT_ROOT`, Linux 5.8); before
/// that, a device number that differs from the parent's says so, which misses bind mounts within one file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyMount;

impl MountCheck for AnyMount {
    fn is_mounted(&self, path: &Path) -> io::Result<bool> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let stat = |path: &Path| match statx(CWD, path, flags, StatxFlags::BASIC_STATS) {
            Ok(stat) => Ok(Some(stat)),
            Err(graph_sys::io::Errno::NOENT | graph_sys::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(io::Error::from(error)),
        };
        let Some(found) = stat(path)? else { return Ok(false) };
        if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
            return Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
        }
        let Some(parent) = path.parent() else { return Ok(true) };
        let Some(outer) = stat(parent)? else { return Ok(false) };
        Ok((found.stx_dev_major, found.stx_dev_minor) != (outer.stx_dev_major, outer.stx_dev_minor))
    }
}

/// References to mounts, by path.
pub struct RefCounter<C = AnyMount> {
    check: C,
    targets: Mutex<HashMap<PathBuf, Arc<Mutex<Target>>>>,
}

#[derive(Debug, Default)]
struct Target {
    references: u64,
    /// Whether a mount made by somebody else has been looked for.
    checked: bool,
}

impl<C: MountCheck> RefCounter<C> {
    /// No references; `check` tells which paths are mounted.
    pub fn new(check: C) -> Self {
        Self { check, targets: Mutex::default() }
    }

    /// Takes a reference to the mount at `target`, and calls `mount` when there is no mount yet. Returns the references
    /// that there are now, a foreign one included.
    ///
    /// When `mount` fails no reference has been taken. `mount` must not use this counter for the same path.
    ///
    /// # Errors
    /// Those of `mount`; an I/O error when the path cannot be checked.
    pub fn get(&self, target: &Path, mount: impl FnOnce() -> Result<()>) -> Result<u64> {
        self.with(target, |entry| {
            self.look(target, entry)?;
            if entry.references == 0 {
                mount()?;
            }
            entry.references = entry.references.saturating_add(1);
            Ok(entry.references)
        })
    }

    /// Gives up a reference and calls `unmount` when it was the last. Returns the references left.
    ///
    /// `unmount` is called too when nothing is counted and nothing seems mounted, so that what a dead process left half
    /// done can be put away; it must take that for success. When it fails, the mount counts as a foreign one, and `put`
    /// may be called again.
    ///
    /// # Errors
    /// Those of `unmount`; an I/O error when the path cannot be checked.
    pub fn put(&self, target: &Path, unmount: impl FnOnce() -> Result<()>) -> Result<u64> {
        self.with(target, |entry| {
            self.look(target, entry)?;
            entry.references = entry.references.saturating_sub(1);
            if entry.references == 0 {
                entry.checked = false;
                unmount()?;
            }
            Ok(entry.references)
        })
    }

    /// The references that this process counts for `target`, without looking at the system.
    pub fn references(&self, target: &Path) -> u64 {
        let entry = lock(&self.targets).get(target).cloned();
        entry.map_or(0, |entry| lock(&entry).references)
    }

    /// A mount that has disappeared behind our back leaves no references; one that has appeared is a foreign one.
    fn look(&self, target: &Path, entry: &mut Target) -> Result<()> {
        let mounted =
            self.check.is_mounted(target).map_err(|source| Error::io("check for a mount at", target, None, source))?;
        if !mounted {
            entry.references = 0;
        } else if !entry.checked {
            entry.references = entry.references.max(1);
        }
        entry.checked = true;
        Ok(())
    }

    fn with<T>(&self, target: &Path, action: impl FnOnce(&mut Target) -> Result<T>) -> Result<T> {
        let shared = Arc::clone(lock(&self.targets).entry(target.to_path_buf()).or_default());
        let result = action(&mut lock(&shared));
        let mut targets = lock(&self.targets);
        drop(shared);
        // Nobody else holds the entry, and there is nothing to remember in it.
        if let Some(entry) = targets.get(target)
            && Arc::strong_count(entry) == 1
            && lock(entry).references == 0
        {
            targets.remove(target);
        }
        result
    }
}

/// A thread that panicked in `mount` left a count that is still true, so poisoning is no reason to stop.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C: MountCheck + Default> Default for RefCounter<C> {
    fn default() -> Self {
        Self::new(C::default())
    }
}

impl<C> fmt::Debug for RefCounter<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefCounter").field("targets", &lock(&self.targets).len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use super::*;

    /// A counter over a mount that is a flag.
    fn fixture() -> (Arc<AtomicBool>, RefCounter<impl MountCheck>) {
        let mounted = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&mounted);
        (mounted, RefCounter::new(move |_: &Path| Ok(seen.load(Ordering::SeqCst))))
    }

    fn path() -> &'static Path {
        Path::new("/layer/merged")
    }

    #[test]
    fn mounts_once_and_unmounts_with_the_last() {
        let (mounted, counter) = fixture();
        let set = |to| {
            mounted.store(to, Ordering::SeqCst);
            Ok(())
        };
        assert_eq!(counter.get(path(), || set(true)).unwrap(), 1);
        assert_eq!(counter.get(path(), || panic!("mounted twice")).unwrap(), 2);
        assert_eq!(counter.put(path(), || panic!("unmounted early")).unwrap(), 1);
        assert_eq!(counter.put(path(), || set(false)).unwrap(), 0);
        assert!(!mounted.load(Ordering::SeqCst));
        assert_eq!(counter.targets.lock().unwrap().len(), 0);
    }

    #[test]
    fn a_foreign_mount_is_used_and_left() {
        let (mounted, counter) = fixture();
        mounted.store(true, Ordering::SeqCst);
        assert_eq!(counter.get(path(), || panic!("it is mounted")).unwrap(), 2);
        assert_eq!(counter.put(path(), || panic!("not ours")).unwrap(), 1);
        let unmounted = AtomicBool::new(false);
        let count = counter.put(path(), || {
            unmounted.store(true, Ordering::SeqCst);
            Ok(())
        });
        assert_eq!((count.unwrap(), unmounted.into_inner()), (0, true));
    }

    #[test]
    fn a_mount_that_vanished_is_made_again() {
        let (mounted, counter) = fixture();
        let mounts = AtomicU32::new(0);
        let mount = || {
            mounts.fetch_add(1, Ordering::SeqCst);
            mounted.store(true, Ordering::SeqCst);
            Ok(())
        };
        counter.get(path(), mount).unwrap();
        mounted.store(false, Ordering::SeqCst);
        assert_eq!(counter.get(path(), mount).unwrap(), 1);
        assert_eq!(mounts.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_failed_mount_takes_no_reference_and_a_failed_unmount_can_be_repeated() {
        let (mounted, counter) = fixture();
        let fail = || Err(Error::NotSupported { context: "test".to_owned() });
        counter.get(path(), fail).unwrap_err();
        assert_eq!(counter.references(path()), 0);
        mounted.store(true, Ordering::SeqCst);
        counter.put(path(), fail).unwrap_err();
        let mut called = false;
        let count = counter.put(path(), || {
            called = true;
            Ok(())
        });
        assert!(count.unwrap() == 0 && called);
    }

    #[test]
    fn many_threads_share_one_mount() {
        let (mounted, counter) = fixture();
        let mounts = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        counter
                            .get(path(), || {
                                assert!(!mounted.swap(true, Ordering::SeqCst));
                                mounts.fetch_add(1, Ordering::SeqCst);
                                Ok(())
                            })
                            .unwrap();
                        assert!(mounted.load(Ordering::SeqCst));
                        counter
                            .put(path(), || {
                                assert!(mounted.swap(false, Ordering::SeqCst));
                                Ok(())
                            })
                            .unwrap();
                    }
                });
            }
        });
        assert!(!mounted.load(Ordering::SeqCst));
        assert!(mounts.load(Ordering::SeqCst) >= 1);
        assert_eq!(counter.targets.lock().unwrap().len(), 0);
    }

    #[test]
    fn the_kernel_tells_mount_points() {
        assert!(AnyMount.is_mounted(Path::new("/proc")).unwrap());
        assert!(!AnyMount.is_mounted(Path::new("/proc/self")).unwrap());
        assert!(!AnyMount.is_mounted(Path::new("/no/such/path")).unwrap());
    }
}
