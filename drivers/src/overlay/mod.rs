//! The overlay driver: each layer is a directory of differences, stacked by the kernel's overlay file system.
//!
//! Its files are containers/storage's (see `layout`), so a home may be shared with podman, buildah, CRI-O and
//! skopeo. Differences from their driver, none of them on disk:
//!
//! - Layers are made in `tempdirs/` and renamed into place, whole; a killed process leaves nothing half made.
//! - Mounts are made by file descriptors: no path is too long and no chain of up to 500 layers too deep, and neither `l/`
//!   is needed. The home is mounted on itself while layers are, as peers do it (see `home_mount`).
//! - A lost `link`, `lower`, `lower-layers` or `l/` is made again from what is left.
//! - A `volatile` mount that a reboot interrupted is reported, not silently reused.

mod create;
mod diff;
mod driver;
mod get;
mod home_mount;
mod idmap;
mod layout;
mod leftovers;
mod mount;
mod options;
mod parents;
mod probe;
mod program;
mod reown;
mod staged;
mod status;
#[cfg(test)]
mod tests;
mod through;
mod update;
mod volatile;
mod words;

use std::collections::HashMap;
use std::sync::Arc;

use graph_core::registry::{DriverFactory, DriverSetup};
use graph_core::{Driver, Error, LayerId, Result};
use graph_sys::fs;
use graph_sys::io::Errno;

use layout::{Home, LINK, Layer, LinkId, Role, Small};

pub use driver::Overlay;
pub use options::{Options, SyncMode};
pub use program::ProgramMount;

/// The driver's name, whatever its home is called.
pub(crate) const DRIVER: &str = "overlay";

/// Opens the overlay driver.
#[derive(Clone, Copy, Debug)]
pub struct OverlayFactory {
    home: &'static str,
}

impl OverlayFactory {
    /// The driver with its usual home, `<root>/overlay`.
    pub const OVERLAY: Self = Self { home: "overlay" };
    /// The same driver under its older name, with the home `<root>/overlay2`.
    pub const OVERLAY2: Self = Self { home: "overlay2" };
}

impl DriverFactory for OverlayFactory {
    fn name(&self) -> &str {
        self.home
    }

    fn open(&self, setup: &DriverSetup) -> Result<Arc<dyn Driver>> {
        Ok(Arc::new(Overlay::open(setup, self.home)?))
    }
}

/// All homes that layers are looked up in.
#[derive(Debug)]
pub(super) struct Homes {
    own: Home,
    images: Option<Home>,
    additional: Vec<Home>,
}

impl Homes {
    /// Opens the homes; `additional` are graph roots.
    fn open(setup: &DriverSetup, name: &str, additional: &[std::path::PathBuf]) -> Result<Self> {
        let own = Home::create(&setup.root.join(name), Role::Own)?;
        let images = setup.image_store.as_ref().map(|root| Home::create(&root.join(name), Role::Images)).transpose()?;
        let mut homes = Self { own, images, additional: Vec::new() };
        for root in additional {
            // The operator's path: it may be a link. The words are the peer's.
            let reason = match fs::stat(root) {
                Ok(stat) if fs::FileType::from_raw_mode(stat.st_mode).is_dir() => None,
                Ok(_) => Some("not a directory".to_owned()),
                Err(Errno::NOENT) => Some("no such file or directory".to_owned()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(reason) = reason {
                let root = root.display();
                return Err(Error::Config {
                    place: DRIVER.into(),
                    problem: format!("can't stat imageStore dir {root}: stat {root}: {reason}"),
                });
            }
            // A store that has no layers yet has no home either.
            homes.additional.extend(Home::open_additional(&root.join(name))?);
        }
        Ok(homes)
    }

    /// The same homes, opened anew by their paths.
    ///
    /// Peers bind-mount their home on itself while they use it, and unmount that when nothing of theirs is mounted any more.
    /// Whoever opened the home meanwhile holds directories of a mount that is gone: good for everything but mounting.
    fn reopened(&self) -> Result<Self> {
        Ok(Self {
            own: self.own.reopened()?,
            images: self.images.as_ref().map(Home::reopened).transpose()?,
            additional: self.additional.iter().map(Home::reopened).collect::<Result<_>>()?,
        })
    }

    fn all(&self) -> impl Iterator<Item = &Home> {
        std::iter::once(&self.own).chain(&self.images).chain(&self.additional)
    }

    fn writable(&self) -> impl Iterator<Item = &Home> {
        std::iter::once(&self.own).chain(&self.images)
    }

    /// The layer, wherever it is.
    fn find(&self, id: &LayerId) -> Result<Option<Layer<'_>>> {
        for home in self.all() {
            if let Some(layer) = home.layer(id)? {
                return Ok(Some(layer));
            }
        }
        Ok(None)
    }

    fn require(&self, id: &LayerId) -> Result<Layer<'_>> {
        self.find(id)?.ok_or_else(|| Error::LayerUnknown { id: id.clone() })
    }

    /// The home that new layers of that kind go to.
    fn home_for(&self, read_write: bool) -> &Home {
        self.images.as_ref().filter(|_| !read_write).unwrap_or(&self.own)
    }

    fn read_link(&self, link: &LinkId) -> Result<Option<LayerId>> {
        for home in self.all() {
            if let Some(id) = home.read_link(link)? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// All layers by the name in their `link` file. For repair: it reads every layer.
    fn layers_by_link(&self) -> Result<HashMap<LinkId, LayerId>> {
        let mut named = HashMap::new();
        for home in self.all() {
            for id in home.list()? {
                if let Some(layer) = home.layer(&id)?
                    && let Small::Text(text) = layer.read_small(LINK)?
                    && let Some(link) = LinkId::parse(&text)
                {
                    named.entry(link).or_insert(id);
                }
            }
        }
        Ok(named)
    }
}
