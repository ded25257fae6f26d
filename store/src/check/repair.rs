//! Taking away what is damaged, as containers/storage's repair does: containers only if asked to, images with their
//! layers, layers from the top down, and what no record knows.
//!
//! Every step is one of the ordinary deletions, so a process that is killed in between leaves what the next open or the
//! next repair deals with.

use graph_core::LayerId;

use super::report::{CheckReport, Defect, Problem};
use crate::error::{Error, Result, fault};
use crate::store::Store;

/// What a repair may take away.
#[derive(Clone, Copy, Debug, Default)]
pub struct RepairOptions {
    /// Damaged containers, too, and what was written in them.
    pub remove_containers: bool,
}

/// Something that a repair could not take away.
#[derive(Debug, thiserror::Error)]
#[error("deleting {what}")]
pub struct Unrepaired {
    /// What: `layer <id>`, `image <id>`.
    pub what: String,
    /// Why not.
    #[source]
    pub source: Error,
}

impl Store {
    /// Takes away what a check found damaged; what could not be taken away, and why.
    ///
    /// Objects of additional stores stay as they are, and so do containers unless asked for. A layer that is mounted is unmounted
    /// first; where something in it is in use, it stays.
    pub fn repair(&self, report: &CheckReport, options: &RepairOptions) -> Vec<Unrepaired> {
        let mut failed = Vec::new();
        let mut done = |what: String, result: Result<()>| match result {
            // Gone already: with the image, or by somebody else.
            Ok(())
            | Err(
                Error::ContainerNotKnown { .. }
                | Error::ImageNotKnown { .. }
                | Error::LayerNotKnown { .. }
                | Error::NotKnown { .. },
            ) => {}
            Err(source) => failed.push(Unrepaired { what, source }),
        };
        if options.remove_containers {
            for id in report.containers.keys() {
                done(format!("container {id}"), self.remove_container(id));
            }
        }
        for id in report.images.keys() {
            done(format!("image {id}"), self.delete_image(id, true).map(drop));
        }
        let is_unaccounted =
            |problems: &[Problem]| problems.iter().any(|problem| matches!(problem.defect, Defect::Unaccounted { .. }));
        let depth = |id: &String| report.depths.get(id).copied().unwrap_or(0);
        let mut layers: Vec<_> = report.layers.iter().collect();
        layers.sort_by_key(|(id, problems)| (is_unaccounted(problems), std::cmp::Reverse(depth(id))));
        let mut cyclic: Vec<String> = Vec::new();
        for (id, problems) in layers {
            if cyclic.contains(id) {
                continue;
            }
            if is_unaccounted(problems) {
                done(format!("storage layer {id}"), self.remove_unaccounted(id));
            } else if LayerId::new(id.clone()).is_err() {
                done(format!("layer {id:?}"), self.forget_impossible_layer(id));
            } else {
                let result = self.remove_damaged_layer(id);
                done(format!("layer {id}"), result.map(|gone| cyclic.extend(gone)));
            }
            if let Err(error) = fault("repair.step") {
                done("layers".to_owned(), Err(error));
                break;
            }
        }
        failed
    }

    pub(crate) fn remove_container(&self, id: &str) -> Result<()> {
        match self.delete_container(id) {
            // Its layer is not among the records any more, or never could be.
            Err(Error::LayerNotKnown { .. } | Error::InvalidId(_)) => self.forget_container(id),
            other => other,
        }
    }

    /// Removes the record and the data of a container whose layer cannot be removed with it.
    fn forget_container(&self, id: &str) -> Result<()> {
        let mut containers = self.containers.records.write()?;
        self.remove_container_data(id)?;
        let files = containers.change().remove(&[id]);
        containers.save(&files)
    }

    /// Removes a layer; with it those that are its ancestors and its descendants at once, which can only go together.
    fn remove_damaged_layer(&self, id: &str) -> Result<Vec<String>> {
        match self.delete_layer(id) {
            Err(error @ Error::LayerHasChildren { .. }) => {
                let own = self.layers.records.read()?;
                let mut cycle: Vec<String> = Vec::new();
                let mut next = id.to_owned();
                while !cycle.contains(&next) {
                    let Some(layer) = own.by_id(&next) else { return Err(error) };
                    cycle.push(next.clone());
                    next.clone_from(&layer.parent);
                }
                if next != id {
                    return Err(error);
                }
                self.delete_layers_together(&cycle)?;
                Ok(cycle)
            }
            other => other.map(|()| Vec::new()),
        }
    }

    /// A layer of the driver that has no record; looked up again, since somebody may have made it meanwhile.
    pub(crate) fn remove_unaccounted(&self, id: &str) -> Result<()> {
        let layers = self.layers.records.write()?;
        if layers.table().by_id(id).is_some() {
            return Ok(());
        }
        let removal = self.driver.deferred_remove(&LayerId::new(id)?)?;
        drop(layers);
        Ok(removal.finish()?)
    }

    /// Removes the record of a layer whose id can be no file name, so that there is nothing else of it.
    pub(crate) fn forget_impossible_layer(&self, id: &str) -> Result<()> {
        let mut layers = self.layers.records.write()?;
        let files = layers.change().remove(&[id]);
        layers.save(&files)
    }
}
