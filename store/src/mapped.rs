//! Images seen through id mappings: which layer a container with its own ids is put on.
//!
//! Where the driver shows layers through mappings at mount time, that is the image's top layer, whatever the ids. Where it
//! does not, files have to be owned by the ids that the container's processes run with. The first container with new
//! mappings then gets a copy of the image's top layer, re-owned with all below it; the image remembers it (`mapped-layers`),
//! and further containers with these mappings cost nothing. An image of a read-only store cannot remember anything: there
//! the container's own layer is re-owned.

use graph_archive::idmap::IdMappings;
use graph_core::LayerId;
use graph_core::driver::{CreateOptions, ReownRequest};

use crate::error::{Error, Result, fault};
use crate::layers::{LayerPlan, LayerTables, tar_split_name};
use crate::options::CreateLayer;
use crate::records::{Image, Layer};
use crate::store::{Home, STABLE, Store, Stored};
use crate::table::FileIndex;

/// What was found for a container.
enum Top {
    /// A layer that fits.
    Fits(Stored<Layer>),
    /// Layers with other owners; this is the first, to be copied.
    Copy(Stored<Layer>),
    /// The same, of a store that may not be written to.
    ReadOnly(Stored<Layer>),
}

/// Mapped top layers.
impl Store {
    /// The layer that shows an image to processes with these ids (empty mappings: the host's). `None` for an image without
    /// layers.
    ///
    /// Where no layer of the image has such owners, a mapped copy of its top layer is made and noted in the image, or found
    /// when somebody else has just made it. An image of a read-only store is left alone; its top layer is given as it is,
    /// and it is for whoever makes a layer on it to have that re-owned ([`CreateLayer::mappings`]).
    ///
    /// A process killed while it makes a copy leaves an incomplete layer, which the next open removes.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`]; [`Error::LayerNotKnown`] for an image whose top layers are all gone; the driver's.
    pub fn image_top_layer(&self, image: &str, mappings: &IdMappings) -> Result<Option<Stored<Layer>>> {
        let image = self.image(image)?;
        if image.layer.is_empty() {
            return Ok(None);
        }
        match self.find_top(&image, &self.layer_tables()?, mappings)? {
            Top::Fits(layer) | Top::ReadOnly(layer) => Ok(Some(layer)),
            Top::Copy(template) => self.copy_top_layer(&image, &template, mappings).map(Some),
        }
    }

    fn find_top(&self, image: &Stored<Image>, tables: &LayerTables, wanted: &IdMappings) -> Result<Top> {
        let shifting = self.driver.supports_shifting(wanted);
        let mut first = None;
        for (home, table) in &tables.tables {
            for candidate in image.top_layers().filter_map(|top| table.by_id(top)) {
                if candidate.is_incomplete() {
                    continue;
                }
                let layer = Stored::new(candidate, *home);
                let mappings = layer.mappings();
                if mappings == *wanted || (shifting && mappings.is_identity()) {
                    return Ok(Top::Fits(layer));
                }
                first.get_or_insert(layer);
            }
        }
        let first = first.ok_or_else(|| Error::LayerNotKnown { reference: image.layer.clone() })?;
        let writable = image.home() == Home::Own && first.home() == Home::Own;
        Ok(if writable { Top::Copy(first) } else { Top::ReadOnly(first) })
    }

    /// Makes a copy of `template` with other owners and puts it on the image's list.
    fn copy_top_layer(
        &self,
        image: &Stored<Image>,
        template: &Stored<Layer>,
        wanted: &IdMappings,
    ) -> Result<Stored<Layer>> {
        let options = CreateLayer {
            parent: Some(template.parent.clone()),
            metadata: template.metadata.clone(),
            mount_label: template.mount_label.clone(),
            mappings: Some(wanted.clone()),
            ..CreateLayer::default()
        };
        let plan = self.plan_layer(&options)?;
        let template_id = LayerId::new(template.id.clone())?;
        let from = template.mappings();
        let create = CreateOptions {
            mount_label: options.mount_label.clone(),
            mappings: plan.mappings.clone(),
            ..CreateOptions::default()
        };
        // Without a lock: it can take long.
        let request = ReownRequest { parent: plan.parent_id.as_ref(), template: Some(&template_id), mappings: &from };
        let mut staged = self.begin_reowned(&request, &create)?;
        if let Some(staged) = &mut staged
            && self.is_durable(plan.file)
        {
            staged.flush()?;
        }
        let split = self.copy_tar_split(&template.id, plan.file)?;
        fault("mapped.copied")?;

        let mut layers = self.layers.records.write()?;
        let gone = || Error::LayerNotKnown { reference: template.id.clone() };
        layers.table().by_id(&template.id).filter(|now| now.mappings() == template.mappings()).ok_or_else(gone)?;
        let mut images = self.images.records.write()?;
        let file = images.table().file_of(&image.id).unwrap_or(STABLE);
        let unknown = || Error::ImageNotKnown { reference: image.id.clone() };
        let now = images.table().by_id(&image.id).ok_or_else(unknown)?;
        let made = now.mapped_layers.iter().filter_map(|id| layers.table().by_id(id));
        if let Some(made) = made.filter(|layer| !layer.is_incomplete()).find(|layer| layer.mappings() == plan.mappings)
        {
            return Ok(Stored::new(made, Home::Own));
        }
        self.begin_layer(&mut layers, &plan, &options, |record| {
            record.compressed_digest.clone_from(&template.compressed_digest);
            record.compressed_size = template.compressed_size;
            record.diff_digest.clone_from(&template.diff_digest);
            record.diff_size = template.diff_size;
            record.toc_digest.clone_from(&template.toc_digest);
            record.compression = template.compression;
            record.uids.clone_from(&template.uids);
            record.gids.clone_from(&template.gids);
        })?;
        let make = || {
            self.remove_orphan(&plan.id)?;
            match staged {
                Some(staged) => staged.publish(&plan.id)?,
                None => self.copy_in_driver(&plan, &template_id, &from, &create)?,
            }
            fault("mapped.placed")?;
            if let Some(split) = split {
                self.publish_tar_split(split, &plan.id)?;
            }
            // Before the layer is complete: from here on it goes with the image.
            if let Some((record, _)) = images.change().change(&image.id) {
                record.mapped_layers.push(plan.id.to_string());
            }
            images.save(&[file])?;
            fault("mapped.noted")
        };
        let result = self.settle_layer(&mut layers, &plan, make, |_, ()| ());
        match result {
            Ok((layer, ())) => Ok(layer),
            Err(error) => {
                drop(images);
                if let Err(error) = self.forget_mapped(&[plan.id.to_string()]) {
                    tracing::warn!(error = &error as &dyn std::error::Error, image = %image.id, "taking a mapped layer that could not be made off its image's list");
                }
                Err(error)
            }
        }
    }

    /// All of it under the lock, for drivers that change owners in place.
    fn copy_in_driver(
        &self,
        plan: &LayerPlan,
        template: &LayerId,
        from: &IdMappings,
        create: &CreateOptions,
    ) -> Result<()> {
        let parent = plan.parent_id.as_ref();
        self.driver.create_from_template(&plan.id, template, from, parent, &plan.parent_mappings, create, false)?;
        if *from != plan.mappings {
            self.driver.update_layer_id_map(&plan.id, from, &plan.mappings, &create.mount_label)?;
        }
        if self.is_durable(plan.file) {
            self.layers.records.flush_file_systems()?;
        }
        Ok(())
    }

    /// A copy of what a layer's archive is put together from; `None` where that is not known.
    fn copy_tar_split(&self, layer: &str, record_file: FileIndex) -> Result<Option<crate::import::TarSplit>> {
        let name = tar_split_name(layer);
        let Some(source) = self.layers.dir.open_file(&name)? else { return Ok(None) };
        let (split, file) = self.new_tar_split()?;
        graph_sys::reflink::copy_content(&file, &source)
            .map_err(|e| Error::io("copy", self.layers.dir.path().join(&name), e))?;
        if self.is_durable(record_file) {
            crate::import::sync(&file, &LayerId::new(layer)?)?;
        }
        Ok(Some(split))
    }
}
