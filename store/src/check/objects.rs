//! Images and containers: their data items, and what they are made of.

use std::collections::BTreeMap;

use graph_core::LayerId;

use super::report::{CheckReport, Defect, ObjectKind, Problem};
use super::{CheckOptions, Scope, text};
use crate::bigdata::{self, Owner};
use crate::dirs::Dir;
use crate::error::{Error, Result};
use crate::layers::LayerTables;
use crate::store::{Home, Store};

/// What is wrong with the data items that a record lists.
fn items(dir: &Dir, owner: Owner<'_>, names: &[String], sizes: &BTreeMap<String, i64>) -> Vec<Defect> {
    let defect = |key: &String| match bigdata::read(dir, owner, key, true) {
        Ok(data) => {
            let size = i64::try_from(data.len()).unwrap_or(i64::MAX);
            (sizes.get(key).copied().unwrap_or(0) != size).then(|| Defect::DataSize { key: key.clone() })
        }
        Err(Error::BigDataNotFound { .. }) => Some(Defect::DataMissing { key: key.clone() }),
        Err(error) => Some(Defect::Unusable { reason: format!("data item {key:?}: {}", text(&error)) }),
    };
    names.iter().filter_map(defect).collect()
}

impl Store {
    /// Parents, images and containers, once all layers of all stores are known.
    pub(super) fn check_objects(
        &self,
        tables: &LayerTables,
        scope: Option<&Scope>,
        options: &CheckOptions,
        report: &mut CheckReport,
    ) -> Result<()> {
        for (home, table) in &tables.tables {
            for layer in table.iter().filter(|layer| scope.is_none_or(|scope| scope.layers.contains(&layer.id))) {
                if !layer.parent.is_empty() && tables.by_id(&layer.parent).is_none() {
                    report.add(Problem {
                        object: ObjectKind::Layer,
                        id: layer.id.clone(),
                        read_only: matches!(home, Home::Additional(_)),
                        defect: Defect::ParentMissing { parent: layer.parent.clone() },
                    });
                }
            }
        }
        self.check_images(tables, scope, options, report)?;
        self.check_containers(tables, scope, options, report)
    }

    fn check_images(
        &self,
        tables: &LayerTables,
        scope: Option<&Scope>,
        options: &CheckOptions,
        report: &mut CheckReport,
    ) -> Result<()> {
        for image in self.images()? {
            if scope.is_some_and(|scope| !scope.images.contains(&image.id)) {
                continue;
            }
            let read_only = image.is_read_only();
            let about = |defect| Problem { object: ObjectKind::Image, id: image.id.clone(), read_only, defect };
            let mut problems = Vec::new();
            if options.data {
                let dir = &self.image_part(&image)?.dir;
                let owner = Owner { kind: "image", id: &image.id };
                problems.extend(items(dir, owner, &image.big_data_names, &image.big_data_sizes).into_iter().map(about));
            }
            let mut seen: Vec<String> = Vec::new();
            for top in image.top_layers() {
                let mut next = top.to_owned();
                // A chain that bites its tail ends where it does.
                while !next.is_empty() && !seen.contains(&next) {
                    seen.push(next.clone());
                    let Some(layer) = tables.by_id(&next) else {
                        problems.push(about(Defect::LayerMissing { layer: next }));
                        break;
                    };
                    problems.extend(inherited(report, &next));
                    next.clone_from(&layer.parent);
                }
            }
            let part = if read_only { &mut report.read_only_images } else { &mut report.images };
            if !problems.is_empty() {
                part.insert(image.id.clone(), problems);
            }
        }
        Ok(())
    }

    fn check_containers(
        &self,
        tables: &LayerTables,
        scope: Option<&Scope>,
        options: &CheckOptions,
        report: &mut CheckReport,
    ) -> Result<()> {
        let images = self.images()?;
        for container in self.containers()? {
            if scope.is_some_and(|scope| !scope.containers.contains(&container.id)) {
                continue;
            }
            let about =
                |defect| Problem { object: ObjectKind::Container, id: container.id.clone(), read_only: false, defect };
            let mut problems = Vec::new();
            if options.data {
                let owner = Owner { kind: "container", id: &container.id };
                let found = items(&self.containers.dir, owner, &container.big_data_names, &container.big_data_sizes);
                problems.extend(found.into_iter().map(about));
            }
            if !container.image.is_empty() {
                if images.iter().all(|image| image.id != container.image) {
                    problems.push(about(Defect::ImageMissing { image: container.image.clone() }));
                }
                let parts = [&report.images, &report.read_only_images];
                problems.extend(parts.into_iter().filter_map(|part| part.get(&container.image)).flatten().cloned());
            }
            if tables.by_id(&container.layer).is_none() {
                problems.push(about(Defect::LayerMissing { layer: container.layer.clone() }));
            } else {
                problems.extend(inherited(report, &container.layer));
                if let Ok(id) = LayerId::new(container.layer.clone())
                    && !self.driver.exists(&id)?
                {
                    problems.push(about(Defect::LayerMissing { layer: container.layer.clone() }));
                }
            }
            if !problems.is_empty() {
                report.containers.insert(container.id.clone(), problems);
            }
        }
        Ok(())
    }
}

/// The problems of a layer, which are those of whatever is on it.
fn inherited(report: &CheckReport, layer: &str) -> Vec<Problem> {
    let parts = [&report.layers, &report.read_only_layers];
    parts.into_iter().filter_map(|part| part.get(layer)).flatten().cloned().collect()
}
