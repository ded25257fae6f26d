//! The codec beside Go's `archive/tar`, which is what podman, buildah, umoci and Docker have.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // helpers of tests fail by panicking and say what they skip

mod tar_support;

use std::fmt::Write as _;
use std::path::PathBuf;

use graph_archive::limits::Limits;
use graph_archive::tar::EncodeOptions;
use graph_archive::{Defect, EntryKind, Error, Timestamp};
use tar_support::{
    Member, crc32, decode, decode_pieces, encode, file, have, header, hex, member, padded, pax, pipe, seal, sh,
};

struct Oracle {
    program: PathBuf,
    _directory: tempfile::TempDir,
}

impl Oracle {
    fn new() -> Option<Self> {
        if !have("go") {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tar_support/oracle.go");
        sh(&format!("GOFLAGS=-mod=mod GOCACHE=$PWD/cache HOME=$PWD go build -o oracle {source}"), directory.path());
        Some(Self { program: directory.path().join("oracle"), _directory: directory })
    }

    /// What Go makes of each archive: a line for each member, then `end` or `error`.
    fn list(&self, archives: &[Vec<u8>]) -> Vec<String> {
        let mut input = Vec::new();
        for archive in archives {
            input.extend_from_slice(&(archive.len() as u64).to_le_bytes());
            input.extend_from_slice(archive);
        }
        let output = String::from_utf8(pipe(&self.program, &["list"], &input)).unwrap();
        let mut lists = vec![String::new()];
        for line in output.lines() {
            let list = lists.last_mut().unwrap();
            writeln!(list, "{line}").unwrap();
            if line == "end" || line == "error" {
                lists.push(String::new());
            }
        }
        assert_eq!(lists.pop().unwrap(), "");
        assert_eq!(lists.len(), archives.len());
        lists
    }
}

/// The line that the oracle prints for a member.
fn line(Member { entry, content }: &Member) -> String {
    let (kind, device) = match entry.kind {
        EntryKind::File => ('0', (0, 0)),
        EntryKind::HardLink => ('1', (0, 0)),
        EntryKind::Symlink => ('2', (0, 0)),
        EntryKind::CharDevice { major, minor } => ('3', (major, minor)),
        EntryKind::BlockDevice { major, minor } => ('4', (major, minor)),
        EntryKind::Directory => ('5', (0, 0)),
        EntryKind::Fifo => ('6', (0, 0)),
        _ => unreachable!(),
    };
    let stamp = |time: Timestamp| match time {
        // Go's zero time, which it takes for no time.
        Timestamp { seconds: -62_135_596_800, nanoseconds: 0 } => "-".to_owned(),
        time => format!("{}.{}", time.seconds, time.nanoseconds),
    };
    let metadata = &entry.metadata;
    let mut xattrs: Vec<_> =
        metadata.xattrs.iter().map(|(name, value)| format!("{}={}", hex(name), hex(value))).collect();
    xattrs.sort();
    format!(
        "{kind} name={} link={} size={} mode={:o} ids={}:{} names={}:{} mtime={} atime={} device={}:{} xattrs={} crc={:08x}\n",
        hex(&entry.path),
        hex(&entry.link_target),
        entry.size,
        metadata.mode,
        metadata.uid,
        metadata.gid,
        hex(&metadata.user_name),
        hex(&metadata.group_name),
        stamp(metadata.mtime),
        metadata.atime.map_or("-".to_owned(), stamp),
        device.0,
        device.1,
        xattrs.join(","),
        crc32(content),
    )
}

/// Our own list, and the error that ended it.
fn our_list(archive: &[u8]) -> (String, Option<Error>) {
    // Members before an error are wanted too, so feed ever shorter limits' worth: decode, and on an error see how far.
    let mut list = String::new();
    let mut decoder = graph_archive::tar::Decoder::new(archive, Limits::default());
    let mut raw = |_: &[u8]| Ok(());
    let error = loop {
        let entry = match decoder.next_entry(&mut raw) {
            Ok(Some(entry)) => entry,
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        if entry.size > 1 << 30 {
            break Some(Error::Unsupported { what: "a file that big in a test".into(), path: entry.path });
        }
        let mut content = Vec::new();
        let data = loop {
            match decoder.next_data(&mut raw) {
                Ok(Some(data)) => {
                    content.resize(usize::try_from(data.offset).unwrap(), 0);
                    content.extend_from_slice(data.bytes);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = data {
            break Some(error);
        }
        content.resize(usize::try_from(entry.size).unwrap(), 0);
        list += &line(&Member { entry, content });
    };
    list += if error.is_some() { "error\n" } else { "end\n" };
    (list, error)
}

fn members() -> Vec<Member> {
    let long = "d".repeat(60);
    let mut members = vec![
        member("dd/", EntryKind::Directory, "", b""),
        file("dd/f", b"hi\n"),
        file("dd/empty", b""),
        file("dd/block", &[7; 512]),
        member("dd/g", EntryKind::HardLink, "dd/f", b""),
        member("s", EntryKind::Symlink, "/abs/../target", b""),
        member("p", EntryKind::Fifo, "", b""),
        member("c", EntryKind::CharDevice { major: 300, minor: 70_000 }, "", b""),
        member("b", EntryKind::BlockDevice { major: 8, minor: 1 }, "", b""),
        file(&"n".repeat(100), b"x"),
        file(&"n".repeat(101), b"x"),
        file(&format!("{long}/{long}/f"), b"x"),
        member(&format!("{long}/{long}/"), EntryKind::Directory, "", b""),
        member(&format!("{}/{}/", "a".repeat(55), "b".repeat(99)), EntryKind::Directory, "", b""),
        member(&format!("{}/{}/", "a".repeat(55), "b".repeat(100)), EntryKind::Directory, "", b""),
        file(&format!("{}/{}", "p".repeat(155), "n".repeat(100)), b"x"),
        file(&format!("{}/{}", "p".repeat(156), "n".repeat(100)), b"x"),
        file(&format!("{}/{}", "p".repeat(155), "n".repeat(101)), b"x"),
        file(&format!("{long}/{long}/{long}/{long}/{long}/f"), b"x"),
        member(&format!("{}/", "ü".repeat(50)), EntryKind::Directory, "", b""),
        file("ümlaut/ä", b"x"),
        file("./dot/f", b"x"),
        file("../up", b"x"),
        file("/abs/f", b"x"),
        file("a//b/./c/../d", b"x"),
        member("..", EntryKind::Directory, "", b""),
        member("./", EntryKind::Directory, "", b""),
        member("l1", EntryKind::Symlink, &"t".repeat(100), b""),
        member("l2", EntryKind::Symlink, &"t".repeat(101), b""),
        member("l3", EntryKind::Symlink, "zwölf", b""),
        member("l4", EntryKind::HardLink, &format!("{long}/{long}/f"), b""),
        member(&format!("{}/x", "s".repeat(99)), EntryKind::Symlink, &format!("{}/x", "s".repeat(99)), b""),
    ];
    let mut owned = file("owned", b"x");
    owned.entry.metadata.mode = 0o6755;
    owned.entry.metadata.uid = 0o7_777_777;
    owned.entry.metadata.gid = 0o10_000_000;
    owned.entry.metadata.user_name = b"root".to_vec();
    owned.entry.metadata.group_name = "g".repeat(33).into_bytes();
    members.push(owned);
    let mut owned = file("owned2", b"x");
    owned.entry.metadata.uid = u32::MAX - 1;
    owned.entry.metadata.user_name = "jürgen".into();
    members.push(owned);
    for (path, seconds) in
        [("t1", 0), ("t2", -1), ("t3", 0o77_777_777_777), ("t4", 0o100_000_000_000), ("t5", -5_000_000_000)]
    {
        let mut timed = file(path, b"");
        timed.entry.metadata.mtime.seconds = seconds;
        members.push(timed);
    }
    for path in ["dd/xattr", "xattr-dir/", &format!("{long}/{long}/x"), "ü/x"] {
        let kind = if path.ends_with('/') { EntryKind::Directory } else { EntryKind::File };
        let mut with = member(path, kind, "", b"");
        with.entry.metadata.xattrs = vec![
            (b"security.capability".to_vec(), b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()),
            (b"user.empty".to_vec(), Vec::new()),
            (b"user.k".to_vec(), b"v".to_vec()),
            (b"user.long".to_vec(), vec![b'='; 1000]),
        ];
        members.push(with);
    }
    members
}

#[test]
fn peer_go_writes_the_same_bytes() {
    let Some(oracle) = Oracle::new() else { return };
    for one in members() {
        let path = String::from_utf8_lossy(&one.entry.path).into_owned();
        let ours = encode(&[one], EncodeOptions::default());
        let theirs = pipe(&oracle.program, &["rewrite"], &ours);
        assert_eq!(ours.escape_ascii().to_string(), theirs.escape_ascii().to_string(), "{path}");
    }
    let ours = encode(&members(), EncodeOptions::default());
    assert!(ours == pipe(&oracle.program, &["rewrite"], &ours));
}

#[test]
fn peer_go_writes_the_same_nanoseconds_and_access_times() {
    let Some(oracle) = Oracle::new() else { return };
    let mut members = members();
    for (at, member) in members.iter_mut().enumerate() {
        let metadata = &mut member.entry.metadata;
        metadata.mtime.nanoseconds = [0, 1, 500_000_000, 999_999_999][at % 4];
        metadata.atime = [None, Some(Timestamp { seconds: -3, nanoseconds: 250_000_000 })][at % 2];
    }
    let options = EncodeOptions { nanoseconds: true, access_times: true, sparse: false };
    let ours = encode(&members, options);
    assert!(ours == pipe(&oracle.program, &["rewrite", "pax"], &ours));
    let back: Vec<_> = decode(&ours)
        .unwrap()
        .into_iter()
        .map(|mut member| {
            member.entry.offset = 0;
            member
        })
        .collect();
    assert_eq!(back, members);
}

#[test]
fn peer_go_reads_the_same() {
    let Some(oracle) = Oracle::new() else { return };
    let ours = encode(&members(), EncodeOptions::default());
    let archives = [ours];
    assert_eq!(our_list(&archives[0]).0, oracle.list(&archives)[0]);
}

/// Archives with something of everything in them, as seeds.
fn seeds() -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let mut seeds =
        vec![encode(&members()[..8], EncodeOptions::default()), encode(&members()[9..13], EncodeOptions::default())];
    let tree = "mkdir -p t; cd t; echo hi >f; ln -sf f s; ln -f f h; mkdir -p d; truncate -s 70001 z; printf x >$(printf 'n%.0s' {1..120}); \
         ln -sf $(printf 'l%.0s' {1..120}) long; truncate -s 300000 sp; for o in 0 20000 60000 100000 140000 200000; do printf data | dd of=sp bs=1 seek=$o conv=notrunc status=none; done; cd ..;";
    for options in [
        "--format=v7 t/f t/d t/h t/s",
        "--format=ustar t/f t/d t/h t/s t/z",
        "--format=oldgnu t",
        "--format=gnu -S t",
        "--format=posix --pax-option=delete=ctime t/f t/long",
        "--format=posix -S --sparse-version=0.0 --pax-option=delete=ctime,delete=atime t",
        "--format=posix -S --sparse-version=0.1 --pax-option=delete=ctime,delete=atime t",
        "--format=posix -S --sparse-version=1.0 --pax-option=delete=ctime,delete=atime t",
        "--format=gnu --mtime=@-5 --owner=12345678 --group=99999999 t/f t/d",
        "--format=posix --pax-option=delete=ctime,delete=atime --mtime=@-5.25 --owner=12345678 --group=99999999 t/f t/d",
    ] {
        seeds.push(sh(
            &format!("{tree} touch -hd @1700000000.25 t/*; tar -cb1 --sort=name {options}"),
            directory.path(),
        ));
    }
    seeds.push(
        [pax(&[("size", "5"), ("path", "a")]), header("b", b'0', 1024), padded(b"hello"), vec![0; 1024]].concat(),
    );
    seeds.push([header("g", b'g', 9), padded(b"9 path=x\n"), header("b", b'0', 3), padded(b"abc")].concat());
    seeds
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

/// Changes a few bytes, preferably in headers and records, and mends the checksums so that the change gets that far.
fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    const BYTES: &[u8] = b"\0 0123456789abxLKSg=\n,.-/\x7f\x80\xff7";
    let mut archive = seed.to_vec();
    for _ in 0..=random.below(3) {
        let blocks: Vec<_> =
            (0..archive.len() / 512).filter(|at| archive[at * 512..at * 512 + 512].iter().any(|b| *b != 0)).collect();
        let block = blocks[random.below(blocks.len())] * 512;
        let used: Vec<_> = (block..block + 512).filter(|at| archive[*at] != 0).collect();
        let at = if random.below(4) == 0 { block + random.below(512) } else { used[random.below(used.len())] };
        archive[at] = BYTES[random.below(BYTES.len())];
        let magic = &archive[block + 257..block + 262];
        if magic == b"ustar" && random.below(20) != 0 {
            seal(&mut archive[block..block + 512]);
        }
    }
    match random.below(40) {
        0 => archive.truncate(random.below(archive.len())),
        1 => archive.drain(..512).for_each(drop),
        _ => {}
    }
    archive
}

/// Where we are stricter or see an error earlier, on purpose.
fn stricter(theirs: &str, error: &Error) -> bool {
    match error {
        // An extension member without its member, and limits.
        Error::Limit { .. } => true,
        Error::Input { defect: Defect::UnexpectedEof | Defect::InvalidNumber { .. }, .. }
            if theirs.ends_with("end\n") =>
        {
            true
        }
        Error::Input { defect, .. } => {
            matches!(defect, Defect::InvalidPax | Defect::InvalidSparseMap)
                || *defect == Defect::InvalidNumber { field: "sparse map" }
        }
        _ => false,
    }
}

#[test]
fn peer_go_agrees_on_damaged_archives() {
    let Some(oracle) = Oracle::new() else { return };
    let seeds = seeds();
    let rounds = 4000;
    let mut random = Random(0x5eed);
    let mut archives = seeds.clone();
    for round in 0..rounds {
        archives.push(mutate(&seeds[round % seeds.len()], &mut random));
    }
    let lists = oracle.list(&archives);
    let (mut read, mut refused, mut strict) = (0, 0, 0);
    for (archive, theirs) in archives.iter().zip(&lists) {
        let (ours, error) = our_list(archive);
        if archive.len() < 20_000 && !matches!(error, Some(Error::Unsupported { .. })) {
            let again = decode_pieces(archive, 100, Limits::default());
            assert_eq!(again.map_err(|error| error.to_string()).err(), error.as_ref().map(ToString::to_string));
        }
        if ours == *theirs {
            *(if error.is_some() { &mut refused } else { &mut read }) += 1;
            continue;
        }
        let common = ours.strip_suffix("error\n").is_some_and(|common| theirs.starts_with(common));
        match error {
            Some(error) if common && stricter(theirs, &error) => strict += 1,
            error => panic!("{error:?}\nours:\n{ours}\nGo's:\n{theirs}\n{}", archive.escape_ascii()),
        }
    }
    eprintln!("{read} read alike, {refused} refused alike, {strict} refused by us only");
    assert!(read > rounds / 10 && refused > rounds / 10 && strict < rounds / 20, "{read} {refused} {strict}");
}
