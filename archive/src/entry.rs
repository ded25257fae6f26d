//! What one member of a layer archive says, after every extension header has been taken into account.

/// A point in time as archives and inodes state it.
///
/// `seconds` may be negative (before 1970); `nanoseconds` always counts forward, 0 to 999,999,999, so -0.5 s is
/// `{ seconds: -1, nanoseconds: 500_000_000 }`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds since the epoch, rounded down.
    pub seconds: i64,
    /// Nanoseconds after `seconds`.
    pub nanoseconds: u32,
}

/// The type of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EntryKind {
    /// A regular file (type flags `0`, NUL and `7`, and GNU sparse `S`).
    File,
    /// A further name of an inode; [`Entry::link_target`] is the member name of another name of it.
    HardLink,
    /// A symbolic link to [`Entry::link_target`], kept verbatim.
    Symlink,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// Owner, mode, times and extended attributes of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky (octal 07777); no type bits.
    pub mode: u32,
    /// Owner, as a container id.
    pub uid: u32,
    /// Group, as a container id.
    pub gid: u32,
    /// Owner's name as the archive states it; empty when not stated. Never looked up.
    pub user_name: Vec<u8>,
    /// Group's name as the archive states it; empty when not stated. Never looked up.
    pub group_name: Vec<u8>,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Time of last access, where the archive states one.
    pub atime: Option<Timestamp>,
    /// Extended attributes, sorted by name, names unique. `user.mime_type` and so on, values raw.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A run of data in a sparse file; what lies between runs is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseRun {
    /// Byte offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// One member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The member's name as archived (long names resolved), not cleaned: may hold `..`, start with `/`, or end in `/`.
    /// Not necessarily UTF-8. Never holds NUL and is never empty.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Target of a symlink, or member name of a hard link's first name; otherwise empty.
    pub link_target: Vec<u8>,
    /// Bytes of content that a reader of the file sees (for a sparse file: with its holes). 0 for all but files.
    pub size: u64,
    /// Where the data of a file that is archived as sparse lies, ascending, neither overlapping nor empty nor adjoining;
    /// `None` for a file that is archived whole.
    pub sparse: Option<Vec<SparseRun>>,
    /// Owner, mode, times, xattrs.
    pub metadata: Metadata,
    /// Offset in the uncompressed stream of the first block that belongs to this member (extension headers included).
    pub offset: u64,
}
