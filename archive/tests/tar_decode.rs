//! The decoder on archives that other programs made, compared with what was archived and with what they list themselves.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // helpers of tests fail by panicking and say what they skip
#![allow(clippy::disallowed_methods)] // trees of their own are theirs to open by path

mod tar_support;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use graph_archive::digest::Digest;
use graph_archive::limits::Limits;
use graph_archive::tar::EncodeOptions;
use graph_archive::{EntryKind, SparseRun, Timestamp};
use tar_support::{Member, decode, decode_pieces, encode, file, have, header, member, padded, pax, pipe, sh};

/// A tree with something of everything. Long names get a `long` in them, so that formats without can leave them out.
const TREE: &str = r#"
mkdir -p t/dir t/sticky; printf 'hi\n' >t/dir/file; ln t/dir/file t/hard; ln -s dir/file t/sym
ln -s "$(printf 'long%.0s' {1..40})" t/long-sym
: >t/empty; head -c 512 /dev/zero | tr '\0' x >t/block; head -c 300001 /dev/urandom >t/big
mkfifo t/fifo; chmod 1777 t/sticky; chmod 6755 t/block; chmod 000 t/empty
printf x >"t/$(printf 'long-name%.0s' {1..25})"
d="t/$(printf 'long-dir/%.0s' {1..14})"; mkdir -p "$d"; printf y >"$d/f"
printf u >t/ümlaut; printf s >'t/with space'
truncate -s 1000000 t/sparse
for o in 0 100000 300000 500000 700000 900000; do printf 'data' | dd of=t/sparse bs=1 seek=$o conv=notrunc status=none; done
truncate -s 500000 t/hole
touch -hd @1600000000.123456789 t/dir/file t/sym; touch -d @1500000000.5 t/big; touch -d @0 t/empty
if [ "$(id -u)" = 0 ]; then
  mknod t/char c 300 70000; mknod t/block-device b 8 1; chown 1234:2345 t/big; chown 2097152:4294967294 t/block; chmod 6755 t/block
  setfattr -n user.comment -v 'some value' t/big; setfattr -n user.empty t/big; setcap cap_net_raw+ep t/dir/file
fi
"#;

fn tree() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    sh(TREE, directory.path());
    directory
}

fn by_name(members: &[Member]) -> BTreeMap<String, &Member> {
    members.iter().map(|member| (String::from_utf8_lossy(&member.entry.path).into_owned(), member)).collect()
}

/// Decodes in one read, in awkward ones and in tiny ones.
fn decode_any(bytes: &[u8]) -> Vec<Member> {
    let members = decode(bytes).unwrap();
    for size in [511, 70_000] {
        assert!(decode_pieces(bytes, size, Limits::default()).unwrap() == members, "pieces of {size}");
    }
    members
}

/// What Python's tarfile reads in an archive: a line of JSON for each member.
const PYTHON_LIST: &str = r#"
import sys, tarfile, json, hashlib, io
data = sys.stdin.buffer.read()
for m in tarfile.open(fileobj=io.BytesIO(data), mode='r:', errors='surrogateescape'):
    kind = {b'\0': '0', b'7': '0', b'S': '0'}.get(m.type, m.type.decode())
    content = b''
    if m.isfile():
        content = tarfile.open(fileobj=io.BytesIO(data), mode='r:').extractfile(m).read()
    print(json.dumps({
        'name': m.name.encode('utf-8', 'surrogateescape').hex(), 'kind': kind, 'size': len(content), 'mode': m.mode & 0o7777,
        'uid': m.uid, 'gid': m.gid, 'user': m.uname, 'group': m.gname, 'mtime': int(m.mtime // 1),
        'link': m.linkname if kind in '12' else '', 'device': [m.devmajor, m.devminor] if kind in '34' else [0, 0],
        'sha256': hashlib.sha256(content).hexdigest()}, sort_keys=True))
"#;

fn python_lines(archive: &[u8]) -> Vec<String> {
    let output = pipe(Path::new("python3"), &["-c", PYTHON_LIST], archive);
    String::from_utf8(output).unwrap().lines().map(str::to_owned).collect()
}

fn our_lines(members: &[Member]) -> Vec<String> {
    let line = |Member { entry, content }: &Member| {
        let (kind, device) = match entry.kind {
            EntryKind::File => ("0", [0, 0]),
            EntryKind::HardLink => ("1", [0, 0]),
            EntryKind::Symlink => ("2", [0, 0]),
            EntryKind::CharDevice { major, minor } => ("3", [major, minor]),
            EntryKind::BlockDevice { major, minor } => ("4", [major, minor]),
            EntryKind::Directory => ("5", [0, 0]),
            EntryKind::Fifo => ("6", [0, 0]),
            _ => unreachable!(),
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        // tarfile takes the slash off a directory's name.
        let name = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
        let json = serde_json::json!({
            "name": tar_support::hex(name), "kind": kind, "size": content.len(), "mode": entry.metadata.mode,
            "uid": entry.metadata.uid, "gid": entry.metadata.gid, "user": text(&entry.metadata.user_name),
            "group": text(&entry.metadata.group_name), "mtime": entry.metadata.mtime.seconds,
            "link": text(&entry.link_target), "device": device, "sha256": Digest::of(content).hex(),
        });
        json.to_string()
    };
    members.iter().map(line).collect()
}

/// Compares what we read in an archive with what the programs that are here read in it.
fn compare_with_tools(name: &str, archive: &[u8], members: &[Member], directory: &Path) {
    let normal = |lines: Vec<String>| -> Vec<serde_json::Value> {
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(normal(our_lines(members)), normal(python_lines(archive)), "{name}: tarfile");
    let names: Vec<_> = members.iter().flat_map(|member| [member.entry.path.as_slice(), b"\n"].concat()).collect();
    sh("cat >list.tar </dev/null", directory);
    std::io::Write::write_all(&mut tempfile_at(directory), archive).unwrap();
    let listed = sh("tar -tf list.tar --quoting-style=literal", directory);
    assert_eq!(names.escape_ascii().to_string(), listed.escape_ascii().to_string(), "{name}: GNU tar");
    let listed = sh("bsdtar -tf list.tar", directory);
    let listed = if name.contains("v7") { names.clone() } else { listed };
    assert_eq!(names.escape_ascii().to_string(), listed.escape_ascii().to_string(), "{name}: bsdtar");
}

fn tempfile_at(directory: &Path) -> impl std::io::Write {
    std::fs::OpenOptions::new().write(true).truncate(true).open(directory.join("list.tar")).unwrap()
}

/// Checks what every format can hold.
fn check_common(name: &str, members: &[Member], directory: &Path) {
    let members = by_name(members);
    let big = sh("cat t/big", directory);
    let root = sh("id -u", directory) == b"0\n";
    let file = members["t/dir/file"];
    // Which of two names of an inode comes first is the archiver's choice.
    let (first, second) =
        if file.entry.kind == EntryKind::File { ("t/dir/file", "t/hard") } else { ("t/hard", "t/dir/file") };
    assert_eq!(members[first].content, b"hi\n", "{name}");
    assert_eq!(members[second].entry.kind, EntryKind::HardLink, "{name}");
    assert_eq!(members[second].entry.link_target, first.as_bytes(), "{name}");
    assert_eq!(members["t/sym"].entry.link_target, b"dir/file", "{name}");
    assert_eq!(members["t/empty"].entry.size, 0, "{name}");
    assert_eq!(members["t/empty"].entry.metadata.mode, 0, "{name}");
    assert_eq!(members["t/block"].content, [b'x'; 512], "{name}");
    assert_eq!(members["t/block"].entry.metadata.mode, 0o6755, "{name}");
    assert_eq!(members["t/sticky/"].entry.metadata.mode, 0o1777, "{name}");
    assert_eq!(members["t/sticky/"].entry.kind, EntryKind::Directory, "{name}");
    assert!(members["t/big"].content == big, "{name}");
    assert!(members["t/sparse"].content == sh("cat t/sparse", directory), "{name}");
    assert!(members["t/hole"].content == vec![0; 500_000], "{name}");
    assert_eq!(members["t/big"].entry.metadata.mtime.seconds, 1_500_000_000, "{name}");
    if root {
        let metadata = &members["t/big"].entry.metadata;
        assert_eq!((metadata.uid, metadata.gid), (1234, 2345), "{name}");
    }
}

#[test]
fn gnu_tar() {
    if !have("tar") || !have("bsdtar") || !have("python3") {
        return;
    }
    let directory = tree();
    let root = sh("id -u", directory.path()) == b"0\n";
    // v7 and ustar cannot hold all of it.
    let small = "--exclude=*long* --exclude=t/char --exclude=t/block-device --exclude=t/fifo --owner=1234 --group=2345";
    for (format, options) in [
        ("v7", small),
        ("ustar", "--exclude=t/long-sym --exclude=*long-name* --owner=1234 --group=2345"),
        ("oldgnu", ""),
        ("gnu", ""),
        ("gnu", "-S"),
        ("oldgnu", "-S"),
        ("posix", ""),
        ("posix", "-S --sparse-version=0.0"),
        ("posix", "-S --sparse-version=0.1"),
        ("posix", "-S --sparse-version=1.0"),
        ("posix", "--xattrs --xattrs-include=*"),
    ] {
        let name = format!("--format={format} {options}");
        let archive = sh(&format!("tar -c --sort=name --format={format} {options} t"), directory.path());
        let members = decode_any(&archive);
        check_common(&name, &members, directory.path());
        compare_with_tools(&name, &archive, &members, directory.path());
        let members = by_name(&members);
        assert_eq!(members["t/sparse"].entry.sparse.is_some(), options.contains("-S"), "{name}");
        if let Some(runs) = &members["t/sparse"].entry.sparse {
            let stored: u64 = runs.iter().map(|run| run.length).sum();
            assert!(runs.len() == 6 && stored < 50_000, "{name}: {runs:?}");
            assert_eq!(members["t/hole"].entry.sparse, Some(vec![]), "{name}");
        }
        if !["v7", "ustar"].contains(&format) {
            assert!(members.keys().any(|name| name.ends_with(&"long-name".repeat(25))), "{name}");
            assert_eq!(members["t/long-sym"].entry.link_target, "long".repeat(40).as_bytes(), "{name}");
            if root {
                assert_eq!(members["t/char"].entry.kind, EntryKind::CharDevice { major: 300, minor: 70_000 }, "{name}");
                let metadata = &members["t/block"].entry.metadata;
                assert_eq!((metadata.uid, metadata.gid), (2_097_152, 4_294_967_294), "{name}");
            }
        }
        if format == "posix" {
            let mtime = Timestamp { seconds: 1_600_000_000, nanoseconds: 123_456_789 };
            assert_eq!(members["t/sym"].entry.metadata.mtime, mtime, "{name}");
            assert!(members["t/sym"].entry.metadata.atime.is_some(), "{name}");
        }
        if options.contains("xattrs") && root {
            let xattrs = &members["t/big"].entry.metadata.xattrs;
            let expected = [(&b"user.comment"[..], &b"some value"[..]), (b"user.empty", b"")];
            assert_eq!(*xattrs, expected.map(|(name, value)| (name.to_vec(), value.to_vec())), "{name}");
            let (name, value) = &members["t/dir/file"].entry.metadata.xattrs[0];
            assert_eq!((name.as_slice(), value.len()), (&b"security.capability"[..], 20));
        }
    }
}

#[test]
fn bsdtar() {
    if !have("bsdtar") || !have("tar") || !have("python3") {
        return;
    }
    let directory = tree();
    let root = sh("id -u", directory.path()) == b"0\n";
    for format in ["pax", "paxr", "gnutar"] {
        let archive = sh(&format!("bsdtar -cf - --format={format} t"), directory.path());
        let members = decode_any(&archive);
        check_common(format, &members, directory.path());
        compare_with_tools(format, &archive, &members, directory.path());
        let members = by_name(&members);
        if format == "pax" && root {
            let xattrs = &members["t/big"].entry.metadata.xattrs;
            assert_eq!(xattrs[0], (b"user.comment".to_vec(), b"some value".to_vec()));
            assert_eq!(xattrs[1], (b"user.empty".to_vec(), Vec::new()));
        }
    }
    // ustar and v7 in bsdtar's spelling.
    let archive =
        sh("bsdtar -cf - --format=ustar --exclude='*long*' --exclude t/block --exclude t/ümlaut t", directory.path());
    assert_eq!(by_name(&decode_any(&archive))["t/big"].content.len(), 300_001);
}

#[test]
fn python_tarfile() {
    if !have("python3") || !have("tar") || !have("bsdtar") {
        return;
    }
    let directory = tree();
    for format in ["USTAR", "GNU", "PAX"] {
        let filter = match format {
            "USTAR" => "lambda m: None if 'long' in m.name or m.uid > 2097151 or m.linkname.count('long') else m",
            _ => "None",
        };
        let script = format!(
            "import tarfile, sys\nt = tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=tarfile.{format}_FORMAT)\nt.add('t', filter={filter})\nt.close()"
        );
        let archive = sh(&format!("python3 -c \"{script}\""), directory.path());
        let members = decode_any(&archive);
        assert!(by_name(&members)["t/big"].content.len() == 300_001, "{format}");
        compare_with_tools(format, &archive, &members, directory.path());
    }
}

#[test]
fn tar_crate() {
    let directory = tree();
    let path = directory.path().join("t");
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    sh("rm -f t/char t/block-device t/fifo", directory.path());
    builder.append_dir_all("t", &path).unwrap();
    let archive = builder.into_inner().unwrap();
    let members = decode_any(&archive);
    // The crate archives the second name of an inode as a file of its own.
    assert_eq!(by_name(&members)["t/hard"].content, b"hi\n");
    compare_with_tools("tar crate", &archive, &members, directory.path());
    compare_with_crate(&archive, &members);
}

/// The crate reads what we read.
fn compare_with_crate(archive: &[u8], members: &[Member]) {
    let mut theirs = tar::Archive::new(archive);
    let mut count = 0;
    for (theirs, ours) in theirs.entries().unwrap().zip(members) {
        let mut theirs = theirs.unwrap();
        assert_eq!(theirs.path_bytes(), ours.entry.path.as_slice());
        if !ours.entry.link_target.is_empty() {
            assert_eq!(theirs.link_name_bytes().unwrap(), ours.entry.link_target.as_slice());
        }
        let mut content = Vec::new();
        theirs.read_to_end(&mut content).unwrap();
        assert!(content == ours.content);
        count += 1;
    }
    assert_eq!(count, members.len());
}

#[test]
fn tar_crate_reads_the_same() {
    if !have("tar") {
        return;
    }
    let directory = tree();
    for format in ["ustar --exclude=t/long-sym --exclude=*long-name* --owner=1 --group=1", "gnu", "gnu -S", "posix"] {
        let archive = sh(&format!("tar -c --format={format} t"), directory.path());
        compare_with_crate(&archive, &decode(&archive).unwrap());
    }
    let members =
        [file("long/".repeat(70).trim_end_matches('/'), b"x"), member("ü", EntryKind::Symlink, &"t".repeat(150), b"")];
    let archive = encode(&members, EncodeOptions::default());
    compare_with_crate(&archive, &members);
}

#[test]
fn tools_read_what_we_write() {
    if !have("tar") || !have("bsdtar") || !have("python3") {
        return;
    }
    let directory = tree();
    let archive = sh("tar -c --format=posix -S --xattrs t", directory.path());
    let members = decode(&archive).unwrap();
    for sparse in [false, true] {
        let options = EncodeOptions { nanoseconds: true, access_times: true, sparse };
        let ours = encode(&members, options);
        compare_with_tools(&format!("ours, sparse {sparse}"), &ours, &members, directory.path());
        if sparse {
            assert!(ours.len() + 900_000 < encode(&members, EncodeOptions::default()).len());
        }
        // And what they unpack is the tree.
        std::io::Write::write_all(&mut tempfile_at(directory.path()), &ours).unwrap();
        sh(
            "rm -rf out; mkdir out; tar -xpf list.tar -C out && diff -r --no-dereference --exclude=fifo --exclude=char --exclude=block-device t out/t",
            directory.path(),
        );
        sh(
            "rm -rf out; mkdir out; bsdtar -xpf list.tar -C out && diff -r --no-dereference --exclude=fifo --exclude=char --exclude=block-device t out/t",
            directory.path(),
        );
        let listed =
            String::from_utf8(sh("stat -c '%Y %a %u:%g' out/t/big t/big | uniq | wc -l", directory.path())).unwrap();
        assert_eq!(listed.trim(), "1");
        let disk = sh("stat -c %b out/t/hole", directory.path());
        if sparse {
            assert_eq!(disk, b"0\n");
        }
    }
}

#[test]
fn type_seven_and_v7_directories() {
    let bytes = [header("contiguous", b'7', 3), padded(b"abc"), header("old/", 0, 512), header("new", 0, 0)].concat();
    let members = decode(&bytes).unwrap();
    assert_eq!((members[0].entry.kind, members[0].content.as_slice()), (EntryKind::File, &b"abc"[..]));
    assert_eq!((members[1].entry.kind, members[1].entry.size), (EntryKind::Directory, 0));
    assert_eq!(members[2].entry.kind, EntryKind::File);
}

#[test]
fn concatenated_archives() {
    let (one, two) =
        (encode(&[file("a", b"1")], EncodeOptions::default()), encode(&[file("b", b"2")], EncodeOptions::default()));
    // What follows the end blocks is not part of the archive, but of the stream.
    let whole = [one.as_slice(), &two].concat();
    assert_eq!(decode(&whole).unwrap().len(), 1);
    // Without its end blocks the first goes on in the second.
    let joined = [&one[..1024], &two].concat();
    let members = decode(&joined).unwrap();
    assert_eq!(members.len(), 2);
    assert_eq!(members[1].entry.offset, 1024);
}

#[test]
fn what_goes_before_what() {
    let long = [header("L", b'L', 5), padded(b"long\0")].concat();
    let table: &[(&str, Vec<u8>, &str)] = &[
        ("the header", header("a", b'0', 0), "a"),
        ("path", [pax(&[("path", "p")]), header("a", b'0', 0)].concat(), "p"),
        ("the last path", [pax(&[("path", "p"), ("path", "q")]), header("a", b'0', 0)].concat(), "q"),
        ("the last extended header", [pax(&[("path", "p")]), pax(&[("uid", "1")]), header("a", b'0', 0)].concat(), "a"),
        ("a long name", [long.clone(), header("a", b'0', 0)].concat(), "long"),
        ("a long name before path", [long.clone(), pax(&[("path", "p")]), header("a", b'0', 0)].concat(), "long"),
        ("path before a long name", [pax(&[("path", "p")]), long, header("a", b'0', 0)].concat(), "long"),
        (
            "nothing across a global header",
            [pax(&[("path", "p")]), header("g", b'g', 0), header("a", b'0', 0)].concat(),
            "a",
        ),
    ];
    for (name, bytes, expected) in table {
        assert_eq!(String::from_utf8_lossy(&decode(bytes).unwrap()[0].entry.path), *expected, "{name}");
    }
    let bytes = [pax(&[("path", "p")]), header("a", b'0', 0), header("b", b'0', 0)].concat();
    let members = decode(&bytes).unwrap();
    assert_eq!((members[0].entry.offset, members[1].entry.offset), (0, 1536));
    assert_eq!(members[1].entry.path, b"b");
}

#[test]
fn sparse_runs_are_normal() {
    let records = [("GNU.sparse.numblocks", "4"), ("GNU.sparse.size", "20"), ("GNU.sparse.map", "2,3,5,0,5,2,20,0")];
    let bytes = [pax(&records), header("f", b'0', 5), padded(b"abcde")].concat();
    let members = decode(&bytes).unwrap();
    assert_eq!(members[0].entry.sparse, Some(vec![SparseRun { offset: 2, length: 5 }]));
    assert_eq!(members[0].content, b"\0\0abcde\0\0\0\0\0\0\0\0\0\0\0\0\0");
}
