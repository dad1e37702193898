//! Putting an entry into a directory's B+-tree, splitting pages that are full.

use super::Fs;
use super::data::WindowPicks;
use super::tree::{Path, Step};
use crate::addr::PAGE;
use crate::dir::branch::{self, Child, MAX_CHILDREN};
use crate::dir::leaf::{self, Entry, Leaf};
use crate::dir::page::{self, DirPlace, LEVEL_FREE, MAX_LEVELS, raw, raw_mut};
use crate::error::{Error, Result, corrupt};
use crate::inode::Inode;
use crate::page_store::{PageBytes, PageStore};
use crate::windows::map_page;

/// Most pages that one insertion takes: one a level, and one more for a new root.
const MOST_PAGES: usize = MAX_LEVELS + 1;

/// An insertion for which everything was read, checked and touched.
pub(super) struct InsertPlan {
    path: Path,
    /// Pages that split, counted from the leaf upward.
    splits: usize,
    /// The root splits: the tree gets a level.
    grows: bool,
    pages: Pages,
    windows: WindowPicks,
}

/// Pages chosen for new parts of the tree.
struct Pages {
    list: [u32; MOST_PAGES],
    len: usize,
    /// Fields of page 0 afterwards.
    used: u32,
    free_head: u32,
}

impl Pages {
    fn push(&mut self, index: u32) {
        if let Some(place) = self.list.get_mut(self.len) {
            *place = index;
            self.len += 1;
        }
    }

    fn chosen(&self) -> &[u32] {
        self.list.get(..self.len).unwrap_or(&[])
    }

    fn pop(&mut self) -> Option<u32> {
        self.len = self.len.checked_sub(1)?;
        self.list.get(self.len).copied()
    }
}

impl<P: PageStore> Fs<P> {
    /// Prepare: plans to insert a key that is not there, with a name of this length.
    pub(super) fn plan_insert(&self, dir: &Inode, key: u64, name_len: usize) -> Result<InsertPlan> {
        let path = self.tree_path(dir, key)?;
        let mut plan = InsertPlan {
            path,
            splits: 0,
            grows: false,
            pages: Pages { list: [0; MOST_PAGES], len: 0, used: 0, free_head: 0 },
            windows: WindowPicks::default(),
        };
        let (Some(step), Some(root)) = (path.leaf(), path.step(0)) else {
            plan.pages.used = 1;
            let page_no = map_page(dir, 0).ok_or(Error::TooBig)?;
            drop(self.store.fresh(page_no)?);
            return Ok(plan);
        };
        let (bytes, header) = self.dir_page(dir, step.at)?;
        let free = Leaf::new(&bytes, step.at.page, header.count).free_bytes()?;
        drop(bytes);
        self.touch_dir_page(step.at)?;
        if free >= Entry::cost(name_len) {
            return Ok(plan);
        }
        plan.splits = 1;
        plan.grows = true;
        for step in (0..path.len() - 1).rev().filter_map(|i| path.step(i)) {
            self.touch_dir_page(step.at)?;
            if step.count < MAX_CHILDREN {
                plan.grows = false;
                break;
            }
            plan.splits += 1;
        }
        if plan.grows && path.len() >= MAX_LEVELS {
            return Err(Error::NoSpace);
        }
        self.touch_dir_page(root.at)?;
        self.pick_pages(dir, root, plan.splits + usize::from(plan.grows), &mut plan)?;
        Ok(plan)
    }

    /// Chooses pages, free ones first, and touches them.
    fn pick_pages(&self, dir: &Inode, root: Step, count: usize, plan: &mut InsertPlan) -> Result<()> {
        let (_, header) = self.dir_page(dir, root.at)?;
        (plan.pages.used, plan.pages.free_head) = (header.used, header.free_head);
        while plan.pages.len < count && plan.pages.free_head != 0 {
            let index = plan.pages.free_head;
            let at = self.dir_place(dir, index)?;
            let header = page::check(&*self.store.read(at.page)?, at)?;
            if header.level != LEVEL_FREE || plan.pages.chosen().contains(&index) {
                return Err(corrupt(
                    at.page,
                    "page on the free list",
                    u64::from(LEVEL_FREE),
                    header.level.into(),
                ));
            }
            self.touch_dir_page(at)?;
            plan.pages.push(index);
            plan.pages.free_head = header.next;
        }
        let first_new = plan.pages.used;
        while plan.pages.len < count {
            let index = plan.pages.used;
            plan.pages.used = index.checked_add(1).ok_or(Error::NoSpace)?;
            plan.pages.push(index);
        }
        let end = u64::from(plan.pages.used) * PAGE as u64;
        plan.windows = self.pick_windows(dir, dir.size, end)?;
        let mut grown = *dir;
        plan.windows.preview(&mut grown);
        for index in first_new..plan.pages.used {
            let page_no = map_page(&grown, u64::from(index)).ok_or(Error::NoSpace)?;
            drop(self.store.fresh(page_no)?);
        }
        Ok(())
    }

    /// Apply: inserts. `dir` is changed but not written to its slot.
    pub(super) fn insert_entry(
        &mut self,
        dir: &mut Inode,
        mut plan: InsertPlan,
        entry: &Entry<'_>,
    ) -> Result<()> {
        self.take_windows(dir, &plan.windows)?;
        dir.entries = dir.entries.saturating_add(1);
        let (Some(root), Some(step)) = (plan.path.step(0), plan.path.leaf()) else {
            dir.size = PAGE as u64;
            let at = self.dir_place(dir, 0)?;
            return self.change_dir_page(at, |bytes| {
                page::init(bytes, at, 0, 0);
                raw_mut(bytes).used = 1.into();
                leaf::insert(bytes, at.page, 0, entry)
            });
        };
        if plan.splits == 0 {
            return self.change_dir_page(step.at, |bytes| leaf::insert(bytes, step.at.page, step.pos, entry));
        }
        dir.size = u64::from(plan.pages.used) * PAGE as u64;
        if plan.grows {
            plan.path = self.grow_root(dir, root, &mut plan)?;
        }
        self.change_dir_page(root.at, |bytes| {
            let header = raw_mut(bytes);
            header.used = plan.pages.used.into();
            header.free_head = plan.pages.free_head.into();
            Ok(())
        })?;
        let mut carry = None;
        for i in (0..plan.path.len()).rev() {
            let Some(step) = plan.path.step(i) else { break };
            let from_leaf = plan.path.len() - 1 - i;
            let put = |bytes: &mut PageBytes, at: DirPlace, pos: usize| match carry {
                None => leaf::insert(bytes, at.page, pos, entry),
                Some(child) => branch::insert(bytes, at.page, pos, child),
            };
            let pos = step.pos + usize::from(from_leaf > 0);
            if from_leaf >= plan.splits {
                return self.change_dir_page(step.at, |bytes| put(bytes, step.at, pos));
            }
            let index = plan.pages.pop().ok_or(Error::Aborted)?;
            let at = self.dir_place(dir, index)?;
            let mut left = self.store.write(step.at.page)?;
            let mut right = self.store.write(at.page)?;
            let (middle, key) = if from_leaf == 0 {
                let count = usize::from(raw(&left).count.get());
                let middle = Leaf::new(&left, step.at.page, count).split_point()?;
                (middle, leaf::split(&mut left, step.at.page, &mut right, at, middle)?)
            } else {
                let middle = step.count / 2;
                (middle, branch::split(&mut left, step.at.page, &mut right, at, middle)?)
            };
            match pos.checked_sub(middle).filter(|rest| *rest > 0) {
                Some(rest) => put(&mut right, at, rest)?,
                None => put(&mut left, step.at, pos)?,
            }
            carry = Some(Child { key, index });
        }
        Err(corrupt(root.at.page, "room in the tree", plan.splits as u64, plan.path.len() as u64))
    }

    /// Moves the root's content into a new page and makes the root its parent. Gives the path through both.
    fn grow_root(&self, dir: &Inode, root: Step, plan: &mut InsertPlan) -> Result<Path> {
        let index = plan.pages.pop().ok_or(Error::Aborted)?;
        let at = self.dir_place(dir, index)?;
        let mut top = self.store.write(root.at.page)?;
        let mut below = self.store.write(at.page)?;
        below.copy_from_slice(&top[..]);
        let header = raw_mut(&mut below);
        header.index = index.into();
        header.used = 0.into();
        header.free_head = 0.into();
        let level = header.level + 1;
        page::init(&mut top, root.at, level, 0);
        branch::insert(&mut top, root.at.page, 0, Child { key: 0, index })?;

        let mut path = Path::EMPTY;
        let too_deep = || corrupt(root.at.page, "levels of a tree", MAX_LEVELS as u64, u64::from(level));
        path.push(Step { at: root.at, pos: 0, count: 1 }).ok_or_else(too_deep)?;
        path.push(Step { at, ..root }).ok_or_else(too_deep)?;
        for step in (1..plan.path.len()).filter_map(|i| plan.path.step(i)) {
            path.push(step).ok_or_else(too_deep)?;
        }
        Ok(path)
    }
}
