//! The data path: where bytes stand, and what a write or truncate changes in the inode. The mounter
//! moves the bytes itself.

use super::Fs;
use super::alloc::{Class, Pick};
use crate::addr::{PAGE, PageNo};
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, InodeFlags, Kind, MAX_FILE_BYTES};
use crate::page_store::{PageStore, Timespec};
use crate::windows::{self, CLASSES, Run, class_of, class_pages, class_range};

/// The rest of a page that a truncate left; the mounter zeroes it in its data cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZeroTail {
    /// The device page that holds the new end of the file.
    pub page: PageNo,
    /// First byte to zero, up to the page's end.
    pub from: usize,
}

/// Windows chosen for a write, one a class at most.
#[derive(Default)]
pub(super) struct WindowPicks([Option<Pick>; CLASSES]);

impl WindowPicks {
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// Puts the chosen windows into a copy of the inode, to see where its bytes will stand.
    pub(super) fn preview(&self, inode: &mut Inode) {
        for (pick, window) in self.0.iter().skip(1).zip(&mut inode.windows) {
            if let Some(pick) = pick {
                *window = u32::try_from(pick.number).map_or(0, |n| n + 1);
            }
        }
    }
}

/// S_ISUID and, where the group may execute, S_ISGID are cleared when others change the bytes or
/// the owner of a file (Linux fs/attr.c, setattr_should_drop_suidgid).
pub(super) fn drop_suid_sgid(inode: &mut Inode) {
    if inode.kind == Kind::Dir {
        return;
    }
    inode.perm &= !0o4000;
    if inode.perm & 0o010 != 0 {
        inode.perm &= !0o2000;
    }
}

/// What a change of bytes leaves as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Keep {
    /// suid and sgid: the writer has CAP_FSETID.
    pub suid: bool,
    /// mtime and ctime: the kernel tells them by itself.
    pub times: bool,
}

impl Keep {
    /// What a change of bytes does to the inode beside its size.
    pub(super) fn after_change(self, inode: &mut Inode, now: Timespec) {
        if !self.times {
            inode.mtime = now;
            inode.ctime = now;
        }
        if !self.suid {
            drop_suid_sgid(inode);
        }
    }
}

impl<P: PageStore> Fs<P> {
    /// Where a file's byte stands; none if its window is not allocated: a hole.
    pub fn map(&self, inode: &Inode, offset: u64) -> Option<Run> {
        windows::map(inode, offset)
    }

    /// Prepare: chooses the windows that bytes [offset, end) of the inode lack.
    pub(super) fn pick_windows(&self, inode: &Inode, offset: u64, end: u64) -> Result<WindowPicks> {
        let mut picks = WindowPicks::default();
        if offset >= end {
            return Ok(picks);
        }
        for class in class_of(offset).max(1)..=class_of(end - 1) {
            if class > 0
                && inode.windows.get(class - 1) == Some(&0)
                && let Some(pick) = picks.0.get_mut(class)
            {
                *pick = Some(self.pick(Class::Window(class))?);
            }
        }
        Ok(picks)
    }

    /// Apply: takes the chosen windows into the inode (not yet written to its slot).
    pub(super) fn take_windows(&mut self, inode: &mut Inode, picks: &WindowPicks) -> Result<()> {
        for pick in picks.0.iter().flatten() {
            self.take(pick)?;
        }
        picks.preview(inode);
        Ok(())
    }

    /// Prepare: makes sure that [`Fs::drop_pages`] from this offset can push the windows it frees.
    pub(super) fn touch_drop(&self, inode: &Inode, from: u64) -> Result<()> {
        for class in 1..CLASSES {
            if class_range(class).0 >= from && inode.windows.get(class - 1).is_some_and(|w| *w != 0) {
                self.touch_push(Class::Window(class))?;
            }
        }
        Ok(())
    }

    /// Apply: discards the whole pages at and above `from` and frees windows that hold nothing any
    /// more. The inode is not yet written to its slot.
    pub(super) fn drop_pages(&mut self, inode: &mut Inode, from: u64) -> Result<()> {
        for class in 0..CLASSES {
            if let Some(range) = class_pages(inode, class, from, MAX_FILE_BYTES) {
                self.store.discard(range)?;
            }
            if class == 0 || class_range(class).0 < from {
                continue;
            }
            if let Some(window) = inode.windows.get_mut(class - 1)
                && let Some(number) = window.checked_sub(1)
            {
                *window = 0;
                self.push(Class::Window(class), u64::from(number))?;
            }
        }
        Ok(())
    }

    /// Call before bytes [offset, offset + len) are changed: allocates their windows, sets SPARSE when
    /// the write leaves a gap, and marks the file's rows stale.
    ///
    /// # Errors
    /// [`Error::TooBig`] past 256 TiB (EFBIG), [`Error::IsDir`], [`Error::Invalid`] for what has no
    /// data, [`Error::NoSpace`] without a window.
    pub fn prepare_write(&mut self, ino: Ino, offset: u64, len: u64) -> Result<Inode> {
        self.prepare(ino, (offset, len), false)
    }

    /// As [`Fs::prepare_write`] before bytes are cloned from a file; `sparse`: there may be holes among them.
    ///
    /// # Errors
    /// As [`Fs::prepare_write`].
    pub fn prepare_clone(&mut self, ino: Ino, offset: u64, len: u64, sparse: bool) -> Result<Inode> {
        self.prepare(ino, (offset, len), sparse)
    }

    fn prepare(&mut self, ino: Ino, (offset, len): (u64, u64), sparse: bool) -> Result<Inode> {
        self.writable()?;
        let mut inode = self.file(ino)?;
        let end = offset.checked_add(len).filter(|end| *end <= MAX_FILE_BYTES).ok_or(Error::TooBig)?;
        if len == 0 {
            return Ok(inode);
        }
        let before = inode;
        let picks = self.pick_windows(&inode, offset, end)?;
        if sparse || offset / PAGE as u64 > inode.size.div_ceil(PAGE as u64) {
            inode.flags |= InodeFlags::SPARSE;
        }
        self.content_changes(&mut inode);
        if picks.is_empty() && inode == before {
            return Ok(inode);
        }
        self.touch_inode(ino)?;
        self.apply(|fs| {
            fs.take_windows(&mut inode, &picks)?;
            fs.write_inode(&inode)?;
            Ok(inode)
        })
    }

    /// Call after bytes up to `end` were changed: size, mtime, ctime; suid and sgid are cleared.
    ///
    /// # Errors
    /// As [`Fs::prepare_write`].
    pub fn finish_write(&mut self, ino: Ino, end: u64, now: Timespec) -> Result<Inode> {
        self.finish_write_keeping(ino, end, now, Keep::default())
    }

    /// As [`Fs::finish_write`], but for what is to stay.
    ///
    /// # Errors
    /// As [`Fs::prepare_write`].
    pub fn finish_write_keeping(&mut self, ino: Ino, end: u64, now: Timespec, keep: Keep) -> Result<Inode> {
        self.writable()?;
        let mut inode = self.file(ino)?;
        if end > MAX_FILE_BYTES {
            return Err(Error::TooBig);
        }
        let before = inode;
        inode.size = inode.size.max(end);
        keep.after_change(&mut inode, now);
        if inode != before {
            self.touch_inode(ino)?;
            self.apply(|fs| fs.write_inode(&inode))?;
        }
        Ok(inode)
    }

    /// A regular file.
    pub(super) fn file(&self, ino: Ino) -> Result<Inode> {
        let inode = self.inode(ino)?;
        match inode.kind {
            Kind::File => Ok(inode),
            Kind::Dir => Err(Error::IsDir),
            _ => Err(Error::Invalid("only regular files have bytes to write")),
        }
    }
}
