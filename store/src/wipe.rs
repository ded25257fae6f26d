//! Deleting everything.

use graph_core::{ErrorKind as DriverErrorKind, LayerId};

use crate::check::Unrepaired;
use crate::error::{Error, Result};
use crate::store::Store;

impl Store {
    /// Deletes all containers, images and layers of the own store, mounted ones too, and what the driver has beyond them.
    /// What cannot be deleted is stepped over and told. Additional stores stay as they are.
    ///
    /// # Errors
    /// Damaged files of records, I/O on those.
    pub fn wipe(&self) -> Result<Vec<Unrepaired>> {
        let mut failed = Vec::new();
        let mut failure = |what: String, source: Error| failed.push(Unrepaired { what, source });
        for container in self.containers()? {
            if let Err(error) = self.remove_container(&container.id) {
                failure(format!("container {}", container.id), error);
            }
        }
        for image in self.images()?.iter().filter(|image| !image.is_read_only()) {
            match self.delete_image(&image.id, true) {
                // Its layers may be damaged; they are next.
                Ok(_) | Err(Error::InvalidId(_) | Error::ImageNotKnown { .. }) => {}
                Err(error) => failure(format!("image {}", image.id), error),
            }
        }
        // The newest first, which are children as a rule; then again, as long as that gets us further.
        let mut left = self.layer_ids()?;
        loop {
            let before = left.len();
            let mut errors = Vec::new();
            for id in left.iter().rev() {
                if let Err(error) = self.wipe_layer(id) {
                    errors.push((id.clone(), error));
                }
            }
            left = self.layer_ids()?;
            if left.is_empty() {
                break;
            }
            if left.len() >= before {
                // Cycles go together.
                if self.delete_layers_together(&left).is_ok() {
                    break;
                }
                for (id, error) in errors {
                    failure(format!("layer {id}"), error);
                }
                break;
            }
        }
        let known = match self.driver.list_layers() {
            Err(error) if error.kind() == DriverErrorKind::Unsupported => Vec::new(),
            known => known?,
        };
        for id in known {
            if let Err(error) = self.remove_unaccounted(id.as_str()) {
                failure(format!("storage layer {id}"), error);
            }
        }
        Ok(failed)
    }

    fn wipe_layer(&self, id: &str) -> Result<()> {
        if LayerId::new(id).is_err() {
            return self.forget_impossible_layer(id);
        }
        match self.delete_layer(id) {
            Err(Error::LayerNotKnown { .. }) => Ok(()),
            other => other,
        }
    }

    /// All of the own store, whatever state they are in.
    fn layer_ids(&self) -> Result<Vec<String>> {
        Ok(self.layers.records.read()?.iter().map(|layer| layer.id.clone()).collect())
    }
}
