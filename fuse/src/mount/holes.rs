//! Holes: SEEK_HOLE, SEEK_DATA and fallocate.

use layout::addr::{PAGE, PAGE_SHIFT};
use layout::error::{Error, Result};
use layout::fs::{Ino, InodeFlags, SetAttr};
use layout::page_store::PageStore;
use layout::windows::{CLASSES, class_of, class_pages, class_range, map};

use super::volume::{Mounted, now};
use crate::engine::Cost;

/// What lseek looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    /// SEEK_DATA
    Data,
    /// SEEK_HOLE
    Hole,
}

impl Mounted {
    /// The first offset at or after `offset` that is data, or a hole; none past the end (ENXIO).
    ///
    /// # Errors
    /// When the allocation map can't be read.
    pub fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<Option<u64>> {
        let _bytes = self.locks.shared(ino);
        let inode = self.reading()?.inode(ino)?;
        if offset >= inode.size {
            return Ok(None);
        }
        let at_end = match what {
            Seek::Data => None,
            Seek::Hole => Some(inode.size),
        };
        if !inode.flags.contains(InodeFlags::SPARSE) {
            return Ok(if what == Seek::Data { Some(offset) } else { at_end });
        }
        let mut at = offset;
        while at < inode.size {
            let class_end = class_range(class_of(at)).1.min(inode.size);
            match map(&inode, at) {
                None if what == Seek::Hole => return Ok(Some(at)),
                None => {}
                Some(run) => {
                    let first = run.byte >> PAGE_SHIFT;
                    let end = (run.byte + (class_end - at)).div_ceil(PAGE as u64);
                    if let Some(page) = self.engine.find_page(first, end, what == Seek::Data)? {
                        // The first page may begin before `at`.
                        let found = at + (page << PAGE_SHIFT).saturating_sub(run.byte);
                        return Ok(if found < inode.size { Some(found) } else { at_end });
                    }
                }
            }
            at = class_end;
        }
        Ok(at_end)
    }

    /// fallocate(2) without FALLOC_FL_KEEP_SIZE or any other flag, or with KEEP_SIZE alone: grows
    /// the file if asked. Space is checked, not set aside: in a log every write takes a new place.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when so much is not free now.
    pub fn allocate(&self, ino: Ino, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = offset.checked_add(len).ok_or(Error::TooBig)?;
        drop(self.begin(Cost::Pages(len.div_ceil(PAGE as u64)))?);
        if !keep_size && end > self.inode(ino)?.size {
            self.setattr(ino, SetAttr { size: Some(end), ..SetAttr::default() }, true)?;
        }
        Ok(())
    }

    /// fallocate(2) with FALLOC_FL_PUNCH_HOLE: the range reads as zeros and its whole pages are freed.
    ///
    /// # Errors
    /// As a write.
    pub fn punch_hole(&self, ino: Ino, offset: u64, len: u64) -> Result<()> {
        let _op = self.begin(Cost::Pages(2))?;
        let _bytes = self.locks.exclusive(ino);
        let mut fs = self.fs.write();
        let before = fs.inode(ino)?;
        let end = offset.saturating_add(len).min(before.size);
        if offset >= end {
            return Ok(());
        }
        self.drop_capabilities(&mut fs, &before)?;
        fs.prepare_write(ino, offset, end - offset)?;
        let inode = fs.inode_update(ino, |inode| inode.flags |= InodeFlags::SPARSE)?;
        for class in 0..CLASSES {
            if let Some(range) = class_pages(&inode, class, offset, end) {
                fs.store().discard(range)?;
            }
        }
        // The parts of pages at both ends.
        let page = PAGE as u64;
        let (first_whole, last_whole) = (offset.next_multiple_of(page), end / page * page);
        let edges = if first_whole > last_whole {
            [(offset, end), (end, end)]
        } else {
            [(offset, first_whole), (last_whole, end)]
        };
        for (from, to) in edges {
            if let Some(run) = map(&inode, from).filter(|_| from < to) {
                self.engine.write_data(run.byte, &[0; PAGE][..(to - from) as usize], u64::MAX)?;
            }
        }
        fs.finish_write(ino, end, now())?;
        Ok(())
    }
}
