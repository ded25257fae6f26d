//! The store: opening it, and what its parts share.

use std::io::{Read, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graph_archive::apply::ApplyReport;
use graph_archive::changes::Change;
use graph_core::driver::{DiffReport, Driver};
use graph_core::registry::Registry;

use crate::error::{Error, Result};
use crate::options::{CreateContainer, CreateImage, CreateLayer, DiffOptions, Expected, MountOptions, StoreOptions};
use crate::records::{Container, Image, Layer};

/// A record as it was when it was looked up, and where it lies.
#[derive(Clone, Debug)]
pub struct Stored<T> {
    record: Arc<T>,
    read_only: bool,
}

impl<T> Stored<T> {
    /// Whether it lies in an additional, read-only store.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The record itself; it serialises to the peers' JSON.
    #[must_use]
    pub fn record(&self) -> &Arc<T> {
        &self.record
    }
}

impl<T> Deref for Stored<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.record
    }
}

/// A layer that was filled, and what was found on the way.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The layer, complete.
    pub layer: Stored<Layer>,
    /// Members, bytes, owners, notices.
    pub report: ApplyReport,
}

/// An open store. Usable from several threads at once; several processes may have it open.
///
/// Wherever a layer, image or container is asked for by `&str`, that is its id, else one of its names, else a prefix of
/// exactly one id.
#[derive(Debug)]
pub struct Store {
    options: StoreOptions,
    driver: Arc<dyn Driver>,
    warnings: Vec<String>,
}

fn pending<T>(operation: &str) -> Result<T> {
    Err(Error::InvalidArgument { problem: format!("{operation} is not built yet") })
}

impl Store {
    /// Opens the store, making what is missing, and cleans up what killed processes left behind.
    ///
    /// A clean-up that fails does not make the store unusable; see [`Store::warnings`].
    ///
    /// # Errors
    /// Driver selection's and configuration's; I/O; damaged records.
    pub fn open(options: StoreOptions, registry: &Registry) -> Result<Self> {
        let (_, _) = (options, registry);
        pending("opening a store")
    }

    /// The graph root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.options.root
    }

    /// The run root.
    #[must_use]
    pub fn run_root(&self) -> &Path {
        &self.options.run_root
    }

    /// The options it was opened with.
    #[must_use]
    pub fn options(&self) -> &StoreOptions {
        &self.options
    }

    /// The driver in use.
    #[must_use]
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// What could not be cleaned up at opening, one sentence each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// `Root`, `Run Root`, `Driver Name`, `Driver Options`, then the driver's own pairs.
    ///
    /// # Errors
    /// The driver's.
    pub fn status(&self) -> Result<Vec<(String, String)>> {
        pending("status")
    }

    /// Unmounts what is mounted (only when forced) and releases what the driver holds of the system.
    ///
    /// # Errors
    /// [`Error::LayerMounted`] when a layer is mounted and `force` is not set.
    pub fn shutdown(&self, force: bool) -> Result<()> {
        let _ = force;
        pending("shutdown")
    }
}

/// Layers.
impl Store {
    /// All layers, in the order of the file (parents first as a rule), additional stores last.
    ///
    /// # Errors
    /// I/O; damaged records.
    pub fn layers(&self) -> Result<Vec<Stored<Layer>>> {
        pending("layers")
    }

    /// One layer.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`].
    pub fn layer(&self, layer: &str) -> Result<Stored<Layer>> {
        let _ = layer;
        pending("layer")
    }

    /// The layers whose uncompressed tar has this digest (diff ID); none is an empty list.
    ///
    /// # Errors
    /// I/O; damaged records.
    pub fn layers_by_uncompressed_digest(&self, digest: &str) -> Result<Vec<Stored<Layer>>> {
        let _ = digest;
        pending("layers by digest")
    }

    /// The layers that were filled from a blob of this digest; none is an empty list.
    ///
    /// # Errors
    /// I/O; damaged records.
    pub fn layers_by_compressed_digest(&self, digest: &str) -> Result<Vec<Stored<Layer>>> {
        let _ = digest;
        pending("layers by digest")
    }

    /// Makes an empty layer.
    ///
    /// A process killed in the middle leaves a record marked incomplete, which the next open removes with its files.
    ///
    /// # Errors
    /// [`Error::IdInUse`], [`Error::LayerNameInUse`], [`Error::LayerNotKnown`] and [`Error::ParentIsContainer`] for the
    /// parent, the driver's; nothing is left behind.
    pub fn create_layer(&self, options: &CreateLayer) -> Result<Stored<Layer>> {
        let _ = options;
        pending("create layer")
    }

    /// Makes a layer from a blob: tar, plain or compressed (told by its first bytes), read once to its end.
    ///
    /// Extraction holds no lock where the driver can stage; the layer appears at once and complete, on disk with
    /// [`crate::Durability::Full`].
    ///
    /// # Errors
    /// As [`Store::create_layer`]; [`Error::DigestMismatch`]; [`Error::Archive`] for bad input. Nothing is left behind.
    pub fn import_layer(
        &self,
        options: &CreateLayer,
        expected: &Expected,
        blob: &mut (dyn Read + Send),
    ) -> Result<Imported> {
        let (_, _, _) = (options, expected, blob);
        pending("import layer")
    }

    /// Puts a blob into an existing layer, also while that is mounted; its digests, sizes and owners replace those
    /// recorded before.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], [`Error::ReadOnlyStore`], [`Error::DigestMismatch`], [`Error::Archive`]. What was
    /// extracted before the error stays in the layer; its record is as before.
    pub fn apply_diff(&self, layer: &str, expected: &Expected, blob: &mut (dyn Read + Send)) -> Result<Imported> {
        let (_, _, _) = (layer, expected, blob);
        pending("apply diff")
    }

    /// Writes what `to` adds to `from` (`None`: its parent) as a tar; the very bytes it was filled from where they are
    /// known.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], [`Error::Archive`] when the files are not what was put in, I/O.
    pub fn diff(
        &self,
        from: Option<&str>,
        to: &str,
        out: &mut (dyn Write + Send),
        options: &DiffOptions,
    ) -> Result<DiffReport> {
        let (_, _, _, _) = (from, to, out, options);
        pending("diff")
    }

    /// Lists what is different between `from` (`None`: its parent) and `to`, sorted by path.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], the driver's.
    pub fn changes(&self, from: Option<&str>, to: &str) -> Result<Vec<Change>> {
        let (_, _) = (from, to);
        pending("changes")
    }

    /// Bytes of the difference between `from` (`None`: its parent) and `to`.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], the driver's.
    pub fn diff_size(&self, from: Option<&str>, to: &str) -> Result<u64> {
        let (_, _) = (from, to);
        pending("diff size")
    }

    /// Mounts a layer or a container and counts that; the mount outlives the process. Returns where it is.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`]; [`Error::ReadOnlyStore`] for a read-write mount of an additional store's layer.
    pub fn mount(&self, layer_or_container: &str, options: &MountOptions) -> Result<PathBuf> {
        let (_, _) = (layer_or_container, options);
        pending("mount")
    }

    /// Takes one off the mount count (all, when forced) and unmounts at 0. Whether it is unmounted now.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`]; the driver's, when something in the mount is still in use. Not mounted is no error.
    pub fn unmount(&self, layer_or_container: &str, force: bool) -> Result<bool> {
        let (_, _) = (layer_or_container, force);
        pending("unmount")
    }

    /// The mount count of a layer or container; 0 for one that is not mounted.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`].
    pub fn mounted(&self, layer_or_container: &str) -> Result<u64> {
        let _ = layer_or_container;
        pending("mounted")
    }

    /// Deletes a layer that nothing uses; a mounted one is unmounted first. The files go outside the lock.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], [`Error::LayerHasChildren`], [`Error::LayerUsedByImage`],
    /// [`Error::LayerUsedByContainer`], [`Error::ReadOnlyStore`].
    pub fn delete_layer(&self, layer: &str) -> Result<()> {
        let _ = layer;
        pending("delete layer")
    }

    /// A big data item of a layer.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], [`Error::BigDataNotFound`].
    pub fn layer_big_data(&self, layer: &str, key: &str) -> Result<Vec<u8>> {
        let (_, _) = (layer, key);
        pending("layer big data")
    }

    /// Sets a big data item of a layer.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], [`Error::InvalidBigDataName`], [`Error::ReadOnlyStore`].
    pub fn set_layer_big_data(&self, layer: &str, key: &str, data: &[u8]) -> Result<()> {
        let (_, _, _) = (layer, key, data);
        pending("set layer big data")
    }
}

/// Images.
impl Store {
    /// All images, additional stores last.
    ///
    /// # Errors
    /// I/O; damaged records.
    pub fn images(&self) -> Result<Vec<Stored<Image>>> {
        pending("images")
    }

    /// One image.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`].
    pub fn image(&self, image: &str) -> Result<Stored<Image>> {
        let _ = image;
        pending("image")
    }

    /// The images found by a digest (see [`Image::digests`]).
    ///
    /// # Errors
    /// [`Error::InvalidDigest`].
    pub fn images_by_digest(&self, digest: &str) -> Result<Vec<Stored<Image>>> {
        let _ = digest;
        pending("images by digest")
    }

    /// The images with this (mapped) top layer.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`].
    pub fn images_by_top_layer(&self, layer: &str) -> Result<Vec<Stored<Image>>> {
        let _ = layer;
        pending("images by top layer")
    }

    /// Makes an image.
    ///
    /// # Errors
    /// [`Error::IdInUse`], [`Error::ImageNameInUse`], [`Error::LayerNotKnown`], [`Error::InvalidDigest`].
    pub fn create_image(&self, options: &CreateImage) -> Result<Stored<Image>> {
        let _ = options;
        pending("create image")
    }

    /// Deletes an image's record and the layers that nothing else uses; returns those, top first. With `commit` not
    /// set nothing is deleted.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`], [`Error::ImageUsedByContainer`], [`Error::ReadOnlyStore`].
    pub fn delete_image(&self, image: &str, commit: bool) -> Result<Vec<String>> {
        let (_, _) = (image, commit);
        pending("delete image")
    }

    /// A big data item of an image.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`], [`Error::BigDataNotFound`].
    pub fn image_big_data(&self, image: &str, key: &str) -> Result<Vec<u8>> {
        let (_, _) = (image, key);
        pending("image big data")
    }

    /// Sets a big data item of an image, its size and digest.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`], [`Error::InvalidBigDataName`], [`Error::ReadOnlyStore`].
    pub fn set_image_big_data(&self, image: &str, key: &str, data: &[u8]) -> Result<()> {
        let (_, _, _) = (image, key, data);
        pending("set image big data")
    }

    /// Uncompressed bytes of all its layers, each once, and of its big data.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`]; the driver's, where a layer's size has to be measured.
    pub fn image_size(&self, image: &str) -> Result<u64> {
        let _ = image;
        pending("image size")
    }
}

/// Containers.
impl Store {
    /// All containers.
    ///
    /// # Errors
    /// I/O; damaged records.
    pub fn containers(&self) -> Result<Vec<Stored<Container>>> {
        pending("containers")
    }

    /// One container; found by its layer's id, too.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`].
    pub fn container(&self, container: &str) -> Result<Stored<Container>> {
        let _ = container;
        pending("container")
    }

    /// Makes a container with its own read-write layer.
    ///
    /// # Errors
    /// [`Error::IdInUse`], [`Error::ContainerNameInUse`], [`Error::ImageNotKnown`], the driver's; nothing is left behind.
    pub fn create_container(&self, options: &CreateContainer) -> Result<Stored<Container>> {
        let _ = options;
        pending("create container")
    }

    /// Deletes a container, its layer, big data and directories; a mounted one is unmounted first.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`].
    pub fn delete_container(&self, container: &str) -> Result<()> {
        let _ = container;
        pending("delete container")
    }

    /// A big data item of a container.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`], [`Error::BigDataNotFound`].
    pub fn container_big_data(&self, container: &str, key: &str) -> Result<Vec<u8>> {
        let (_, _) = (container, key);
        pending("container big data")
    }

    /// Sets a big data item of a container, its size and digest.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`], [`Error::InvalidBigDataName`].
    pub fn set_container_big_data(&self, container: &str, key: &str, data: &[u8]) -> Result<()> {
        let (_, _, _) = (container, key, data);
        pending("set container big data")
    }

    /// The container's directory for its engine's data, below the graph root; made (0700) when missing.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`].
    pub fn container_directory(&self, container: &str) -> Result<PathBuf> {
        let _ = container;
        pending("container directory")
    }

    /// The same below the run root.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`].
    pub fn container_run_directory(&self, container: &str) -> Result<PathBuf> {
        let _ = container;
        pending("container run directory")
    }

    /// Bytes of its layer's changes, its big data, and its two directories.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`], the driver's.
    pub fn container_size(&self, container: &str) -> Result<u64> {
        let _ = container;
        pending("container size")
    }
}

/// Layers, images and containers alike.
impl Store {
    /// The names of a layer, image or container (looked for in that order).
    ///
    /// # Errors
    /// [`Error::NotKnown`].
    pub fn names(&self, object: &str) -> Result<Vec<String>> {
        let _ = object;
        pending("names")
    }

    /// Gives it exactly these names; names that others of its kind have are moved. Returns the names it has now.
    ///
    /// # Errors
    /// [`Error::NotKnown`], [`Error::ReadOnlyStore`].
    pub fn set_names(&self, object: &str, names: &[String]) -> Result<Vec<String>> {
        let (_, _) = (object, names);
        pending("set names")
    }

    /// Puts these names in front of those it has; names that others of its kind have are moved. Returns all.
    ///
    /// # Errors
    /// As [`Store::set_names`].
    pub fn add_names(&self, object: &str, names: &[String]) -> Result<Vec<String>> {
        let (_, _) = (object, names);
        pending("add names")
    }

    /// Takes names away. Returns those left.
    ///
    /// # Errors
    /// As [`Store::set_names`].
    pub fn remove_names(&self, object: &str, names: &[String]) -> Result<Vec<String>> {
        let (_, _) = (object, names);
        pending("remove names")
    }

    /// The free text of a layer, image or container.
    ///
    /// # Errors
    /// [`Error::NotKnown`].
    pub fn metadata(&self, object: &str) -> Result<String> {
        let _ = object;
        pending("metadata")
    }

    /// Replaces the free text.
    ///
    /// # Errors
    /// [`Error::NotKnown`], [`Error::ReadOnlyStore`].
    pub fn set_metadata(&self, object: &str, metadata: &str) -> Result<()> {
        let (_, _) = (object, metadata);
        pending("set metadata")
    }

    /// Deletes a container (with its layer), else an image (its record only), else a layer, without asking whether
    /// anything uses it.
    ///
    /// # Errors
    /// [`Error::NotKnown`], [`Error::ReadOnlyStore`].
    pub fn delete(&self, object: &str) -> Result<()> {
        let _ = object;
        pending("delete")
    }
}
