//! Layers that have no records: the graph directory of an old Docker, whose driver kept them as ours does.
//!
//! Docker's own records are beside the driver's home, and only read:
//!
//! ```text
//! <root>/image/<driver>/layerdb/sha256/<chain id>/cache-id            the driver's id of the layer
//!                                                /diff                its diff ID
//!                                                /tar-split.json.gz   what its archive is put together with
//! ```

use std::collections::HashMap;

use graph_archive::digest::Digest;
use graph_core::driver::Driver;
use graph_core::{LayerId, fsutil};

use super::refused;
use crate::dirs::Dir;
use crate::error::{Error, Result, fault};
use crate::group::Writing;
use crate::layers::tar_split_name;
use crate::records::{Layer, Time};
use crate::store::{STABLE, Store};

/// The fact by which a driver tells the layer below: empty for a base layer.
const PARENT: &str = "Parent";

/// What Docker's records say of one of the driver's layers.
#[derive(Debug)]
struct Known {
    diff_id: Digest,
    /// The directory with its tar-split.
    directory: Dir,
}

impl Store {
    /// Gives every layer of the driver a record, in a store that has none. How many.
    ///
    /// A killed process leaves no record; what it left beside them is written anew the next time.
    pub(super) fn adopt(&self, driver: &dyn Driver, layers: &mut Writing<'_, Layer>, root: &Dir) -> Result<usize> {
        if layers.table().len() > 0 {
            return Ok(0);
        }
        let known = known(root, driver.name())?;
        let ids = driver.list_layers()?;
        let mut records = Vec::with_capacity(ids.len());
        for id in &ids {
            // A directory without a list of the layers below is what a killed process left.
            if !driver.exists(id)? {
                continue;
            }
            let mut record = Layer {
                id: id.to_string(),
                parent: parent(driver, id)?,
                created: Time::now(),
                diff_size: -1,
                ..Layer::default()
            };
            if let Some(known) = known.get(id.as_str())
                && let Some(split) = known.directory.read("tar-split.json.gz")?
            {
                record.diff_digest = known.diff_id.to_string();
                self.layers.dir.write(&tar_split_name(&record.id), &split, fsutil::Durability::Data)?;
            }
            records.push(record);
        }
        fault("convert.adopted")?;
        let count = records.len();
        for record in records {
            layers.change().insert(record, STABLE);
        }
        layers.save(&[STABLE])?;
        Ok(count)
    }
}

fn parent(driver: &dyn Driver, id: &LayerId) -> Result<String> {
    driver.metadata(id)?.remove(PARENT).ok_or_else(|| {
        refused(format!(
            "the driver {} does not tell which layer is below {id}, so its layers cannot be taken over without records",
            driver.name()
        ))
    })
}

/// What Docker knows of layers, by the driver's ids.
fn known(root: &Dir, driver: &str) -> Result<HashMap<String, Known>> {
    let mut at = Some(root.open_dir("image")?);
    for name in [driver, "layerdb", "sha256"] {
        at = match at.flatten() {
            Some(directory) => Some(directory.open_dir(name)?),
            None => None,
        };
    }
    let Some(database) = at.flatten() else { return Ok(HashMap::new()) };
    let names = fsutil::list(&database).map_err(|e| Error::io("read directory", database.path(), e))?;
    let mut known = HashMap::new();
    for name in names.into_iter().filter_map(|name| name.into_string().ok()) {
        let Some(directory) = database.open_dir(&name)? else { continue };
        let text = |name: &str| -> Result<Option<String>> {
            let bytes = directory.read(name)?;
            Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()).map(|text| text.trim().to_owned()))
        };
        if let (Some(id), Some(diff)) = (text("cache-id")?, text("diff")?) {
            let path = directory.path().join("diff");
            let diff_id = diff.parse().map_err(|_| refused(format!("{}: {diff:?} is not a digest", path.display())))?;
            known.insert(id, Known { diff_id, directory });
        }
    }
    Ok(known)
}
