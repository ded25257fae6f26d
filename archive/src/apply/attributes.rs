//! Owner, mode, extended attributes and times: what of them is set, in which form and in which order.

use std::os::fd::{AsFd, AsRawFd};

use graph_sys::fs::{self, AtFlags, Gid, Mode, OFlags, Timespec, Uid, XattrFlags};
use graph_sys::io::Errno;

use super::dirs::Times;
use super::engine::Engine;
use crate::attribute_ids;
use crate::entry::{EntryKind, Metadata, Timestamp};
use crate::error::{Error, IdSide, Result};
use crate::idmap::IdPair;

/// Where containers/storage keeps what a file should have been, with `force_mask`.
pub(super) const OVERRIDE_STAT: &[u8] = b"user.containers.override_stat";

/// Attributes that belong to the machine and not to the layer; neither set nor cleared (as containers/storage and
/// umoci do).
const OF_THE_MACHINE: [&[u8]; 2] = [b"security.selinux", b"system.nfs4_acl"];

/// Mode, owner and times of a file to be made, translated for the disk.
#[derive(Clone, Debug)]
pub(super) struct Attributes {
    pub(super) owner: IdPair,
    /// Octal 07777.
    pub(super) mode: Mode,
    pub(super) times: Times,
    /// Names and values as they are to be on disk.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A file to set attributes on, by a descriptor that can be written through, or by one that only stands for it.
#[derive(Debug)]
pub(super) enum Handle<F> {
    Open(F),
    /// Opened with `O_PATH`, and therefore reached through `/proc/self/fd`.
    Path(F),
}

/// The name under `/proc` of an open file, symbolic links included.
pub(super) fn by_descriptor(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

fn timespec(time: Timestamp) -> Timespec {
    Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds.min(999_999_999)) }
}

/// The fixed time of directories that nobody states: the epoch.
pub(super) const FIXED_TIMES: Times =
    Times { access: Timespec { tv_sec: 0, tv_nsec: 0 }, modification: Timespec { tv_sec: 0, tv_nsec: 0 } };

pub(super) fn times(metadata: &Metadata) -> Times {
    let modification = timespec(metadata.mtime);
    Times { access: metadata.atime.map_or(modification, timespec), modification }
}

/// The descriptor of `name` for a [`Handle::Path`].
pub(super) fn open_path(directory: impl AsFd, name: &[u8]) -> Result<std::os::fd::OwnedFd> {
    fs::openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::io("open", name, error))
}

impl<F: AsFd> Handle<F> {
    pub(super) fn set(&self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::Path(fd) => fs::setxattr(by_descriptor(fd), name, value, XattrFlags::empty()),
        }
    }
    pub(super) fn remove(&self, name: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => fs::fremovexattr(fd, name),
            Self::Path(fd) => fs::removexattr(by_descriptor(fd), name),
        }
    }
    pub(super) fn get(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        grow(|buffer| match self {
            Self::Open(fd) => fs::fgetxattr(fd, name, buffer),
            Self::Path(fd) => fs::getxattr(by_descriptor(fd), name, buffer),
        })
    }
    /// Names of the attributes; none where the file system has no attributes.
    pub(super) fn list(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let names = grow(|buffer| match self {
            Self::Open(fd) => fs::flistxattr(fd, buffer),
            Self::Path(fd) => fs::listxattr(by_descriptor(fd), buffer),
        });
        match names {
            Ok(names) => {
                Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
            }
            Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
    pub(super) fn chmod(&self, mode: Mode) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => fs::fchmod(fd, mode),
            Self::Path(fd) => fs::chmod(by_descriptor(fd), mode),
        }
    }
    pub(super) fn chown(&self, owner: IdPair) -> Result<(), Errno> {
        let (uid, gid) = raw(owner);
        match self {
            Self::Open(fd) => fs::fchown(fd, uid, gid),
            Self::Path(fd) => fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH),
        }
    }
}

fn raw(owner: IdPair) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw_unchecked(owner.uid)), Some(Gid::from_raw_unchecked(owner.gid)))
}

/// Calls `read` with ever bigger buffers until the answer fits.
fn grow(mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    // The kernel's limits for a value and for a list of names are both 64 KiB.
    let mut buffer = vec![0; 1024];
    loop {
        match read(&mut buffer) {
            Ok(size) => {
                buffer.truncate(size);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() <= 1 << 20 => buffer.resize(buffer.len().saturating_mul(8), 0),
            Err(error) => return Err(error),
        }
    }
}

impl Engine<'_> {
    /// Translates what a member states. Device types need `kind` for `force_mask`.
    pub(super) fn translate(&mut self, metadata: &Metadata, kind: EntryKind, name: &[u8]) -> Result<Attributes> {
        let stated = IdPair { uid: metadata.uid, gid: metadata.gid };
        let owner = self.to_host(stated, name)?;
        let mut xattrs = Vec::with_capacity(metadata.xattrs.len());
        for (attribute, value) in &metadata.xattrs {
            if let Some(pair) = self.translate_xattr(attribute, value, name)? {
                xattrs.push(pair);
            }
        }
        let mut mode = Mode::from_raw_mode(metadata.mode & 0o7777);
        if let Some(mask) = self.options.force_mask {
            xattrs.retain(|(attribute, _)| attribute != OVERRIDE_STAT);
            if kind != EntryKind::Symlink {
                xattrs.push((OVERRIDE_STAT.to_vec(), override_stat(owner, metadata.mode & 0o7777, kind)));
            }
            mode = Mode::from_raw_mode(mask & 0o7777);
        }
        Ok(Attributes { owner, mode, times: times(metadata), xattrs })
    }

    /// Attributes of a directory that neither this layer states nor a lower one has: 0755, the mapped root, the epoch.
    pub(super) fn implied(&mut self) -> Result<Attributes> {
        if self.implied.is_none() {
            let owner = self.options.mappings.root()?;
            let (mut mode, mut xattrs) = (0o755, Vec::new());
            if let Some(mask) = self.options.force_mask {
                xattrs.push((OVERRIDE_STAT.to_vec(), override_stat(owner, mode, EntryKind::Directory)));
                mode = mask & 0o7777;
            }
            self.implied = Some(Attributes { owner, mode: Mode::from_raw_mode(mode), times: FIXED_TIMES, xattrs });
        }
        self.implied.clone().ok_or_else(|| Error::Unmapped { id: 0, from: IdSide::Container, entry: Vec::new() })
    }

    fn to_host(&self, stated: IdPair, name: &[u8]) -> Result<IdPair> {
        let owner = self.options.mappings.to_host(stated, name)?;
        for (id, other) in [(owner.uid, stated.uid), (owner.gid, stated.gid)] {
            // To chown this number means "leave it", so no file can have it.
            if id == u32::MAX {
                return Err(Error::Unmapped { id: other, from: IdSide::Container, entry: name.to_vec() });
            }
        }
        Ok(owner)
    }

    /// The attribute as it is to be on disk; `None` for those that are left out.
    fn translate_xattr(&mut self, attribute: &[u8], value: &[u8], name: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        if OF_THE_MACHINE.contains(&attribute) {
            self.notice("machine xattrs", || {
                "security.selinux and system.nfs4_acl attributes belong to the machine and were left out".to_owned()
            });
            return Ok(None);
        }
        if attribute.is_empty() || attribute.contains(&0) || attribute.len() > 255 {
            return Err(Error::input(name, self.offset, crate::Defect::InvalidXattr));
        }
        let mut attribute = attribute.to_vec();
        match self.overlay.as_ref().and_then(|overlay| overlay.marks.namespace()) {
            Some(namespace) => {
                let prefix = namespace.prefix();
                if let Some(rest) = attribute.strip_prefix(prefix) {
                    // The kernel shows overlay.overlay.x as overlay.x (since 6.7), and obeys neither.
                    attribute = [prefix, b"overlay.", rest].concat();
                }
            }
            None if attribute.starts_with(b"trusted.overlay.") || attribute.starts_with(b"user.overlay.") => {
                self.notice("overlay xattrs", || {
                    "trusted.overlay and user.overlay attributes would act on mounts and were left out".to_owned()
                });
                return Ok(None);
            }
            None => {}
        }
        let value = if self.options.mappings.is_identity() {
            value.to_vec()
        } else {
            attribute_ids::shift(&attribute, value, &|pair| self.to_host(pair, name))?
        };
        Ok(Some((attribute, value)))
    }

    /// Sets the owner. `name` is for messages.
    pub(super) fn chown<F: AsFd>(&mut self, file: &Handle<F>, owner: IdPair, name: &[u8]) -> Result<()> {
        if self.options.force_mask.is_some() {
            return Ok(());
        }
        self.owned(file.chown(owner), name)
    }

    /// Sets the owner of `name` itself, a symbolic link or something that is not to be opened.
    pub(super) fn chown_at(&mut self, directory: impl AsFd, name: &[u8], owner: IdPair) -> Result<()> {
        if self.options.force_mask.is_some() {
            return Ok(());
        }
        let (uid, gid) = raw(owner);
        self.owned(fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW), name)
    }

    fn owned(&mut self, result: Result<(), Errno>, name: &[u8]) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(error) if self.options.ignore_chown_errors => {
                self.notice("owners", || format!("owners could not be kept: {error}"));
                Ok(())
            }
            Err(error) => Err(Error::io("change owner of", name, error)),
        }
    }

    /// Sets extended attributes. Those that the file system or the type of file cannot have are a notice.
    pub(super) fn set_xattrs<F: AsFd>(
        &mut self,
        file: &Handle<F>,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        name: &[u8],
    ) -> Result<()> {
        for (attribute, value) in xattrs {
            match file.set(attribute, value) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => {
                    let attribute = crate::error::show(attribute);
                    self.notice("unsupported xattrs", || {
                        format!("the file system cannot keep attributes like {attribute}")
                    });
                }
                Err(Errno::PERM) if self.options.in_user_namespace => {
                    let attribute = crate::error::show(attribute);
                    self.notice("refused xattrs", || {
                        format!("attributes like {attribute} may not be set in a user namespace and were left out")
                    });
                }
                // The kernel has user.* on regular files and directories only.
                Err(Errno::PERM) if matches!(file, Handle::Path(_)) && attribute.starts_with(b"user.") => {
                    self.notice("user xattrs", || {
                        "user attributes of links, devices and pipes cannot be kept and were left out".to_owned()
                    });
                }
                Err(error) => return Err(Error::io("set extended attribute of", name, error)),
            }
        }
        Ok(())
    }

    /// Takes off all attributes that belong to layers.
    pub(super) fn clear_xattrs<F: AsFd>(&mut self, file: &Handle<F>, name: &[u8]) -> Result<()> {
        for attribute in self.layer_xattr_names(file, name)? {
            match file.remove(&attribute) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(Errno::PERM) if self.options.in_user_namespace => {}
                Err(error) => return Err(Error::io("remove extended attribute of", name, error)),
            }
        }
        Ok(())
    }

    /// Names of the attributes that belong to the layer: not the machine's, not the overlay's own.
    pub(super) fn layer_xattr_names<F: AsFd>(&self, file: &Handle<F>, name: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut names = file.list().map_err(|error| Error::io("list extended attributes of", name, error))?;
        names.retain(|attribute| {
            let namespace = self.overlay.as_ref().and_then(|overlay| overlay.marks.namespace());
            let private = namespace.is_some_and(|namespace| {
                let rest = attribute.strip_prefix(namespace.prefix());
                rest.is_some_and(|rest| !rest.starts_with(b"overlay."))
            });
            !private && !OF_THE_MACHINE.contains(&attribute.as_slice())
        });
        Ok(names)
    }
}

/// `uid:gid:0mode:type`, as containers/storage and fuse-overlayfs read it; ids as they would be on disk.
fn override_stat(owner: IdPair, mode: u32, kind: EntryKind) -> Vec<u8> {
    let kind = match kind {
        EntryKind::File | EntryKind::HardLink => "file".to_owned(),
        EntryKind::Directory => "dir".to_owned(),
        EntryKind::Symlink => "symlink".to_owned(),
        EntryKind::Fifo => "pipe".to_owned(),
        EntryKind::CharDevice { major, minor } => format!("char-{major}-{minor}"),
        EntryKind::BlockDevice { major, minor } => format!("block-{major}-{minor}"),
    };
    format!("{}:{}:0{mode:o}:{kind}", owner.uid, owner.gid).into_bytes()
}
