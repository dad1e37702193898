//! rename(2) with its flags.

use bitflags::bitflags;

use super::Fs;
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode};
use crate::page_store::{PageStore, Timespec};

bitflags! {
    /// As `RENAME_*` of renameat2(2), with the same values.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct RenameFlags: u32 {
        /// Fail if the new name exists.
        const NOREPLACE = 1;
        /// Exchange the two names, which must both exist.
        const EXCHANGE = 2;
    }
}

impl<P: PageStore> Fs<P> {
    /// Renames.
    pub fn rename(
        &mut self,
        _dir: Ino,
        _name: &[u8],
        _new_dir: Ino,
        _new_name: &[u8],
        _flags: RenameFlags,
        _now: Timespec,
    ) -> Result<Option<Inode>> {
        Err(Error::Unsupported)
    }
}
