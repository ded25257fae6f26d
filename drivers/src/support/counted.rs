//! How long a stream became.

use std::io::Write;

/// Counts what is written.
pub(crate) struct Counted<'w> {
    pub(crate) out: &'w mut dyn Write,
    pub(crate) bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes = self.bytes.saturating_add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
