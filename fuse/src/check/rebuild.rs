//! Building a directory's tree anew: from the entries that can still be read, packed, in order.

use layout::addr::{INODE_BASE, PAGE, PAGE_SHIFT, PageNo};
use layout::dir::branch::{self, Child, MAX_CHILDREN};
use layout::dir::leaf::{self, Entry, Leaf, MAX_ENTRIES};
use layout::dir::page::{self, DirPlace, HEADER_BYTES, raw_mut};
use layout::inode::{Ino, Inode, WINDOW_LIMITS};
use layout::name::Name;
use layout::page_store::PageBytes;
use layout::windows::{CLASSES, class_of, class_pages, class_range, map_page};

use super::context::Check;
use super::mapped::Mapped;
use super::pool::Run;
use super::tree::{Kept, TreeWalk};

/// What was found of a damaged directory.
pub struct Salvaged {
    /// In the order of keys.
    pub entries: Vec<Kept>,
    /// Pages of the tree that are not there, or of which not every entry could be read.
    pub pages_lost: u64,
}

impl Check<'_> {
    /// The entries of a tree that is in order.
    pub(super) fn entries_of(&mut self, dir: &Inode) -> Run<Vec<Kept>> {
        let mut walk = TreeWalk::new(dir);
        let mut entries = Vec::new();
        while let Ok(Some((page_no, bytes, count))) = walk.next(self.pool)? {
            let leaf = Leaf::new(&bytes, page_no, count);
            entries.extend((0..count).filter_map(|i| leaf.entry(i).ok()).map(|entry| kept(&entry)));
        }
        Ok(entries)
    }

    /// What can be found in the pages of a directory whose tree is damaged. A page with a good header is believed; in any
    /// other an entry must stand under the key of its name.
    pub(super) fn salvage_entries(&mut self, dir: &Inode) -> Run<Salvaged> {
        let mut entries = Vec::new();
        let mut pages_good = 0;
        let mut pages = dir.size / PAGE as u64;
        for class in 0..CLASSES {
            if class > 0 && !self.owns(dir, class) {
                continue;
            }
            let Some(range) = class_pages(dir, class, 0, layout::inode::MAX_FILE_BYTES) else { continue };
            let first_index = class_range(class).0 >> PAGE_SHIFT;
            let mut cursor = Mapped::new(range.first.0, range.first.0 + range.count);
            while let Some((from, to)) = self.pool.next_mapped(&mut cursor)? {
                for page_no in from..to {
                    let index = first_index + (page_no - range.first.0);
                    let Ok(bytes) = self.pool.read_on(PageNo(page_no), PageNo(to))? else { continue };
                    let is_good = self.salvage_page(dir, PageNo(page_no), index, &bytes, &mut entries);
                    if is_good && index == 0 {
                        pages = pages.min(page::raw(&bytes).used.get().into());
                    }
                    pages_good += u64::from(is_good && index < pages);
                }
            }
        }
        entries.sort_by(|a, b| a.key.cmp(&b.key).then(a.name.cmp(&b.name)));
        entries.dedup_by(|a, b| a.name == b.name && a.key == b.key);
        Ok(Salvaged { entries, pages_lost: pages.saturating_sub(pages_good) })
    }

    /// Takes the entries of a page; whether all of it is good.
    fn salvage_page(
        &self,
        dir: &Inode,
        page_no: PageNo,
        index: u64,
        bytes: &PageBytes,
        out: &mut Vec<Kept>,
    ) -> bool {
        let Ok(index) = u32::try_from(index) else { return false };
        let header = page::check(bytes, DirPlace { page: page_no, dir: dir.ino, index });
        if header.is_ok_and(|header| header.level != 0) {
            return true;
        }
        let mut is_good = header.is_ok();
        let said = usize::from(page::raw(bytes).count.get());
        let count = if said <= MAX_ENTRIES { said } else { MAX_ENTRIES };
        let leaf = Leaf::new(bytes, page_no, count);
        for i in 0..count {
            let Ok(entry) = leaf.entry(i) else {
                is_good = false;
                continue;
            };
            if header.is_ok() || self.key_fits(entry.key, entry.name) {
                out.push(kept(&entry));
            }
        }
        is_good
    }

    /// Gives entries keys that fit their names, where they have others or share one: sorted by key, without two of one
    /// name, each with the key that it had.
    pub(super) fn settle_keys(&self, entries: Vec<Kept>) -> Vec<(Kept, u64)> {
        let mut firsts: Vec<(u64, Kept)> = entries
            .into_iter()
            .filter_map(|entry| {
                let first = Name::new(&entry.name).ok()?.first_key(&self.superblock.hash_key);
                Some((first, entry))
            })
            .collect();
        // Those whose key fits keep it: they come first among the names of one hash.
        firsts.sort_by_key(|(first, entry)| (*first, !(*first..first + 16).contains(&entry.key), entry.key));
        let mut settled: Vec<(Kept, u64)> = Vec::with_capacity(firsts.len());
        let mut group = 0;
        for (first, mut entry) in firsts {
            while settled.get(group).is_some_and(|(kept, _)| kept.key < first) {
                group += 1;
            }
            let same = settled.get(group..).unwrap_or(&[]);
            if same.iter().any(|(kept, _)| kept.name == entry.name) {
                continue;
            }
            let taken = |key: u64| same.iter().any(|(kept, _)| kept.key == key);
            let had = entry.key;
            if !(first..first + 16).contains(&entry.key) || taken(entry.key) {
                let Some(free) = (first..first + 16).find(|key| !taken(*key)) else { continue };
                entry.key = free;
            }
            settled.push((entry, had));
        }
        settled.sort_by_key(|(entry, _)| entry.key);
        settled
    }

    /// Writes a directory's tree anew, with these entries in the order of their keys; pages and windows that it does
    /// not need any more are given back. The inode is written.
    pub(super) fn build_tree(&mut self, dir: &mut Inode, entries: &[Kept]) -> Run<()> {
        let leaves = pack(entries);
        // Level by level from the leaves up: how many pages each has. The last is the root, page 0.
        let mut levels = vec![leaves.len().max(1)];
        while levels.last().is_some_and(|count| *count > 1) {
            let below = levels.last().copied().unwrap_or(1);
            levels.push(below.div_ceil(MAX_CHILDREN));
        }
        let used: usize = levels.iter().sum();
        let end = used as u64 * PAGE as u64;
        if !self.windows_for(dir, end) {
            // No window is left for a directory so large: it keeps what it has, damaged as it is.
            return Ok(());
        }
        dir.size = end;
        dir.entries = entries.len() as u64;
        self.drop_pages(dir, end)?;
        let alone = levels.len() == 1;
        let mut first_index = u32::from(!alone);
        let mut below: Vec<Child> = Vec::new();
        for (i, leaf_entries) in leaves.iter().enumerate() {
            let index = if alone { 0 } else { first_index + i as u32 };
            let next = if i + 1 < leaves.len() { index + 1 } else { 0 };
            let key = leaf_entries.first().map_or(0, |entry| entry.key);
            let mut bytes = [0; PAGE];
            let at = dir_place(dir, index);
            page::init(&mut bytes, at, 0, next);
            for (pos, entry) in leaf_entries.iter().enumerate() {
                let Kept { key, ino, kind, name } = entry;
                let entry = Entry { key: *key, ino: Ino(*ino), kind: *kind, name };
                leaf::insert(&mut bytes, at.page, pos, &entry).map_err(never)?;
            }
            below.push(Child { key, index });
            self.put_dir_page(at, &mut bytes, used)?;
        }
        if leaves.is_empty() {
            let at = dir_place(dir, 0);
            let mut bytes = [0; PAGE];
            page::init(&mut bytes, at, 0, 0);
            self.put_dir_page(at, &mut bytes, used)?;
        }
        first_index += leaves.len() as u32;
        for level in 1..levels.len() {
            let mut above = Vec::new();
            // Evenly, so that no page has a single child.
            let pages = levels[level];
            let (share, more) = (below.len() / pages, below.len() % pages);
            let mut rest = &below[..];
            for i in 0..pages {
                let (children, after) = rest.split_at(share + usize::from(i < more));
                rest = after;
                let index = if level + 1 == levels.len() { 0 } else { first_index + i as u32 };
                let at = dir_place(dir, index);
                let mut bytes = [0; PAGE];
                page::init(&mut bytes, at, level as u8, 0);
                for (pos, child) in children.iter().enumerate() {
                    branch::insert(&mut bytes, at.page, pos, *child).map_err(never)?;
                }
                above.push(Child { key: children.first().map_or(0, |c| c.key), index });
                self.put_dir_page(at, &mut bytes, used)?;
            }
            first_index += above.len() as u32;
            below = above;
        }
        self.put_inode(dir)
    }

    fn put_dir_page(&mut self, at: DirPlace, bytes: &mut PageBytes, used: usize) -> Run<()> {
        if at.index == 0 {
            raw_mut(bytes).used = (used as u32).into();
        }
        self.pool.write(at.page, bytes)
    }

    /// Makes sure that the directory has windows for `end` bytes; false if there is none left.
    fn windows_for(&mut self, dir: &mut Inode, end: u64) -> bool {
        for class in 1..=class_of(end.saturating_sub(1)) {
            if dir.windows[class - 1] != 0 && self.owns(dir, class) {
                continue;
            }
            let next = u64::from(self.superblock.next_window[class - 1]).max(self.windows[class - 1].end());
            if next >= u64::from(WINDOW_LIMITS[class - 1]) {
                return false;
            }
            self.windows[class - 1].own(next, dir.ino.0);
            dir.windows[class - 1] = next as u32 + 1;
            self.superblock.next_window[class - 1] = next as u32 + 1;
            self.superblock_changed = true;
        }
        true
    }
}

fn kept(entry: &Entry<'_>) -> Kept {
    Kept { key: entry.key, ino: entry.ino.0, kind: entry.kind, name: entry.name.to_vec() }
}

/// The entries of each leaf.
fn pack(entries: &[Kept]) -> Vec<&[Kept]> {
    let mut leaves = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut room = PAGE - HEADER_BYTES;
        let fits = rest.iter().take_while(|entry| {
            let cost = Entry::cost(entry.name.len());
            let fits = cost <= room;
            room = room.saturating_sub(cost);
            fits
        });
        let (leaf, after) = rest.split_at(fits.count().max(1));
        leaves.push(leaf);
        rest = after;
    }
    leaves
}

fn dir_place(dir: &Inode, index: u32) -> DirPlace {
    // The windows were made sure of: no other address can come out.
    let page = map_page(dir, u64::from(index)).unwrap_or(PageNo::containing(INODE_BASE));
    DirPlace { page, dir: dir.ino, index }
}

/// What was packed to fit does not fit.
fn never(error: layout::error::Error) -> super::pool::Stop {
    super::pool::Stop::Unusable(format!(
        "a directory could not be built anew (a fault of fsck.vexfs): {error}"
    ))
}
