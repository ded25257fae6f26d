//! How an archive is to be applied.

use std::fmt;
use std::os::fd::OwnedFd;

use super::ApplyObserver;
use crate::idmap::IdMappings;
use crate::limits::Limits;

/// Which of its two private namespaces of extended attributes a kernel overlay uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum XattrNamespace {
    /// `trusted.overlay.`, the default of the kernel; needs `CAP_SYS_ADMIN` in the first user namespace.
    #[default]
    Trusted,
    /// `user.overlay.`, for mounts with the option `userxattr`.
    User,
}

impl XattrNamespace {
    /// What the names of the overlay's own attributes begin with, the last dot included.
    #[must_use]
    pub fn prefix(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.",
            Self::User => b"user.overlay.",
        }
    }
}

/// How a whiteout lies on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WhiteoutForm {
    /// A character device 0:0.
    #[default]
    CharDevice,
    /// An empty regular file with the attribute `overlay.whiteout`, in a directory with `overlay.opaque` = `x`. The kernel
    /// reads them since 6.7; for where `mknod` is refused.
    Xattr,
}

/// What a kernel overlay needs to know of one layer.
#[derive(Debug, Default)]
pub struct OverlayOptions {
    /// Namespace of opaque marks and whiteout attributes, and the one that is escaped.
    pub namespace: XattrNamespace,
    /// How whiteouts are written.
    pub whiteout: WhiteoutForm,
    /// The directories of the layers below, nearest first, as the kernel gets them in `lowerdir`; or one read-only mount
    /// of them all. They are only read.
    pub lowers: Vec<OwnedFd>,
    /// The layers below exist but are not at hand. Every whiteout is then written down, whether it hits something or not;
    /// directories that the layer does not state are 0755, and links to lower layers are errors.
    pub lowers_unknown: bool,
}

/// What AUFS needs to know of one layer.
#[derive(Debug, Default)]
pub struct AufsOptions {
    /// The branches below, nearest first, as a mount gets them (`ro+wh`). They are only read.
    pub lowers: Vec<OwnedFd>,
}

/// In which form the tree is made.
#[derive(Debug, Default)]
pub enum Style {
    /// Whiteouts are carried out: the root holds the lower layers' tree and becomes that with this layer on top.
    #[default]
    Plain,
    /// The root holds this layer alone, as a lower or upper directory of a kernel overlay; whiteouts are stored.
    Overlay(OverlayOptions),
    /// The root holds this layer alone, as a branch of AUFS; whiteouts are stored as files `.wh.<name>`, opaque marks as files
    /// `.wh..wh..opq`. Names that AUFS cannot show, of more than 242 bytes, are refused.
    Aufs(AufsOptions),
}

/// How an archive is to be applied. `ApplyOptions::default()` is plain, with identity mappings and the default limits.
#[derive(Default)]
pub struct ApplyOptions<'o> {
    /// The form of the tree.
    pub style: Style,
    /// From the archive's (container) ids to those on disk.
    pub mappings: IdMappings,
    /// A refused change of owner is a notice, not an error.
    pub ignore_chown_errors: bool,
    /// Give every file and directory this mode (octal) and keep owner, mode and type in
    /// `user.containers.override_stat`; nothing is chowned, and devices and fifos become regular files.
    pub force_mask: Option<u32>,
    /// This process runs in a user namespace: devices are left out, and attributes that may not be set are a notice.
    pub in_user_namespace: bool,
    /// What the archive may ask for.
    pub limits: Limits,
    /// SELinux label for new files; empty for none.
    pub mount_label: String,
    /// Sees every byte of the stream once, in order.
    pub observer: Option<&'o mut dyn ApplyObserver>,
}

impl fmt::Debug for ApplyOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApplyOptions")
            .field("style", &self.style)
            .field("mappings", &self.mappings)
            .field("ignore_chown_errors", &self.ignore_chown_errors)
            .field("force_mask", &self.force_mask)
            .field("in_user_namespace", &self.in_user_namespace)
            .field("limits", &self.limits)
            .field("mount_label", &self.mount_label)
            .field("observer", &self.observer.is_some())
            .finish()
    }
}
