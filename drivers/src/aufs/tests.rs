//! The driver on kernels without AUFS, and the exact calls that it makes on those with it.

#![allow(clippy::disallowed_methods, reason = "tests work in directories of their own")]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use graph_archive::changes::{Tree, compare};
use graph_archive::idmap::{IdMappings, IdRange};
use graph_core::driver::{ApplyDiffOptions, CreateOptions, DiffRequest, GetOptions, ReownRequest};
use graph_core::registry::DriverSetup;
use graph_core::{Driver, DriverExt, Error, ErrorKind, LayerId};
use graph_sys::io::Errno;
use graph_sys::mount::{MountFlags, UnmountFlags};

use super::mounter::{Mounter, Setting, instance};
use super::{Aufs, MAX_LOWERS, probe};

/// What was asked of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Settings(Vec<Setting>),
    Mount(MountFlags, String),
    Remount(MountFlags, String),
    Unmount(UnmountFlags),
}

/// A kernel that notes down what it is asked, and holds the branches that it was given.
#[derive(Debug, Default)]
struct Recorder {
    calls: Mutex<Vec<Call>>,
    branches: Mutex<Vec<(PathBuf, Vec<Vec<u8>>)>>,
    /// Knows no fsopen(2) for AUFS.
    classic_only: bool,
    /// The remount of this number, from 1, fails.
    fails_at: Mutex<Option<usize>>,
    /// So many unmounts find the mount busy.
    busy: Mutex<u32>,
    /// Loses the last branch it was given.
    loses_one: bool,
}

fn error(errno: Errno) -> graph_sys::Error {
    // There is no other way to an error than a call that gives it.
    let failed = match errno {
        Errno::NOENT => graph_sys::mount::classic::unmount(b"/no/such/directory", UnmountFlags::empty()),
        _ => graph_sys::mount::classic::mount(b"x", b"/", "x", MountFlags::empty(), &[b'x'; 5000]),
    };
    failed.unwrap_err()
}

impl Recorder {
    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
    fn add(&self, target: &Path, more: Vec<Vec<u8>>) {
        let mut all = self.branches.lock().unwrap();
        match all.iter_mut().find(|(path, _)| path == target) {
            Some((_, branches)) => branches.extend(more),
            None => all.push((target.to_owned(), more)),
        }
    }
}

impl Mounter for Recorder {
    fn mount_by_settings(&self, target: &Path, _read_only: bool, settings: &[Setting]) -> graph_sys::Result<()> {
        if self.classic_only {
            return Err(error(Errno::NOENT));
        }
        assert!(settings.len() <= 60, "{} settings hang the kernel", settings.len());
        let mut branches = Vec::new();
        for setting in settings {
            if let Setting::Text(key, value) = setting {
                assert!(value.len() <= 255, "{} bytes are cut off", value.len());
                if matches!(*key, "br" | "append") {
                    branches.push(value.clone());
                }
            }
        }
        self.add(target, branches);
        self.calls.lock().unwrap().push(Call::Settings(settings.to_vec()));
        Ok(())
    }
    fn mount(&self, target: &Path, flags: MountFlags, options: &[u8]) -> graph_sys::Result<()> {
        let text = String::from_utf8(options.to_vec()).unwrap();
        assert!(text.len() <= 4095);
        let branches = text.strip_prefix("br:").unwrap().split(',').next().unwrap();
        let words = text.split(',').count() - 1;
        let branches: Vec<Vec<u8>> = branches.split(':').map(|branch| branch.as_bytes().to_vec()).collect();
        assert!(branches.len() + words <= 60, "{} options hang the kernel", branches.len() + words);
        self.add(target, branches);
        self.calls.lock().unwrap().push(Call::Mount(flags, text));
        Ok(())
    }
    fn remount(&self, target: &Path, flags: MountFlags, options: &[u8]) -> graph_sys::Result<()> {
        let text = String::from_utf8(options.to_vec()).unwrap();
        assert!(text.len() <= 4095);
        let branches: Vec<Vec<u8>> =
            text.split(',').map(|word| word.strip_prefix("append:").unwrap().as_bytes().to_vec()).collect();
        assert!(branches.len() <= 60);
        self.calls.lock().unwrap().push(Call::Remount(flags, text));
        let remounts = self.calls.lock().unwrap().iter().filter(|call| matches!(call, Call::Remount(..))).count();
        let mut fails_at = self.fails_at.lock().unwrap();
        if Some(remounts) == *fails_at {
            *fails_at = None;
            return Err(error(Errno::TOOBIG));
        }
        self.add(target, branches);
        Ok(())
    }
    fn unmount(&self, target: &Path, flags: UnmountFlags) -> graph_sys::Result<()> {
        self.calls.lock().unwrap().push(Call::Unmount(flags));
        let mut busy = self.busy.lock().unwrap();
        if *busy > 0 {
            *busy -= 1;
            // The root is busy for everybody.
            return graph_sys::mount::classic::unmount(b"/", UnmountFlags::empty());
        }
        self.branches.lock().unwrap().retain(|(path, _)| path != target);
        Ok(())
    }
    fn is_mounted(&self, target: &Path) -> io::Result<bool> {
        Ok(self.branches.lock().unwrap().iter().any(|(path, _)| path == target))
    }
    fn branches(&self, target: &Path) -> io::Result<Option<Vec<Vec<u8>>>> {
        let all = self.branches.lock().unwrap();
        let mut found = all.iter().find(|(path, _)| path == target).map(|(_, branches)| branches.clone());
        if self.loses_one
            && let Some(branches) = &mut found
        {
            branches.pop();
        }
        Ok(found)
    }
}

fn id(text: &str) -> LayerId {
    LayerId::new(text).unwrap()
}

fn setup(root: &Path) -> DriverSetup {
    DriverSetup { root: root.to_path_buf(), run_root: root.join("run"), ..DriverSetup::default() }
}

/// A driver on a kernel with AUFS, whose calls are noted down, those of opening it left out.
fn recorded(root: &Path, recorder: Recorder) -> (Arc<Recorder>, Aufs) {
    let recorder = Arc::new(recorder);
    let aufs = Aufs::open_with(&setup(root), Arc::clone(&recorder) as Arc<dyn Mounter>, Ok(())).unwrap();
    recorder.calls();
    (recorder, aufs)
}

/// A driver on a kernel without AUFS, for a home that is there.
fn unmountable(root: &Path) -> Aufs {
    fs::create_dir_all(root.join("aufs/diff")).unwrap();
    let recorder = Arc::new(Recorder::default());
    Aufs::open_with(&setup(root), recorder, Err(probe::NOT_FOUND)).unwrap()
}

fn create(driver: &dyn Driver, name: &str, parent: Option<&str>) {
    driver.create_read_write(&id(name), parent.map(id).as_ref(), &CreateOptions::default()).unwrap();
}

fn stack_of(aufs: &Aufs, layers: usize) -> LayerId {
    create(aufs, "0", None);
    for number in 1..layers {
        create(aufs, &number.to_string(), Some(&(number - 1).to_string()));
    }
    id(&(layers - 1).to_string())
}

fn is_root() -> bool {
    let root = graph_sys::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

#[test]
fn new_homes_need_aufs_in_the_kernel() {
    let temp = tempfile::tempdir().unwrap();
    for reason in [probe::NOT_FOUND, probe::NOT_IN_USER_NAMESPACE] {
        let opened = Aufs::open_with(&setup(temp.path()), Arc::new(Recorder::default()), Err(reason));
        let refused = opened.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotSupported);
        assert_eq!(refused.to_string(), format!("{reason}: driver not supported"));
    }
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0, "a refused driver leaves no home");
    assert_eq!(probe::NOT_FOUND, "AUFS was not found in /proc/filesystems");
    assert_eq!(probe::NOT_IN_USER_NAMESPACE, "AUFS cannot be used in non-init user namespace");
}

#[test]
fn homes_are_laid_out_as_containers_storage_does() {
    if !is_root() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let aufs = unmountable(temp.path());
    create(&aufs, "1", None);
    create(&aufs, "2", Some("1"));
    create(&aufs, "3", Some("2"));
    let home = temp.path().join("aufs");
    for name in ["mnt", "layers", "diff"] {
        for layer in ["1", "2", "3"] {
            assert!(home.join(name).join(layer).exists(), "{name}/{layer}");
        }
    }
    assert_eq!(fs::read_to_string(home.join("layers/1")).unwrap(), "");
    assert_eq!(fs::read_to_string(home.join("layers/3")).unwrap(), "2\n1\n");
    assert_eq!(fs::metadata(home.join("diff/1")).unwrap().mode() & 0o7777, 0o555);
    fs::set_permissions(home.join("diff/3"), PermissionsExt::from_mode(0o2711)).unwrap();
    create(&aufs, "4", Some("3"));
    assert_eq!(fs::metadata(home.join("diff/4")).unwrap().mode() & 0o7777, 0o2711);
    let status = aufs.status().unwrap();
    assert_eq!(status[0], ("Root Dir".to_owned(), home.display().to_string()));
    assert_eq!((status[1].0.as_str(), status[3].0.as_str()), ("Backing Filesystem", "Dirperm1 Supported"));
    assert_eq!(status[2], ("Dirs".to_owned(), "4".to_owned()));
    assert_eq!(status[4].1, "no: AUFS was not found in /proc/filesystems");
    assert_eq!(aufs.metadata(&id("3")).unwrap()["Parent"], "2");
    assert_eq!(aufs.get(&id("1"), &GetOptions::default()).unwrap().path(), home.join("diff/1"));
    let refused = aufs.get(&id("2"), &GetOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("AUFS was not found in /proc/filesystems"), "{refused}");

    // Left by the other driver, and by us.
    for left in ["mnt/x-removing", "diff/x-removing", "mnt/gone"] {
        fs::create_dir(home.join(left)).unwrap();
    }
    fs::write(home.join("layers/gone"), "1\n").unwrap();
    let aufs = unmountable(temp.path());
    assert!(!home.join("mnt/x-removing").exists() && !home.join("diff/x-removing").exists());
    let left: Vec<_> = aufs.leftovers(true).unwrap().into_iter().map(|left| left.path).collect();
    assert_eq!(left, [home.join("layers/gone"), home.join("mnt/gone")]);
    assert_eq!(aufs.leftovers(true).unwrap().len(), 0);
    aufs.remove(&id("4")).unwrap();
    aufs.remove(&id("4")).unwrap();
    for name in ["mnt", "layers", "diff"] {
        assert!(!home.join(name).join("4").exists());
    }
    assert_eq!(aufs.list_layers().unwrap(), [id("1"), id("2"), id("3")]);
    assert_eq!(fs::read_dir(home.join("tempdirs")).unwrap().count(), 0);
}

#[test]
fn refusals_say_why() {
    let temp = tempfile::tempdir().unwrap();
    let aufs = unmountable(temp.path());
    create(&aufs, "base", None);
    let refuse = |name: &str, parent: Option<&str>| {
        aufs.create(&id(name), parent.map(id).as_ref(), &CreateOptions::default()).unwrap_err()
    };
    assert_eq!(refuse("base", None).kind(), ErrorKind::Exists);
    assert_eq!(refuse("x", Some("none")).kind(), ErrorKind::NotFound);
    for bad in ["a:b", "a,b", "a=b", "x-removing"] {
        assert_eq!(refuse(bad, None).kind(), ErrorKind::InvalidArgument, "{bad}");
    }
    let limited =
        CreateOptions { storage_opt: [("size".to_owned(), "1G".to_owned())].into(), ..CreateOptions::default() };
    assert_eq!(
        aufs.create_read_write(&id("x"), None, &limited).unwrap_err().to_string(),
        "aufs: --storage-opt (aufs has no quotas) is not supported"
    );
    fs::write(temp.path().join("aufs/layers/base"), "base\n").unwrap();
    assert_eq!(aufs.changes_to(&id("base"), None).unwrap_err().kind(), ErrorKind::Corrupt);
}

/// One call for few layers, by fsconfig where there is one.
#[test]
fn a_mount_option_by_option() {
    let temp = tempfile::tempdir().unwrap();
    let (recorder, aufs) = recorded(temp.path(), Recorder::default());
    let top = stack_of(&aufs, 3);
    let mounted = aufs.get(&top, &GetOptions::default()).unwrap();
    let home = temp.path().join("aufs");
    assert_eq!(mounted.path(), home.join("mnt/2"));
    let text = |key, value: String| Setting::Text(key, value.into_bytes());
    let expected = vec![
        text("br", format!("{}=rw", home.join("diff/2").display())),
        text("append", format!("{}=ro+wh", home.join("diff/1").display())),
        text("append", format!("{}=ro+wh", home.join("diff/0").display())),
        Setting::Flag("dio".to_owned()),
        text("xino", temp.path().join("run/aufs/aufs.xino").display().to_string()),
        Setting::Flag("dirperm1".to_owned()),
    ];
    assert_eq!(recorder.calls(), [Call::Settings(expected)]);
    let again = aufs.get(&top, &GetOptions::default()).unwrap();
    again.put().unwrap();
    assert_eq!(recorder.calls(), []);
    mounted.put().unwrap();
    assert_eq!(recorder.calls(), [Call::Unmount(UnmountFlags::empty())]);

    // For reading only, with flags that are no options.
    let options = GetOptions { options: vec!["ro".to_owned(), "nodev".to_owned()], ..GetOptions::default() };
    aufs.get(&top, &options).unwrap().put().unwrap();
    let calls = recorder.calls();
    let Call::Mount(flags, options) = &calls[0] else { panic!("{calls:?}") };
    assert_eq!(*flags, MountFlags::RDONLY | MountFlags::NODEV);
    assert!(options.starts_with(&format!("br:{}=ro+wh:", home.join("diff/2").display())), "{options}");
}

/// 127 branches: in calls of at most 60 options each; one more is an error before any call.
#[test]
fn many_branches_go_in_batches() {
    for classic_only in [false, true] {
        let temp = tempfile::tempdir().unwrap();
        let (recorder, aufs) = recorded(temp.path(), Recorder { classic_only, ..Recorder::default() });
        let top = stack_of(&aufs, MAX_LOWERS + 1);
        let mounted = aufs.get(&top, &GetOptions::default()).unwrap();
        let branches = recorder.branches(mounted.path()).unwrap().unwrap();
        let path = |number: usize| temp.path().join("aufs/diff").join(number.to_string()).display().to_string();
        let expected: Vec<Vec<u8>> = (0..=MAX_LOWERS)
            .rev()
            .map(|number| {
                format!("{}={}", path(number), if number == MAX_LOWERS { "rw" } else { "ro+wh" }).into_bytes()
            })
            .collect();
        assert_eq!(branches, expected);
        let calls = recorder.calls();
        if classic_only {
            assert!(matches!(&calls[0], Call::Mount(..)), "{calls:?}");
        } else {
            assert!(matches!(&calls[0], Call::Settings(settings) if settings.len() == 60), "{calls:?}");
        }
        assert!(calls[1..].iter().all(|call| matches!(call, Call::Remount(..))));
        mounted.put().unwrap();
        let error = aufs.create(&id("more"), Some(&top), &CreateOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), "layer 126: max depth exceeded: 127 layers below it, the limit is 126");
        assert_eq!(error.kind(), ErrorKind::TooDeep);
    }
}

/// The bytes of a call are bounded too, wherever the boundary falls in a path.
#[test]
fn long_paths_go_in_more_calls() {
    for length in [60, 197, 210, 220, 230] {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("x".repeat(length));
        fs::create_dir(&root).unwrap();
        let (recorder, aufs) = recorded(&root, Recorder::default());
        let top = stack_of(&aufs, 100);
        let mounted = aufs.get(&top, &GetOptions::default()).unwrap();
        assert_eq!(recorder.branches(mounted.path()).unwrap().unwrap().len(), 100, "{length}");
        let calls = recorder.calls();
        let long = matches!(calls[0], Call::Mount(..));
        let branch = root.join("aufs/diff/98").as_os_str().len() + "=ro+wh".len();
        assert_eq!(long, branch > 255, "{length}: {calls:?}");
        mounted.put().unwrap();
    }
}

#[test]
fn a_mount_that_fails_half_way_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let (recorder, aufs) =
        recorded(temp.path(), Recorder { fails_at: Mutex::new(Some(2)), classic_only: true, ..Recorder::default() });
    let top = stack_of(&aufs, 127);
    aufs.get(&top, &GetOptions::default()).unwrap_err();
    assert_eq!(recorder.calls().last(), Some(&Call::Unmount(UnmountFlags::DETACH)));
    assert!(!recorder.is_mounted(&temp.path().join("aufs/mnt/126")).unwrap());
    // No reference was taken: the next one mounts again.
    aufs.get(&top, &GetOptions::default()).unwrap().put().unwrap();

    let temp = tempfile::tempdir().unwrap();
    let (_, aufs) = recorded(temp.path(), Recorder { loses_one: true, ..Recorder::default() });
    let top = stack_of(&aufs, 3);
    let error = aufs.get(&top, &GetOptions::default()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "AUFS has stacked 2 branches where 3 were asked for");
}

#[test]
fn paths_that_aufs_cannot_take_are_refused() {
    for bad in ["a:b", "a,b", "a=b"] {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join(bad);
        fs::create_dir(&root).unwrap();
        fs::create_dir_all(root.join("aufs/diff")).unwrap();
        let aufs = unmountable(&root);
        let top = stack_of(&aufs, 2);
        let recorder = Recorder::default();
        let target = root.join("aufs/mnt/1");
        let words = aufs.words(&top, &GetOptions::default()).unwrap();
        let error = aufs.stack(&top, &target, &[id("0")], false, words).mount(&recorder).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("AUFS takes no path with"), "{error}");
        assert_eq!(recorder.calls(), []);
    }
}

#[test]
fn busy_mounts_are_tried_again_and_then_told() {
    let temp = tempfile::tempdir().unwrap();
    let (recorder, aufs) = recorded(temp.path(), Recorder::default());
    let top = stack_of(&aufs, 2);
    let mounted = aufs.get(&top, &GetOptions::default()).unwrap();
    *recorder.busy.lock().unwrap() = 3;
    mounted.put().unwrap();
    let unmounts = recorder.calls().iter().filter(|call| matches!(call, Call::Unmount(_))).count();
    assert_eq!(unmounts, 4);
    let mounted = aufs.get(&top, &GetOptions::default()).unwrap();
    let open = fs::File::open(temp.path().join("aufs/layers/1")).unwrap();
    *recorder.busy.lock().unwrap() = 100;
    let error = mounted.put().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    // The mount point of the recorder is an ordinary directory, so whoever has a file of its file system open is named.
    let own = format!("(process {})", std::process::id());
    let Error::InUse { by, .. } = &error else { panic!("{error}") };
    assert!(by.contains(&own) || by.contains("more"), "{error}");
    drop(open);
    *recorder.busy.lock().unwrap() = 0;
    // It counts as somebody else's now, and can be put again.
    aufs.put(&top).unwrap();
    aufs.put(&top).unwrap();
}

#[test]
fn instances_of_mounts() {
    assert_eq!(instance(b"rw,relatime,si=4f2a09,dio,dirperm1"), Some("4f2a09"));
    for bad in [&b""[..], b"rw", b"si=", b"si=../x", b"rw,xsi=4"] {
        assert_eq!(instance(bad), None);
    }
}

/// What AUFS remembers of links, and the touch that makes them whole: nothing of the files changes but what must.
#[test]
fn links_are_touched_by_inode_number() {
    let temp = tempfile::tempdir().unwrap();
    let (upper, shown) = (temp.path().join("upper"), temp.path().join("shown"));
    fs::create_dir_all(upper.join(".wh..wh.plnk")).unwrap();
    fs::create_dir_all(shown.join("d/e")).unwrap();
    fs::write(shown.join("a"), "1").unwrap();
    fs::hard_link(shown.join("a"), shown.join("d/e/b")).unwrap();
    fs::write(shown.join("other"), "2").unwrap();
    fs::set_permissions(shown.join("a"), PermissionsExt::from_mode(0o4755)).unwrap();
    let before = fs::metadata(shown.join("a")).unwrap();
    let open = |path: &Path| OwnedFd::from(fs::File::open(path).unwrap());
    assert_eq!(super::flush::flush(&shown, &open(&upper)).unwrap(), 0);
    fs::write(upper.join(format!(".wh..wh.plnk/{}.77", before.ino())), "").unwrap();
    fs::write(upper.join(".wh..wh.plnk/nonsense"), "").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(super::flush::flush(&shown, &open(&upper)).unwrap(), 2);
    let after = fs::metadata(shown.join("a")).unwrap();
    assert_eq!((before.mtime(), before.mtime_nsec(), before.mode()), (after.mtime(), after.mtime_nsec(), after.mode()));
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()), "it was touched");
    let other = fs::metadata(shown.join("other")).unwrap();
    assert!((other.ctime(), other.ctime_nsec()) < (after.ctime(), after.ctime_nsec()));
}

/// An archive made by GNU tar of a tree that the shell makes.
fn archive(script: &str) -> Vec<u8> {
    let temp = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(["-ec", &format!("{script}\nfind . -mindepth 1 -exec touch -hd @1700000000 {{}} +\ntar --numeric-owner --sort=name -c --format=pax --pax-option=delete=atime,delete=ctime .")])
        .current_dir(temp.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Layers with everything that hides and is hidden.
fn stories() -> Vec<Vec<Vec<u8>>> {
    [
        // Whiteouts, opaque directories, files for directories and the reverse, and what was deleted made again.
        vec![
            "mkdir -p a/b c d/e; echo 1 > a/b/f; echo 2 > a/g; echo 3 > c/h; echo 4 > d/e/i; echo 5 > '!x'; echo 5 > x; ln x y",
            "mkdir -p a c; touch a/.wh.b; echo new > a/k; touch c/.wh..wh..opq; echo other > c/l; touch .wh.x '.wh.!x'",
            "mkdir -p a/b; echo again > a/b/n; echo x > x; touch .wh.d",
            "touch .wh.a; echo file > c2; mkdir d; echo 9 > d/j",
        ],
        // In one archive: whiteouts beside what takes the name again, before and behind it.
        vec![
            "mkdir -p p/q r; echo 1 > p/q/s; echo 2 > p/t; echo 3 > r/u; ln -s p/t l",
            "mkdir -p p r; touch p/.wh.q; mkdir p/q; echo 4 > p/q/new; touch .wh.r; touch .wh.l; echo f > l",
            "touch p/.wh..wh..opq 2>/dev/null || { mkdir p; touch p/.wh..wh..opq; }; touch .wh..wh..opq; echo only > z",
        ],
        // Links to files of lower layers, and names that only look like marks.
        vec![
            "mkdir m; echo 1 > m/one; ln m/one m/two; echo w > a.wh.b; mkdir '.w'; setfattr -n user.k -v v m",
            "mkdir -p m/n; echo more > m/n/o; touch m/.wh.two",
            "mkdir -p m; touch m/.wh.one; setfattr -n user.k -v w m; chmod 0711 m",
        ],
    ]
    .map(|story| story.into_iter().map(archive).collect())
    .to_vec()
}

fn names(root: &OwnedFd) -> BTreeSet<String> {
    let all = Tree { root: root.as_fd(), mappings: &IdMappings::default() };
    let found = compare(None, all).unwrap().changes;
    found.into_iter().map(|change| String::from_utf8(change.path).unwrap()).collect()
}

fn ensure_same(left: &OwnedFd, right: &OwnedFd, what: &str) {
    let mappings = IdMappings::default();
    let tree = |root| Tree { root, mappings: &mappings };
    let changes = compare(Some(tree(left.as_fd())), tree(right.as_fd())).unwrap().changes;
    assert_eq!(changes, [], "{what}: {:?} and {:?}", names(left), names(right));
}

/// Whoever applies, shows or compares layers: whole trees, the overlay's marks and AUFS's come to the same.
#[test]
fn layers_are_what_the_other_drivers_make_of_them() {
    if !is_root() {
        return;
    }
    in_private_mounts(|| {
        for (number, story) in stories().into_iter().enumerate() {
            let temp = tempfile::tempdir().unwrap();
            let aufs = unmountable(temp.path());
            let vfs = crate::vfs::Vfs::open(&setup(temp.path())).unwrap();
            let copy = unmountable(&temp.path().join("copy"));
            let mut parent: Option<LayerId> = None;
            for (layer, archive) in story.iter().enumerate() {
                let what = format!("story {number}, layer {layer}");
                let name = id(&format!("layer{layer}"));
                for driver in [&aufs as &dyn Driver, &vfs] {
                    let mut staged = driver.begin_staged(parent.as_ref(), &CreateOptions::default()).unwrap();
                    staged.apply(&mut archive.as_slice(), &mut ApplyDiffOptions::default()).unwrap();
                    staged.publish(&name).unwrap();
                }
                ensure_same(&vfs.peek(&name).unwrap(), &aufs.peek(&name).unwrap(), &what);
                let request = DiffRequest::unmapped(&name, parent.as_ref());
                let changes = aufs.changes(&request).unwrap();
                assert_eq!(changes, vfs.changes(&request).unwrap(), "{what}");
                assert_eq!(aufs.diff_size(&request).unwrap(), vfs.diff_size(&request).unwrap(), "{what}");
                // Against anything else than the layer below.
                let whole = DiffRequest::unmapped(&name, None);
                assert_eq!(aufs.changes(&whole).unwrap(), vfs.changes(&whole).unwrap(), "{what}");
                // Its own diff makes it again, and the same diff; in one go and into a layer that is there.
                let (diff, _) = aufs.diff_to_vec(&name, parent.as_ref()).unwrap();
                copy.create(&name, parent.as_ref(), &CreateOptions::default()).unwrap();
                copy.apply_slice(&name, parent.as_ref(), &diff).unwrap();
                ensure_same(&aufs.peek(&name).unwrap(), &copy.peek(&name).unwrap(), &format!("{what}, copied"));
                copy.apply_slice(&name, parent.as_ref(), &diff).unwrap();
                ensure_same(&aufs.peek(&name).unwrap(), &copy.peek(&name).unwrap(), &format!("{what}, copied twice"));
                parent = Some(name);
            }
        }
    });
}

/// A layer as AUFS itself leaves it: its own files, marks that are names of one inode, links that it remembers.
#[test]
fn what_aufs_keeps_for_itself_is_never_told() {
    if !is_root() {
        return;
    }
    in_private_mounts(|| {
        let temp = tempfile::tempdir().unwrap();
        let aufs = unmountable(temp.path());
        create(&aufs, "base", None);
        aufs.apply_slice(&id("base"), None, &archive("mkdir -p d; echo 1 > d/x; echo 2 > y; echo 3 > z")).unwrap();
        create(&aufs, "c", Some("base"));
        let diff = temp.path().join("aufs/diff/c");
        fs::create_dir_all(diff.join(".wh..wh.plnk")).unwrap();
        fs::create_dir_all(diff.join(".wh..wh.orph")).unwrap();
        fs::write(diff.join(".wh..wh.aufs"), "").unwrap();
        for mark in [".wh.y", ".wh.nothing"] {
            fs::hard_link(diff.join(".wh..wh.aufs"), diff.join(mark)).unwrap();
        }
        fs::create_dir(diff.join("d")).unwrap();
        fs::hard_link(diff.join(".wh..wh.aufs"), diff.join("d/.wh..wh..opq")).unwrap();
        fs::write(diff.join("z"), "longer").unwrap();
        fs::hard_link(diff.join("z"), diff.join(".wh..wh.plnk/12.46")).unwrap();
        fs::write(diff.join("d/new"), "n").unwrap();
        // Beside its own whiteout: not seen.
        fs::write(diff.join("hidden"), "h").unwrap();
        fs::write(diff.join(".wh.hidden"), "").unwrap();

        let (name, base) = (id("c"), id("base"));
        let told: Vec<_> = aufs
            .changes_to(&name, Some(&base))
            .unwrap()
            .into_iter()
            .map(|change| format!("{:?} {}", change.kind, String::from_utf8(change.path).unwrap()))
            .collect();
        assert_eq!(told, ["Modify /d", "Add /d/new", "Delete /d/x", "Delete /y", "Modify /z"]);
        let shown = names(&aufs.peek(&name).unwrap());
        assert_eq!(shown, ["/d", "/d/new", "/z"].map(str::to_owned).into());
        let (diff, report) = aufs.diff_to_vec(&name, Some(&base)).unwrap();
        assert_eq!(report.bytes, diff.len() as u64);
        let mut list = Command::new("tar")
            .args(["-tv", "--numeric-owner"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        io::Write::write_all(list.stdin.as_mut().unwrap(), &diff).unwrap();
        drop(list.stdin.take());
        let text = String::from_utf8(list.wait_with_output().unwrap().stdout).unwrap();
        let members: Vec<_> = text.lines().map(|line| line.split_whitespace().last().unwrap().to_owned()).collect();
        assert_eq!(members, [".wh.hidden", ".wh.nothing", ".wh.y", "d/", "d/.wh..wh..opq", "d/new", "z"]);
        assert!(!text.contains("link to"), "{text}");
        assert_eq!(aufs.diff_size(&DiffRequest::unmapped(&name, Some(&base))).unwrap(), 7);
    });
}

#[test]
fn names_that_aufs_cannot_show_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let aufs = unmountable(temp.path());
    create(&aufs, "base", None);
    let long = "x".repeat(242);
    aufs.apply_slice(&id("base"), None, &archive(&format!("touch {long}"))).unwrap();
    let error = aufs.apply_slice(&id("base"), None, &archive(&format!("mkdir d; touch d/{long}y"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Archive);
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("242 bytes"), "{cause}");
}

fn mappings(first: u32) -> IdMappings {
    let range = IdRange { container_id: 0, host_id: first, size: 65536 };
    IdMappings { uids: vec![range], gids: vec![range] }
}

/// A child with other owners: everything it shows is theirs, what it changed is the same, and so is its diff.
#[test]
fn owners_change_by_a_copy() {
    if !is_root() {
        return;
    }
    in_private_mounts(|| {
        let temp = tempfile::tempdir().unwrap();
        let aufs = unmountable(temp.path());
        let mut parent = None;
        for (layer, archive) in stories().swap_remove(0).iter().enumerate() {
            let name = id(&format!("layer{layer}"));
            aufs.create(&name, parent.as_ref(), &CreateOptions::default()).unwrap();
            aufs.apply_slice(&name, parent.as_ref(), archive).unwrap();
            parent = Some(name);
        }
        let (top, below) = (id("layer2"), id("layer1"));
        let (identity, mapped) = (IdMappings::default(), mappings(100_000));
        let before = names(&aufs.peek(&top).unwrap());
        let request = DiffRequest::unmapped(&top, Some(&below));
        let changes = aufs.changes(&request).unwrap();

        let reowned = ReownRequest { parent: Some(&below), template: Some(&top), mappings: &identity };
        let options = CreateOptions { mappings: mapped.clone(), ..CreateOptions::default() };
        aufs.begin_reowned(&reowned, &options).unwrap().publish(&id("new")).unwrap();
        aufs.update_layer_id_map(&top, &identity, &mapped, "").unwrap();
        for name in ["layer2", "new"] {
            let name = id(name);
            let root = aufs.peek(&name).unwrap();
            assert_eq!(names(&root), before);
            let request = DiffRequest {
                id: &name,
                mappings: &mapped,
                parent: Some(&below),
                parent_mappings: &identity,
                mount_label: "",
            };
            assert_eq!(aufs.changes(&request).unwrap(), changes, "{name}");
            let mut diff = Vec::new();
            aufs.diff(&request, &mut diff).unwrap();
            aufs.create(&id("again"), Some(&below), &CreateOptions::default()).unwrap();
            aufs.apply_slice(&id("again"), Some(&below), &diff).unwrap();
            assert_eq!(aufs.changes_to(&id("again"), Some(&below)).unwrap(), changes);
            aufs.remove(&id("again")).unwrap();
            // On disk all of it belongs to the new owner.
            let diff = temp.path().join("aufs/diff").join(name.as_str());
            for entry in ["", "a", "a/b/n", "a/k", "c/l", "y", "x"] {
                assert_eq!(fs::symlink_metadata(diff.join(entry)).unwrap().uid(), 100_000, "{name} {entry}");
            }
        }
        assert_eq!(aufs.list_layers().unwrap().len(), 5);
    });
}

/// Runs in a mount namespace of its own, on a thread of its own.
fn in_private_mounts(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(|| {
        graph_sys::namespace::private_mounts().unwrap();
        test();
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
