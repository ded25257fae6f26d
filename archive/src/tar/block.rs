//! The fields of a header block.
//!
//! ```text
//!  0 name 100 | 100 mode 8 | 108 uid 8 | 116 gid 8 | 124 size 12 | 136 mtime 12 | 148 checksum 8 | 156 type | 157 link 100
//!  257 magic 6 | 263 version 2 | 265 uname 32 | 297 gname 32 | 329 major 8 | 337 minor 8     (ustar, PAX, GNU, star)
//!  345 prefix 155                                                                            (ustar, PAX)
//!  345 prefix 131 | 476 atime 12 | 488 ctime 12 | 508 "tar\0"                                (star)
//!  345 atime 12 | 357 ctime 12 | 386 sparse 4 x 24 | 482 extended | 483 real size 12         (old GNU)
//! ```

use super::BLOCK_SIZE;
use super::number::{numeric, octal};
use crate::error::Defect;

/// One block, copied out of the stream.
pub(super) type Block = [u8; BLOCK_SIZE];

/// A block of zeros: two of them end an archive.
pub(super) const ZERO_BLOCK: Block = [0; BLOCK_SIZE];

const MAGIC_USTAR: &[u8; 6] = b"ustar\0";
const MAGIC_GNU: &[u8; 8] = b"ustar  \0";
const TRAILER_STAR: &[u8; 4] = b"tar\0";

/// Which layout the block has, as far as it can tell by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    /// ustar, and PAX, whose headers look the same.
    Ustar,
    Star,
    Gnu,
}

/// The `LEN` bytes at `AT`; that they lie inside the block is checked when compiling.
fn field<const AT: usize, const LEN: usize>(block: &Block) -> &[u8; LEN] {
    const { assert!(AT.saturating_add(LEN) <= BLOCK_SIZE) }
    block.get(AT..).and_then(|tail| tail.first_chunk()).unwrap_or(&[0; LEN])
}

/// The bytes up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// The sum of all bytes with the checksum field taken as spaces: unsigned as POSIX has it, and signed as old Suns did.
fn checksums(block: &Block) -> (i64, i64) {
    let (mut unsigned, mut signed) = (0_u32, 0_i32);
    for byte in block {
        // 512 terms of a byte: these cannot overflow.
        unsigned = unsigned.wrapping_add(u32::from(*byte));
        signed = signed.wrapping_add(i32::from(byte.cast_signed()));
    }
    for byte in field::<148, 8>(block) {
        unsigned = unsigned.wrapping_sub(u32::from(*byte)).wrapping_add(u32::from(b' '));
        signed = signed.wrapping_sub(i32::from(byte.cast_signed())).wrapping_add(i32::from(b' '));
    }
    (i64::from(unsigned), i64::from(signed))
}

/// A header block being made: ustar layout, which PAX shares.
pub(super) struct HeaderWriter {
    block: Block,
}

impl HeaderWriter {
    /// The most that 7 octal digits hold: ids, device numbers.
    pub(super) const MAX_SHORT: u64 = 0o7_777_777;
    /// The most that 11 octal digits hold: sizes, times.
    pub(super) const MAX_LONG: u64 = 0o77_777_777_777;

    pub(super) fn new(type_flag: u8) -> Self {
        let mut writer = Self { block: ZERO_BLOCK };
        writer.put::<156, 1>(&[type_flag]);
        writer.put::<257, 8>(b"ustar\x0000");
        writer
    }

    /// Copies as many bytes as fit.
    fn put<const AT: usize, const LEN: usize>(&mut self, bytes: &[u8]) {
        const { assert!(AT.saturating_add(LEN) <= BLOCK_SIZE) }
        for (to, from) in self.block.iter_mut().skip(AT).take(LEN).zip(bytes) {
            *to = *from;
        }
    }

    /// Octal digits up to the NUL at the end; 0 for what does not fit, as Go writes it where a record has the number.
    fn put_octal<const AT: usize, const LEN: usize>(&mut self, value: u64) {
        let digits = LEN.saturating_sub(1);
        let bits = u32::try_from(digits).unwrap_or(0).saturating_mul(3);
        let mut rest = if value >> bits == 0 { value } else { 0 };
        for to in self.block.iter_mut().skip(AT).take(digits).rev() {
            *to = b'0'.saturating_add(u8::try_from(rest & 7).unwrap_or(0));
            rest >>= 3;
        }
    }

    /// Sets a text field. A truncated text does not end in a slash: some readers would take the file for a directory.
    fn put_text<const AT: usize, const LEN: usize>(&mut self, text: &[u8]) {
        self.put::<AT, LEN>(text);
        if let Some(cut) = text.get(..LEN).filter(|_| text.len() > LEN)
            && cut.ends_with(b"/")
        {
            let kept = cut.iter().rposition(|b| *b != b'/').map_or(0, |last| last.saturating_add(1));
            if let Some(byte) = self.block.iter_mut().skip(AT).nth(kept) {
                *byte = 0;
            }
        }
    }

    pub(super) fn name(&mut self, name: &[u8]) {
        self.put_text::<0, 100>(name);
    }

    pub(super) fn prefix(&mut self, prefix: &[u8]) {
        self.put_text::<345, 155>(prefix);
    }

    pub(super) fn link_name(&mut self, name: &[u8]) {
        self.put_text::<157, 100>(name);
    }

    pub(super) fn owner(&mut self, mode: u64, uid: u64, gid: u64) {
        self.put_octal::<100, 8>(mode);
        self.put_octal::<108, 8>(uid);
        self.put_octal::<116, 8>(gid);
    }

    pub(super) fn owner_names(&mut self, user: &[u8], group: &[u8]) {
        self.put_text::<265, 32>(user);
        self.put_text::<297, 32>(group);
    }

    pub(super) fn size(&mut self, size: u64) {
        self.put_octal::<124, 12>(size);
    }

    pub(super) fn mtime(&mut self, seconds: u64) {
        self.put_octal::<136, 12>(seconds);
    }

    pub(super) fn device(&mut self, major: u64, minor: u64) {
        self.put_octal::<329, 8>(major);
        self.put_octal::<337, 8>(minor);
    }

    /// The block with its checksum: six digits, NUL, space.
    pub(super) fn finish(mut self) -> Block {
        let (sum, _) = checksums(&self.block);
        self.put_octal::<148, 7>(sum.unsigned_abs());
        self.put::<155, 1>(b" ");
        self.block
    }
}

/// A header block whose checksum is right.
pub(super) struct Header<'a> {
    block: &'a Block,
    pub(super) format: Format,
}

impl<'a> Header<'a> {
    /// Takes the block if its checksum is right.
    pub(super) fn new(block: &'a Block) -> Option<Self> {
        let stated = octal(field::<148, 8>(block))?;
        let (unsigned, signed) = checksums(block);
        if stated != unsigned && stated != signed {
            return None;
        }
        let format = if field::<257, 6>(block) == MAGIC_USTAR {
            if field::<508, 4>(block) == TRAILER_STAR { Format::Star } else { Format::Ustar }
        } else if field::<257, 8>(block) == MAGIC_GNU {
            Format::Gnu
        } else {
            Format::V7
        };
        Some(Self { block, format })
    }

    pub(super) fn type_flag(&self) -> u8 {
        let [flag] = field::<156, 1>(self.block);
        *flag
    }

    /// The name without its prefix.
    pub(super) fn name(&self) -> &'a [u8] {
        text(field::<0, 100>(self.block))
    }

    /// What goes before the name and a slash; empty where there is none.
    pub(super) fn prefix(&self) -> &'a [u8] {
        match self.format {
            Format::Ustar => text(field::<345, 155>(self.block)),
            Format::Star => text(field::<345, 131>(self.block)),
            // Go before 1.8 wrote a prefix into GNU headers. Like today's Go we believe in one where the time fields
            // that really are there do not parse (golang.org/issue/12594, 21005).
            Format::Gnu if self.gnu_times_broken() => {
                let prefix = text(field::<345, 155>(self.block));
                if prefix.is_ascii() { prefix } else { b"" }
            }
            Format::Gnu | Format::V7 => b"",
        }
    }

    fn gnu_times_broken(&self) -> bool {
        [field::<345, 12>(self.block), field::<357, 12>(self.block)]
            .iter()
            .any(|time| time.first() != Some(&0) && numeric(*time).is_none())
    }

    pub(super) fn link_name(&self) -> &'a [u8] {
        text(field::<157, 100>(self.block))
    }

    pub(super) fn user_name(&self) -> &'a [u8] {
        if self.format == Format::V7 { b"" } else { text(field::<265, 32>(self.block)) }
    }

    pub(super) fn group_name(&self) -> &'a [u8] {
        if self.format == Format::V7 { b"" } else { text(field::<297, 32>(self.block)) }
    }

    pub(super) fn size(&self) -> Result<i64, Defect> {
        numeric(field::<124, 12>(self.block)).ok_or(Defect::InvalidNumber { field: "size" })
    }

    /// All other numbers. They must parse whether they are used or not.
    pub(super) fn numbers(&self) -> Result<Numbers, Defect> {
        let parse = |bytes: &[u8], field| numeric(bytes).ok_or(Defect::InvalidNumber { field });
        let block = self.block;
        let mut numbers = Numbers {
            mode: parse(field::<100, 8>(block), "mode")?,
            uid: parse(field::<108, 8>(block), "uid")?,
            gid: parse(field::<116, 8>(block), "gid")?,
            mtime: parse(field::<136, 12>(block), "mtime")?,
            ..Numbers::default()
        };
        if self.format != Format::V7 {
            numbers.major = parse(field::<329, 8>(block), "devmajor")?;
            numbers.minor = parse(field::<337, 8>(block), "devminor")?;
        }
        match self.format {
            Format::Star => {
                numbers.atime = Some(parse(field::<476, 12>(block), "atime")?);
                parse(field::<488, 12>(block), "ctime")?;
            }
            Format::Gnu if !self.gnu_times_broken() && field::<345, 1>(block) != &[0] => {
                numbers.atime = numeric(field::<345, 12>(block));
            }
            Format::Gnu | Format::Ustar | Format::V7 => {}
        }
        Ok(numbers)
    }

    /// The size of an old GNU sparse file with its holes.
    pub(super) fn real_size(&self) -> Result<i64, Defect> {
        numeric(field::<483, 12>(self.block)).ok_or(Defect::InvalidNumber { field: "realsize" })
    }

    /// The first four runs of an old GNU sparse file, and whether more blocks of them follow.
    pub(super) fn sparse(&self) -> (&'a [u8], bool) {
        (field::<386, 96>(self.block), field::<482, 1>(self.block) != &[0])
    }
}

/// The 21 runs of a further block of an old GNU sparse map, and whether yet another follows.
pub(super) fn sparse_extension(block: &Block) -> (&[u8], bool) {
    (field::<0, 504>(block), field::<504, 1>(block) != &[0])
}

/// The numbers of a header that have no bearing on the framing.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) mtime: i64,
    pub(super) atime: Option<i64>,
    pub(super) major: i64,
    pub(super) minor: i64,
}
