//! A file of records written anew from the old one: what has not changed is copied by the kernel, unseen.

use std::fs::File;
use std::io::{self, Write};

use graph_sys::io::Errno;

/// A record of the old file that is changed or taken away.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) offset: u64,
    /// Bytes with the separator behind it.
    pub(crate) length: u32,
    /// Its new text; `None` when it goes.
    pub(crate) text: Option<Vec<u8>>,
}

enum Piece<'p> {
    Old(u64, u64),
    New(&'p [u8]),
}

/// Writes the array: the old file's records with the changes (sorted by offset), then the new ones. How many bytes it has.
pub(crate) fn splice(out: &mut File, old: &File, size: u64, changes: &[Change], new: &[Vec<u8>]) -> io::Result<u64> {
    let mut pieces = Vec::new();
    let mut at = 1;
    for change in changes {
        if change.offset > at {
            pieces.push(Piece::Old(at, change.offset.saturating_sub(1)));
        }
        pieces.extend(change.text.as_deref().map(Piece::New));
        at = change.offset.saturating_add(u64::from(change.length));
    }
    if at < size {
        pieces.push(Piece::Old(at, size.saturating_sub(1)));
    }
    pieces.extend(new.iter().map(|text| Piece::New(text)));
    let mut small = vec![b'['];
    let mut written: u64 = 0;
    let mut note = |count: usize| written = written.saturating_add(u64::try_from(count).unwrap_or(0));
    for (n, piece) in pieces.iter().enumerate() {
        if n > 0 {
            small.push(b',');
        }
        match piece {
            Piece::New(text) => small.extend_from_slice(text),
            Piece::Old(from, to) => {
                out.write_all(&small)?;
                note(small.len());
                small.clear();
                copy(out, old, *from, *to)?;
                note(usize::try_from(to.saturating_sub(*from)).unwrap_or(0));
            }
        }
    }
    small.push(b']');
    out.write_all(&small)?;
    note(small.len());
    Ok(written)
}

fn copy(out: &mut File, old: &File, mut from: u64, to: u64) -> io::Result<()> {
    while from < to {
        let left = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
        match graph_sys::fs::copy_file_range(old, Some(&mut from), &*out, None, left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            // Two file systems, or one that cannot.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                let mut buffer = vec![0; left.min(1 << 20)];
                let count = match graph_sys::io::pread(old, &mut buffer, from) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => count,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                };
                out.write_all(buffer.get(..count).unwrap_or_default())?;
                from = from.saturating_add(u64::try_from(count).unwrap_or(0));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
