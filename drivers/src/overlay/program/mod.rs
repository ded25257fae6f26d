//! Being the mount program of an engine that has its own containers/storage.
//!
//! Such an engine calls `PROGRAM -o lowerdir=A:B,upperdir=C,workdir=D,… TARGET`, as it calls fuse-overlayfs, and expects the
//! mount to be there when the program ends. This does it with the kernel's overlay, by descriptors: paths may have any length,
//! and there may be 500 of them. What only a program in between can do (squashed owners, masked modes) is refused by name.
//!
//! Engines with a mount program write deletions as the files `.wh.<name>`, since programs read them and any user can make
//! them. The kernel does not know these, so they become the kernel's own marks first, see [`marks`].

mod marks;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use graph_archive::apply::XattrNamespace;
use graph_archive::idmap::{IdMappings, IdPair, IdRange};
use graph_core::{Error, Result};
use graph_sys::fs::{self, Mode, OFlags};
use graph_sys::io::Errno;
use graph_sys::mount::{AttachedMount, DetachedMount, FsContext, MountAttrFlags};
use graph_sys::mount_attr::{self, MountAttributes};
use graph_sys::xattr;

use super::DRIVER;
use super::idmap;
use super::layout::{Context, open_dir};
use super::mount::{LOWER_KEY, Method, best_method, mount_by_numbers, own_words};
use super::parents::MAX_LOWERS;
use super::words::Words;

/// What a program that mounts is told to mount.
#[derive(Clone, Debug)]
pub struct ProgramMount {
    /// Nearest first.
    lowers: Vec<PathBuf>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    /// On disk are the container's ids, shown are the host's.
    mappings: IdMappings,
    words: Words,
}

/// Words about how a FUSE program does its work; they change nothing that one sees.
const ABOUT_FUSE: &[&str] = &[
    "threaded",
    "timeout",
    "fast_ino",
    "writeback",
    "max_idle_threads",
    "allow_other",
    "default_permissions",
    "kernel_cache",
    "auto_cache",
    "static_nlink",
];

/// Words that ask for what the kernel's overlay does not do.
const NOT_THE_KERNEL_S: &[&str] =
    &["squash_to_root", "squash_to_uid", "squash_to_gid", "plugins", "noacl", "auto_unmount", "allow_root"];

impl ProgramMount {
    /// Parses the arguments of all `-o`, in order.
    ///
    /// Commas stand between words, colons between lower directories; a backslash before either makes it part of a path, and
    /// double quotes keep the commas of a label. Paths may be relative to the working directory.
    ///
    /// # Errors
    /// [`Error::Config`] for what cannot be understood, [`Error::Unsupported`] for what a kernel does not do.
    pub fn parse<'w>(options: impl IntoIterator<Item = &'w OsStr>) -> Result<Self> {
        let mut parsed = Self {
            lowers: Vec::new(),
            upper: None,
            work: None,
            mappings: IdMappings::default(),
            words: Words::default(),
        };
        for option in options {
            for word in split(option.as_bytes(), b',') {
                parsed.add(&word)?;
            }
        }
        if parsed.lowers.is_empty() {
            return Err(problem("lowerdir", "at least one lower directory is needed: -o lowerdir=DIR[:DIR…]"));
        }
        if parsed.lowers.len() > MAX_LOWERS {
            let count = parsed.lowers.len();
            return Err(problem("lowerdir", &format!("{count} directories; the kernel stacks {MAX_LOWERS}")));
        }
        if parsed.upper.is_some() != parsed.work.is_some() {
            return Err(problem("upperdir", "upperdir and workdir belong together: give both or none"));
        }
        Ok(parsed)
    }

    fn add(&mut self, word: &[u8]) -> Result<()> {
        let equals = word.iter().position(|byte| *byte == b'=');
        let (key, value) = match equals {
            Some(at) => (word.get(..at).unwrap_or_default(), word.get(at + 1..).unwrap_or_default()),
            None => (word, &b""[..]),
        };
        let key = std::str::from_utf8(key).map_err(|_| problem("options", "one of them is no text"))?;
        let on = !matches!(value, b"0" | b"no" | b"off" | b"false");
        let path = || PathBuf::from(OsStr::from_bytes(&unescape(value)));
        match key {
            "" => {}
            "lowerdir" => {
                let parts: Vec<Vec<u8>> = split(value, b':').collect();
                if parts.iter().any(|part| part.is_empty() || part.starts_with(b"//")) {
                    return Err(problem("lowerdir", "an empty path or a plug-in among the lower directories"));
                }
                self.lowers = parts.iter().map(|part| PathBuf::from(OsStr::from_bytes(&unescape(part)))).collect();
            }
            "upperdir" => self.upper = Some(path()),
            "workdir" => self.work = Some(path()),
            "uidmapping" => self.mappings.uids = ranges(key, value)?,
            "gidmapping" => self.mappings.gids = ranges(key, value)?,
            "fsync" if matches!(value, b"0" | b"1") => {
                if value == b"0" {
                    self.words.add("volatile")?;
                }
            }
            _ if ABOUT_FUSE.contains(&key) => {}
            "xattr_permissions" | "noxattrs" if !on => {}
            "xattr_permissions" | "noxattrs" => return Err(not_the_kernel_s(key)),
            _ if NOT_THE_KERNEL_S.contains(&key) => return Err(not_the_kernel_s(key)),
            _ => {
                let text = std::str::from_utf8(word).map_err(|_| problem(key, "its value is no text"))?;
                self.words.add(text)?;
            }
        }
        Ok(())
    }

    /// The kernel makes things in an upper directory as whoever mounted; through a mapping that leaves that user out it cannot, and
    /// would mount read-only without a word.
    fn maps_ourselves(&self) -> Result<()> {
        use graph_sys::process::{getegid, geteuid};
        let own = IdPair { uid: geteuid().as_raw(), gid: getegid().as_raw() };
        self.mappings.to_container(own, b"").map(drop).map_err(|_| Error::Unsupported {
            driver: DRIVER.into(),
            operation: format!(
                "an upper directory through ID mappings that leave out {}:{}, as whom this program runs (fuse-overlayfs does it)",
                own.uid, own.gid
            ),
        })
    }

    /// Mounts on `target`. On an error nothing is mounted.
    ///
    /// # Errors
    /// [`Error::Io`] with what the system refused; [`Error::Unsupported`] for id mappings that may not be made here.
    pub fn mount(&self, target: &Path) -> Result<()> {
        let target_dir = open(target)?;
        let lowers = self.lowers.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
        let upper = self.upper.as_deref().zip(self.work.as_deref());
        let mut dirs = upper.map(|(upper, work)| Ok::<_, Error>((open(upper)?, open(work)?))).transpose()?;
        let first = dirs.as_ref().map(|(upper, _)| upper).or(lowers.first());
        let namespace = match first {
            Some(dir) => xattr_namespace(dir).at("try an extended attribute of", target, None)?,
            None => XattrNamespace::Trusted,
        };
        for (dir, path) in lowers.iter().zip(&self.lowers) {
            marks::to_kernel(dir, namespace, marks::Once::Yes).map_err(|error| marks::at(path, error))?;
        }
        if let (Some((dir, _)), Some((path, _))) = (&dirs, upper) {
            marks::to_kernel(dir, namespace, marks::Once::No).map_err(|error| marks::at(path, error))?;
        }
        let mut words = self.words.clone();
        own_words(&mut words, namespace)?;

        // What is mounted nowhere is gone with its descriptor.
        let mut mapped_home = None;
        let lowers = if self.mappings.is_identity() {
            lowers
        } else {
            let users =
                idmap::namespace(&self.mappings).at("make a user namespace for the ID mappings", target, None)?;
            let mapped = |dir: &OwnedFd, path: &Path| -> Result<OwnedFd> {
                let copy = DetachedMount::copy_of(dir, b"", false).at("clone the mount of", path, None)?;
                copy.map_ids(&users, false).map_err(|error| cannot_map(path, error))?;
                Ok(copy.into())
            };
            if let Some((upper, work)) = upper {
                self.maps_ourselves()?;
                let (both, upper, work) = mapped_together(upper, work, mapped)?;
                (mapped_home, dirs) = (Some(both), Some((upper, work)));
            }
            lowers.iter().zip(&self.lowers).map(|(dir, path)| mapped(dir, path)).collect::<Result<_>>()?
        };
        match (&dirs, lowers.as_slice()) {
            // The kernel does not stack a single directory.
            (None, [only]) => bind_read_only(only, &words, &target_dir).at("mount on", target, None),
            _ => stack(&words, lowers, dirs.as_ref(), &target_dir, target),
        }?;
        drop(mapped_home);
        Ok(())
    }
}

fn stack(
    words: &Words,
    lowers: Vec<OwnedFd>,
    upper: Option<&(OwnedFd, OwnedFd)>,
    target: &OwnedFd,
    shown: &Path,
) -> Result<()> {
    let Some(first) = lowers.first() else { return Ok(()) };
    match best_method(first) {
        Method::Descriptors => {
            let mount = || -> graph_sys::Result<()> {
                let context = FsContext::open("overlay")?;
                // What df and mount show.
                context.set_string("source", b"overlay")?;
                words.configure(&context)?;
                for lower in &lowers {
                    context.set_directory(LOWER_KEY, lower)?;
                }
                if let Some((upper, work)) = upper {
                    context.set_directory("upperdir", upper)?;
                    context.set_directory("workdir", work)?;
                }
                context.create(words.attributes())?.attach(target).map(AttachedMount::keep)
            };
            mount().at("mount on", shown, None)
        }
        Method::Classic => {
            let lowers: Vec<(&str, OwnedFd)> = lowers.into_iter().map(|dir| (LOWER_KEY, dir)).collect();
            let upper = upper.map(|(upper, work)| (upper, work));
            mount_by_numbers(words, &lowers, upper, target).at("mount on", shown, None)
        }
    }
}

fn bind_read_only(dir: &OwnedFd, words: &Words, target: &OwnedFd) -> graph_sys::Result<()> {
    let copy = DetachedMount::copy_of(dir, b"", false)?;
    let attributes = words.attributes() | MountAttrFlags::MOUNT_ATTR_RDONLY;
    mount_attr::set(&copy, &MountAttributes::new().set(attributes), false)?;
    copy.attach(target).map(AttachedMount::keep)
}

/// Both directories through one mapped mount, which comes first, as the kernel wants them: of the directory that they have in
/// common.
fn mapped_together(
    upper: &Path,
    work: &Path,
    mapped: impl Fn(&OwnedFd, &Path) -> Result<OwnedFd>,
) -> Result<(OwnedFd, OwnedFd, OwnedFd)> {
    let (Some(parent), Some(upper_name), Some(work_name)) = (upper.parent(), upper.file_name(), work.file_name())
    else {
        return Err(problem("upperdir", "with ID mappings, upperdir and workdir have to end in names"));
    };
    if work.parent() != Some(parent) {
        return Err(problem("workdir", "with ID mappings, upperdir and workdir have to be in one directory"));
    }
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let home = mapped(&open(parent)?, parent)?;
    let open = |name: &OsStr, path: &Path| open_dir(&home, name).at("open", path, None);
    let (upper, work) = (open(upper_name, upper)?, open(work_name, work)?);
    Ok((home, upper, work))
}

/// Whose attributes the kernel's overlay uses for this process.
fn xattr_namespace(dir: &OwnedFd) -> std::result::Result<XattrNamespace, Errno> {
    match xattr::remove(dir, b"trusted.overlay.probe") {
        Ok(_) => Ok(XattrNamespace::Trusted),
        Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(XattrNamespace::User),
        // A read-only file system says so before it looks at privileges.
        Err(Errno::ROFS) if graph_sys::userns::is_in_user_namespace().unwrap_or(true) => Ok(XattrNamespace::User),
        Err(Errno::ROFS) => Ok(XattrNamespace::Trusted),
        Err(error) => Err(error),
    }
}

/// Engines name layers by links, so links are followed.
fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(fs::CWD, path, flags, Mode::empty()).at("open", path, None)
}

/// Splits at a byte that no backslash precedes and no double quotes surround; backslashes stay.
fn split(text: &[u8], at: u8) -> impl Iterator<Item = Vec<u8>> {
    let (mut parts, mut escaped, mut quoted) = (vec![Vec::new()], false, false);
    for byte in text {
        if *byte == at && !escaped && !quoted {
            parts.push(Vec::new());
            continue;
        }
        quoted ^= *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        if let Some(last) = parts.last_mut() {
            last.push(*byte);
        }
    }
    parts.into_iter()
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        plain.push(if *byte == b'\\' { *bytes.next().unwrap_or(byte) } else { *byte });
    }
    plain
}

/// `c:h:s[:c:h:s…]`; engines put a colon before the first.
fn ranges(key: &str, value: &[u8]) -> Result<Vec<IdRange>> {
    let bad = || problem(key, "ids are written as ON-DISK:SHOWN:COUNT, further ones behind another colon");
    let text = std::str::from_utf8(value).map_err(|_| bad())?;
    let numbers: Vec<u32> =
        text.trim_start_matches(':').split(':').map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
    if !numbers.len().is_multiple_of(3) {
        return Err(bad());
    }
    let range = |numbers: &[u32]| match *numbers {
        [container_id, host_id, size] if size > 0 => Ok(IdRange { container_id, host_id, size }),
        _ => Err(bad()),
    };
    numbers.chunks(3).map(range).collect()
}

fn problem(place: &str, problem: &str) -> Error {
    Error::Config { place: place.to_owned(), problem: problem.to_owned() }
}

fn not_the_kernel_s(word: &str) -> Error {
    Error::Unsupported {
        driver: DRIVER.into(),
        operation: format!("mount option {word} (the kernel's overlay has no such thing; fuse-overlayfs has it)"),
    }
}

fn cannot_map(path: &Path, error: graph_sys::Error) -> Error {
    match error.errno() {
        Errno::PERM | Errno::INVAL => Error::Unsupported {
            driver: DRIVER.into(),
            operation: format!(
                "showing {} through ID mappings (the kernel does it for the file system's owner only, on some file \
                 systems; fuse-overlayfs does it everywhere)",
                path.display()
            ),
        },
        _ => Error::io("map the IDs of", path, None, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ProgramMount> {
        ProgramMount::parse([OsStr::new(text)])
    }

    #[test]
    fn what_engines_say_is_understood() {
        let mount = parse(
            r#"lowerdir=/a\:b:l/C,upperdir=/u\,v,workdir=/w,,volatile,uidmapping=:0:100000:1000:1000:5:1,gidmapping=0:7:2,threaded=1,context="system_u:object_r:x:s0:c1,c2""#,
        )
        .unwrap();
        assert_eq!(mount.lowers, [PathBuf::from("/a:b"), PathBuf::from("l/C")]);
        assert_eq!((mount.upper, mount.work), (Some("/u,v".into()), Some("/w".into())));
        let range = |container_id, host_id, size| IdRange { container_id, host_id, size };
        assert_eq!(mount.mappings.uids, [range(0, 100_000, 1000), range(1000, 5, 1)]);
        assert_eq!(mount.mappings.gids, [range(0, 7, 2)]);
        assert_eq!(mount.words.classic_options(), r#",volatile,context="system_u:object_r:x:s0:c1,c2""#);
        assert!(parse("lowerdir=/a,ro,nodev,fsync=0").unwrap().words.has("volatile"));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (text, named) in [
            ("upperdir=/u,workdir=/w", "lowerdir"),
            ("lowerdir=/a::/b", "lowerdir"),
            ("lowerdir=//plugin/x/y", "lowerdir"),
            ("lowerdir=/a,upperdir=/u", "workdir"),
            ("lowerdir=/a,squash_to_uid=5", "squash_to_uid"),
            ("lowerdir=/a,xattr_permissions=2", "xattr_permissions"),
            ("lowerdir=/a,plugins=x", "plugins"),
            ("lowerdir=/a,uidmapping=0:1", "uidmapping"),
            ("lowerdir=/a,gidmapping=0:1:0", "gidmapping"),
            ("lowerdir=/a,remount", "remount"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        let many = format!("lowerdir={}", vec!["/a"; 501].join(":"));
        assert!(parse(&many).unwrap_err().to_string().contains("501"));
    }
}
