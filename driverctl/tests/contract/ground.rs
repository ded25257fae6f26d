//! Calling the command line as scripts do: both streams together, with `--debug` and all.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// The program under test.
const DRIVERCTL: &str = env!("CARGO_BIN_EXE_driverctl");

/// Where a row happens: a directory with a graph root `root` and a run root `runroot` on the file system under test.
pub(crate) struct Ground {
    pub(crate) dir: PathBuf,
    pub(crate) driver: &'static str,
    pub(crate) transient: bool,
}

/// What a call ended with.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: ExitStatus,
    /// Standard output and error as they came, without the ends of the last lines.
    pub(crate) output: String,
}

impl Answer {
    pub(crate) fn lines(&self) -> Vec<&str> {
        self.output.lines().collect()
    }
}

/// Runs a command; its input is empty and its two outputs are one.
pub(crate) fn merged(command: &mut Command) -> Answer {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut child = command.stdin(Stdio::null()).stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
    // The command keeps the writing ends otherwise, and the reading one would never come to an end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    let status = child.wait().unwrap();
    Answer { status, output: String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned() }
}

impl Ground {
    pub(crate) fn new(target: &Path, driver: &'static str, transient: bool) -> Self {
        let dir = target.join("tmp.ground");
        fs::create_dir(&dir).unwrap();
        for name in ["root", "runroot"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        Self { dir, driver, transient }
    }

    /// A path in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The same as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The program alone, in the surroundings of the tests.
    pub(crate) fn bare(&self) -> Command {
        let mut command = Command::new(DRIVERCTL);
        command
            .env("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes")
            .env("STORAGE_DRIVER", self.driver)
            .env_remove("STORAGE_OPTS")
            .env_remove("CONTAINERS_STORAGE_CONF")
            .current_dir(&self.dir);
        command
    }

    /// The program on this store.
    pub(crate) fn storage(&self, words: &[&str]) -> Command {
        let mut command = self.bare();
        command.arg("--debug").args(["--graph", &self.text("root"), "--run", &self.text("runroot")]);
        if self.transient {
            command.arg("--transient-store");
        }
        command.args(["--storage-driver", self.driver]).args(words);
        command
    }

    /// Runs it with debugging output, come what may.
    pub(crate) fn run(&self, words: &[&str]) -> Answer {
        merged(&mut self.storage(words))
    }

    /// Must succeed; everything it said, on both streams, without debugging output.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let answer = self.run(&[&["--debug=false"], words].concat());
        assert!(answer.status.success(), "{words:?}: {answer:?}");
        answer.output
    }

    /// Must succeed with debugging output, whatever it says.
    pub(crate) fn debugged(&self, words: &[&str]) {
        let answer = self.run(words);
        assert!(answer.status.success(), "{words:?}: {answer:?}");
    }

    /// Must fail with status 1; everything it said, without debugging output.
    pub(crate) fn fails(&self, words: &[&str]) -> String {
        let answer = self.run(&[&["--debug=false"], words].concat());
        assert_eq!(answer.status.code(), Some(1), "{words:?}: {answer:?}");
        answer.output
    }

    /// Its lines, sorted by the bytes of the second word and what follows it, as `sort -k2` does.
    pub(crate) fn sorted_by_second_word(&self, words: &[&str]) -> Vec<String> {
        let mut lines: Vec<String> = self.ok(words).lines().map(str::to_owned).collect();
        lines.sort_by_key(|line| line.split_once(' ').map(|(_, rest)| rest.to_owned()));
        lines
    }

    /// Runs the verb that makes something and gives its id.
    pub(crate) fn id(&self, words: &[&str]) -> String {
        let output = self.ok(words);
        let id = output.lines().next().unwrap_or_default().to_owned();
        assert!(!id.is_empty(), "{words:?}: no id");
        id
    }

    /// Mounts and gives the directory.
    pub(crate) fn mount(&self, object: &str) -> PathBuf {
        let path = PathBuf::from(self.ok(&["mount", object]));
        assert!(path.is_dir(), "{object} is mounted nowhere: {path:?}");
        path
    }

    /// Three layers with files and directories added and removed in each; all left unmounted.
    pub(crate) fn populate(&self) -> [String; 3] {
        let lower = self.id(&["create-layer"]);
        let root = self.mount(&lower);
        for n in 1..=3 {
            random_file(&root.join(format!("layer1file{n}")));
        }
        for n in 1..=9 {
            let dir = root.join(format!("layerdir{n}"));
            fs::create_dir(&dir).unwrap();
            match n {
                4..=6 => fs::create_dir(dir.join("layer1subdir")).unwrap(),
                7..=9 => random_file(&dir.join(format!("layer1file{}", n - 3))),
                _ => {}
            }
        }
        self.debugged(&["unmount", &lower]);

        let mid = self.id(&["create-layer", &lower]);
        let root = self.mount(&mid);
        assert_eq!(names(&root).len(), 12);
        for name in ["layer1file1", "layer1file2", "layerdir7/layer1file4", "layerdir8/layer1file5"] {
            fs::remove_file(root.join(name)).unwrap();
        }
        for name in ["1", "2", "4/layer1subdir", "4", "5/layer1subdir", "5", "7", "8"] {
            fs::remove_dir(root.join(format!("layerdir{name}"))).unwrap();
        }
        random_file(&root.join("layer2file1"));
        for name in ["10", "11", "11/layer2subdir", "12"] {
            fs::create_dir(root.join(format!("layerdir{name}"))).unwrap();
        }
        random_file(&root.join("layerdir12/layer2file2"));
        self.debugged(&["unmount", &mid]);

        let upper = self.id(&["create-layer", &mid]);
        let root = self.mount(&upper);
        assert_eq!(
            names(&root),
            [
                "layer1file3",
                "layer2file1",
                "layerdir10",
                "layerdir11",
                "layerdir12",
                "layerdir3",
                "layerdir6",
                "layerdir9"
            ]
        );
        random_file(&root.join("layerfile1"));
        for name in ["1", "4", "4/layer1subdir", "7", "3/layer3subdir", "3/layer3subdir/layer3subsubdir"] {
            fs::create_dir(root.join(format!("layerdir{name}"))).unwrap();
        }
        random_file(&root.join("layerdir7/layer1file4"));
        self.debugged(&["unmount", &upper]);
        [lower, mid, upper]
    }

    /// Whether `changes` says of the layers of [`Ground::populate`] what it has to.
    pub(crate) fn check_changes(&self, layers: &[String; 3]) {
        for (layer, expected) in layers.iter().zip(CHANGES) {
            self.debugged(&["changes", layer]);
            let expected: Vec<String> = expected
                .iter()
                .map(|line| line.split_once(' ').unwrap())
                .map(|(word, path)| format!("{word} \"{path}\""))
                .collect();
            assert_eq!(self.sorted_by_second_word(&["changes", layer]), expected);
        }
    }

    /// Whether `diff` writes what it has to; the archives stay as `lower.tar`, `middle.tar` (gzip) and `upper.tar`.
    pub(crate) fn check_diffs(&self, layers: &[String; 3]) {
        for ((layer, (flag, name)), expected) in
            layers.iter().zip([("-u", "lower.tar"), ("-c", "middle.tar"), ("-u", "upper.tar")]).zip(ENTRIES)
        {
            self.debugged(&["diff", flag, "-f", &self.text(name), layer]);
            let magic = fs::read(self.path(name)).unwrap().starts_with(&[0x1f, 0x8b]);
            assert_eq!(magic, flag == "-c", "{name}: compressed?");
            let list = merged(Command::new("tar").args(["tf", &self.text(name)]));
            assert!(list.status.success(), "{list:?}");
            let mut entries = list.lines();
            entries.sort_unstable();
            assert_eq!(entries, *expected, "{name}");
        }
    }

    /// Ends as scripts end: everything deleted, everything unmounted, the directory removable.
    pub(crate) fn finish(&self) {
        self.debugged(&["wipe"]);
        self.debugged(&["shutdown"]);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left: Vec<&str> = table.lines().filter(|line| line.contains("tmp.ground")).collect();
        assert!(left.is_empty(), "left mounted: {left:#?}");
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// The names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

/// A file of 256 random bytes, of a time long ago.
pub(crate) fn random_file(path: &Path) {
    let mut bytes = [0; 256];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    fs::write(path, bytes).unwrap();
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
    fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

const CHANGES: [&[&str]; 3] = [
    &[
        "Add /layer1file1",
        "Add /layer1file2",
        "Add /layer1file3",
        "Add /layerdir1",
        "Add /layerdir2",
        "Add /layerdir3",
        "Add /layerdir4",
        "Add /layerdir4/layer1subdir",
        "Add /layerdir5",
        "Add /layerdir5/layer1subdir",
        "Add /layerdir6",
        "Add /layerdir6/layer1subdir",
        "Add /layerdir7",
        "Add /layerdir7/layer1file4",
        "Add /layerdir8",
        "Add /layerdir8/layer1file5",
        "Add /layerdir9",
        "Add /layerdir9/layer1file6",
    ],
    &[
        "Delete /layer1file1",
        "Delete /layer1file2",
        "Add /layer2file1",
        "Delete /layerdir1",
        "Add /layerdir10",
        "Add /layerdir11",
        "Add /layerdir11/layer2subdir",
        "Add /layerdir12",
        "Add /layerdir12/layer2file2",
        "Delete /layerdir2",
        "Delete /layerdir4",
        "Delete /layerdir5",
        "Delete /layerdir7",
        "Delete /layerdir8",
    ],
    &[
        "Add /layerdir1",
        "Modify /layerdir3",
        "Add /layerdir3/layer3subdir",
        "Add /layerdir3/layer3subdir/layer3subsubdir",
        "Add /layerdir4",
        "Add /layerdir4/layer1subdir",
        "Add /layerdir7",
        "Add /layerdir7/layer1file4",
        "Add /layerfile1",
    ],
];

const ENTRIES: [&[&str]; 3] = [
    &[
        "layer1file1",
        "layer1file2",
        "layer1file3",
        "layerdir1/",
        "layerdir2/",
        "layerdir3/",
        "layerdir4/",
        "layerdir4/layer1subdir/",
        "layerdir5/",
        "layerdir5/layer1subdir/",
        "layerdir6/",
        "layerdir6/layer1subdir/",
        "layerdir7/",
        "layerdir7/layer1file4",
        "layerdir8/",
        "layerdir8/layer1file5",
        "layerdir9/",
        "layerdir9/layer1file6",
    ],
    &[
        ".wh.layer1file1",
        ".wh.layer1file2",
        ".wh.layerdir1",
        ".wh.layerdir2",
        ".wh.layerdir4",
        ".wh.layerdir5",
        ".wh.layerdir7",
        ".wh.layerdir8",
        "layer2file1",
        "layerdir10/",
        "layerdir11/",
        "layerdir11/layer2subdir/",
        "layerdir12/",
        "layerdir12/layer2file2",
    ],
    &[
        "layerdir1/",
        "layerdir3/",
        "layerdir3/layer3subdir/",
        "layerdir3/layer3subdir/layer3subsubdir/",
        "layerdir4/",
        "layerdir4/layer1subdir/",
        "layerdir7/",
        "layerdir7/layer1file4",
        "layerfile1",
    ],
];
