//! Places: parents and paths.

use super::Fs;
use crate::error::{Error, Result};
use crate::inode::Ino;
use crate::page_store::PageStore;

impl<P: PageStore> Fs<P> {
    /// The directory that holds a directory; the root's is itself.
    pub fn parent(&self, _dir: Ino) -> Result<Ino> {
        Err(Error::Unsupported)
    }

    /// Path.
    pub fn path(&self, _ino: Ino, _stop_at: Ino, _out: &mut [u8]) -> Result<usize> {
        Err(Error::Unsupported)
    }
}
