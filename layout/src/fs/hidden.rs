//! Hidden inodes (kind 8, rows files) and the primitives that the rows part is built of.
//!
//! Each function here is a whole change: it prepares, applies, and poisons the mount when the apply
//! step fails. A caller that combines several of them must leave a consistent volume between any two,
//! or wrap the rest in [`Fs::apply`] after the first.

use super::Fs;
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, Kind, MAX_FILE_BYTES};
use crate::page_store::{PageStore, Timespec};

impl<P: PageStore> Fs<P> {
    /// Allocates a hidden inode of kind rows: link count 1, in no directory, size 0.
    ///
    /// # Errors
    /// [`Error::NoSpace`] without a number.
    pub fn hidden_create(&mut self, now: Timespec) -> Result<Inode> {
        self.writable()?;
        let pick = self.pick_inode()?;
        let inode = Inode::new(pick.ino, pick.generation, Kind::Rows, 0, now);
        self.apply(|fs| {
            fs.take_inode(&pick)?;
            fs.write_inode(&inode)?;
            Ok(inode)
        })
    }

    /// A hidden inode.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the number is not that of a hidden inode.
    pub fn hidden_inode(&self, ino: Ino) -> Result<Inode> {
        let inode = self.inode_any(ino)?;
        if inode.kind == Kind::Rows { Ok(inode) } else { Err(Error::NotFound) }
    }

    /// Frees a hidden inode with all its pages and windows.
    ///
    /// # Errors
    /// As [`Fs::hidden_inode`].
    pub fn hidden_free(&mut self, ino: Ino) -> Result<()> {
        self.writable()?;
        let inode = self.hidden_inode(ino)?;
        self.touch_free(&inode)?;
        self.apply(|fs| fs.free_inode(inode))
    }

    /// Reads an inode (hidden or not), lets `change` change it, and writes it back. `change` must keep
    /// `ino`, `kind`, `generation`, the inline fields and the windows as they are.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the number is not in use.
    pub fn inode_update(&mut self, ino: Ino, change: impl FnOnce(&mut Inode)) -> Result<Inode> {
        self.writable()?;
        let mut inode = self.inode_any(ino)?;
        self.touch_inode(ino)?;
        change(&mut inode);
        self.apply(|fs| fs.write_inode(&inode))?;
        Ok(inode)
    }

    /// Allocates the windows that bytes [offset, offset + len) lack. Neither size, times nor flags
    /// change. Gives the inode with its windows: [`crate::windows::map_page`] then gives each page of the range.
    ///
    /// # Errors
    /// [`Error::TooBig`] past 256 TiB, [`Error::NoSpace`] without a window.
    pub fn ensure_windows(&mut self, ino: Ino, offset: u64, len: u64) -> Result<Inode> {
        self.writable()?;
        let mut inode = self.inode_any(ino)?;
        let end = offset.checked_add(len).filter(|end| *end <= MAX_FILE_BYTES).ok_or(Error::TooBig)?;
        let picks = self.pick_windows(&inode, offset, end)?;
        if picks.is_empty() {
            return Ok(inode);
        }
        self.touch_inode(ino)?;
        self.apply(|fs| {
            fs.take_windows(&mut inode, &picks)?;
            fs.write_inode(&inode)?;
            Ok(inode)
        })
    }
}
