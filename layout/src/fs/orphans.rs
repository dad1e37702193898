//! Orphans: inodes without a link that may still be open (FORMAT.md section 5.7), and the freeing of
//! inodes.

use super::alloc::Class;
use super::{Fs, NewInode};
use crate::addr::{PAGE_SHIFT, PageNo, PageRange, SUPERBLOCK_PAGE, XATTR_BASE, XATTR_BYTES};
use crate::error::{Error, Result, corrupt};
use crate::inode::{Inline, Ino, Inode, InodeFlags, Kind};
use crate::page_store::{PageStore, Timespec};

/// The pages of an inode's xattr overflow area.
pub(super) fn xattr_pages(ino: Ino) -> PageRange {
    PageRange {
        first: PageNo::containing(XATTR_BASE + ino.0 * XATTR_BYTES),
        count: XATTR_BYTES >> PAGE_SHIFT,
    }
}

/// The orphans before and after one on the list, read and touched by the prepare step.
#[derive(Clone, Copy)]
pub(super) struct Neighbours {
    prev: Option<Inode>,
    next: Option<Inode>,
}

impl<P: PageStore> Fs<P> {
    /// Prepare: reads the list's head and makes sure that [`Fs::orphan_push`] can write.
    pub(super) fn touch_orphan_push(&self) -> Result<Option<Inode>> {
        let head = Ino(self.superblock.orphan_head);
        if head.0 == 0 {
            return Ok(None);
        }
        let inode = self.orphan(head)?;
        self.touch_inode(head)?;
        Ok(Some(inode))
    }

    /// Apply: puts an inode whose link count became 0 on the list. The inode itself is not written.
    /// `head` is what [`Fs::touch_orphan_push`] gave.
    pub(super) fn orphan_push(&mut self, inode: &mut Inode, head: Option<Inode>) -> Result<()> {
        inode.flags |= InodeFlags::ORPHAN;
        inode.orphan_prev = Ino(0);
        inode.orphan_next = Ino(0);
        if let Some(mut head) = head {
            inode.orphan_next = head.ino;
            head.orphan_prev = inode.ino;
            self.write_inode(&head)?;
        }
        self.superblock.orphan_head = inode.ino.0;
        Ok(())
    }

    /// An inode that the list names.
    fn orphan(&self, ino: Ino) -> Result<Inode> {
        let found = match self.inode_any(ino) {
            Ok(inode) => inode,
            Err(Error::NotFound) => return Err(corrupt(SUPERBLOCK_PAGE, "orphan list's inode", 1, ino.0)),
            Err(error) => return Err(error),
        };
        if !found.flags.contains(InodeFlags::ORPHAN) {
            return Err(self.corrupt_inode(ino, "inode on the orphan list has ORPHAN", 1, 0));
        }
        Ok(found)
    }

    /// Creates a file without a name (O_TMPFILE): an orphan with an open handle. It is freed at its last
    /// close like any other, unless [`Fs::link`] gives it a name before. Group, setgid and ACL come from
    /// the directory, as at [`Fs::create`]; the directory itself does not change.
    ///
    /// # Errors
    /// [`Error::NotDir`], [`Error::NotFound`] in a removed directory, [`Error::Invalid`] for anything but a
    /// regular file, [`Error::NoSpace`].
    pub fn tmpfile(&mut self, dir: Ino, new: NewInode, now: Timespec) -> Result<Inode> {
        self.writable()?;
        if new.kind != Kind::File {
            return Err(Error::Invalid("only a regular file can be made without a name"));
        }
        let dir = self.live_directory(dir)?;
        let pick = self.pick_inode()?;
        let mut inode = new.inode(&dir, &pick, now);
        inode.nlink = 0;
        let inherited = self.plan_inherit(&dir, &mut inode, new.umask)?;
        let head = self.touch_orphan_push()?;
        self.apply(|fs| {
            fs.take_inode(&pick)?;
            fs.orphan_push(&mut inode, head)?;
            fs.write_inode(&inode)?;
            if let Some(inherited) = &inherited {
                fs.write_inherited(&inode, inherited)?;
            }
            Ok(inode)
        })
    }

    /// Frees an orphan: the mounter calls it at the last close.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the number is not in use, [`Error::Invalid`] if it has links.
    pub fn reap(&mut self, ino: Ino) -> Result<()> {
        self.writable()?;
        let inode = self.inode(ino)?;
        if !inode.flags.contains(InodeFlags::ORPHAN) {
            return Err(Error::Invalid("only an inode without links can be freed"));
        }
        let mut inode = self.rows_before_free(inode)?;
        let neighbours = self.touch_orphan_pop(&inode)?;
        self.touch_free(&inode)?;
        self.apply(|fs| {
            fs.orphan_pop(&mut inode, neighbours)?;
            fs.free_inode(inode)
        })
    }

    /// Prepare: reads the neighbours of an orphan and makes sure that [`Fs::orphan_pop`] can write.
    pub(super) fn touch_orphan_pop(&self, inode: &Inode) -> Result<Neighbours> {
        let ino = inode.ino;
        let prev = self.orphan_neighbour(inode, inode.orphan_prev)?;
        let next = self.orphan_neighbour(inode, inode.orphan_next)?;
        if prev.is_none() && self.superblock.orphan_head != ino.0 {
            return Err(corrupt(SUPERBLOCK_PAGE, "orphan list's head", ino.0, self.superblock.orphan_head));
        }
        if prev.is_some_and(|p| p.orphan_next != ino) || next.is_some_and(|n| n.orphan_prev != ino) {
            return Err(self.corrupt_inode(ino, "orphan list's neighbours name each other", ino.0, 0));
        }
        Ok(Neighbours { prev, next })
    }

    /// Apply: takes an inode off the list. The inode itself is not written.
    pub(super) fn orphan_pop(&mut self, inode: &mut Inode, neighbours: Neighbours) -> Result<()> {
        let Neighbours { prev, next } = neighbours;
        if let Some(mut next) = next {
            next.orphan_prev = inode.orphan_prev;
            self.write_inode(&next)?;
        }
        match prev {
            Some(mut prev) => {
                prev.orphan_next = inode.orphan_next;
                self.write_inode(&prev)?;
            }
            None => self.superblock.orphan_head = inode.orphan_next.0,
        }
        inode.flags.remove(InodeFlags::ORPHAN);
        inode.orphan_prev = Ino(0);
        inode.orphan_next = Ino(0);
        Ok(())
    }

    /// Reads and touches a neighbour on the list, if there is one.
    fn orphan_neighbour(&self, inode: &Inode, ino: Ino) -> Result<Option<Inode>> {
        if ino.0 == 0 {
            return Ok(None);
        }
        if ino == inode.ino {
            return Err(self.corrupt_inode(ino, "orphan list without a loop", 0, ino.0));
        }
        let found = self.orphan(ino)?;
        self.touch_inode(ino)?;
        Ok(Some(found))
    }

    /// Frees orphans, `most` at once: at a writable mount, before anything is open. Gives how many.
    ///
    /// # Errors
    /// The first one met; the orphans freed before stay freed.
    pub fn reap_orphans(&mut self, most: u64) -> Result<u64> {
        let mut count = 0;
        while count < most && self.superblock.orphan_head != 0 {
            let head = Ino(self.superblock.orphan_head);
            self.reap(head)?;
            count += 1;
        }
        Ok(count)
    }

    /// Apply: gives back an inode's pages, windows, xattr area and number.
    pub(super) fn free_inode(&mut self, mut inode: Inode) -> Result<()> {
        let has_data = match inode.kind {
            Kind::File | Kind::Rows => true,
            Kind::Dir => inode.size > 0,
            Kind::Symlink => inode.inline != Inline::Symlink,
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket => false,
        };
        if has_data || inode.windows != [0; 3] {
            self.drop_pages(&mut inode, 0)?;
        }
        if inode.flags.contains(InodeFlags::XATTR_OVERFLOW) {
            self.store.discard(xattr_pages(inode.ino))?;
        }
        self.free_slot(inode.ino, inode.generation)
    }

    /// Prepare: makes sure that [`Fs::free_inode`] can write what it needs.
    pub(super) fn touch_free(&self, inode: &Inode) -> Result<()> {
        self.touch_inode(inode.ino)?;
        self.touch_push(Class::Inode)?;
        self.touch_drop(inode, 0)
    }
}
