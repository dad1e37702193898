//! Attributes, sizes and space.

use layout::addr::{INO_LIMIT, PAGE};
use layout::error::Result;
use layout::fs::{Ino, Inode, InodeFlags, SetAttr};
use layout::inode::Kind;
use layout::windows::{CLASSES, class_pages};

use super::volume::{Mounted, now};
use crate::engine::Cost;

/// What statfs tells, in pages of 4 KiB and inodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Pages in all.
    pub pages: u64,
    /// Pages free.
    pub free: u64,
    /// Pages that ordinary operations may take.
    pub usable: u64,
    /// Inodes in use and free.
    pub inodes: u64,
    /// Inodes free.
    pub inodes_free: u64,
}

impl Mounted {
    /// Sets attributes. `keep_suid`: the caller has CAP_FSETID, so a new size leaves suid and sgid.
    ///
    /// # Errors
    /// As [`layout::fs::Fs::setattr`].
    pub fn setattr(&self, ino: Ino, mut set: SetAttr, keep_suid: bool) -> Result<Inode> {
        let cost = match set.size {
            Some(0) => Cost::Freeing,
            Some(_) => Cost::Pages(1),
            None => Cost::Pages(0),
        };
        let _op = self.begin(cost)?;
        let _bytes = set.size.is_some().then(|| self.locks.exclusive(ino));
        let mut cut = None;
        if let Some(size) = set.size {
            let before = self.reading()?.inode(ino)?;
            self.load_edge(&before, size)?;
            cut = Some(before);
        }
        let (inode, tail) = {
            let mut fs = self.fs.write();
            if set.size.is_some() {
                let before = fs.inode(ino)?;
                if keep_suid && set.perm.is_none() && set.uid.is_none() && set.gid.is_none() {
                    set.perm = Some(before.perm);
                }
                self.drop_capabilities(&mut fs, &before)?;
            }
            fs.setattr(ino, set, now())?
        };
        if let Some(before) = cut {
            self.tell_mode(&before, &inode);
        }
        if let Some(tail) = tail {
            self.engine.zero_tail(tail.page.byte() + tail.from as u64)?;
        }
        Ok(inode)
    }

    /// The 512-byte blocks that an inode takes.
    ///
    /// # Errors
    /// When the allocation map can't be read.
    pub fn blocks(&self, inode: &Inode) -> Result<u64> {
        const SECTORS: u64 = PAGE as u64 / 512;
        match inode.kind {
            Kind::File if inode.flags.contains(InodeFlags::SPARSE) => {
                let mut pages = 0;
                let end = inode.size.next_multiple_of(PAGE as u64);
                for class in 0..CLASSES {
                    if let Some(range) = class_pages(inode, class, 0, end) {
                        pages += self.engine.count_mapped(range.first.0, range.first.0 + range.count)?;
                    }
                }
                Ok(pages * SECTORS)
            }
            Kind::File | Kind::Dir | Kind::Rows => Ok(inode.size.div_ceil(PAGE as u64) * SECTORS),
            Kind::Symlink if inode.size > layout::inode::INLINE_BYTES as u64 => Ok(SECTORS),
            _ => Ok(0),
        }
    }

    /// Whether less than a sixteenth of the volume is left, or less than so many pages.
    pub fn is_narrow(&self, pages_max: u64) -> bool {
        let (_, usable) = self.engine.free_and_usable_pages();
        usable < (self.engine.capacity_pages() / 16).min(pages_max)
    }

    /// Space of the volume, with what is not yet committed counted as used.
    ///
    /// # Errors
    /// When the status page can't be read.
    pub fn space(&self) -> Result<Space> {
        let status = self.engine.status().map_err(|error| {
            tracing::error!("cannot read the status page: {error}");
            layout::error::Error::Io(layout::addr::STATUS_PAGE)
        })?;
        let (free, usable) = self.engine.free_and_usable_pages();
        let used = self.reading()?.superblock().inodes_used;
        // An inode takes at least its eighth of a table page.
        let inodes_free = (usable * (PAGE as u64 / 512)).min(INO_LIMIT.saturating_sub(used));
        Ok(Space {
            pages: status.capacity_pages.get(),
            free,
            usable,
            inodes: used + inodes_free,
            inodes_free,
        })
    }
}
