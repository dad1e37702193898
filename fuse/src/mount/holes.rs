//! Holes: SEEK_HOLE, SEEK_DATA and fallocate.

use layout::addr::{PAGE, PAGE_SHIFT};
use layout::error::{Error, Result};
use layout::fs::{Ino, Inode, InodeFlags, Keep, SetAttr};
use layout::inode::MAX_FILE_BYTES;
use layout::windows::{class_of, class_range, map};

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
    /// the file if asked. Space is checked, not set aside: in a log every write takes a new place. `keep_suid` as in [`Mounted::write`].
    ///
    /// # Errors
    /// [`Error::NoSpace`] when so much is not free now.
    pub fn allocate(&self, ino: Ino, offset: u64, len: u64, keep_size: bool, keep_suid: bool) -> Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= MAX_FILE_BYTES).ok_or(Error::TooBig)?;
        let _op = self.begin(Cost::Pages(len.div_ceil(PAGE as u64)))?;
        let _bytes = self.locks.exclusive(ino);
        let mut fs = self.fs.write();
        let before = fs.inode(ino)?;
        // Looked at and set under one lock: bytes that the kernel held back may come meanwhile, and go farther.
        if !keep_size && end > before.size {
            let mut set = SetAttr { size: Some(end), ..SetAttr::default() };
            let keep = self.keep(keep_suid);
            if keep.suid {
                set.perm = Some(before.perm);
            }
            if keep.times {
                (set.mtime, set.ctime) = (Some(before.mtime), Some(before.ctime));
            }
            let (after, _) = fs.setattr(ino, set, now())?;
            drop(fs);
            self.tell_mode(&before, &after);
        }
        Ok(())
    }

    /// fallocate(2) with FALLOC_FL_PUNCH_HOLE: the range reads as zeros and its whole pages are freed.
    ///
    /// # Errors
    /// As [`layout::fs::Fs::zero_range`].
    pub fn punch_hole(&self, ino: Ino, offset: u64, len: u64, keep_suid: bool) -> Result<()> {
        // Its two edges are less than what any change may take.
        self.zero(ino, (offset, len), true, keep_suid, Cost::Freeing)
    }

    /// fallocate(2) with FALLOC_FL_ZERO_RANGE: the range reads as zeros, and the file grows to its end unless
    /// `keep_size`. As with [`Mounted::allocate`] its space is checked, not set aside: it becomes a hole.
    ///
    /// # Errors
    /// As [`Mounted::allocate`].
    pub fn zero_range(
        &self,
        ino: Ino,
        offset: u64,
        len: u64,
        keep_size: bool,
        keep_suid: bool,
    ) -> Result<()> {
        self.zero(ino, (offset, len), keep_size, keep_suid, Cost::Pages(len.div_ceil(PAGE as u64)))
    }

    fn zero(
        &self,
        ino: Ino,
        (offset, len): (u64, u64),
        keep_size: bool,
        keep_suid: bool,
        cost: Cost,
    ) -> Result<()> {
        let _op = self.begin(cost)?;
        let _bytes = self.locks.exclusive(ino);
        let before = self.reading()?.inode(ino)?;
        for edge in [offset, offset.saturating_add(len)] {
            self.load_edge(&before, edge)?;
        }
        let (after, parts) = {
            let mut fs = self.fs.write();
            let before = fs.inode(ino)?;
            self.drop_capabilities(&mut fs, &before)?;
            fs.zero_range(ino, offset, len, keep_size, self.keep(keep_suid), now())?
        };
        self.tell_mode(&before, &after);
        for part in parts.into_iter().flatten() {
            self.engine.zero(part.page.byte() + part.from as u64, part.to - part.from)?;
        }
        Ok(())
    }

    /// Reads the page that a change cuts at byte `at` of a file: what can't be read fails before anything is changed.
    pub(super) fn load_edge(&self, inode: &Inode, at: u64) -> Result<()> {
        match map(inode, at) {
            Some(run) if at < inode.size && !at.is_multiple_of(PAGE as u64) => self.engine.load(run.byte),
            _ => Ok(()),
        }
    }

    /// What a change of bytes leaves as it is, as its caller and the kernel have it.
    fn keep(&self, suid: bool) -> Keep {
        Keep { suid, times: self.kernel_has_times() }
    }
}
