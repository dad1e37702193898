//! copy_file_range(2): bytes from file to file without a way through the caller.

use layout::error::{Error, Result};
use layout::fs::Ino;

use super::volume::Mounted;

/// Bytes read and written at once.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes copied by one call: it returns so often, and can be interrupted then.
const CALL_BYTES_MAX: u64 = 64 << 20;

impl Mounted {
    /// Copies up to `len` bytes, less at the source's end or for long copies; gives how many. Ranges of one file must not
    /// overlap. `keep_suid` as in [`Mounted::write`].
    ///
    /// # Errors
    /// As [`Mounted::read`] and [`Mounted::write`], if not even the first bytes could be copied.
    pub fn copy(&self, from: (Ino, u64), to: (Ino, u64), len: u64, keep_suid: bool) -> Result<u64> {
        let mut done = 0;
        while done < len.min(CALL_BYTES_MAX) {
            let piece = usize::try_from(len - done).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            match self.copy_piece(
                (from.0, from.1.saturating_add(done)),
                (to.0, to.1.saturating_add(done)),
                piece,
                keep_suid,
            ) {
                Ok(0) => break,
                Ok(copied) => done += copied,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn copy_piece(&self, from: (Ino, u64), to: (Ino, u64), len: usize, keep_suid: bool) -> Result<u64> {
        let bytes = self.read(from.0, from.1, len)?;
        if to.1.checked_add(bytes.len() as u64).is_none() {
            return Err(Error::TooBig);
        }
        self.write_late(to.0, to.1, &bytes, keep_suid)?;
        Ok(bytes.len() as u64)
    }
}
