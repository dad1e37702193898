//! Numbers of inodes and windows: free stacks and never-used numbers (FORMAT.md section 5.6).
//!
//! What an epoch frees goes on the stack of the epoch's parity, what it takes comes off the other
//! one: so a number comes back only after the commit that freed it. When that other one is empty, it
//! takes from its own stack what stood there when the epoch began: else numbers that are always
//! freed in epochs of one parity would pile up, and new ones be used without end.

use super::Fs;
use crate::addr::{INO_LIMIT, PAGE, PageNo, STACK_BASE, STACK_STRIDE, SUPERBLOCK_PAGE};
use crate::error::{Error, Result, corrupt};
use crate::inode::{Ino, ROOT_INO, RawInode, Slot, WINDOW_LIMITS, slot};
use crate::page_store::PageStore;
use crate::superblock::STACK_DEPTH_LIMIT;

/// What is numbered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Inode,
    /// A window of data class 1, 2 or 3.
    Window(usize),
}

impl Class {
    const fn index(self) -> usize {
        match self {
            Class::Inode => 0,
            Class::Window(class) => class,
        }
    }
}

/// Where a number comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    NeverUsed,
    /// The top of the stack of the other parity.
    Popped,
    /// The last entry of this parity's stack that is older than the epoch.
    Older,
}

/// A number that was chosen but not yet taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pick {
    class: Class,
    pub(super) number: u64,
    source: Source,
}

/// An inode number that was chosen, and the generation of its next life.
#[derive(Clone, Copy, Debug)]
pub(super) struct InodePick {
    pick: Pick,
    pub(super) ino: Ino,
    pub(super) generation: u32,
}

/// Page and byte of an entry of a free stack.
fn stack_entry(stack: usize, depth: u64) -> (PageNo, usize) {
    let byte = STACK_BASE + stack as u64 * STACK_STRIDE + depth * 8;
    (PageNo::containing(byte), (byte % PAGE as u64) as usize)
}

impl<P: PageStore> Fs<P> {
    fn pop_stack(&self, class: Class) -> usize {
        2 * class.index() + ((self.superblock.epoch) & 1) as usize
    }

    fn push_stack(&self, class: Class) -> usize {
        2 * class.index() + (self.open_epoch() & 1) as usize
    }

    fn depth(&self, stack: usize) -> u64 {
        self.superblock.stack_depth.get(stack).copied().unwrap_or(0)
    }

    /// Numbers of the class at and above this were never used.
    fn next_number(&self, class: Class) -> u64 {
        match class {
            Class::Inode => self.superblock.next_ino,
            Class::Window(w) => {
                w.checked_sub(1).and_then(|i| self.superblock.next_window.get(i)).map_or(0, |n| u64::from(*n))
            }
        }
    }

    fn limit(class: Class) -> u64 {
        match class {
            Class::Inode => INO_LIMIT,
            Class::Window(w) => {
                w.checked_sub(1).and_then(|i| WINDOW_LIMITS.get(i)).map_or(0, |n| u64::from(*n))
            }
        }
    }

    /// Depths that the stacks of the open epoch's parity have before anything is pushed.
    pub(super) fn begin_epoch(&mut self) {
        for (index, older) in self.older.iter_mut().enumerate() {
            let stack = 2 * index + (self.superblock.epoch.wrapping_add(1) & 1) as usize;
            *older = self.superblock.stack_depth.get(stack).copied().unwrap_or(0);
        }
    }

    /// How many entries of [`Fs::push_stack`] are older than the epoch.
    fn older(&self, class: Class) -> u64 {
        self.older.get(class.index()).copied().unwrap_or(0)
    }

    /// An entry of a free stack.
    fn entry(&self, class: Class, stack: usize, depth: u64) -> Result<u64> {
        let (page_no, at) = stack_entry(stack, depth);
        let page = self.store.read(page_no)?;
        let number =
            page.get(at..).and_then(|b| b.first_chunk::<8>()).map_or(u64::MAX, |b| u64::from_le_bytes(*b));
        let next = self.next_number(class);
        if number >= next || (class == Class::Inode && number <= ROOT_INO.0) {
            return Err(corrupt(page_no, "free stack entry below the never-used numbers", next, number));
        }
        Ok(number)
    }

    /// Prepare: chooses the number that [`Fs::take`] will take next.
    pub(super) fn pick(&self, class: Class) -> Result<Pick> {
        let stack = self.pop_stack(class);
        if let Some(top) = self.depth(stack).checked_sub(1) {
            return Ok(Pick { class, number: self.entry(class, stack, top)?, source: Source::Popped });
        }
        if let Some(last) = self.older(class).checked_sub(1) {
            let stack = self.push_stack(class);
            let number = self.entry(class, stack, last)?;
            // Another entry may be put into its place.
            drop(self.store.write(stack_entry(stack, last).0)?);
            return Ok(Pick { class, number, source: Source::Older });
        }
        let number = self.next_number(class);
        if number >= Self::limit(class) {
            return Err(Error::NoSpace);
        }
        Ok(Pick { class, number, source: Source::NeverUsed })
    }

    /// Prepare: chooses an inode number, checks that its slot is free and touches it.
    pub(super) fn pick_inode(&self) -> Result<InodePick> {
        let pick = self.pick(Class::Inode)?;
        let ino = Ino(pick.number);
        let page_no = ino.page().ok_or(Error::NoSpace)?;
        let used_before = pick.source != Source::NeverUsed;
        if !used_before && ino.0.is_multiple_of(crate::inode::INODES_PER_PAGE as u64) {
            drop(self.store.fresh(page_no)?);
            return Ok(InodePick { pick, ino, generation: 1 });
        }
        let state = slot(&*self.store.write(page_no)?, ino).decode(page_no, ino)?;
        let generation = match (state, used_before) {
            (Slot::Free(last), true) => last.wrapping_add(1),
            (Slot::NeverUsed, false) => 1,
            _ => return Err(corrupt(page_no, "inode to be taken is free", 0, ino.0)),
        };
        Ok(InodePick { pick, ino, generation })
    }

    /// Apply: takes a picked number.
    pub(super) fn take(&mut self, pick: &Pick) -> Result<()> {
        let class = pick.class;
        match (pick.source, class) {
            (Source::Popped, _) => self.shorten(self.pop_stack(class)),
            (Source::Older, _) => self.take_older(class)?,
            (Source::NeverUsed, Class::Inode) => self.superblock.next_ino = pick.number + 1,
            (Source::NeverUsed, Class::Window(w)) => {
                if let Some(next) = w.checked_sub(1).and_then(|i| self.superblock.next_window.get_mut(i)) {
                    *next = next.saturating_add(1);
                }
            }
        }
        Ok(())
    }

    /// Takes the last older entry off the stack that is pushed on; the top moves into its place.
    fn take_older(&mut self, class: Class) -> Result<()> {
        let stack = self.push_stack(class);
        let (last, top) = (self.older(class).saturating_sub(1), self.depth(stack).saturating_sub(1));
        if last != top {
            let number = self.entry(class, stack, top)?;
            self.set_entry(stack, last, number)?;
        }
        if let Some(older) = self.older.get_mut(class.index()) {
            *older = last;
        }
        self.shorten(stack);
        Ok(())
    }

    fn shorten(&mut self, stack: usize) {
        if let Some(depth) = self.superblock.stack_depth.get_mut(stack) {
            *depth = depth.saturating_sub(1);
        }
    }

    fn set_entry(&self, stack: usize, depth: u64, number: u64) -> Result<()> {
        let (page_no, at) = stack_entry(stack, depth);
        let mut page = self.store.write(page_no)?;
        if let Some(entry) = page.get_mut(at..).and_then(|b| b.first_chunk_mut::<8>()) {
            *entry = number.to_le_bytes();
        }
        Ok(())
    }

    /// Apply: takes a picked inode number; its slot is zeroed.
    pub(super) fn take_inode(&mut self, pick: &InodePick) -> Result<()> {
        self.take(&pick.pick)?;
        self.superblock.inodes_used = self.superblock.inodes_used.saturating_add(1);
        self.change_slot(pick.ino, |raw| *raw = RawInode::ZERO)
    }

    /// Prepare: makes sure that one number of the class can be pushed.
    pub(super) fn touch_push(&self, class: Class) -> Result<()> {
        let stack = self.push_stack(class);
        let depth = self.depth(stack);
        if depth >= STACK_DEPTH_LIMIT {
            return Err(corrupt(SUPERBLOCK_PAGE, "free stack depth", STACK_DEPTH_LIMIT, depth));
        }
        let (page_no, at) = stack_entry(stack, depth);
        drop(if at == 0 { self.store.fresh(page_no)? } else { self.store.write(page_no)? });
        Ok(())
    }

    /// Apply: gives a number back for the epochs after this one.
    pub(super) fn push(&mut self, class: Class, number: u64) -> Result<()> {
        let stack = self.push_stack(class);
        let depth = self.depth(stack);
        self.set_entry(stack, depth, number)?;
        if let Some(value) = self.superblock.stack_depth.get_mut(stack) {
            *value = depth + 1;
        }
        Ok(())
    }

    /// Apply: frees an inode's number; data, windows and names are gone already.
    pub(super) fn free_slot(&mut self, ino: Ino, generation: u32) -> Result<()> {
        self.change_slot(ino, |raw| *raw = RawInode::free(ino, generation))?;
        self.push(Class::Inode, ino.0)?;
        self.superblock.inodes_used = self.superblock.inodes_used.saturating_sub(1);
        Ok(())
    }
}
