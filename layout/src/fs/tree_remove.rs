//! Taking an entry out of a directory's B+-tree. A page that runs empty leaves the tree; a root with one
//! child takes over the child's content.

use super::Fs;
use super::tree::{Path, Step};
use crate::addr::PAGE;
use crate::dir::branch::{self, Branch};
use crate::dir::leaf::{self, Leaf};
use crate::dir::page::{self, DirPlace, LEVEL_FREE, MAX_LEVELS, raw, raw_mut};
use crate::error::{Result, corrupt};
use crate::inode::{Ino, Inode, Kind};
use crate::page_store::PageStore;

/// A removal for which everything was read, checked and touched.
pub(super) struct RemovePlan {
    path: Path,
    /// The last entry goes: the tree shrinks to an empty page 0.
    clears: bool,
    /// Pages that run empty, counted from the leaf upward.
    emptied: usize,
    /// The leaf's left neighbour, and the leaf's right one, when the leaf runs empty.
    left: Option<DirPlace>,
    right: u32,
    /// The only children below the root afterwards; the last one's content goes into the root.
    collapse: [Option<DirPlace>; MAX_LEVELS],
}

impl<P: PageStore> Fs<P> {
    /// Prepare: plans to remove the entry of a key that was found.
    pub(super) fn plan_remove(&self, dir: &Inode, key: u64) -> Result<RemovePlan> {
        let path = self.tree_path(dir, key)?;
        let mut plan = RemovePlan {
            path,
            clears: false,
            emptied: 0,
            left: None,
            right: 0,
            collapse: [None; MAX_LEVELS],
        };
        let step = self.leaf_step(dir, &path, key)?;
        let (bytes, header) = self.dir_page(dir, step.at)?;
        Leaf::new(&bytes, step.at.page, header.count).check_all()?;
        drop(bytes);
        self.touch_dir_page(step.at)?;
        if step.count > 1 {
            return Ok(plan);
        }
        plan.right = header.next;
        plan.emptied = 1;
        for step in (0..path.len() - 1).rev().filter_map(|i| path.step(i)) {
            self.touch_dir_page(step.at)?;
            if step.count > 1 {
                break;
            }
            plan.emptied += 1;
        }
        if plan.emptied == path.len() {
            plan.clears = true;
            if dir.size > PAGE as u64 {
                self.touch_drop(dir, PAGE as u64)?;
            }
            return Ok(plan);
        }
        if let Some(root) = path.step(0) {
            self.touch_dir_page(root.at)?;
        }
        plan.left = self.left_leaf(dir, &path)?;
        if let Some(left) = plan.left {
            self.touch_dir_page(left)?;
        }
        if let Some(root) = path.step(0).filter(|root| plan.emptied + 1 == path.len() && root.count == 2) {
            self.plan_collapse(dir, root, &mut plan)?;
        }
        Ok(plan)
    }

    /// The leaf of a path, whose entry must have this key.
    fn leaf_step(&self, dir: &Inode, path: &Path, key: u64) -> Result<Step> {
        let missing = || self.corrupt_inode(dir.ino, "directory entry that was just found", key, 0);
        let step = path.leaf().filter(|step| step.pos < step.count).ok_or_else(missing)?;
        let (bytes, header) = self.dir_page(dir, step.at)?;
        let found = Leaf::new(&bytes, step.at.page, header.count).key(step.pos)?;
        if found == key { Ok(step) } else { Err(missing()) }
    }

    /// The leaf before the path's leaf.
    fn left_leaf(&self, dir: &Inode, path: &Path) -> Result<Option<DirPlace>> {
        let turn = (0..path.len() - 1).rev().filter_map(|i| path.step(i)).find(|step| step.pos > 0);
        let Some(turn) = turn else { return Ok(None) };
        let (mut bytes, mut header) = self.dir_page(dir, turn.at)?;
        let (mut at, mut pos) = (turn.at, turn.pos - 1);
        while header.level > 0 {
            let child = Branch::new(&bytes, at.page, header.count).child(pos)?;
            (at, bytes, header) = self.dir_child(dir, child.index, header.level)?;
            pos = header.count.saturating_sub(1);
        }
        Ok(Some(at))
    }

    /// Finds and touches the chain of only children that the root keeps.
    fn plan_collapse(&self, dir: &Inode, root: Step, plan: &mut RemovePlan) -> Result<()> {
        let (mut bytes, mut header) = self.dir_page(dir, root.at)?;
        let (mut at, mut pos) = (root.at, usize::from(root.pos == 0));
        for place in &mut plan.collapse {
            let child = Branch::new(&bytes, at.page, header.count).child(pos)?;
            if (0..plan.path.len()).filter_map(|i| plan.path.step(i)).any(|step| step.at.index == child.index)
            {
                return Err(corrupt(at.page, "two children at one page", 0, u64::from(child.index)));
            }
            (at, bytes, header) = self.dir_child(dir, child.index, header.level)?;
            *place = Some(at);
            if header.level == 0 || header.count > 1 {
                break;
            }
            pos = 0;
        }
        drop(bytes);
        for at in plan.collapse.iter().flatten() {
            self.touch_dir_page(*at)?;
        }
        Ok(())
    }

    /// Apply: removes. `dir` is changed but not written to its slot.
    pub(super) fn remove_entry(&mut self, dir: &mut Inode, plan: &RemovePlan) -> Result<()> {
        dir.entries = dir.entries.saturating_sub(1);
        let (Some(root), Some(leaf)) = (plan.path.step(0), plan.path.leaf()) else {
            return Err(self.corrupt_inode(dir.ino, "directory entry that was just found", 1, 0));
        };
        if plan.clears {
            if dir.size > PAGE as u64 {
                self.drop_pages(dir, PAGE as u64)?;
            }
            dir.size = PAGE as u64;
            return self.change_dir_page(root.at, |bytes| {
                page::init(bytes, root.at, 0, 0);
                raw_mut(bytes).used = 1.into();
                Ok(())
            });
        }
        if plan.emptied == 0 {
            return self.change_dir_page(leaf.at, |bytes| leaf::remove(bytes, leaf.at.page, leaf.pos));
        }
        if let Some(left) = plan.left {
            self.change_dir_page(left, |bytes| {
                raw_mut(bytes).next = plan.right.into();
                Ok(())
            })?;
        }
        let mut free_head = raw(&*self.store.read(root.at.page)?).free_head.get();
        let kept = plan.path.len() - plan.emptied;
        for step in (kept..plan.path.len()).filter_map(|i| plan.path.step(i)) {
            self.free_dir_page(step.at, &mut free_head)?;
        }
        if let Some(parent) = plan.path.step(kept - 1) {
            self.change_dir_page(parent.at, |bytes| branch::remove(bytes, parent.at.page, parent.pos))?;
        }
        if let Some(last) = plan.collapse.iter().flatten().last() {
            let source = self.store.read(last.page)?;
            let mut top = self.store.write(root.at.page)?;
            let used = raw(&top).used;
            top.copy_from_slice(&source[..]);
            let header = raw_mut(&mut top);
            header.index = 0.into();
            header.used = used;
            if header.level == 0 {
                header.next = 0.into();
            }
            drop(top);
            drop(source);
            for at in plan.collapse.iter().flatten() {
                self.free_dir_page(*at, &mut free_head)?;
            }
        }
        self.change_dir_page(root.at, |bytes| {
            raw_mut(bytes).free_head = free_head.into();
            Ok(())
        })
    }

    /// Puts a page on the directory's free list.
    fn free_dir_page(&self, at: DirPlace, free_head: &mut u32) -> Result<()> {
        self.change_dir_page(at, |bytes| {
            page::init(bytes, at, LEVEL_FREE, *free_head);
            Ok(())
        })?;
        *free_head = at.index;
        Ok(())
    }

    /// Prepare: plans to make the entry of a key name another inode.
    pub(super) fn plan_replace(&self, dir: &Inode, key: u64) -> Result<Step> {
        let path = self.tree_path(dir, key)?;
        let step = self.leaf_step(dir, &path, key)?;
        self.touch_dir_page(step.at)?;
        Ok(step)
    }

    /// Apply: makes the planned entry name another inode.
    pub(super) fn replace_entry(&self, step: Step, ino: Ino, kind: Kind) -> Result<()> {
        self.change_dir_page(step.at, |bytes| leaf::replace(bytes, step.at.page, step.pos, ino, kind))
    }
}
