//! Mounting through a program such as fuse-overlayfs, as containers/storage does with its option `mount_program`.
//!
//! ```text
//! PROGRAM -o lowerdir=A:B,upperdir=C,workdir=D[,words] TARGET      with the home for working directory
//! ```
//!
//! The program sees deletions that the kernel does not (`.wh.*` files), and owners and modes that are not on disk
//! (`force_mask`, id mappings). So with one, everything that looks at more than one layer looks through its mounts:
//! differences compare mounted trees, and archives are applied on the parent's mount. What is written are the kernel's marks,
//! which programs understand too. `.has-mount-program` in the home says "true" from then on, and peers go by it.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use graph_archive::idmap::{IdMappings, IdRange};
use graph_core::driver::GetOptions;
use graph_core::{Error, LayerId, Result};
use graph_sys::fs::{self, Access, MemfdFlags, Mode, OFlags};
use graph_sys::mount::{UnmountFlags, classic};

use super::Homes;
use super::driver::Overlay;
use super::layout::{Context, DIFF, Flush, HAS_MOUNT_PROGRAM, Home, LinkId, Small, WORK, read_small, write_small};
use super::mount::{Found, Stack, look};
use super::words::Words;

/// Where a store that a program has written finds one when none is configured.
const USUAL: [&str; 3] = ["/usr/bin/fuse-overlayfs", "/usr/local/bin/fuse-overlayfs", "/bin/fuse-overlayfs"];

/// The most bytes of a program's complaints that an error repeats.
const COMPLAINTS: u64 = 4096;

/// The program to mount with, if it is to be one: the configured one, or the usual one where layers were written for one.
pub(super) fn choose(configured: Option<&PathBuf>, homes: &Homes) -> Result<Option<PathBuf>> {
    if let Some(program) = configured {
        return match fs::access(program, Access::EXEC_OK) {
            Ok(()) => Ok(Some(program.clone())),
            Err(error) => Err(Error::Config {
                place: "overlay.mount_program".to_owned(),
                problem: format!("cannot run {}: {}", program.display(), std::io::Error::from(error)),
            }),
        };
    }
    for home in homes.writable() {
        if is_for_a_program(home)? {
            let usual = USUAL.iter().map(PathBuf::from).find(|program| fs::access(program, Access::EXEC_OK).is_ok());
            return usual.map(Some).ok_or_else(|| Error::NotSupported {
                context: format!(
                    "{} says that the layers were written for a mount program, which the kernel's overlay would show wrongly; \
                     install fuse-overlayfs, name a program in mount_program, or use another graph root",
                    home.path.join(HAS_MOUNT_PROGRAM).display()
                ),
            });
        }
    }
    Ok(None)
}

fn is_for_a_program(home: &Home) -> Result<bool> {
    let kept = read_small(&home.dir, HAS_MOUNT_PROGRAM).at("read", home.path.join(HAS_MOUNT_PROGRAM), None)?;
    Ok(matches!(kept, Small::Text(text) if text == "true"))
}

/// Tells everybody whether layers here are written for a program.
pub(super) fn record(home: &Home, program: bool) -> Result<()> {
    let path = || home.path.join(HAS_MOUNT_PROGRAM);
    let kept = read_small(&home.dir, HAS_MOUNT_PROGRAM).at("read", path(), None)?;
    let wanted = if program { "true" } else { "false" };
    match kept {
        Small::Text(text) if text == wanted || !program => return Ok(()),
        Small::Damaged(_) if !program => return Ok(()),
        _ => {}
    }
    let fresh = format!("{HAS_MOUNT_PROGRAM}-{}", LinkId::random()?);
    match write_small(&home.dir, &fresh, wanted, None, Flush::No) {
        // A store that is only read is as it is.
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => return Ok(()),
        written => written.at("write", path(), None)?,
    }
    fs::chmodat(&home.dir, &fresh, Mode::RUSR | Mode::WUSR, fs::AtFlags::empty()).at("change mode of", path(), None)?;
    fs::renameat(&home.dir, &fresh, &home.dir, HAS_MOUNT_PROGRAM).at("replace", path(), None)
}

/// Whether a program can do these mappings: it maps what is written as well, and only without gaps.
pub(super) fn maps(mappings: &IdMappings) -> bool {
    let contiguous = |ranges: &[IdRange]| {
        ranges.windows(2).all(|pair| match pair {
            [one, next] => {
                one.host_id.checked_add(one.size) == Some(next.host_id)
                    && one.container_id.checked_add(one.size) == Some(next.container_id)
            }
            _ => true,
        })
    };
    contiguous(&mappings.uids) && contiguous(&mappings.gids)
}

impl Overlay {
    /// Mounts a layer on `target` with the program.
    pub(super) fn mount_through(
        &self,
        program: &Path,
        stack: &Stack<'_>,
        words: &Words,
        options: &GetOptions,
        target: &Path,
    ) -> Result<()> {
        let home = &stack.homes.own.path;
        let mut data = OsString::from("lowerdir=");
        let mut first = true;
        stack.each_lower(|path, _| {
            if !std::mem::take(&mut first) {
                data.push(":");
            }
            data.push(named(home, path));
            Ok(())
        })?;
        if !stack.read_only {
            let own = stack.layer.path();
            stack.work()?;
            for (key, name) in [(",upperdir=", DIFF), (",workdir=", WORK)] {
                data.push(key);
                data.push(named(home, &own.join(name)));
            }
        }
        data.push(words.for_program());
        if !options.disable_shifting {
            data.push(mapped("uid", &options.mappings.uids));
            data.push(mapped("gid", &options.mappings.gids));
        }
        if self.options.force_mask.is_some() {
            data.push(",xattr_permissions=2");
        }
        run(program, home, &data, target, &stack.layer.id)?;
        match look(target).at("look at the mount point", target, Some(&stack.layer.id))? {
            Found::Overlay(_) => Ok(()),
            _ => Err(failed(program, target, &stack.layer.id, "it ended well, and nothing is mounted")),
        }
    }

    /// A layer's whole tree, read-only, as the program shows it; mounted nowhere any more.
    pub(super) fn look_through(&self, program: &Path, stack: &Stack<'_>, words: &Words) -> Result<OwnedFd> {
        let id = Some(&stack.layer.id);
        let mut temp = stack.homes.own.temp_dir()?;
        let (addition, _dir) = temp.add_directory(0o700)?;
        let path = temp.addition_path(&addition);
        self.mount_through(program, stack, words, &GetOptions::default(), &path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let tree = fs::openat(fs::CWD, &path, flags, Mode::empty()).at("open", &path, id);
        // Everything open in it goes on, and the program ends with the last of that.
        classic::unmount(path.as_os_str().as_bytes(), UnmountFlags::DETACH).at("unmount", &path, id)?;
        temp.finish()?;
        tree
    }
}

/// A path as the program is told it: from the home, which keeps it short and free of commas.
fn named(home: &Path, path: &Path) -> OsString {
    let shown = path.strip_prefix(home).unwrap_or(path);
    let mut text = Vec::new();
    for byte in shown.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b',' | b':') {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    OsString::from_vec(text)
}

/// The words for a mapping: a single id is squashed.
fn mapped(kind: &str, ranges: &[IdRange]) -> String {
    match ranges {
        [] => String::new(),
        [only] if only.size == 1 => format!(",squash_to_{kind}={}", only.host_id),
        _ => {
            let text: String = ranges
                .iter()
                .map(|range| format!(":{}:{}:{}", range.container_id, range.host_id, range.size))
                .collect();
            format!(",{kind}mapping={text}")
        }
    }
}

fn run(program: &Path, home: &Path, data: &OsStr, target: &Path, id: &LayerId) -> Result<()> {
    let io = |source| Error::io("run mount program", program, Some(id), source);
    // Not a pipe: what the program leaves running may hold on to it.
    let complaints = fs::memfd_create("complaints", MemfdFlags::CLOEXEC).map_err(|error| io(error.into()))?;
    let mut complaints = std::fs::File::from(complaints);
    let stderr = complaints.try_clone().map_err(io)?;
    let status = Command::new(program)
        .arg("-o")
        .arg(data)
        .arg(target)
        .current_dir(home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .status()
        .map_err(io)?;
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    complaints.rewind().map_err(io)?;
    complaints.take(COMPLAINTS).read_to_end(&mut said).map_err(io)?;
    let said = String::from_utf8_lossy(&said);
    Err(failed(program, target, id, &format!("{status}: {}", said.trim())))
}

fn failed(program: &Path, target: &Path, id: &LayerId, why: &str) -> Error {
    let source = std::io::Error::other(format!("mount program {}: {why}", program.display()));
    Error::io("mount on", target, Some(id), source)
}
