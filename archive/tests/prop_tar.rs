//! Properties of the tar codec.

#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod tar_support;

use graph_archive::limits::Limits;
use graph_archive::tar::{EncodeOptions, align_runs};
use graph_archive::{Entry, EntryKind, Metadata, SparseRun, Timestamp};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use tar_support::{Member, decode, decode_pieces, encode, seal};

/// Names as systems have them: any bytes but NUL, short and long, with slashes.
fn name(maximum: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![6 => 97..123_u8, 2 => Just(b'/'), 1 => Just(b'.'), 1 => 1..=255_u8];
    vec(byte, 1..maximum)
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    let seconds = prop_oneof![0..2_000_000_000_i64, -5_000_000_000..20_000_000_000_i64];
    let nanoseconds = prop_oneof![Just(0), 0..1_000_000_000_u32, Just(500_000_000)];
    (seconds, nanoseconds).prop_map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds })
}

fn id() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), 0..3_000_000_u32, 0..u32::MAX]
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let owner = prop_oneof![3 => Just(Vec::new()), 1 => vec(1..=255_u8, 1..40)];
    let xattrs = prop_oneof![
        3 => Just(Default::default()),
        1 => btree_map(vec(1..=255_u8, 1..20), vec(any::<u8>(), 0..50), 1..5),
    ];
    let ids = (0..0o10_000_u32, id(), id(), owner.clone(), owner);
    (ids, timestamp(), proptest::option::of(timestamp()), xattrs).prop_map(
        |((mode, uid, gid, user_name, group_name), mtime, atime, xattrs)| Metadata {
            mode,
            uid,
            gid,
            user_name,
            group_name,
            mtime,
            atime,
            xattrs: xattrs.into_iter().collect(),
        },
    )
}

fn kind() -> impl Strategy<Value = EntryKind> {
    let device = 0..0o10_000_000_u32;
    prop_oneof![
        4 => Just(EntryKind::File),
        1 => Just(EntryKind::Directory),
        1 => Just(EntryKind::Symlink),
        1 => Just(EntryKind::HardLink),
        1 => Just(EntryKind::Fifo),
        1 => (device.clone(), device.clone()).prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
        1 => (device.clone(), device).prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
    ]
}

/// Runs as a decoder gives them: ascending, not empty, not adjoining; and the file's size.
fn runs() -> impl Strategy<Value = (Vec<SparseRun>, u64)> {
    (vec((1..3000_u64, 1..3000_u64), 0..6), 0..3000_u64).prop_map(|(pairs, tail)| {
        let mut end = 0;
        let mut runs = Vec::new();
        for (hole, length) in pairs {
            runs.push(SparseRun { offset: end + hole, length });
            end += hole + length;
        }
        (runs, end + tail)
    })
}

fn member() -> impl Strategy<Value = Member> {
    let content = prop_oneof![vec(any::<u8>(), 0..20), vec(any::<u8>(), 500..530), vec(any::<u8>(), 0..3000)];
    let sparse = prop_oneof![3 => Just(None), 1 => runs().prop_map(Some)];
    (name(300), kind(), name(200), metadata(), content, sparse).prop_map(
        |(mut path, kind, link_target, metadata, mut content, sparse)| {
            if !matches!(kind, EntryKind::Directory | EntryKind::Symlink | EntryKind::HardLink) {
                // Anything else has no name that ends in a slash.
                path.push(b'x');
            }
            let is_link = matches!(kind, EntryKind::Symlink | EntryKind::HardLink);
            let mut runs = None;
            if kind != EntryKind::File {
                content = Vec::new();
            } else if let Some((sparse, size)) = sparse {
                let byte = content.first().copied().unwrap_or(1);
                content = vec![0; usize::try_from(size).unwrap()];
                for run in &sparse {
                    let from = usize::try_from(run.offset).unwrap();
                    content[from..from + usize::try_from(run.length).unwrap()].fill(byte);
                }
                runs = Some(sparse);
            }
            let entry = Entry {
                path,
                kind,
                link_target: if is_link { link_target } else { Vec::new() },
                size: content.len() as u64,
                sparse: runs,
                metadata,
                offset: 0,
            };
            Member { entry, content }
        },
    )
}

fn without_offsets(mut members: Vec<Member>) -> Vec<Member> {
    for member in &mut members {
        member.entry.offset = 0;
    }
    members
}

/// A stream that now and then looks like an archive.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let flag = prop_oneof![Just(b'0'), Just(b'x'), Just(b'g'), Just(b'L'), Just(b'K'), Just(b'S'), any::<u8>()];
    let header = (flag, 0..2000_u64, vec((0..512_usize, any::<u8>()), 0..4), any::<bool>()).prop_map(
        |(flag, size, changes, gnu)| {
            let mut block = tar_support::header("name", flag, size);
            if gnu {
                block[257..265].copy_from_slice(b"ustar  \0");
            }
            for (at, byte) in changes {
                block[at] = byte;
            }
            seal(&mut block);
            block
        },
    );
    let record = (
        prop_oneof![
            "path|size|uid|mtime|linkpath",
            "GNU\\.sparse\\.(major|minor|map|size|realsize|name|offset|numbytes|numblocks)",
            "(SCHILY|LIBARCHIVE)\\.xattr\\.[a-z%=0-9]{1,8}"
        ],
        "[-0-9.,]{0,6}|[a-z0-9=%\\x00]{0,9}",
    );
    let extended = vec(record, 0..4).prop_map(|records| {
        let records: Vec<_> = records.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        tar_support::pax(&records)
    });
    let junk = vec(any::<u8>(), 0..1500);
    let lines = "[0-9\\n]{0,512}".prop_map(|lines| tar_support::padded(lines.as_bytes()));
    let zeros = (0..3_usize).prop_map(|blocks| vec![0; blocks * 512]);
    vec(prop_oneof![4 => header, 3 => extended, 1 => junk, 1 => lines, 1 => zeros], 0..8)
        .prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_is_decoded(members in vec(member(), 0..6)) {
        let options = EncodeOptions { nanoseconds: true, access_times: true, sparse: true };
        let archive = encode(&members, options);
        prop_assert_eq!(archive.len() % 512, 0);
        prop_assert_eq!(without_offsets(decode(&archive).unwrap()), members);
    }

    #[test]
    fn the_default_drops_holes_and_fractions_only(members in vec(member(), 0..6)) {
        let archive = encode(&members, EncodeOptions::default());
        let expected: Vec<_> = members.into_iter().map(|mut member| {
            member.entry.sparse = None;
            member.entry.metadata.mtime.nanoseconds = 0;
            member.entry.metadata.atime = None;
            member
        }).collect();
        prop_assert_eq!(without_offsets(decode(&archive).unwrap()), expected);
    }

    #[test]
    fn the_order_of_attributes_does_not_matter(one in member(), seed in any::<u64>()) {
        let mut other = one.clone();
        let xattrs = &mut other.entry.metadata.xattrs;
        if !xattrs.is_empty() {
            let middle = usize::try_from(seed % xattrs.len() as u64).unwrap();
            xattrs.rotate_left(middle);
        }
        prop_assert!(encode(&[one], EncodeOptions::default()) == encode(&[other], EncodeOptions::default()));
    }

    /// No panic; all bytes come out (`decode` checks it); the same however the bytes come in.
    #[test]
    fn any_stream(bytes in stream(), size in 1..600_usize) {
        let whole = decode(&bytes);
        let pieces = decode_pieces(&bytes, size, Limits::default());
        match (whole, pieces) {
            (Ok(whole), Ok(pieces)) => prop_assert_eq!(whole, pieces),
            (Err(whole), Err(pieces)) => prop_assert_eq!(whole.to_string(), pieces.to_string()),
            (whole, pieces) => prop_assert!(false, "{:?}\n{:?}", whole, pieces),
        }
    }

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..2000)) {
        // Hardly ever an archive; never a panic.
        let members = decode(&bytes);
        prop_assert!(members.is_err() || bytes.len() < 512);
    }

    #[test]
    fn aligned_runs_cover_the_runs((runs, size) in runs()) {
        let aligned = align_runs(&runs, size);
        for run in &runs {
            prop_assert!(aligned.iter().any(|a| a.offset <= run.offset && run.offset + run.length <= a.offset + a.length));
        }
        let mut last = None;
        for run in &aligned {
            prop_assert_eq!(run.offset % 512, 0);
            prop_assert!(run.length % 512 == 0 || run.offset + run.length == size);
            prop_assert!(last.is_none_or(|end| end < run.offset));
            last = Some(run.offset + run.length);
        }
        prop_assert!(last.unwrap_or(0) <= size);
    }
}
