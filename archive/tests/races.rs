//! Trees that change while they are read, as those of running containers do: nothing but regular files is opened, and what
//! vanishes is left out.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "test code, in directories of its own")]

mod support;

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use graph_archive::IdMappings;
use graph_archive::apply::XattrNamespace;
use graph_archive::changes::{OverlayTree, Tree, compare, overlay_upper};
use graph_archive::copy::{CopyOptions, copy_tree};
use graph_archive::pack::{PackOptions, pack_changes, pack_tree};
use graph_sys::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, inotify, mknodat, renameat_with, statat};
use graph_sys::io::Errno;
use support::fd;

const IDENTITY: &IdMappings = &IdMappings { uids: Vec::new(), gids: Vec::new() };
const TIME: Duration = Duration::from_millis(700);

/// In memory, where there is one: it is the speed that makes a race.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Calls `disturb` in a thread of its own, again and again, and `read` until the time is over.
fn race(mut disturb: impl FnMut(usize) + Send, mut read: impl FnMut(usize)) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..).take_while(|_| !over.load(Ordering::Relaxed)).for_each(&mut disturb));
        // A read that panics must end the other thread too.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let began = Instant::now();
            (0..).take_while(|_| began.elapsed() < TIME).for_each(&mut read);
        }));
        over.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    });
}

/// Everything that reads trees, once: `new` after `old`.
fn read_all(old: &Path, new: &Path, copies: &Path, round: usize) {
    let (old, new) = (fd(old), fd(new));
    let tree = |root: &OwnedFd| pack_tree(root.as_fd(), io::sink(), &PackOptions::default()).unwrap();
    tree(&new);
    let trees = (Tree { root: old.as_fd(), mappings: IDENTITY }, Tree { root: new.as_fd(), mappings: IDENTITY });
    let changes = compare(Some(trees.0), trees.1).unwrap();
    pack_changes(new.as_fd(), &changes.changes, io::sink(), &PackOptions::default()).unwrap();
    let overlay = OverlayTree {
        upper: new.as_fd(),
        upper_mappings: IDENTITY,
        lowers: &[old.as_fd()],
        lower_mappings: IDENTITY,
        namespace: XattrNamespace::Trusted,
    };
    overlay_upper(overlay).unwrap();
    let copy = copies.join(round.to_string());
    fs::create_dir(&copy).unwrap();
    copy_tree(new.as_fd(), fd(&copy).as_fd(), &CopyOptions::default()).unwrap();
    fs::remove_dir_all(&copy).unwrap();
}

/// Tells whether a file was opened, other than by `O_PATH`.
struct Watch(OwnedFd);

impl Watch {
    fn on(path: &Path) -> Self {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&watch, path, inotify::WatchFlags::OPEN).unwrap();
        Self(watch)
    }
    fn was_opened(&self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 512];
        match inotify::Reader::new(&self.0, &mut buffer).next() {
            Ok(event) => event.events().contains(inotify::ReadFlags::OPEN),
            Err(Errno::AGAIN) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_device_or_pipe_swapped_in_is_never_opened() {
    let temp = scratch();
    let [old, new, copies] = ["old", "new", "copies"].map(|name| temp.path().join(name));
    for directory in [&old, &new, &copies] {
        fs::create_dir(directory).unwrap();
    }
    // The same to every look, so that contents are compared.
    fs::write(old.join("file"), "text").unwrap();
    fs::write(new.join("file"), "text").unwrap();
    let status = statat(CWD, old.join("file"), AtFlags::empty()).unwrap();
    let modified = std::time::UNIX_EPOCH + Duration::new(status.st_mtime as u64, status.st_mtime_nsec as u32);
    File::options().write(true).open(new.join("file")).unwrap().set_modified(modified).unwrap();

    let trap = new.join("trap");
    // /dev/null for root, a pipe for everybody else.
    let made = mknodat(CWD, &trap, FileType::CharacterDevice, Mode::RUSR, graph_sys::fs::makedev(1, 3));
    made.or_else(|_| mknodat(CWD, &trap, FileType::Fifo, Mode::RUSR, 0)).unwrap();
    let watch = Watch::on(&trap);
    let swap = |_| renameat_with(CWD, new.join("file"), CWD, &trap, RenameFlags::EXCHANGE).unwrap();
    race(swap, |round| read_all(&old, &new, &copies, round));
    assert!(!watch.was_opened());

    // The watch does see it.
    drop(File::options().read(true).write(true).open(if is_file(&trap) { new.join("file") } else { trap }));
    assert!(watch.was_opened());
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).unwrap().is_file()
}

#[test]
fn what_vanishes_is_left_out() {
    let temp = scratch();
    let [old, new, copies] = ["old", "new", "copies"].map(|name| temp.path().join(name));
    for directory in [&old, &new, &copies] {
        fs::create_dir(directory).unwrap();
    }
    let names: Vec<String> = (0..12).map(|number| format!("n{number}")).collect();
    for name in &names {
        fs::write(old.join(name), "old").unwrap();
    }
    let disturb = |round: usize| {
        let path = new.join(&names[round % names.len()]);
        let gone = |result: io::Result<()>| drop(result);
        gone(fs::remove_file(&path));
        gone(fs::remove_dir_all(&path));
        match round % 5 {
            0 | 1 => fs::write(&path, "new").unwrap(),
            2 => symlink("anywhere", &path).unwrap(),
            3 => fs::create_dir_all(path.join("deep/er")).unwrap(),
            _ => gone(fs::hard_link(new.join(&names[(round + 1) % names.len()]), &path)),
        }
    };
    race(disturb, |round| read_all(&old, &new, &copies, round));
}
