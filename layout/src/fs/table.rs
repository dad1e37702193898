//! The inode table: reading and writing slots.

use super::Fs;
use crate::addr::{PageNo, SUPERBLOCK_PAGE};
use crate::error::{Error, Result, corrupt};
use crate::inode::{Ino, Inode, Kind, RawInode, Slot, slot, slot_mut};
use crate::page_store::PageStore;

impl<P: PageStore> Fs<P> {
    /// A corruption found in an inode's slot.
    pub(super) fn corrupt_inode(&self, ino: Ino, what: &'static str, expected: u64, found: u64) -> Error {
        corrupt(ino.page().unwrap_or(SUPERBLOCK_PAGE), what, expected, found)
    }

    /// The page of a number that was given out already.
    pub(super) fn inode_page(&self, ino: Ino) -> Result<PageNo> {
        if ino.0 == 0 || ino.0 >= self.superblock.next_ino {
            return Err(Error::NotFound);
        }
        ino.page().ok_or(Error::NotFound)
    }

    /// The slot of a number that was given out, whatever it holds.
    pub(crate) fn read_slot(&self, ino: Ino) -> Result<Slot> {
        let page = self.inode_page(ino)?;
        slot(&*self.store.read(page)?, ino).decode(page, ino)
    }

    /// An inode in use, hidden or not.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the number is free or was never used; [`Error::Corrupt`].
    pub fn inode_any(&self, ino: Ino) -> Result<Inode> {
        match self.read_slot(ino)? {
            Slot::Used(inode) => Ok(inode),
            Slot::Free(_) | Slot::NeverUsed => Err(Error::NotFound),
        }
    }

    /// An inode in use that is not hidden.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the number is free, was never used, or is hidden; [`Error::Corrupt`].
    pub fn inode(&self, ino: Ino) -> Result<Inode> {
        let inode = self.inode_any(ino)?;
        if inode.kind == Kind::Rows { Err(Error::NotFound) } else { Ok(inode) }
    }

    /// A directory.
    pub(super) fn directory(&self, ino: Ino) -> Result<Inode> {
        let inode = self.inode(ino)?;
        if inode.kind == Kind::Dir { Ok(inode) } else { Err(Error::NotDir) }
    }

    /// Prepare: makes sure that the inode's slot can be written.
    pub(super) fn touch_inode(&self, ino: Ino) -> Result<()> {
        let page = self.inode_page(ino)?;
        drop(self.store.write(page)?);
        Ok(())
    }

    /// Apply: writes everything but the inline area.
    pub(super) fn write_inode(&self, inode: &Inode) -> Result<()> {
        self.change_slot(inode.ino, |raw| inode.encode(raw))
    }

    /// Apply: changes a slot as a whole.
    pub(super) fn change_slot(&self, ino: Ino, change: impl FnOnce(&mut RawInode)) -> Result<()> {
        let page = self.inode_page(ino)?;
        change(slot_mut(&mut *self.store.write(page)?, ino));
        Ok(())
    }
}
