//! What a tree takes.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use graph_archive::walk::Descent;
use graph_core::driver::DiskUsage;
use graph_sys::fs::{AtFlags, FileType, fstat, statat};
use graph_sys::getdents::{DirBuffer, OwnedEntry};
use graph_sys::io::Errno;

/// Apparent bytes and inodes of a tree, its root included; an inode with several names counts once. The same sum as
/// containers/storage's `directory.Usage`.
///
/// Things that vanish meanwhile are left out.
pub(crate) fn disk_usage(root: BorrowedFd<'_>) -> graph_archive::Result<DiskUsage> {
    let mut usage = DiskUsage::default();
    let mut linked = HashSet::new();
    let mut buffer = DirBuffer::new();
    let mut descent = Descent::new(root)?;
    let root = fstat(descent.directory()?).map_err(|error| descent.error("stat", error))?;
    add(&mut usage, root.st_size);
    // The names still to look at, one list per level.
    let mut waiting: Vec<std::vec::IntoIter<OwnedEntry>> = vec![descent.list(&mut buffer)?.into_iter()];
    while let Some(level) = waiting.last_mut() {
        let Some(entry) = level.next() else {
            waiting.pop();
            descent.leave()?;
            continue;
        };
        let stat = match statat(descent.directory()?, entry.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => {
                return Err(graph_archive::Error::io("stat", descent.join(&entry.name), error));
            }
        };
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !directory && stat.st_nlink > 1 && !linked.insert((stat.st_dev, stat.st_ino)) {
            continue;
        }
        add(&mut usage, stat.st_size);
        if directory {
            descent.enter(&entry.name)?;
            waiting.push(descent.list(&mut buffer)?.into_iter());
        }
    }
    Ok(usage)
}

fn add(usage: &mut DiskUsage, size: i64) {
    usage.size = usage.size.saturating_add(u64::try_from(size).unwrap_or(0));
    usage.inodes = usage.inodes.saturating_add(1);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests work in directories of their own")]

    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn counts_as_du_does() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("a/b/c")).unwrap();
        fs::write(temp.path().join("a/file"), vec![1; 12_345]).unwrap();
        fs::hard_link(temp.path().join("a/file"), temp.path().join("a/b/c/link")).unwrap();
        std::os::unix::fs::symlink("target", temp.path().join("a/symlink")).unwrap();
        File::create(temp.path().join("sparse")).unwrap().set_len(1 << 30).unwrap();
        let directories: u64 =
            ["", "a", "a/b", "a/b/c"].iter().map(|name| fs::metadata(temp.path().join(name)).unwrap().size()).sum();
        let usage = disk_usage(File::open(temp.path()).unwrap().as_fd()).unwrap();
        assert_eq!(usage, DiskUsage { size: directories + 12_345 + 6 + (1 << 30), inodes: 7 });
    }
}
