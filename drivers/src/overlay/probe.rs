//! What the kernel and the file system of the home can do, found by trying it.
//!
//! Each answer is kept as an empty file `<feature>-true` or `<feature>-false` in the run home, under the names that
//! containers/storage uses, so that either finds the other's. The run home is gone after a restart, and with it the
//! answers of an older kernel. A probe works in a directory of `tempdirs/`, which the next open removes should this
//! process be killed, and mounts nothing anywhere: it looks at mounts through their descriptors.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use graph_archive::apply::XattrNamespace;
use graph_archive::idmap::{IdMappings, IdPair, IdRange};
use graph_core::tempdir::TempDirRoot;
use graph_core::{Error, Result};
use graph_sys::fs::{self, AtFlags, FileType, Mode, OFlags};
use graph_sys::io::Errno;
use graph_sys::mount::{DetachedMount, FsContext, UnmountFlags, classic};
use graph_sys::special::is_whiteout;
use graph_sys::{statfs, xattr};

use super::layout::{
    Context, Flush, Home, Small, TEMP_DIRS, each_entry, make_dir, make_dirs, open_dir, read_small, write_small,
};
use super::mount::{DATA_KEY, LOWER_KEY, Method, mount_by_numbers};
use super::options::Options;
use super::words::{Words, split};

/// The answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Features {
    /// Whiteouts, opaque directories and directory entry types: without them there is no driver.
    pub(super) overlay: Answer,
    /// Changed metadata alone is copied up, with the configured mount options.
    pub(super) metacopy: Answer,
    /// The upper directory tells all that changed, with the configured mount options.
    pub(super) native_diff: Answer,
    /// Mounts without syncing.
    pub(super) volatile: Answer,
    /// Lower directories may be id-mapped mounts.
    pub(super) id_mapped_lower: Answer,
    /// Lower layers that hold data for others only.
    pub(super) data_only: Answer,
    /// Files can share their data. Under a name of our own: peers do not ask.
    pub(super) reflink: Answer,
}

/// Whether something works, and why not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) works: bool,
    /// Why it does not; may be empty in an answer that was kept.
    pub(super) reason: String,
}

impl Answer {
    /// Why it does not work; `otherwise` where a kept answer does not tell.
    pub(super) fn reason_or<'a>(&'a self, otherwise: &'a str) -> &'a str {
        if self.reason.is_empty() { otherwise } else { &self.reason }
    }

    fn from_result(result: Tried) -> Self {
        match result {
            Ok(()) => Self { works: true, reason: String::new() },
            Err(refusal) => Self { works: false, reason: refusal.reason },
        }
    }
}

/// A directory to try things in, and where answers are kept.
pub(super) struct Prober<'p> {
    pub(super) home: &'p Home,
    pub(super) run_home: &'p OwnedFd,
    pub(super) run_path: &'p Path,
    pub(super) namespace: XattrNamespace,
    pub(super) options: &'p Options,
    pub(super) id_maps_disabled: bool,
    pub(super) method: Method,
}

/// Directories of one attempt.
struct Attempt {
    method: Method,
    dir: OwnedFd,
    upper: OwnedFd,
    work: OwnedFd,
    target: OwnedFd,
}

type Tried = std::result::Result<(), Refusal>;

/// Why an attempt failed.
#[derive(Debug)]
struct Refusal {
    reason: String,
    errno: Option<Errno>,
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self { reason, errno: None }
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

impl From<graph_sys::Error> for Refusal {
    fn from(error: graph_sys::Error) -> Self {
        let errno = error.errno();
        Self { reason: format!("{error}: {}", std::io::Error::from(errno)), errno: Some(errno) }
    }
}

impl Refusal {
    fn from_io(what: &str, error: &std::io::Error) -> Self {
        Self { reason: format!("{what}: {error}"), errno: Errno::from_io_error(error) }
    }

    /// Whether it says nothing of what the kernel can do: the disk is full, say. Such an answer is not kept.
    fn passes(&self) -> bool {
        matches!(
            self.errno,
            Some(
                Errno::NOSPC
                    | Errno::DQUOT
                    | Errno::NOMEM
                    | Errno::MFILE
                    | Errno::NFILE
                    | Errno::IO
                    | Errno::INTR
                    | Errno::AGAIN
                    | Errno::ROFS
                    | Errno::USERS
            )
        )
    }
}

fn told(what: &str) -> impl Fn(Errno) -> Refusal + '_ {
    move |error| Refusal { reason: format!("{what}: {}", std::io::Error::from(error)), errno: Some(error) }
}

impl Attempt {
    /// `lower1` and `lower2` hold what `content` makes; `upper` and `work` are empty.
    fn new(
        method: Method,
        dir: OwnedFd,
        mut content: impl FnMut(&str, &OwnedFd) -> std::io::Result<()>,
    ) -> Result<Self, Refusal> {
        let owner = IdPair {
            uid: own_uid(&dir).map_err(told("read the status"))?,
            gid: own_gid(&dir).map_err(told("read the status"))?,
        };
        let make = |name: &str| make_dir(&dir, name, 0o755, owner).map_err(told("make directory"));
        for name in ["lower1", "lower2"] {
            content(name, &make(name)?).map_err(|error| Refusal::from_io("prepare the attempt", &error))?;
        }
        let (upper, work, target) = (make("upper")?, make("work")?, make("merged")?);
        Ok(Self { method, dir, upper, work, target })
    }

    fn lower(&self, name: &str) -> Result<OwnedFd, Refusal> {
        open_dir(&self.dir, name).map_err(told("open directory"))
    }

    /// Mounts both lower directories below the upper one.
    fn mount(&self, words: &Words) -> Result<DetachedMount, Refusal> {
        self.mount_with(words, &[(LOWER_KEY, self.lower("lower1")?), (LOWER_KEY, self.lower("lower2")?)])
    }

    fn mount_with(&self, words: &Words, lowers: &[(&str, OwnedFd)]) -> Result<DetachedMount, Refusal> {
        match self.method {
            Method::Descriptors => Ok(self.mount_by_descriptors(words, lowers)?),
            Method::Classic => {
                mount_by_numbers(words, lowers, Some((&self.upper, &self.work)), &self.target)
                    .map_err(|error| Refusal::from_io("mount", &error))?;
                let copy = DetachedMount::copy_of(&self.dir, b"merged", false);
                let attached = open_dir(&self.dir, "merged").map_err(told("open directory"))?;
                classic::unmount(format!("/proc/self/fd/{}", attached.as_raw_fd()).as_bytes(), UnmountFlags::DETACH)?;
                Ok(copy?)
            }
        }
    }

    fn mount_by_descriptors(&self, words: &Words, lowers: &[(&str, OwnedFd)]) -> graph_sys::Result<DetachedMount> {
        let context = FsContext::open("overlay")?;
        words.configure(&context)?;
        for (key, dir) in lowers {
            context.set_directory(key, dir)?;
        }
        context.set_directory("upperdir", &self.upper)?;
        context.set_directory("workdir", &self.work)?;
        context.create(words.attributes())
    }
}

fn own_uid(dir: &OwnedFd) -> Result<u32, Errno> {
    fs::fstat(dir).map(|stat| stat.st_uid)
}

fn own_gid(dir: &OwnedFd) -> Result<u32, Errno> {
    fs::fstat(dir).map(|stat| stat.st_gid)
}

impl Prober<'_> {
    /// The answers where a program mounts: what it shows can only be looked at through it.
    pub(super) fn features_of_program(&self) -> Result<Features> {
        let not = || Answer { works: false, reason: "a mount program mounts".to_owned() };
        let yes = || Answer { works: true, reason: String::new() };
        Ok(Features {
            overlay: yes(),
            metacopy: not(),
            native_diff: not(),
            volatile: yes(),
            id_mapped_lower: if self.id_maps_disabled {
                Answer { works: false, reason: "switched off by the caller".into() }
            } else {
                yes()
            },
            data_only: not(),
            reflink: self.kept("reflink", try_reflink)?,
        })
    }

    /// All answers, kept ones first.
    ///
    /// # Errors
    /// I/O errors of the home itself, `ENOSPC` among them; what the kernel refuses is an answer.
    pub(super) fn features(&self) -> Result<Features> {
        let mount_options = &self.options.mount_options;
        let overlay = self.kept("overlay", |dir| self.try_overlay(dir))?;
        if !overlay.works {
            return Ok(Features { overlay, ..Features::default() });
        }
        Ok(Features {
            overlay,
            metacopy: self.kept(&format!("metacopy({mount_options})"), |dir| self.try_metacopy(dir))?,
            native_diff: self.kept(&format!("native-diff({mount_options})"), |dir| self.try_native_diff(dir))?,
            volatile: self.kept("volatile", |dir| self.try_word(dir, "volatile"))?,
            id_mapped_lower: if self.id_maps_disabled {
                Answer { works: false, reason: "switched off by the caller".into() }
            } else {
                self.kept("idmapped-lower-dir", |dir| self.try_id_mapped(dir))?
            },
            data_only: self.kept("dataonly-layers", |dir| self.try_data_only(dir))?,
            reflink: self.kept("reflink", try_reflink)?,
        })
    }

    fn kept(&self, feature: &str, probe: impl FnOnce(OwnedFd) -> Tried) -> Result<Answer> {
        // mountopt may hold anything; what makes no file name is found out each time.
        let keep = !feature.contains('/') && feature.len() <= 240;
        if keep {
            for works in [true, false] {
                let name = format!("{feature}-{works}");
                let kept = read_small(self.run_home, &name).at("read", self.run_path.join(&name), None)?;
                match kept {
                    Small::Absent => {}
                    Small::Text(reason) => return Ok(Answer { works, reason }),
                    Small::Damaged(_) => return Ok(Answer { works, reason: String::new() }),
                }
            }
        }
        let (mut temp, keep) = match self.home.temp_dir() {
            // What the kernel can do can be tried elsewhere; what is found then is not the home's, and not kept.
            Err(error) if is_read_only(&error) => {
                let root = TempDirRoot::create_in(self.run_home, TEMP_DIRS, self.run_path.join(TEMP_DIRS))?;
                (root.make()?, false)
            }
            temp => (temp?, keep),
        };
        let (_addition, dir) = temp.add_directory(0o700)?;
        let tried = probe(dir);
        temp.finish()?;
        if let Err(refusal) = &tried
            && refusal.passes()
        {
            let source = refusal.errno.map_or(std::io::ErrorKind::Other.into(), std::io::Error::from);
            tracing::warn!(feature, reason = refusal.reason, "could not probe");
            return Err(Error::io("probe the overlay file system in", &self.home.path, None, source));
        }
        // Without the privilege this tells nothing of the kernel, and another process may have it.
        let keep = keep && !tried.as_ref().is_err_and(|refusal| refusal.errno == Some(Errno::PERM));
        let answer = Answer::from_result(tried);
        tracing::debug!(feature, works = answer.works, reason = answer.reason, "probed");
        if keep {
            let name = format!("{feature}-{}", answer.works);
            // Another process may have been faster.
            if let Err(error) = write_small(self.run_home, &name, &answer.reason, None, Flush::No)
                && error.kind() != std::io::ErrorKind::AlreadyExists
            {
                tracing::warn!(%error, path = %self.run_path.join(name).display(), "keeping what was probed");
            }
        }
        Ok(answer)
    }

    fn words(&self, configured: bool) -> Result<Words, Refusal> {
        let options = if configured { self.options.mount_options.as_str() } else { "" };
        let mut words = Words::parse(split(options)).map_err(|error| error.to_string())?;
        super::mount::own_words(&mut words, self.namespace).map_err(|error| error.to_string())?;
        Ok(words)
    }

    fn attribute(&self, name: &str) -> Vec<u8> {
        [self.namespace.prefix(), name.as_bytes()].concat()
    }

    /// Removing a directory of a lower layer must leave a whiteout, and reading directories must tell types.
    fn try_overlay(&self, dir: OwnedFd) -> Tried {
        let attempt = Attempt::new(self.method, dir, |_, dir| {
            write_small(dir, "file", "", None, Flush::No)?;
            let below = make_dir(dir, "dir", 0o755, IdPair { uid: own_uid(dir)?, gid: own_gid(dir)? })?;
            write_small(below, "file", "", None, Flush::No)
        })?;
        let mount = attempt.mount(&self.words(false)?)?;
        fs::unlinkat(&mount, "dir/file", AtFlags::empty()).map_err(told("remove a file in an overlay"))?;
        fs::unlinkat(&mount, "dir", AtFlags::REMOVEDIR).map_err(told("remove a directory in an overlay"))?;
        fs::mkdirat(&mount, "dir", Mode::RWXU).map_err(told("make a directory anew in an overlay"))?;
        fs::unlinkat(&mount, "file", AtFlags::empty()).map_err(told("remove a file in an overlay"))?;
        let whiteout =
            fs::statat(&attempt.upper, "file", AtFlags::SYMLINK_NOFOLLOW).map_err(told("look for a whiteout"))?;
        if !is_whiteout(&whiteout) {
            return Err("the kernel left no whiteout".into());
        }
        let upper_dir = open_dir(&attempt.upper, "dir").map_err(told("open directory"))?;
        let opaque = xattr::get(&upper_dir, &self.attribute("opaque")).map_err(told("read the opaque mark"))?;
        if opaque.as_deref() != Some(b"y") {
            return Err("the kernel left no opaque mark".into());
        }
        let mut typed = true;
        each_entry(&attempt.upper, |_, kind| {
            typed &= kind != FileType::Unknown;
            Ok(())
        })
        .map_err(told("read directory"))?;
        if !typed {
            return Err("the file system does not support d_type; an xfs has to be made with ftype=1".into());
        }
        Ok(())
    }

    /// The mark of an opaque directory must not be copied up, and renaming must not leave a redirect, nor a change of mode a
    /// file without its data: then the upper directory alone does not tell what changed.
    fn try_native_diff(&self, dir: OwnedFd) -> Tried {
        let opaque = self.attribute("opaque");
        let attempt = Attempt::new(self.method, dir, |name, dir| {
            let owner = IdPair { uid: own_uid(dir)?, gid: own_gid(dir)? };
            let below = make_dir(dir, "dir", 0o755, owner)?;
            if name == "lower1" {
                xattr::set(&below, &opaque, b"y", xattr::SetMode::CreateOrReplace)?;
            }
            write_small(&below, "file", "data", None, Flush::No)?;
            make_dir(dir, "moved", 0o755, owner)?;
            write_small(dir, "file", "data", None, Flush::No)
        })?;
        let mount = attempt.mount(&self.words(true)?)?;
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        drop(fs::openat(&mount, "dir/new", write, Mode::RUSR).map_err(told("make a file in an overlay"))?);
        let upper_dir = open_dir(&attempt.upper, "dir").map_err(told("open directory"))?;
        if xattr::get(&upper_dir, &opaque).map_err(told("read the opaque mark"))?.is_some() {
            return Err("the kernel copies opaque marks up".into());
        }
        match fs::renameat(&mount, "moved", &mount, "there") {
            Err(Errno::XDEV) => {}
            Err(error) => return Err(told("rename a directory in an overlay")(error)),
            Ok(()) => {
                let there = open_dir(&attempt.upper, "there").map_err(told("open directory"))?;
                if xattr::get(&there, &self.attribute("redirect")).map_err(told("read the redirect mark"))?.is_some() {
                    return Err("the kernel renames directories by redirects (redirect_dir=on)".into());
                }
            }
        }
        if copies_metadata_only(&mount, &attempt.upper, &self.attribute("metacopy"))? {
            return Err("the kernel copies metadata up without data (metacopy=on)".into());
        }
        Ok(())
    }

    fn try_metacopy(&self, dir: OwnedFd) -> Tried {
        let attempt = Attempt::new(self.method, dir, |_, dir| write_small(dir, "file", "data", None, Flush::No))?;
        let mount = attempt.mount(&self.words(true)?)?;
        if copies_metadata_only(&mount, &attempt.upper, &self.attribute("metacopy"))? {
            Ok(())
        } else {
            Err("the kernel copies data up with the metadata".into())
        }
    }

    fn try_word(&self, dir: OwnedFd, word: &str) -> Tried {
        let attempt = Attempt::new(self.method, dir, |_, _| Ok(()))?;
        let mut words = self.words(false)?;
        words.add(word).map_err(|error| error.to_string())?;
        attempt.mount(&words).map(drop)
    }

    fn try_id_mapped(&self, dir: OwnedFd) -> Tried {
        let attempt = Attempt::new(self.method, dir, |_, dir| write_small(dir, "file", "data", None, Flush::No))?;
        let range = IdRange { container_id: 0, host_id: 0, size: 1 };
        let namespace = super::idmap::namespace(&IdMappings { uids: vec![range], gids: vec![range] })?;
        let lower = DetachedMount::copy_of(&attempt.dir, b"lower1", false)
            .and_then(|mount| mount.map_ids(&namespace, false).map(|()| mount))?;
        attempt.mount_with(&self.words(false)?, &[(LOWER_KEY, lower.into())]).map(drop)
    }

    fn try_data_only(&self, dir: OwnedFd) -> Tried {
        let attempt = Attempt::new(self.method, dir, |_, _| Ok(()))?;
        let lowers = [(LOWER_KEY, attempt.lower("lower1")?), (DATA_KEY, attempt.lower("lower2")?)];
        attempt.mount_with(&self.words(false)?, &lowers).map(drop)
    }
}

fn try_reflink(dir: OwnedFd) -> Tried {
    write_small(&dir, "from", "data", None, Flush::No).map_err(|error| Refusal::from_io("write a file", &error))?;
    write_small(&dir, "to", "", None, Flush::No).map_err(|error| Refusal::from_io("write a file", &error))?;
    let open = |name: &str, flags| fs::openat(&dir, name, flags | OFlags::CLOEXEC, Mode::empty()).map_err(told("open"));
    match graph_sys::reflink::clone_file(open("to", OFlags::WRONLY)?, open("from", OFlags::RDONLY)?) {
        Ok(true) => Ok(()),
        Ok(false) => Err("the file system does not share data between files".into()),
        Err(error) => Err(told("share a file's data")(error)),
    }
}

/// Changes a file's mode in the mount and looks whether its data came along.
fn copies_metadata_only(mount: &DetachedMount, upper: &OwnedFd, mark: &[u8]) -> Result<bool, Refusal> {
    fs::chmodat(mount, "file", Mode::RUSR, AtFlags::empty()).map_err(told("change a mode in an overlay"))?;
    Ok(xattr::get_at(upper, b"file", mark).map_err(told("read the metacopy mark"))?.is_some())
}

/// Which namespace of attributes the kernel's overlay has to use for this process: in a user namespace only
/// `user.overlay.` works. Removing what is not there is refused just as setting it would be, and changes nothing.
pub(super) fn xattr_namespace(home: &Home, run_home: &OwnedFd) -> Result<XattrNamespace> {
    let name = b"trusted.overlay.probe";
    let tried = match xattr::remove(&home.dir, name) {
        Err(Errno::ROFS) => xattr::remove(run_home, name),
        tried => tried,
    };
    match tried {
        Ok(_) => Ok(XattrNamespace::Trusted),
        Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(XattrNamespace::User),
        Err(error) => Err(Error::io("try an extended attribute of", &home.path, None, error)),
    }
}

/// Refuses file systems that the kernel stacks badly.
pub(super) fn check_backing(home: &Home, rootless: bool) -> Result<()> {
    let magic = statfs::magic(&home.dir).at("statfs", &home.path, None)?;
    let name = magic.name().unwrap_or("this file system");
    let refused = matches!(magic, statfs::Magic::AUFS | statfs::Magic::ECRYPTFS);
    if refused || (rootless && magic.is_network()) {
        return Err(Error::IncompatibleFs { context: format!("overlay over {name} at {}", home.path.display()) });
    }
    Ok(())
}

/// Whether something failed because the file system is read-only.
fn is_read_only(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
}

/// Whether the home is on another machine.
pub(super) fn is_on_network(home: &Home) -> Result<bool> {
    Ok(statfs::magic(&home.dir).at("statfs", &home.path, None)?.is_network())
}

/// Opens the run home, making it.
pub(super) fn open_run_home(path: PathBuf) -> Result<(PathBuf, OwnedFd)> {
    make_dirs(&path, Mode::RWXU)?;
    let dir = open_dir(fs::CWD, &path).at("open the run directory", &path, None)?;
    Ok((path, dir))
}
