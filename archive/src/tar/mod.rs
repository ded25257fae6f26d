//! The tar codec: [`Decoder`] reads a stream member by member and never loses a byte of it, [`Encoder`] writes one.
//!
//! ```text
//!  member   = [ extension members: PAX x, GNU L and K ]  header block  [ GNU sparse map blocks ]  content  padding
//!  archive  = member*  zero block  zero block  whatever follows
//! ```
//!
//! Formats read: v7, ustar, PAX (with the GNU and star vendor records a layer needs), old GNU, star. Where the formats
//! leave room for opinion the decoder does what Go's `archive/tar` does, since every engine that shares a store with us
//! reads layers with it; the differences are listed at [`Decoder`].
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
#![warn(clippy::arithmetic_side_effects)]

mod block;
mod decode;
mod encode;
mod number;
mod pax;
mod sparse;
mod window;

pub use decode::{Data, Decoder, RawSink};
pub use encode::{EncodeOptions, Encoder, align_runs};

/// Size of a block: headers take one, content is padded to a multiple of it.
pub const BLOCK_SIZE: usize = 512;
