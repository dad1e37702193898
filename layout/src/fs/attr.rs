//! Attributes: owner, permission bits, times, size.

use super::Fs;
use super::data::{ZeroTail, drop_suid_sgid};
use crate::addr::{PAGE, PageNo};
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, InodeFlags, MAX_FILE_BYTES};
use crate::page_store::{PageStore, Timespec};
use crate::windows;

/// What to set; `None` leaves it. The kernel has decided already that the caller may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission bits, 07777.
    pub perm: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<Timespec>,
    /// Last change of content.
    pub mtime: Option<Timespec>,
    /// Last change of attributes; the time of the call if `None`.
    pub ctime: Option<Timespec>,
    /// Creation.
    pub btime: Option<Timespec>,
}

impl<P: PageStore> Fs<P> {
    /// Sets attributes. A new owner, group or size clears suid and sgid as Linux does, unless `perm`
    /// says otherwise. New permission bits change an ACL too. A size change discards the whole pages beyond the new end; when it ends inside
    /// a page, the mounter must zero the rest of that page ([`ZeroTail`]).
    ///
    /// # Errors
    /// [`Error::IsDir`] and [`Error::Invalid`] for a size of what has none, [`Error::TooBig`].
    pub fn setattr(&mut self, ino: Ino, set: SetAttr, now: Timespec) -> Result<(Inode, Option<ZeroTail>)> {
        self.writable()?;
        let mut inode = if set.size.is_some() { self.file(ino)? } else { self.inode(ino)? };
        if set.size.is_some_and(|size| size > MAX_FILE_BYTES) {
            return Err(Error::TooBig);
        }
        let times = [set.atime, set.mtime, set.ctime, set.btime];
        if times.iter().flatten().any(|t| t.nanos >= 1_000_000_000) {
            return Err(Error::Invalid("nanoseconds must be below 1,000,000,000"));
        }
        self.touch_inode(ino)?;
        let acl = match set.perm {
            Some(perm) => self.plan_chmod(&inode, perm)?,
            None => None,
        };
        if let Some(size) = set.size {
            self.touch_drop(&inode, size)?;
        }

        if set.uid.is_some() || set.gid.is_some() || set.size.is_some() {
            drop_suid_sgid(&mut inode);
        }
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        inode.perm = set.perm.map_or(inode.perm, |perm| perm & 0o7777);
        if set.size.is_some() {
            inode.mtime = now;
        }
        inode.atime = set.atime.unwrap_or(inode.atime);
        inode.mtime = set.mtime.unwrap_or(inode.mtime);
        inode.btime = set.btime.unwrap_or(inode.btime);
        inode.ctime = set.ctime.unwrap_or(now);
        self.apply(|fs| {
            let tail = match set.size {
                Some(size) => fs.resize(&mut inode, size)?,
                None => None,
            };
            fs.write_inode(&inode)?;
            if let Some(change) = &acl {
                fs.write_acl(change)?;
            }
            Ok((inode, tail))
        })
    }

    /// Apply: sets the size and drops what is beyond it.
    fn resize(&mut self, inode: &mut Inode, size: u64) -> Result<Option<ZeroTail>> {
        let old = inode.size;
        self.content_changes(inode);
        inode.size = size;
        if size.div_ceil(PAGE as u64) > old.div_ceil(PAGE as u64) {
            inode.flags |= InodeFlags::SPARSE;
        }
        if size >= old {
            return Ok(None);
        }
        let from = (size % PAGE as u64) as usize;
        let tail = windows::map(inode, size)
            .filter(|_| from != 0)
            .map(|run| ZeroTail { page: PageNo::containing(run.byte), from });
        self.drop_pages(inode, size)?;
        if size == 0 {
            inode.flags.remove(InodeFlags::SPARSE);
        }
        Ok(tail)
    }
}
