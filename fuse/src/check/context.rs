//! The state of a running check, and what every pass does with it: reading and changing inodes, telling of
//! findings, finding paths.

use std::collections::{BTreeMap, BTreeSet};

use layout::addr::{PAGE, PAGE_SHIFT, PageNo, PageRange, XATTR_BASE, XATTR_BYTES};
use layout::inode::{Ino, Inode, InodeFlags, Kind, RawInode, Slot, slot, slot_mut};
use layout::superblock::Superblock;
use layout::windows::{CLASSES, class_pages, class_range};

use super::census::{Census, State};
use super::collections::Rows;
use super::finding::{Code, Finding, Weight};
use super::pool::{Pool, Run, Stop};
use super::windows::Windows;
use super::{Mode, Watch};

/// Directories climbed for a path at most.
const PATH_STEPS_MAX: usize = 256;

/// A running check.
pub struct Check<'a> {
    pub(super) pool: &'a mut Pool,
    pub(super) watch: &'a mut dyn Watch,
    pub(super) mode: Mode,
    pub(super) superblock: Superblock,
    /// The superblock must be written anew whatever else changes.
    pub(super) superblock_changed: bool,
    pub(super) census: Census,
    pub(super) windows: [Windows; CLASSES - 1],
    /// Directories that say they are collections, and the rows file they name.
    pub(super) collections: BTreeMap<u64, u64>,
    /// Rows files.
    pub(super) rows_files: BTreeSet<u64>,
    /// Rows files that belong to a collection, once pass 5 has looked at them.
    pub(super) rows: BTreeMap<u64, Rows>,
    /// Numbers were taken or given back, so the free stacks must be built anew.
    pub(super) numbers_changed: bool,
    /// The orphan list is not what it should be.
    pub(super) orphans_broken: bool,
    /// Findings so far that count: those that are repaired, and those that can't be.
    pub(super) repaired: u64,
    pub(super) unrepaired: u64,
    pub(super) notes: u64,
}

/// The pages of an inode's xattr overflow area.
pub fn xattr_range(ino: u64) -> PageRange {
    PageRange { first: PageNo::containing(XATTR_BASE + ino * XATTR_BYTES), count: XATTR_BYTES >> PAGE_SHIFT }
}

impl Check<'_> {
    /// Tells of a finding. The caller repairs it then (in memory only, where nothing may be changed).
    pub(super) fn find(&mut self, mut finding: Finding) -> Run<()> {
        if let Some(ino) = finding.ino
            && finding.path.is_none()
        {
            finding.path = self.path_of(ino)?;
        }
        let weight = finding.code.weight();
        if self.mode == Mode::Preen && weight == Weight::Loss {
            self.watch.found(&finding);
            return Err(Stop::Unsafe);
        }
        match weight {
            Weight::Note => self.notes += 1,
            Weight::None => self.unrepaired += 1,
            Weight::Safe | Weight::Loss => self.repaired += 1,
        }
        self.watch.found(&finding);
        Ok(())
    }

    /// Tells how far a pass is, and stops when the user says so.
    pub(super) fn progress(&mut self, done: u64, total: u64) -> Run<()> {
        if self.watch.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        self.watch.progress(done, total.max(1));
        Ok(())
    }

    /// The page of the inode table that has a slot.
    pub(super) fn table_page(ino: u64) -> Option<PageNo> {
        Ino(ino).page()
    }

    /// The slot of an inode, as changed so far; zeros where it can't be read.
    pub(super) fn raw_slot(&mut self, ino: u64) -> Run<RawInode> {
        let Some(page) = Self::table_page(ino) else { return Ok(RawInode::ZERO) };
        Ok(self.pool.read(page)?.map_or(RawInode::ZERO, |bytes| *slot(&bytes, Ino(ino))))
    }

    /// An inode in use; `None` if it is not, or is damaged.
    pub(super) fn inode(&mut self, ino: u64) -> Run<Option<Inode>> {
        let Some(page) = Self::table_page(ino) else { return Ok(None) };
        Ok(match self.raw_slot(ino)?.decode(page, Ino(ino)) {
            Ok(Slot::Used(inode)) => Some(inode),
            _ => None,
        })
    }

    /// As [`Check::inode`], reading the table on ahead: for passes in the order of numbers.
    pub(super) fn inode_in_order(&mut self, ino: u64) -> Run<Option<Inode>> {
        let (Some(page), Some(end)) = (Self::table_page(ino), Self::table_page(self.census.end())) else {
            return self.inode(ino);
        };
        let _ = self.pool.read_on(page, end.add(1))?;
        self.inode(ino)
    }

    /// Changes a slot.
    pub(super) fn change_slot(&mut self, ino: u64, change: impl FnOnce(&mut RawInode)) -> Run<()> {
        let Some(page) = Self::table_page(ino) else { return Ok(()) };
        let mut bytes = self.pool.read(page)?.map_or([0; PAGE], |bytes| **bytes);
        change(slot_mut(&mut bytes, Ino(ino)));
        self.pool.write(page, &bytes)
    }

    /// Writes an inode but for its inline area.
    pub(super) fn put_inode(&mut self, inode: &Inode) -> Run<()> {
        self.change_slot(inode.ino.0, |raw| inode.encode(raw))
    }

    /// Frees an inode with all it has.
    pub(super) fn free_inode(&mut self, ino: u64) -> Run<()> {
        let raw = self.raw_slot(ino)?;
        let page = Self::table_page(ino).unwrap_or(PageNo(0));
        let inode = match raw.decode(page, Ino(ino)) {
            Ok(Slot::Used(inode)) => inode,
            _ => Inode::new(Ino(ino), raw.generation.get(), Kind::File, 0, Default::default()),
        };
        self.free_content(&inode)?;
        let generation = if raw.generation.get() == 0 { 1 } else { raw.generation.get() };
        self.change_slot(ino, |raw| *raw = RawInode::free(Ino(ino), generation))?;
        self.census.set_state(ino, State::Free);
        self.collections.remove(&ino);
        self.rows_files.remove(&ino);
        self.numbers_changed = true;
        Ok(())
    }

    /// Unmaps all pages of an inode and gives its windows back.
    fn free_content(&mut self, inode: &Inode) -> Run<()> {
        let mut kept = *inode;
        self.drop_pages(&mut kept, 0)?;
        self.pool.free(xattr_range(inode.ino.0))
    }

    /// Unmaps the pages of an inode from byte `from` on, and takes the windows that lie behind it from the inode (which
    /// is not written). Pages of a window that another inode owns are left alone.
    pub(super) fn drop_pages(&mut self, inode: &mut Inode, from: u64) -> Run<()> {
        for class in 0..CLASSES {
            if class > 0 && !self.owns(inode, class) {
                if let Some(window) =
                    inode.windows.get_mut(class - 1).filter(|_| class_range(class).0 >= from)
                {
                    *window = 0;
                }
                continue;
            }
            if let Some(range) = class_pages(inode, class, from, layout::inode::MAX_FILE_BYTES) {
                self.pool.free(range)?;
            }
            if class > 0 && class_range(class).0 >= from {
                let number = u64::from(inode.windows[class - 1]) - 1;
                self.windows[class - 1].disown(number);
                inode.windows[class - 1] = 0;
                self.numbers_changed = true;
            }
        }
        Ok(())
    }

    /// Whether the inode has a window of the class, and is its owner.
    pub(super) fn owns(&self, inode: &Inode, class: usize) -> bool {
        let number = inode.windows[class - 1].checked_sub(1).map(u64::from);
        number.is_some_and(|number| self.windows[class - 1].owner(number) == Some(inode.ino.0))
    }

    /// The path of an inode by its place, as far as places lead: for people.
    pub(super) fn path_of(&mut self, ino: u64) -> Run<Option<String>> {
        let mut names: Vec<String> = Vec::new();
        let mut at = ino;
        for _ in 0..PATH_STEPS_MAX {
            if at == self.superblock.root.0 {
                names.reverse();
                return Ok(Some(format!("/{}", names.join("/"))));
            }
            let Some(inode) = self.inode(at)? else { return Ok(None) };
            if inode.kind == Kind::Rows {
                return Ok(None);
            }
            let dir = inode.place_dir.0;
            let Some(parent) = self.inode(dir)?.filter(|parent| parent.kind == Kind::Dir) else {
                return Ok(None);
            };
            let Some((child, name)) = self.entry_at(&parent, inode.place_key)? else { return Ok(None) };
            if child != at {
                return Ok(None);
            }
            names.push(name);
            at = dir;
        }
        Ok(None)
    }

    /// Whether an inode has flags that are set on a directory that is a collection.
    pub(super) fn is_collection(inode: &Inode) -> bool {
        inode.flags.contains(InodeFlags::COLLECTION)
    }

    /// A finding about an inode, of a code.
    pub(super) fn find_in(&mut self, code: Code, ino: u64, detail: &str) -> Run<()> {
        self.find(Finding::new(code).ino(ino).detail(detail))
    }
}
