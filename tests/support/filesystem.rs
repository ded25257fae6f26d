//! File systems made for a test, in a mount namespace that ends with the test: nothing needs to be unmounted.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};

use super::program::{administrative, exists, run};

/// The kinds of file systems that layers are tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// ext4.
    Ext4,
    /// XFS, with reflinks.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// tmpfs.
    Tmpfs,
}

/// Size of an image, bytes. It is sparse; XFS takes no less than 300 MiB.
const SIZE: u64 = 1 << 30;

impl Kind {
    /// All kinds.
    pub(crate) const ALL: [Self; 4] = [Self::Ext4, Self::Xfs, Self::Btrfs, Self::Tmpfs];

    /// The kernel's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Tmpfs => "tmpfs",
        }
    }

    fn make(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Self::Ext4 => Some(("mkfs.ext4", &["-q", "-F", "-E", "nodiscard,lazy_itable_init=1"])),
            Self::Xfs => Some(("mkfs.xfs", &["-q", "-f", "-K"])),
            Self::Btrfs => Some(("mkfs.btrfs", &["-q", "-f", "-K"])),
            Self::Tmpfs => None,
        }
    }

    /// The reason why this file system cannot be made here, if there is one.
    pub(crate) fn missing(self) -> Option<String> {
        let (program, _) = self.make()?;
        if !exists(program) {
            return Some(format!("{program} is not installed"));
        }
        (!Path::new("/dev/loop-control").exists()).then(|| "there are no loop devices".to_owned())
    }

    /// Makes a file system and mounts it at `target`. The image lies in `scratch` and has no name once it is mounted: the
    /// loop device and the space go with the mount, even if the test is killed.
    ///
    /// To be called in a mount namespace of one's own.
    pub(crate) fn mount(self, scratch: &Path, target: &Path) -> Result<()> {
        let Some((program, options)) = self.make() else {
            return run(administrative("mount").args(["-t", "tmpfs", "-o", "mode=755", "tmpfs"]).arg(target));
        };
        let image = scratch.join(format!("{}-{}.image", self.name(), std::process::id()));
        let file = File::create(&image).with_context(|| format!("making {}", image.display()))?;
        let mounted = file
            .set_len(SIZE)
            .map_err(anyhow::Error::from)
            .and_then(|()| run(administrative(program).args(options).arg(&image)))
            .and_then(|()| mount_image(&image, target));
        fs::remove_file(&image).with_context(|| format!("removing {}", image.display()))?;
        mounted
    }
}

/// Tests beside this one ask for loop devices as well, and may be given the same free one; only one of them gets it.
fn mount_image(image: &Path, target: &Path) -> Result<()> {
    let mut tries = 0;
    loop {
        match run(administrative("mount").args(["-o", "loop"]).arg(image).arg(target)) {
            Err(error) if tries < 5 && error.to_string().contains("loop device") => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(50 * tries));
            }
            other => return other,
        }
    }
}
