//! Zeroing a range of a file: fallocate(2) with FALLOC_FL_PUNCH_HOLE and FALLOC_FL_ZERO_RANGE.

use super::Fs;
use super::data::Keep;
use crate::addr::{PAGE, PageNo};
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, InodeFlags, MAX_FILE_BYTES};
use crate::page_store::{PageStore, Timespec};
use crate::windows::{self, CLASSES, class_pages};

/// A part of a page that the mounter zeroes in its data cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZeroPart {
    /// The device page.
    pub page: PageNo,
    /// First byte to zero.
    pub from: usize,
    /// One past the last.
    pub to: usize,
}

impl ZeroPart {
    /// File bytes [from, to) of one page; none if they are none, or a hole already.
    fn new(inode: &Inode, from: u64, to: u64) -> Option<ZeroPart> {
        let run = windows::map(inode, from).filter(|_| from < to)?;
        let in_page = (from % PAGE as u64) as usize;
        Some(ZeroPart {
            page: PageNo::containing(run.byte),
            from: in_page,
            to: in_page + (to - from) as usize,
        })
    }
}

impl<P: PageStore> Fs<P> {
    /// Makes bytes [offset, offset + len) of a file zeros: its whole pages become holes, and the mounter must
    /// zero the parts of pages that are given, at both ends. A range beyond the end lets the file
    /// grow to the range's end, unless `keep_size`. Rows become stale; suid, sgid and times as after a write.
    ///
    /// # Errors
    /// [`Error::TooBig`] past 256 TiB, [`Error::IsDir`], [`Error::Invalid`] for what has no data.
    pub fn zero_range(
        &mut self,
        ino: Ino,
        offset: u64,
        len: u64,
        keep_size: bool,
        keep: Keep,
        now: Timespec,
    ) -> Result<(Inode, [Option<ZeroPart>; 2])> {
        self.writable()?;
        let mut inode = self.file(ino)?;
        let range_end = offset.checked_add(len).filter(|end| *end <= MAX_FILE_BYTES).ok_or(Error::TooBig)?;
        let size = if keep_size { inode.size } else { inode.size.max(range_end) };
        let end = range_end.min(inode.size);
        if offset >= end && size == inode.size {
            return Ok((inode, [None; 2]));
        }
        self.touch_inode(ino)?;
        self.content_changes(&mut inode);
        keep.after_change(&mut inode, now);
        let page = PAGE as u64;
        if size.div_ceil(page) > inode.size.div_ceil(page) {
            inode.flags |= InodeFlags::SPARSE;
        }
        // Behind the file's end there are only zeros: its last page goes as a whole.
        let whole_end = if end == inode.size { end.next_multiple_of(page) } else { end / page * page };
        let whole_start = offset.next_multiple_of(page);
        let mut parts = [None; 2];
        if offset < end {
            parts = [
                ZeroPart::new(&inode, offset, whole_start.min(end)),
                ZeroPart::new(&inode, whole_end.max(whole_start), end),
            ];
        }
        inode.size = size;
        self.apply(|fs| {
            for class in 0..CLASSES {
                if let Some(range) = class_pages(&inode, class, whole_start, whole_end) {
                    fs.store.discard(range)?;
                    inode.flags |= InodeFlags::SPARSE;
                }
            }
            fs.write_inode(&inode)
        })?;
        Ok((inode, parts))
    }
}
