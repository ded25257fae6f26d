//! The checksum of tar-split: CRC-64 with the polynomial of ISO 3309 as Go's `hash/crc64` computes it.

use crc_fast::{CrcAlgorithm, Digest};

/// A running checksum.
#[derive(Clone, Copy, Debug)]
pub struct Crc64(Digest);

impl Default for Crc64 {
    fn default() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64GoIso))
    }
}

impl Crc64 {
    /// Takes in further bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of everything taken in so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, bit by bit: reflected polynomial 0xD800000000000000, start and end inverted.
    fn slow(bytes: &[u8]) -> u64 {
        let mut crc = u64::MAX;
        for byte in bytes {
            crc ^= u64::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xD800_0000_0000_0000 } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn agrees_with_the_definition_at_every_length_and_cut() {
        let bytes: Vec<u8> = (0..2100u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for length in (0..300).chain([511, 512, 513, 1023, 1024, 1500, 2047, 2100]) {
            let part = &bytes[..length];
            let mut crc = Crc64::default();
            let (head, tail) = part.split_at(length / 3);
            crc.update(head);
            crc.update(tail);
            assert_eq!(crc.value(), slow(part), "{length}");
        }
    }
}
