//! Reading a directory's B+-tree: paths, scans, single entries. The pages themselves are the business
//! of [`crate::dir`].

use super::Fs;
use crate::addr::PAGE;
use crate::dir::branch::Branch;
use crate::dir::leaf::{Entry, Leaf};
use crate::dir::page::{self, DirHeader, DirPlace, LEVEL_FREE, MAX_LEVELS};
use crate::error::{Result, corrupt};
use crate::inode::{Ino, Inode, Kind};
use crate::name::Name;
use crate::page_store::{PageBytes, PageStore};
use crate::windows::map_page;

/// A page on the way from the root to a leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) at: DirPlace,
    /// Position of the child taken; in the leaf that of the first key not less.
    pub(super) pos: usize,
    pub(super) count: usize,
}

/// The way from the root to the leaf of a key; without steps in an empty directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    steps: [Option<Step>; MAX_LEVELS],
    len: usize,
}

impl Path {
    pub(super) const EMPTY: Path = Path { steps: [None; MAX_LEVELS], len: 0 };

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Step `i` from the root.
    pub(super) fn step(&self, i: usize) -> Option<Step> {
        self.steps.get(i).copied().flatten()
    }

    pub(super) fn leaf(&self) -> Option<Step> {
        self.step(self.len.checked_sub(1)?)
    }

    pub(super) fn push(&mut self, step: Step) -> Option<()> {
        *self.steps.get_mut(self.len)? = Some(step);
        self.len += 1;
        Some(())
    }
}

/// An entry without its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub(super) key: u64,
    pub(super) ino: Ino,
    pub(super) kind: Kind,
}

/// What a search for a name found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    pub(super) found: Option<Found>,
    /// The key that the name would get; none if all 16 ordinals are taken.
    pub(super) free_key: Option<u64>,
}

impl<P: PageStore> Fs<P> {
    /// Where a directory's page stands.
    pub(super) fn dir_place(&self, dir: &Inode, index: u32) -> Result<DirPlace> {
        let byte = u64::from(index) * PAGE as u64;
        let page = map_page(dir, u64::from(index)).filter(|_| byte < dir.size);
        let bad = || self.corrupt_inode(dir.ino, "directory page's index below its pages", dir.size, byte);
        Ok(DirPlace { page: page.ok_or_else(bad)?, dir: dir.ino, index })
    }

    /// Reads a page of the tree (not a free one) and checks its header.
    pub(super) fn dir_page(&self, dir: &Inode, at: DirPlace) -> Result<(P::Read, DirHeader)> {
        let bytes = self.store.read(at.page)?;
        let header = page::check(&bytes, at)?;
        if header.level == LEVEL_FREE {
            return Err(corrupt(at.page, "page in the tree is not free", 0, u64::from(LEVEL_FREE)));
        }
        if at.index == 0 && u64::from(header.used) * PAGE as u64 != dir.size {
            return Err(corrupt(at.page, "pages used by the tree", dir.size, u64::from(header.used)));
        }
        Ok((bytes, header))
    }

    /// Reads the page below another: its level must be one less.
    pub(super) fn dir_child(
        &self,
        dir: &Inode,
        index: u32,
        level: u8,
    ) -> Result<(DirPlace, P::Read, DirHeader)> {
        let at = self.dir_place(dir, index)?;
        let (bytes, header) = self.dir_page(dir, at)?;
        if header.level.checked_add(1) != Some(level) {
            return Err(corrupt(at.page, "level of a child page", u64::from(level), u64::from(header.level)));
        }
        Ok((at, bytes, header))
    }

    /// The way to the leaf where a key stands or would stand.
    pub(super) fn tree_path(&self, dir: &Inode, key: u64) -> Result<Path> {
        let mut path = Path::EMPTY;
        if dir.size == 0 {
            return Ok(path);
        }
        let mut at = self.dir_place(dir, 0)?;
        let (mut bytes, mut header) = self.dir_page(dir, at)?;
        loop {
            let full = || corrupt(at.page, "levels of a tree", MAX_LEVELS as u64, u64::from(header.level));
            if header.level == 0 {
                let pos = Leaf::new(&bytes, at.page, header.count).lower_bound(key)?;
                path.push(Step { at, pos, count: header.count }).ok_or_else(full)?;
                return Ok(path);
            }
            let branch = Branch::new(&bytes, at.page, header.count);
            let pos = branch.position(key)?;
            let child = branch.child(pos)?;
            path.push(Step { at, pos, count: header.count }).ok_or_else(full)?;
            (at, bytes, header) = self.dir_child(dir, child.index, header.level)?;
        }
    }

    /// Gives the entries with keys from `from` on, in order, until `each` says false.
    pub(super) fn scan(
        &self,
        dir: &Inode,
        from: u64,
        each: &mut dyn FnMut(&Entry<'_>) -> Result<bool>,
    ) -> Result<()> {
        let Some(step) = self.tree_path(dir, from)?.leaf() else {
            return Ok(());
        };
        let (mut at, mut pos) = (step.at, step.pos);
        let mut last = 0;
        loop {
            let (bytes, header) = self.dir_page(dir, at)?;
            if header.level != 0 {
                return Err(corrupt(at.page, "level of a leaf's right sibling", 0, u64::from(header.level)));
            }
            let leaf = Leaf::new(&bytes, at.page, header.count);
            for i in pos..header.count {
                let entry = leaf.entry(i)?;
                // Strictly growing keys also end a loop of siblings.
                if entry.key <= last {
                    return Err(corrupt(at.page, "keys in ascending order", last, entry.key));
                }
                last = entry.key;
                if !each(&entry)? {
                    return Ok(());
                }
            }
            if header.next == 0 {
                return Ok(());
            }
            // A page behind the first that gives nothing new can't be: none but the root is empty.
            at = self.dir_place(dir, header.next)?;
            pos = 0;
        }
    }

    /// Looks for a name, and for the key that it would get.
    pub(super) fn search(&self, dir: &Inode, name: Name<'_>) -> Result<Search> {
        let first = name.first_key(&self.superblock.hash_key);
        let mut taken = 0u16;
        let mut found = None;
        self.scan(dir, first, &mut |entry| {
            let Some(ordinal) = entry.key.checked_sub(first).filter(|ordinal| *ordinal < 16) else {
                return Ok(false);
            };
            taken |= 1 << ordinal;
            if entry.name == name.bytes() {
                found = Some(Found { key: entry.key, ino: entry.ino, kind: entry.kind });
            }
            Ok(found.is_none())
        })?;
        let ordinal = u64::from(taken.trailing_ones());
        Ok(Search { found, free_key: (ordinal < 16).then_some(first + ordinal) })
    }

    /// The entry of a key, handed to `with`; none if there is none.
    pub(super) fn entry_of_key<T>(
        &self,
        dir: &Inode,
        key: u64,
        with: impl FnOnce(&Entry<'_>) -> T,
    ) -> Result<Option<T>> {
        let Some(step) = self.tree_path(dir, key)?.leaf().filter(|step| step.pos < step.count) else {
            return Ok(None);
        };
        let (bytes, header) = self.dir_page(dir, step.at)?;
        let entry = Leaf::new(&bytes, step.at.page, header.count).entry(step.pos)?;
        Ok((entry.key == key).then(|| with(&entry)))
    }

    /// Whether a directory's tree has no entry, whatever its inode says.
    pub(super) fn tree_is_empty(&self, dir: &Inode) -> Result<bool> {
        if dir.size == 0 {
            return Ok(true);
        }
        let (_, header) = self.dir_page(dir, self.dir_place(dir, 0)?)?;
        Ok(header.level == 0 && header.count == 0)
    }

    /// Prepare: makes sure that a directory's page can be written.
    pub(super) fn touch_dir_page(&self, at: DirPlace) -> Result<()> {
        drop(self.store.write(at.page)?);
        Ok(())
    }

    /// Apply: changes a directory's page.
    pub(super) fn change_dir_page<T>(
        &self,
        at: DirPlace,
        change: impl FnOnce(&mut PageBytes) -> Result<T>,
    ) -> Result<T> {
        change(&mut *self.store.write(at.page)?)
    }
}
