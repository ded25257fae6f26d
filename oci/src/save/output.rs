//! Where the files of an image go: into a directory, or one behind the other into a tar.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use graph_archive::digest::Digest;
use graph_sys::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use graph_sys::io::Errno;
use graph_sys::lock::{self, LockKind};

use crate::error::{Error, Result};

/// Bytes of a tar's blocks.
const BLOCK: u64 = 512;

/// A file that goes away unless it is kept, also when the process dies, where the file system has files without names.
pub(super) struct Temporary {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// It has its name already.
    named: bool,
    kept: bool,
}

impl Temporary {
    pub(super) fn create(dir: &Path) -> Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match openat(CWD, dir, flags, Mode::from_raw_mode(0o666)) {
            Ok(fd) => return Ok(Self { path: dir.to_path_buf(), file: fd.into(), named: false, kept: false }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
            Err(error) => return Err(Error::io("make a file in", dir)(error.into())),
        }
        loop {
            let path = unused_name(dir);
            match File::options().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Self { path, file, named: true, kept: false }),
                // A killed process once had our number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", path)(error)),
            }
        }
    }

    /// On disk first, then under its name, in place of whatever has it.
    pub(super) fn keep(mut self, path: &Path) -> Result<()> {
        self.file.sync_all().map_err(Error::io("sync", &self.path))?;
        graph_sys::fault::point("save.written").map_err(|error| Error::io("write", path)(error.into()))?;
        let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !self.named {
            match self.link(path) {
                Ok(()) => self.kept = true,
                // A name that is taken can only be taken over by renaming.
                Err(Errno::EXIST) => loop {
                    self.path = unused_name(parent);
                    match self.link(&self.path) {
                        Ok(()) => break self.named = true,
                        Err(Errno::EXIST) => {}
                        Err(error) => return Err(Error::io("name", path)(error.into())),
                    }
                },
                Err(error) => return Err(Error::io("name", path)(error.into())),
            }
        }
        if !self.kept {
            fs::rename(&self.path, path).map_err(Error::io("rename to", path))?;
            self.kept = true;
        }
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", parent))
    }

    fn link(&self, path: &Path) -> Result<(), Errno> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW)
    }
}

fn unused_name(dir: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    dir.join(format!(".graphdriver-{}-{number}.tmp", std::process::id()))
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.named && !self.kept {
            // The error that brought us here is the one to report.
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Where files go. Dropped before [`Output::finish`], it takes back what it has made.
pub(super) enum Output {
    Dir(Directory),
    Tar(Archive),
}

impl Output {
    /// Writes a file whose name is known when its content is, and gives its size in bytes. A file of that name that is
    /// there already stays as it is.
    pub(super) fn add<R>(&mut self, write: impl FnOnce(&mut (dyn Write + Send)) -> Result<(String, R)>) -> Result<R> {
        match self {
            Self::Dir(dir) => dir.add(write),
            Self::Tar(tar) => tar.add(write),
        }
    }

    /// Writes a small file, in place of one of that name.
    pub(super) fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Dir(dir) => dir.put(name, bytes),
            Self::Tar(tar) => tar
                .add(|out| {
                    out.write_all(bytes).map_err(Error::io("write", name))?;
                    Ok((name.to_owned(), ()))
                })
                .map(drop),
        }
    }

    /// Writes a document under its digest.
    pub(super) fn document(&mut self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        self.put(&format!("blobs/sha256/{}", digest.hex()), bytes)?;
        Ok(digest)
    }

    pub(super) fn finish(self) -> Result<()> {
        match self {
            Self::Dir(mut dir) => {
                dir.done = true;
                Ok(())
            }
            Self::Tar(tar) => tar.finish(),
        }
    }
}

/// An OCI layout in a directory, alone in it among processes of ours.
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// Locked for as long as we write.
    _lock: Option<File>,
    /// Files that were not there before.
    made: Vec<PathBuf>,
    /// The directory itself was not.
    is_new: bool,
    done: bool,
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let is_new = fs::symlink_metadata(path).is_err();
        let mut layout = Self { path: path.to_path_buf(), _lock: None, made: Vec::new(), is_new, done: false };
        let blobs = path.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(Error::io("create", &blobs))?;
        let marker = path.join("oci-layout");
        if !marker.exists() {
            layout.put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        let opened = File::options().read(true).write(true).open(&marker);
        let lock = opened.map_err(Error::io("open", &marker))?;
        lock::lock(lock.as_fd(), LockKind::Exclusive).map_err(Error::io("lock", &marker))?;
        layout._lock = Some(lock);
        Ok(layout)
    }

    fn add<R>(&mut self, write: impl FnOnce(&mut (dyn Write + Send)) -> Result<(String, R)>) -> Result<R> {
        let temporary = Temporary::create(&self.path)?;
        let mut out = BufWriter::with_capacity(256 << 10, &temporary.file);
        let (name, result) = write(&mut out)?;
        out.flush().map_err(Error::io("write", &temporary.path))?;
        drop(out);
        self.keep(temporary, &name)?;
        Ok(result)
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let temporary = Temporary::create(&self.path)?;
        (&temporary.file).write_all(bytes).map_err(Error::io("write", self.path.join(name)))?;
        self.keep(temporary, name)
    }

    /// Written anew even where it is there: it may be damaged.
    fn keep(&mut self, temporary: Temporary, name: &str) -> Result<()> {
        let path = self.path.join(name);
        if fs::symlink_metadata(&path).is_err() {
            self.made.push(path.clone());
        }
        temporary.keep(&path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // The error that brought us here is the one to report.
        if self.is_new {
            drop(fs::remove_dir_all(&self.path));
        } else {
            for path in &self.made {
                drop(fs::remove_file(path));
            }
        }
    }
}

/// A tar in the making, which gets its name when it is whole.
pub(super) struct Archive {
    temporary: Temporary,
    target: PathBuf,
    /// The target is open already, and gets the tar when it is whole.
    is_stream: bool,
    /// Where the next member begins.
    offset: u64,
    names: HashSet<String>,
}

impl Archive {
    pub(super) fn create(target: &Path) -> Result<Self> {
        let found = fs::metadata(target).ok().map(|found| found.file_type());
        // What is given by such a name is open already, as a rule a pipe; the name itself must stay.
        let is_pipe = found.is_some_and(|kind| kind.is_fifo() || kind.is_char_device());
        if found.is_some_and(|kind| !kind.is_file() && !is_pipe) {
            return Err(Error::invalid(target, "is there and no regular file or pipe: name a file for the archive"));
        }
        let is_stream = is_pipe || found.is_some() && (target.starts_with("/dev") || target.starts_with("/proc"));
        let parent = match target.parent() {
            _ if is_stream => Path::new("/var/tmp"),
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let temporary = Temporary::create(parent)?;
        Ok(Self { temporary, target: target.to_path_buf(), is_stream, offset: 0, names: HashSet::new() })
    }

    fn add<R>(&mut self, write: impl FnOnce(&mut (dyn Write + Send)) -> Result<(String, R)>) -> Result<R> {
        let failed = Error::io("write", &self.target);
        let start = self.offset.saturating_add(BLOCK);
        let mut out = BufWriter::with_capacity(256 << 10, At { file: &self.temporary.file, offset: start });
        let (name, result) = write(&mut out)?;
        let end = out.into_inner().map_err(|error| Error::io("write", &self.target)(error.into_error()))?.offset;
        if !self.names.insert(name.clone()) {
            // The same content: the next member is written over it.
            return Ok(result);
        }
        let size = end.saturating_sub(start);
        let header = header(&name, size);
        self.temporary.file.write_all_at(&header, self.offset).map_err(failed)?;
        self.offset = start.saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
        // What lay there before is gone, so that padding is zeros.
        self.temporary.file.set_len(end).map_err(Error::io("write", &self.target))?;
        Ok(result)
    }

    fn finish(self) -> Result<()> {
        // Two blocks of zeros; rounded up to a record of 20, as other programs do it.
        let end = self.offset.saturating_add(2 * BLOCK).div_ceil(20 * BLOCK).saturating_mul(20 * BLOCK);
        self.temporary.file.set_len(self.offset).map_err(Error::io("write", &self.target))?;
        self.temporary.file.set_len(end).map_err(Error::io("write", &self.target))?;
        if self.is_stream {
            let mut archive = &self.temporary.file;
            let mut stream =
                File::options().append(true).open(&self.target).map_err(Error::io("open", &self.target))?;
            let copied = archive.seek(SeekFrom::Start(0)).and_then(|_| io::copy(&mut archive, &mut stream));
            return copied.map(drop).map_err(Error::io("write", &self.target));
        }
        self.temporary.keep(&self.target)
    }
}

/// Writes at a place of its own.
struct At<'f> {
    file: &'f File,
    offset: u64,
}

impl Write for At<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = self.file.write_at(buf, self.offset)?;
        self.offset = self.offset.saturating_add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A member's header (ustar). It is made by hand because it is written when the content is: nobody knows name and size
/// before.
fn header(name: &str, size: u64) -> [u8; 512] {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = header.get_mut(at..at.saturating_add(bytes.len())) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, name.as_bytes().get(..100).unwrap_or(name.as_bytes()));
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size < 1 << 33 {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        // GNU's binary numbers, which every reader knows.
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    if let Some(field) = header.get_mut(148..156) {
        field.copy_from_slice(sum.as_bytes());
    }
    header
}
