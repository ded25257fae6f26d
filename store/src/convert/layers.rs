//! One layer from the old driver to the new one, and the proof that it is the same.

use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use graph_archive::changes::{ChangeKind, Tree, compare};
use graph_archive::compress::Decompressor;
use graph_archive::digest::{Digest, Hashing};
use graph_archive::idmap::IdMappings;
use graph_archive::limits::Limits;
use graph_archive::pack::{PackOptions, pack_changes, pack_tree};
use graph_archive::split::assemble;
use graph_archive::tar::EncodeOptions;
use graph_core::driver::{ApplyDiffOptions, CreateOptions, DiffRequest, Driver, GetOptions, Mounted};
use graph_core::{ErrorKind as DriverErrorKind, LayerId, fsutil};

use super::{ConvertEvent, Move, Work};
use crate::dirs::Dir;
use crate::error::{Error, Result, fault};
use crate::layers::tar_split_name;
use crate::records::Layer;
use crate::table::Table;

/// Two zero blocks at the end of an archive.
const END_OF_ARCHIVE: usize = 1024;

/// Asks the old driver about a layer's difference to its parent.
pub(super) fn with_request<R>(
    layer: &Layer,
    shown: &IdMappings,
    layers: &Table<Layer>,
    ask: impl FnOnce(&DiffRequest<'_>) -> Result<R>,
) -> Result<R> {
    let id = LayerId::new(layer.id.clone())?;
    let parent = layers.by_id(&layer.parent);
    let parent_id = parent.map(|parent| LayerId::new(parent.id.clone())).transpose()?;
    ask(&DiffRequest {
        id: &id,
        mappings: shown,
        parent: parent_id.as_ref(),
        parent_mappings: &parent.map(|parent| parent.mappings()).unwrap_or_default(),
        mount_label: &layer.mount_label,
    })
}

/// What the mark of a layer that came from an archive says: the layer is the same as long as this is.
fn mark(of: &Move) -> String {
    let pairs = |ranges: &[graph_archive::idmap::IdRange]| {
        ranges.iter().map(|r| format!(" {}:{}:{}", r.container_id, r.host_id, r.size)).collect::<String>()
    };
    let IdMappings { uids, gids } = &of.mappings;
    format!("{} {}\nuids{}\ngids{}\n", of.layer.diff_digest, of.layer.parent, pairs(uids), pairs(gids))
}

/// Whether an earlier conversion made this layer, and nothing can have changed in it since. What containers write to has no
/// digest to tell that by.
pub(super) fn is_done(work: &Work<'_>, of: &Move) -> Result<bool> {
    if of.layer.diff_digest.is_empty() {
        return Ok(false);
    }
    let marked = work.staging.make_dir("done")?.read(&of.layer.id)?;
    Ok(marked.is_some_and(|marked| marked == mark(of).as_bytes())
        && work.to.exists(&LayerId::new(of.layer.id.clone())?)?)
}

impl Work<'_> {
    /// Moves the layers; how many were there already.
    pub(super) fn move_layers(&mut self, moves: &[Move]) -> Result<usize> {
        let marks = self.staging.make_dir("done")?;
        let mut keep: Vec<&str> = Vec::new();
        for of in moves {
            let on_kept = of.layer.parent.is_empty() || keep.contains(&of.layer.parent.as_str());
            if on_kept && is_done(self, of)? {
                keep.push(&of.layer.id);
            }
        }
        self.remove_all_but(&keep, moves, &marks)?;
        for (index, of) in moves.iter().enumerate() {
            let id = of.layer.id.as_str();
            self.tell(ConvertEvent::Layer { id, index, count: moves.len(), bytes: of.bytes });
            if keep.contains(&id) {
                self.tell(ConvertEvent::Kept);
                continue;
            }
            self.move_layer(of)?;
            fault("convert.layer-made")?;
            marks.write(id, mark(of).as_bytes(), fsutil::Durability::None)?;
            fault("convert.layer-marked")?;
        }
        Ok(keep.len())
    }

    /// Removes layers of an earlier conversion, children before their parents.
    fn remove_all_but(&self, keep: &[&str], moves: &[Move], marks: &Dir) -> Result<()> {
        let mut going: Vec<LayerId> =
            self.to.list_layers()?.into_iter().filter(|id| !keep.contains(&id.as_str())).collect();
        // Those that nobody knows any more come first: they may be on the others.
        let place = |id: &LayerId| moves.iter().position(|of| of.layer.id == id.as_str()).unwrap_or(usize::MAX);
        going.sort_by_key(|id| std::cmp::Reverse(place(id)));
        for id in going {
            marks.remove(id.as_str())?;
            self.to.remove(&id)?;
        }
        Ok(())
    }

    fn move_layer(&mut self, of: &Move) -> Result<()> {
        let layer = &of.layer;
        let split = self.store.layers.dir.open_file(&tar_split_name(&layer.id))?;
        if let Some(split) = split {
            self.make(of, |out| {
                let records = self.records(&split, layer)?;
                let getter = self.old.diff_getter(&LayerId::new(layer.id.clone())?)?;
                assemble(records, &*getter, out).map_err(|source| archive(layer, source))?;
                Ok(())
            })?;
            self.check_digest(of)?;
            if self.differences(of)?.is_none() {
                return Ok(());
            }
            // Something was written to it after it was filled, which its archive does not know: as it is now, then.
            self.to.remove(&LayerId::new(layer.id.clone())?)?;
        }
        let notices = self.make(of, |out| self.pack(of, out))?;
        for notice in notices {
            self.notices.push(format!("layer {}: {notice}", layer.id));
        }
        if !layer.diff_digest.is_empty() {
            self.check_digest(of)?;
        }
        match self.differences(of)? {
            None => Ok(()),
            Some(path) => Err(super::refused(format!(
                "layer {}: {path} is not the same with the driver {}; nothing was changed",
                layer.id,
                self.to.name()
            ))),
        }
    }

    fn records(&self, split: &std::fs::File, layer: &Layer) -> Result<Decompressor<std::fs::File>> {
        let path = self.store.layers.dir.path().join(tar_split_name(&layer.id));
        let failed = |error: io::Error| Error::io("read", &path, error);
        let mut file = split.try_clone().map_err(failed)?;
        io::Seek::rewind(&mut file).map_err(failed)?;
        Decompressor::new(file, &Limits::NONE).map_err(|source| archive(layer, source))
    }

    /// Makes the layer of the archive that `produce` writes. What produce gives back.
    fn make<N: Send>(&self, of: &Move, produce: impl FnOnce(&mut dyn Write) -> Result<N> + Send) -> Result<N> {
        let layer = &of.layer;
        let id = LayerId::new(layer.id.clone())?;
        let parent = if layer.parent.is_empty() { None } else { Some(LayerId::new(layer.parent.clone())?) };
        let create = CreateOptions {
            mount_label: layer.mount_label.clone(),
            mappings: of.mappings.clone(),
            ..CreateOptions::default()
        };
        let mut apply = ApplyDiffOptions {
            mappings: of.mappings.clone(),
            mount_label: layer.mount_label.clone(),
            limits: Limits::NONE,
            ..ApplyDiffOptions::default()
        };
        let same_owners = parent.is_none() || of.mappings == of.parent_mappings;
        if self.to.capabilities().staging && same_owners {
            let mut staged = self.to.begin_staged(parent.as_ref(), &create)?;
            let produced = self.stream(produce, |diff| staged.apply(diff, &mut apply).map(drop))?;
            fault("convert.layer-staged")?;
            staged.flush()?;
            staged.publish(&id)?;
            return Ok(produced);
        }
        self.to.create_read_write(&id, parent.as_ref(), &create)?;
        fault("convert.layer-created")?;
        if !same_owners {
            self.to.update_layer_id_map(&id, &of.parent_mappings, &of.mappings, &layer.mount_label)?;
        }
        self.stream(produce, |diff| self.to.apply_diff(&id, parent.as_ref(), diff, &mut apply).map(drop))
    }

    /// One thread writes, this one reads.
    fn stream<N: Send>(
        &self,
        produce: impl FnOnce(&mut dyn Write) -> Result<N> + Send,
        consume: impl FnOnce(&mut dyn Read) -> graph_core::Result<()>,
    ) -> Result<N> {
        let (reader, writer) = io::pipe().map_err(|e| Error::io("make a pipe", "", e))?;
        std::thread::scope(|scope| {
            let producer = scope.spawn(move || {
                let mut out = BufWriter::with_capacity(256 << 10, writer);
                let produced = produce(&mut out)?;
                out.flush().map_err(|e| Error::io("write", "pipe", e))?;
                Ok::<N, Error>(produced)
            });
            let done = AtomicU64::new(0);
            let mut reader = Counted { reader, done: &done, tell: &|bytes| self.tell(ConvertEvent::Bytes(bytes)) };
            let consumed = consume(&mut reader);
            // Whoever writes must not wait for a reader that has given up.
            drop(reader);
            let produced = producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match (produced, consumed) {
                (Ok(produced), Ok(())) => Ok(produced),
                // The first cause: a writer fails because nobody reads, a reader because nobody writes.
                (Err(error), Err(_)) if !is_broken_pipe(&error) => Err(error),
                (_, Err(error)) => Err(error.into()),
                (Err(error), Ok(())) => Err(error),
            }
        })
    }

    /// Writes a layer's difference to its parent as the trees show it, to the nanosecond, the root's own attributes first.
    fn pack(&self, of: &Move, out: &mut dyn Write) -> Result<Vec<String>> {
        let Move { layer, shown, .. } = of;
        let failed = |source| archive(layer, source);
        let changes = with_request(layer, shown, self.layers, |request| Ok(self.old.changes(request)?))?;
        let tree = Opened::of(&*self.old, layer, &layer.mappings(), shown)?;
        let encode = EncodeOptions { nanoseconds: true, sparse: true, ..EncodeOptions::default() };
        let root = PackOptions {
            mappings: shown.clone(),
            exclude: vec![b"**".to_vec()],
            root: true,
            encode,
            ..PackOptions::default()
        };
        let mut first = Vec::new();
        pack_tree(tree.root.as_fd(), &mut first, &root).map_err(failed)?;
        let end = first.len().saturating_sub(END_OF_ARCHIVE);
        let first = first.get(..end).unwrap_or_default();
        out.write_all(first).map_err(|e| Error::io("write", "pipe", e))?;
        let rest = PackOptions { mappings: shown.clone(), encode, ..PackOptions::default() };
        let report = pack_changes(tree.root.as_fd(), &changes, out, &rest).map_err(failed)?;
        tree.close()?;
        Ok(report.notices)
    }

    /// Puts the archive together from the new layer's files: it must be the recorded one.
    fn check_digest(&self, of: &Move) -> Result<()> {
        let layer = &of.layer;
        let Some(split) = self.store.layers.dir.open_file(&tar_split_name(&layer.id))? else { return Ok(()) };
        let Ok(expected) = layer.diff_digest.parse::<Digest>() else { return Ok(()) };
        let mut out = Hashing::new(io::sink(), expected.algorithm());
        let getter = self.to.diff_getter(&LayerId::new(layer.id.clone())?)?;
        assemble(self.records(&split, layer)?, &*getter, &mut out).map_err(|source| archive(layer, source))?;
        let (_, found, _) = out.finish();
        if found != expected {
            return Err(Error::DigestMismatch {
                id: layer.id.clone(),
                which: "uncompressed layer",
                found: found.to_string(),
                expected: expected.to_string(),
            });
        }
        Ok(())
    }

    /// The first path at which the two trees are not the same.
    fn differences(&self, of: &Move) -> Result<Option<String>> {
        let old = Opened::of(&*self.old, &of.layer, &of.layer.mappings(), &of.shown)?;
        let new = Opened::of(&*self.to, &of.layer, &of.mappings, &of.mappings)?;
        let found = compare(
            Some(Tree { root: old.root.as_fd(), mappings: &of.shown }),
            Tree { root: new.root.as_fd(), mappings: &of.mappings },
        );
        let changes = found.map_err(|source| archive(&of.layer, source))?.changes;
        let differs = |path: &[u8], kind: ChangeKind| -> Result<bool> {
            // Sockets belong to processes that are dead, and no archive holds them; their directories may differ in time.
            Ok(kind != ChangeKind::Delete || !is_socket(&old.root, path)?)
        };
        let mut first = None;
        for change in changes {
            if differs(&change.path, change.kind)? {
                first = Some(String::from_utf8_lossy(&change.path).into_owned());
                break;
            }
        }
        old.close()?;
        new.close()?;
        Ok(first)
    }
}

fn is_socket(root: &OwnedFd, path: &[u8]) -> Result<bool> {
    use graph_sys::fs::{AtFlags, FileType, statat};
    let below = path.strip_prefix(b"/").unwrap_or(path);
    match statat(root, below, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Socket),
        Err(error) => Err(Error::io("look up", String::from_utf8_lossy(path).into_owned(), error)),
    }
}

/// A layer's whole tree, for reading.
struct Opened<'d> {
    root: OwnedFd,
    mount: Option<Mounted<'d>>,
}

impl<'d> Opened<'d> {
    /// `on_disk` are the mappings of the files, `shown` those through which they are to be seen.
    fn of(driver: &'d dyn Driver, layer: &Layer, on_disk: &IdMappings, shown: &IdMappings) -> Result<Self> {
        let id = LayerId::new(layer.id.clone())?;
        let as_it_is = on_disk == shown;
        if as_it_is {
            match driver.peek(&id) {
                Err(error) if error.kind() == DriverErrorKind::Unsupported => {}
                other => return Ok(Self { root: other?, mount: None }),
            }
        }
        let options = GetOptions {
            mount_label: layer.mount_label.clone(),
            mappings: shown.clone(),
            // Read-only, everything would be seen through the mappings, what the container wrote, too.
            options: if as_it_is { vec!["ro".to_owned()] } else { Vec::new() },
            disable_shifting: as_it_is,
            ..GetOptions::default()
        };
        let mount = driver.get(&id, &options)?;
        Ok(Self { root: fsutil::open_directory(mount.path())?, mount: Some(mount) })
    }

    fn close(self) -> Result<()> {
        drop(self.root);
        self.mount.map_or(Ok(()), |mount| Ok(mount.put()?))
    }
}

fn archive(layer: &Layer, source: graph_archive::Error) -> Error {
    Error::Archive { id: layer.id.clone(), source }
}

fn is_broken_pipe(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return true;
        }
        cause = error.source();
    }
    false
}

struct Counted<'p, R> {
    reader: R,
    done: &'p AtomicU64,
    tell: &'p dyn Fn(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        graph_sys::fault::point("convert.read")?;
        let count = self.reader.read(buf)?;
        let before = self.done.fetch_add(count as u64, Ordering::Relaxed);
        (self.tell)(before.saturating_add(count as u64));
        Ok(count)
    }
}
