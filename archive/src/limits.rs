//! What an archive may ask for. Every limit is named, has a reason, and is reported by name when it is passed.

/// Limits on untrusted archives. [`Limits::default`] suits container layers; [`Limits::NONE`] switches them off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Members of one archive, and directories that have to be made for them. The biggest images known have some 500,000
    /// members; ten million exhaust an ordinary ext4.
    pub entries: u64,
    /// Bytes of a member's or a link's name. Linux takes 4,096 in one call; longer ones are walked.
    pub name_bytes: u64,
    /// Bytes of the PAX records of one member. Go's reader stops at 1 MiB.
    pub pax_bytes: u64,
    /// Bytes of one member's extended attributes, names and values together. Linux holds 64 KiB each.
    pub xattr_bytes: u64,
    /// Bytes of the uncompressed archive.
    pub total_bytes: u64,
    /// Uncompressed bytes for each compressed byte, looked at after the first 64 MiB of output. Deflate cannot pass 1,032.
    pub ratio: u64,
    /// Runs of one sparse file. With the default a map takes 4 MiB of memory at most.
    pub sparse_runs: u64,
    /// Bytes of memory that a compressed stream may ask for to be read (the window of zstd, the dictionary of xz). The
    /// zstd tool takes no more than 128 MiB unless told to.
    pub window_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 10_000_000,
            name_bytes: 65_536,
            pax_bytes: 1 << 20,
            xattr_bytes: 1 << 20,
            total_bytes: 1 << 40,
            ratio: 2_000,
            sparse_runs: 1 << 18,
            window_bytes: 128 << 20,
        }
    }
}

impl Limits {
    /// No limits at all.
    pub const NONE: Self = Self {
        entries: u64::MAX,
        name_bytes: u64::MAX,
        pax_bytes: u64::MAX,
        xattr_bytes: u64::MAX,
        total_bytes: u64::MAX,
        ratio: u64::MAX,
        sparse_runs: u64::MAX,
        window_bytes: u64::MAX,
    };
}
