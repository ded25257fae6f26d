//! Which files are read, in which order.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use graph_sys::fs::{self, AtFlags, CWD, FileType, Mode, OFlags};
use graph_sys::io::Errno;

use super::SearchOrder;
use super::environment::{Environment, variable};
use crate::error::{Error, Result};
use crate::fsutil;

/// The most that a configuration file may have, in bytes; real ones have a few thousand.
const MAX_FILE: u64 = 4 << 20;

/// A file to read.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// Whether it is the system's, for all users.
    pub(super) system_wide: bool,
}

/// The files that exist, in the order in which they are to be merged.
///
/// # Errors
/// [`Error::Io`] for a file that exists and cannot be read, or that a variable names and that does not exist;
/// [`Error::Config`] for one that is not UTF-8.
pub(super) fn find(environment: &Environment, order: SearchOrder) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    if let Some(path) = environment.get(variable::CONTAINERS_STORAGE_CONF) {
        sources.push(named(Path::new(path))?);
    } else {
        match order {
            SearchOrder::V1_60 => main_file_1_60(environment, &mut sources)?,
            SearchOrder::V1_63 => {
                main_file_1_63(environment, &mut sources)?;
                drop_ins(environment, &mut sources)?;
            }
        }
    }
    if let Some(path) =
        environment.get(variable::CONTAINERS_STORAGE_CONF_OVERRIDE).filter(|_| order == SearchOrder::V1_63)
    {
        sources.push(named(Path::new(path))?);
    }
    Ok(sources)
}

fn system_files(environment: &Environment) -> [PathBuf; 2] {
    ["/etc/containers/storage.conf", "/usr/share/containers/storage.conf"].map(|path| environment.system(path))
}

fn user_file(environment: &Environment) -> Option<PathBuf> {
    environment.config_home().map(|directory| directory.join("containers/storage.conf"))
}

/// One file wins. Root looks into its configuration home only when XDG_CONFIG_HOME is set.
fn main_file_1_60(environment: &Environment, sources: &mut Vec<Source>) -> Result<()> {
    let is_user = environment.per_user() || environment.get(variable::XDG_CONFIG_HOME).is_some();
    first(user_file(environment).filter(|_| is_user), environment, sources)
}

fn main_file_1_63(environment: &Environment, sources: &mut Vec<Source>) -> Result<()> {
    first(user_file(environment), environment, sources)
}

fn first(user: Option<PathBuf>, environment: &Environment, sources: &mut Vec<Source>) -> Result<()> {
    let candidates = user.map(|path| (path, false)).into_iter();
    let candidates = candidates.chain(system_files(environment).map(|path| (path, true)));
    for (path, system_wide) in candidates {
        if let Some(text) = read(&path)? {
            sources.push(Source { path, text, system_wide });
            break;
        }
    }
    Ok(())
}

/// All `*.conf` of all drop-in directories, by base name: a later directory's file replaces an earlier one's.
fn drop_ins(environment: &Environment, sources: &mut Vec<Source>) -> Result<()> {
    let uid = environment.rootless_uid();
    let mut directories = Vec::new();
    for base in ["/usr/share/containers", "/etc/containers"] {
        let base = environment.system(base);
        directories.push((base.join("storage.conf.d"), true));
        if uid == 0 {
            directories.push((base.join("storage.rootful.conf.d"), false));
        } else {
            directories.push((base.join("storage.rootless.conf.d"), false));
            directories.push((base.join("storage.rootless.conf.d").join(uid.to_string()), false));
        }
    }
    directories.extend(environment.config_home().map(|home| (home.join("containers/storage.conf.d"), false)));

    let mut files = BTreeMap::new();
    for (directory, system_wide) in directories {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match fs::openat(CWD, &directory, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(error) => return Err(Error::io("open directory", directory, None, error)),
        };
        let names = fsutil::list(&fd).map_err(|e| Error::io("read directory", &directory, None, e))?;
        for name in names {
            let is_conf = name.to_str().is_some_and(|name| name.ends_with(".conf"));
            let is_file = fs::statat(&fd, &*name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
            if is_conf && is_file {
                let path = directory.join(&name);
                files.insert(name, (path, system_wide));
            }
        }
    }
    for (path, system_wide) in files.into_values() {
        if let Some(text) = read(&path)? {
            sources.push(Source { path, text, system_wide });
        }
    }
    Ok(())
}

/// A file that is named explicitly, so it has to exist.
pub(super) fn named(path: &Path) -> Result<Source> {
    let text = read(path)?;
    let text = text.ok_or_else(|| Error::io("read configuration file", path, None, Errno::NOENT))?;
    Ok(Source { path: path.to_path_buf(), text, system_wide: false })
}

fn read(path: &Path) -> Result<Option<String>> {
    match fsutil::read_small_path(path, MAX_FILE) {
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| Error::Config { place: path.display().to_string(), problem: "is not UTF-8 text".to_owned() }),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Error::io("read configuration file", path, None, error)),
    }
}
