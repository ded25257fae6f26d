//! Cleaning up after killed processes, when the store is opened.
//!
//! What can be left: layers marked incomplete (their record was written, their files perhaps), and temporary directories
//! whose owner is dead (layers that were being extracted, files of layers that were being deleted). Layers in the making
//! are marked incomplete only while their maker holds the lock, so whatever is seen marked under the lock is dead.
//!
//! Whatever cannot be cleaned is reported and stepped over: one bad record must not block the store.

use graph_core::{LayerId, tempdir};

use crate::error::Result;
use crate::store::Store;

impl Store {
    /// Cleans up; what could not be cleaned, one sentence each.
    pub(crate) fn recover(&self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let mut roots = self.driver.temp_dir_roots();
        roots.push(self.layers.dir.path().join(TEMPORARY));
        for error in tempdir::recover_stale(&roots).failed {
            warnings.push(format!("removing what a killed process left behind: {}", chain(&error)));
        }
        if self.layers.records.read()?.iter().any(|layer| layer.is_incomplete()) {
            self.remove_incomplete_layers(&mut warnings)?;
        }
        Ok(warnings)
    }

    fn remove_incomplete_layers(&self, warnings: &mut Vec<String>) -> Result<()> {
        let mut layers = self.layers.records.write()?;
        // Children before their parents.
        let incomplete: Vec<String> =
            layers.table().iter().rev().filter(|layer| layer.is_incomplete()).map(|layer| layer.id.clone()).collect();
        for id in incomplete {
            let removed = LayerId::new(id.clone()).map_err(Into::into).and_then(|id| {
                self.forget_mounts(id.as_str())?;
                self.remove_incomplete(&mut layers, &id)
            });
            if let Err(error) = removed {
                warnings.push(format!(
                    "incomplete layer {id} could not be removed and is ignored; it will be tried again: {}",
                    chain(&error)
                ));
            } else {
                tracing::info!(layer = %id, "removed a layer that a killed process had left incomplete");
            }
        }
        Ok(())
    }
}

/// The directory beside the layers' records for what is being made and deleted.
pub(crate) const TEMPORARY: &str = "tmp";

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
