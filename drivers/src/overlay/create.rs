//! Making a layer's directory: the small files, the owners and modes, before anything is in it.

use std::os::fd::{AsFd, OwnedFd};

use graph_archive::idmap::{IdMappings, IdPair};
use graph_core::id::InvalidId;
use graph_core::{Error, LayerId, Result};
use graph_sys::fs::{self, Timespec, Timestamps};
use graph_sys::io::Errno;
use graph_sys::xattr::{self, SetMode};

use super::Homes;
use super::layout::{
    Context, DIFF, EMPTY, Flush, LINK, LOWER, LOWER_LAYERS, Layer, LinkId, MERGED, WORK, create_small, make_dir, own,
    reserved,
};
use super::parents::{MAX_LOWERS, ids_text, link_of, links_text, parents};

/// Real owner and mode of a file that `force_mask` hides, as `uid:gid:0mode:type`.
const OVERRIDE_STAT: &str = "user.containers.override_stat";

/// Everything that is known of a layer before it has an id.
#[derive(Debug)]
pub(super) struct Plan {
    /// The new layer's link.
    pub(super) link: LinkId,
    /// The layers below, nearest first.
    pub(super) chain: Vec<LayerId>,
    /// Their links.
    links: Vec<LinkId>,
    /// Owner of the layer's own directories.
    owner: IdPair,
    root: RootAttributes,
    force_mask: Option<u32>,
    /// Whether small files are flushed one by one. Not in staging, where one syncfs does it for all.
    durable: bool,
}

/// Name and value.
type Xattr = (Vec<u8>, Vec<u8>);

/// What the root directory of the new content starts with.
#[derive(Debug)]
struct RootAttributes {
    mode: u32,
    owner: IdPair,
    times: Option<Timestamps>,
    xattrs: Vec<Xattr>,
}

/// Refuses ids that the layout has no place for.
pub(super) fn check_id(id: &LayerId) -> Result<()> {
    // A colon separates the ids in lower-layers.
    if reserved(id) || id.as_str().contains(':') {
        return Err(Error::InvalidId(InvalidId(id.as_str().to_owned())));
    }
    Ok(())
}

impl Plan {
    /// Reads what a child of `parent` needs of it. Repairs the parent's link on the way.
    pub(super) fn new(
        homes: &Homes,
        parent: Option<&LayerId>,
        mappings: &IdMappings,
        force_mask: Option<u32>,
        durable: bool,
    ) -> Result<Self> {
        let owner = mappings.root().map_err(|source| Error::Config {
            place: "ID mappings".into(),
            problem: format!("they leave out the container's root: {source}"),
        })?;
        let mut plan = Self {
            link: LinkId::random()?,
            chain: Vec::new(),
            links: Vec::new(),
            owner,
            root: RootAttributes { mode: 0o555, owner, times: None, xattrs: Vec::new() },
            force_mask,
            durable,
        };
        if let Some(parent) = parent {
            let layer = homes.require(parent)?;
            let above = parents(homes, &layer)?;
            if above.len() >= MAX_LOWERS {
                return Err(Error::TooDeep { id: parent.clone(), depth: above.len() + 1, limit: MAX_LOWERS });
            }
            plan.links.push(link_of(homes, &layer, None)?);
            plan.links.extend(links_below(homes, &layer, &above)?);
            plan.chain.push(parent.clone());
            plan.chain.extend(above);
            plan.root = RootAttributes::of(&layer)?;
        }
        Ok(plan)
    }

    /// Makes everything inside the (new, empty) directory of a layer, and gives the directory its owner. Returns `diff`.
    pub(super) fn build(&self, dir: &OwnedFd, shown: &std::path::Path) -> Result<OwnedFd> {
        let at = |name: &str| shown.join(name);
        own(dir, self.owner).at("change the owner of", shown, None)?;
        let (mode, owner) = match self.force_mask {
            Some(mask) => (mask, self.owner),
            None => (self.root.mode, self.root.owner),
        };
        let diff = make_dir(dir, DIFF, mode, owner).at("make directory", at(DIFF), None)?;
        self.root.finish(&diff, self.force_mask.is_some()).at("set the attributes of", at(DIFF), None)?;
        // Writing is begun for all before the first is waited for, which on most file systems puts them into one journal commit.
        let mut written = Vec::new();
        let mut small = |name: &'static str, text: &str| {
            let flush = if self.durable { Flush::Begin } else { Flush::No };
            let file = create_small(dir, name, text, Some(self.owner), flush).at("write", at(name), None)?;
            written.push((name, file));
            Ok::<(), Error>(())
        };
        small(LINK, self.link.as_str())?;
        make_dir(dir, WORK, 0o700, self.owner).at("make directory", at(WORK), None)?;
        make_dir(dir, MERGED, 0o700, self.owner).at("make directory", at(MERGED), None)?;
        if self.chain.is_empty() {
            make_dir(dir, EMPTY, 0o700, self.owner).at("make directory", at(EMPTY), None)?;
        } else {
            small(LOWER, &links_text(&self.links))?;
            small(LOWER_LAYERS, &ids_text(&self.chain))?;
        }
        if self.durable {
            for (name, file) in &written {
                fs::fsync(file).at("flush", at(name), None)?;
            }
            // The names of all of it.
            fs::fsync(dir).at("flush", shown, None)?;
        }
        Ok(diff)
    }
}

/// The links of the layers below the parent, from its `lower` where that is whole: one file instead of one per layer.
fn links_below(homes: &Homes, parent: &Layer<'_>, above: &[LayerId]) -> Result<Vec<LinkId>> {
    if above.is_empty() {
        return Ok(Vec::new());
    }
    super::parents::lower_links(homes, parent, above)
}

impl RootAttributes {
    /// Those of the parent's content. What `force_mask` hid counts, not what is on disk.
    fn of(parent: &Layer<'_>) -> Result<Self> {
        let diff = parent.open(DIFF)?;
        let path = || parent.path().join(DIFF);
        let stat = fs::fstat(&diff).at("read the status of", path(), Some(&parent.id))?;
        let mut root = Self {
            mode: stat.st_mode & 0o7777,
            owner: IdPair { uid: stat.st_uid, gid: stat.st_gid },
            times: Some(Timestamps {
                last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec.cast_signed() },
                last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() },
            }),
            xattrs: xattrs_of(&diff).at("read the extended attributes of", path(), Some(&parent.id))?,
        };
        if let Some(position) = root.xattrs.iter().position(|(name, _)| name == OVERRIDE_STAT.as_bytes()) {
            let (_, value) = root.xattrs.swap_remove(position);
            (root.owner, root.mode) = parse_override(&value).ok_or_else(|| Error::Corrupt {
                id: parent.id.clone(),
                defect: format!("the extended attribute {OVERRIDE_STAT} of its root is not uid:gid:mode:dir"),
            })?;
        }
        Ok(root)
    }

    fn finish(&self, diff: &OwnedFd, hidden: bool) -> std::io::Result<()> {
        for (name, value) in &self.xattrs {
            match xattr::set(diff, name, value, SetMode::CreateOrReplace) {
                // What this process may not set, or this file system not hold, the kernel shows of the lower layer's root
                // neither: a merged directory has the upper one's attributes. Peers copy none at all.
                Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if hidden {
            let IdPair { uid, gid } = self.owner;
            let value = format!("{uid}:{gid}:{:04o}:dir", self.mode);
            xattr::set(diff, OVERRIDE_STAT.as_bytes(), value.as_bytes(), SetMode::CreateOrReplace)?;
        }
        if let Some(times) = &self.times {
            fs::futimens(diff, times)?;
        }
        Ok(())
    }
}

/// `uid:gid:0mode[:type…]`; the mode in octal.
fn parse_override(value: &[u8]) -> Option<(IdPair, u32)> {
    let mut fields = std::str::from_utf8(value).ok()?.split(':');
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let mode = u32::from_str_radix(fields.next()?, 8).ok().filter(|mode| *mode <= 0o7777)?;
    match fields.next() {
        None | Some("dir") => Some((IdPair { uid, gid }, mode)),
        Some(_) => None,
    }
}

/// The attributes that a child's root inherits: not the overlay's own, and not the label, which the policy gives.
fn xattrs_of(dir: impl AsFd) -> Result<Vec<Xattr>, Errno> {
    let mut all = Vec::new();
    for name in xattr::list(&dir)?.iter() {
        let own = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
        if !own
            && name != b"security.selinux"
            && let Some(value) = xattr::get(&dir, name)?
        {
            all.push((name.to_vec(), value));
        }
    }
    Ok(all)
}
