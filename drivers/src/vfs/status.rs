//! What the driver tells about itself.

use graph_core::Result;
use graph_core::driver::Capabilities;
use graph_sys::{reflink, statfs};

use super::layout::{Home, Homes};
use super::options::{Options, SyncMode};
use crate::support::context::Context;

/// What the home's file system can do. A home that cannot be written to shares no extents.
pub(super) fn probe(homes: &Homes) -> Capabilities {
    let mut capabilities = Capabilities::default();
    capabilities.staging = true;
    capabilities.additional_stores = true;
    capabilities.reflink = can_reflink(&homes.own).unwrap_or_else(|error| {
        tracing::debug!(%error, "trying whether files can share extents");
        false
    });
    capabilities
}

/// Tries to share a block between two files.
fn can_reflink(home: &Home) -> Result<bool> {
    let mut temporary = home.temp_dir()?;
    let path = temporary.path().to_path_buf();
    let (_source_addition, source) = temporary.add_file(0o600)?;
    let (_destination_addition, destination) = temporary.add_file(0o600)?;
    graph_sys::io::pwrite(&source, &[1; 4096], 0).at("write to a file in", &path, None)?;
    let can = reflink::clone_file(&destination, &source).at("share extents in", &path, None)?;
    temporary.finish()?;
    Ok(can)
}

/// The lines of `status`, in order.
pub(super) fn lines(homes: &Homes, options: &Options, capabilities: &Capabilities) -> Result<Vec<(String, String)>> {
    let magic = statfs::magic(homes.file_system()).at("ask for the file system of", homes.own.path(), None)?;
    let sync = match options.sync {
        SyncMode::None => "none",
        SyncMode::Filesystem => "filesystem",
    };
    let mut lines = vec![
        ("Backing Filesystem".to_owned(), magic.name().unwrap_or("<unknown>").to_owned()),
        ("Supports reflink".to_owned(), capabilities.reflink.to_string()),
        ("Sync".to_owned(), sync.to_owned()),
    ];
    if let Some(store) = &homes.image_store {
        lines.push(("Image Store".to_owned(), store.path().display().to_string()));
    }
    Ok(lines)
}
