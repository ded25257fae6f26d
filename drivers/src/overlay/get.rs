//! `get` and `put`: what is asked for, put together for a mount.

use std::os::fd::OwnedFd;
use std::path::Path;

use graph_core::driver::{GetOptions, Mounted};
use graph_core::{Driver, Error, LayerId, Result};
use graph_sys::io::Errno;

use super::driver::Overlay;
use super::layout::Layer;
use super::mount::{Method, Stack, merged_path, mount_point, own_words, unmount};
use super::parents::{MAX_LOWERS, ensure_links, parents};
use super::words::{Words, split};
use super::{DRIVER, Homes, idmap, volatile};

impl Overlay {
    /// Mounts the layer, or takes one more reference.
    pub(super) fn get_layer(&self, id: &LayerId, options: &GetOptions) -> Result<Mounted<'_>> {
        let path = merged_path(&self.homes.require(id)?, &self.run_path);
        // Opened now, because what is mounted on the bare home while something covers it cannot be reached.
        self.mounts.get(&path, || self.mount_in(&self.homes.reopened()?, id, &path, options))?;
        let id = id.clone();
        Ok(Mounted::new(path, move || self.put_layer(&id)))
    }

    /// Makes a mount that is attached nowhere with the homes as they were opened and, where the mount that they were opened on
    /// is gone by now, with the homes as they are now.
    fn with_homes<T>(&self, mount: impl Fn(&Homes) -> Result<T>) -> Result<T> {
        match mount(&self.homes) {
            // The kernel clones nothing of such a mount, and finds no place there to mount on.
            Err(Error::Io { source, .. }) if matches!(errno(&source), Some(Errno::INVAL | Errno::NOENT)) => {
                mount(&self.homes.reopened()?)
            }
            other => other,
        }
    }

    fn mount_in(&self, homes: &Homes, id: &LayerId, path: &Path, options: &GetOptions) -> Result<()> {
        let layer = homes.require(id)?;
        let words = self.words(&layer, options)?;
        let chain = self.ready(&layer)?;
        let target = mount_point(&layer, path)?;
        let read_only = words.read_only() && !upper_though_read_only(&layer, &chain);
        let shifted = !options.disable_shifting && !options.mappings.is_identity();
        if shifted && !self.supports_shifting(&options.mappings) {
            return Err(Error::Unsupported {
                driver: DRIVER.into(),
                operation: format!(
                    "showing layer {id} through ID mappings ({}); change the owners of its files first",
                    self.features.id_mapped_lower.reason_or("this kernel does not map the IDs of its file system")
                ),
            });
        }
        if let Some(program) = &self.program {
            let stack = Stack { read_only, ..Stack::read_only(homes, &layer, &chain, &self.run_path) };
            return self.mount_through(program, &stack, &words, options, path);
        }
        let mapped = if shifted { idmap::mapped_homes(homes, &layer, &chain, &options.mappings)? } else { Vec::new() };
        let own_mapped = shifted && !options.own_files_as_on_disk;
        if shifted && (!read_only || !own_mapped) {
            match idmap::own_root(homes, &layer, &chain, &options.mappings) {
                // Then nothing has been written, and only the root keeps the owner that it was made with.
                Err(Error::Io { source, .. }) if read_only && errno(&source) == Some(Errno::ROFS) => {}
                result => result?,
            }
        }
        if !read_only {
            volatile::prepare(&layer, &self.run_path, words.has("volatile"))?;
        }
        let plain = Stack::read_only(homes, &layer, &chain, &self.run_path);
        let stack = Stack { read_only, mapped: &mapped, own_mapped, ..plain };
        stack.mount(&words, &target, path, self.method)
    }

    /// Gives up a reference.
    pub(super) fn put_layer(&self, id: &LayerId) -> Result<()> {
        let layer = self.homes.require(id)?;
        let path = merged_path(&layer, &self.run_path);
        self.mounts.put(&path, || unmount(&layer, &path)).map(drop)
    }

    /// The layers below, with the records that tell them in order.
    pub(super) fn ready(&self, layer: &Layer<'_>) -> Result<Vec<LayerId>> {
        let chain = parents(&self.homes, layer)?;
        ensure_links(&self.homes, layer, &chain)?;
        Ok(chain)
    }

    /// The mount options in force.
    fn words(&self, layer: &Layer<'_>, options: &GetOptions) -> Result<Words> {
        let explicit = options.options.iter().any(|word| word != "ro");
        let configured = if explicit { "" } else { self.options.mount_options.as_str() };
        let mut words = Words::parse(split(configured).chain(options.options.iter().map(String::as_str)))?;
        if explicit && self.features.metacopy.works && self.options.has_mount_word("metacopy=on") {
            words.add("metacopy=on")?;
        }
        if !self.features.metacopy.works {
            words.remove("metacopy", "on");
        }
        if !layer.home.writable() {
            words.add("ro")?;
        }
        if options.volatile && self.features.volatile.works && !words.read_only() && !words.has("volatile") {
            words.add("volatile")?;
        }
        if !options.mount_label.is_empty() {
            words.add(&format!("context=\"{}\"", options.mount_label))?;
        }
        if self.program.is_none() {
            own_words(&mut words, self.namespace)?;
        }
        Ok(words)
    }

    /// The layer's whole tree, read-only and attached nowhere: for looking into it without a mount point.
    pub(super) fn look_into(&self, layer: &Layer<'_>) -> Result<OwnedFd> {
        let id = &layer.id;
        self.with_homes(|homes| {
            let layer = homes.require(id)?;
            let chain = parents(homes, &layer)?;
            let options = GetOptions { options: vec!["ro".to_owned()], ..GetOptions::default() };
            let words = self.words(&layer, &options)?;
            let stack = Stack::read_only(homes, &layer, &chain, &self.run_path);
            match (&self.program, self.method) {
                (Some(program), _) => self.look_through(program, &stack, &words),
                (None, Method::Descriptors) => stack.detached(&words).map(OwnedFd::from),
                (None, Method::Classic) => stack.detached_classic(&words).map(OwnedFd::from),
            }
        })
    }
}

/// The errno of a call, also where an error of its own tells more about it.
fn errno(error: &std::io::Error) -> Option<Errno> {
    let told = || error.get_ref()?.downcast_ref::<graph_sys::Error>().map(graph_sys::Error::errno);
    Errno::from_io_error(error).or_else(told)
}

/// With as many layers below as the kernel stacks there is no room for the layer's own directory among the lower ones. It
/// is the upper one then, of a mount that takes no writes.
fn upper_though_read_only(layer: &Layer<'_>, chain: &[LayerId]) -> bool {
    chain.len() == MAX_LOWERS && layer.home.writable()
}
