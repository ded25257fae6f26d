//! Letting equal files of layers share their place on disk.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use graph_archive::digest::{Algorithm, Hasher};
use graph_archive::split::crc64::Crc64;
use graph_archive::walk::Descent;
use graph_core::{ErrorKind as DriverErrorKind, LayerId};
use graph_sys::dedupe::{Deduped, dedupe};
use graph_sys::fs::{self, FileType, Mode, OFlags};
use graph_sys::getdents::DirBuffer;
use graph_sys::io::Errno;
use graph_sys::resolve::RootDir;

use crate::error::{Error, Result};
use crate::store::Store;

/// By what files are taken for equal before the kernel compares them byte by byte. All give the same result; they differ
/// in what is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DedupHash {
    /// A checksum of the content: quick, and wrong so rarely that the kernel compares hardly a file in vain.
    #[default]
    Crc,
    /// The size alone: nothing is read that the kernel does not read.
    Size,
    /// SHA-256 of the content.
    Sha256,
}

impl std::str::FromStr for DedupHash {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "crc" => Ok(Self::Crc),
            "size" => Ok(Self::Size),
            "sha256" => Ok(Self::Sha256),
            _ => Err(Error::InvalidArgument { problem: format!("invalid hash method: {word}") }),
        }
    }
}

/// What deduplication found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DedupReport {
    /// Bytes of files that share their place with an equal file now, whether or not they did before.
    pub bytes: u64,
    /// False where the file system cannot share; nothing was done then.
    pub supported: bool,
}

/// Where an earlier file is: its layer by number, and its path there.
struct Place {
    layer: usize,
    path: Vec<u8>,
}

impl Store {
    /// Lets equal files of the own store's layers share their place on disk. Containers' layers are left alone: what is in them
    /// is about to change.
    ///
    /// Safe at any time, also while layers are mounted: the kernel compares the bytes under a lock before it shares them.
    /// No lock of the store is held; a process that is killed has done a part. An inode with several names counts once.
    ///
    /// # Errors
    /// Damaged records, I/O. Files that vanish meanwhile are passed over.
    pub fn dedup(&self, hash: DedupHash) -> Result<DedupReport> {
        let containers: HashSet<String> =
            self.containers.records.read()?.iter().map(|container| container.layer.clone()).collect();
        let mut roots: Vec<(String, RootDir, OwnedFd)> = Vec::new();
        for layer in self.layers()?.iter().filter(|layer| !layer.is_read_only() && !containers.contains(&layer.id)) {
            let Ok(id) = LayerId::new(layer.id.clone()) else { continue };
            match self.driver().content_directory(&id) {
                Ok(root) => {
                    let copy = root.try_clone().map_err(|e| Error::io("open layer", layer.id.as_str(), e))?;
                    roots.push((layer.id.clone(), RootDir::from_fd(copy), root));
                }
                Err(error) if matches!(error.kind(), DriverErrorKind::Unsupported | DriverErrorKind::NotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut run =
            Run { roots: &roots, hash, seen: HashSet::new(), known: HashMap::new(), report: DedupReport::default() };
        run.report.supported = true;
        for layer in 0..roots.len() {
            if !run.layer(layer)? {
                break;
            }
        }
        Ok(run.report)
    }
}

struct Run<'r> {
    roots: &'r [(String, RootDir, OwnedFd)],
    hash: DedupHash,
    seen: HashSet<(u64, u64)>,
    known: HashMap<(u64, Vec<u8>), Vec<Place>>,
    report: DedupReport,
}

impl Run<'_> {
    /// All regular files of a layer; false when the file system cannot share.
    fn layer(&mut self, layer: usize) -> Result<bool> {
        let Some((id, _, root)) = self.roots.get(layer) else { return Ok(true) };
        let archive = |source| Error::Archive { id: id.clone(), source };
        let mut descent = Descent::new(root.as_fd()).map_err(archive)?;
        let mut buffer = DirBuffer::new();
        let mut waiting = vec![descent.list(&mut buffer).map_err(archive)?.into_iter()];
        while let Some(level) = waiting.last_mut() {
            let Some(entry) = level.next() else {
                waiting.pop();
                descent.leave().map_err(archive)?;
                continue;
            };
            match entry.file_type {
                FileType::Directory => {
                    descent.enter(&entry.name).map_err(archive)?;
                    waiting.push(descent.list(&mut buffer).map_err(archive)?.into_iter());
                }
                FileType::RegularFile => {
                    let path = descent.join(&entry.name);
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    let directory = descent.directory().map_err(archive)?;
                    match fs::openat(directory, entry.name.as_slice(), flags, Mode::empty()) {
                        Ok(file) => {
                            if !self.file(layer, path, &File::from(file))? {
                                return Ok(false);
                            }
                        }
                        Err(Errno::NOENT | Errno::LOOP) => {}
                        Err(error) => return Err(archive(graph_archive::Error::io("open", path, error))),
                    }
                }
                _ => {}
            }
        }
        Ok(true)
    }

    fn file(&mut self, layer: usize, path: Vec<u8>, file: &File) -> Result<bool> {
        let id = self.roots.get(layer).map_or("", |(id, ..)| id.as_str());
        let failed = |operation: &'static str| {
            let shown = format!("{id}: {}", String::from_utf8_lossy(&path));
            move |error: io::Error| Error::io(operation, shown, error)
        };
        let stat = fs::fstat(file).map_err(|error| failed("stat")(error.into()))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !regular || size == 0 || !self.seen.insert((stat.st_dev, stat.st_ino)) {
            return Ok(true);
        }
        let key = match self.hash {
            DedupHash::Size => Vec::new(),
            DedupHash::Crc => {
                let mut sum = Crc64::default();
                each_piece(file, |bytes| sum.update(bytes)).map_err(failed("read"))?;
                sum.value().to_be_bytes().to_vec()
            }
            DedupHash::Sha256 => {
                let mut hasher = Hasher::new(Algorithm::Sha256);
                each_piece(file, |bytes| hasher.update(bytes)).map_err(failed("read"))?;
                hasher.finish().as_bytes().to_vec()
            }
        };
        let places = self.known.entry((size, key)).or_default();
        for place in places.iter() {
            let Some((_, root, _)) = self.roots.get(place.layer) else { continue };
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let Ok(earlier) = root.open_in_root(&place.path, flags) else { continue };
            match dedupe(&earlier, file, size) {
                Ok(Deduped::Same) => {
                    self.report.bytes = self.report.bytes.saturating_add(size);
                    return Ok(true);
                }
                Ok(Deduped::Different) => {}
                Ok(Deduped::Unsupported) => {
                    self.report.supported = false;
                    return Ok(false);
                }
                // Somebody else's file, or one that runs and that this file system then does not touch.
                Err(Errno::PERM | Errno::ACCESS | Errno::TXTBSY) => return Ok(true),
                Err(error) => return Err(failed("deduplicate")(error.into())),
            }
        }
        places.push(Place { layer, path });
        Ok(true)
    }
}

fn each_piece(mut file: &File, mut piece: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => piece(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
