//! Pass 2: every directory that can be reached from the root, its tree and its entries; what is reached, and how often.

use layout::addr::{CLASS0_BASE, PageNo};
use layout::dir::leaf::Leaf;
use layout::inode::{Ino, Inode, Kind, ROOT_INO};
use layout::name::Name;

use super::census::{State, fingerprint};
use super::context::Check;
use super::finding::{Code, Finding};
use super::pool::Run;
use super::tree::{Kept, TreeWalk};

/// Directories whose inodes and first pages are read at once.
const AHEAD: usize = 64;

/// What becomes of an entry.
enum Verdict {
    Keep,
    /// It is kept with another kind.
    Kind(Kind),
    Drop,
}

impl Check<'_> {
    /// The whole pass.
    pub(super) fn pass_names(&mut self) -> Run<()> {
        self.census.set_reached(ROOT_INO.0);
        self.walk_from(ROOT_INO.0)
    }

    /// Walks the directories at and below one that is marked as reached.
    pub(super) fn walk_from(&mut self, top: u64) -> Run<()> {
        let mut todo = vec![top];
        let (mut done, mut ahead) = (0, 0);
        while let Some(ino) = todo.pop() {
            if ahead == 0 {
                let next: Vec<u64> = todo.iter().rev().take(AHEAD).copied().collect();
                self.pool.prefetch(next.iter().filter_map(|ino| Ino(*ino).page()))?;
                self.pool.prefetch(next.iter().map(|ino| PageNo::containing(CLASS0_BASE + (ino << 20))))?;
                ahead = next.len().max(1);
            }
            ahead -= 1;
            self.directory(ino, &mut todo)?;
            done += 1;
            self.progress(done, done + todo.len() as u64)?;
        }
        Ok(())
    }

    /// Checks one directory; its subdirectories are put on `todo`.
    fn directory(&mut self, ino: u64, todo: &mut Vec<u64>) -> Run<()> {
        let Some(mut dir) = self.inode(ino)?.filter(|dir| dir.kind == Kind::Dir) else { return Ok(()) };
        let entries = match self.tree_in_order(&dir)? {
            Ok(true) => return self.directory_in_order(&mut dir, todo),
            Ok(false) => {
                let entries = self.entries_of(&dir)?;
                self.settled(&dir, entries)?
            }
            Err(broken) => {
                let is_order = broken.code == Code::DirTree;
                self.find(*broken)?;
                let salvaged = self.salvage_entries(&dir)?;
                if is_order && salvaged.pages_lost > 0 {
                    let detail = format!("{} pages more", salvaged.pages_lost);
                    self.find(Finding::new(Code::DirPage).ino(ino).detail(detail))?;
                }
                self.settled(&dir, salvaged.entries)?
            }
        };
        let mut kept = Vec::with_capacity(entries.len());
        for mut entry in entries {
            match self.entry(&dir, &entry, todo)? {
                Verdict::Keep => {}
                Verdict::Kind(kind) => entry.kind = kind,
                Verdict::Drop => continue,
            }
            kept.push(entry);
        }
        self.build_tree(&mut dir, &kept)
    }

    /// Reads a tree and checks what does not depend on other inodes: whether names and keys are right too.
    fn tree_in_order(&mut self, dir: &Inode) -> Run<Result<bool, super::tree::Broken>> {
        let mut walk = TreeWalk::new(dir);
        let mut good = true;
        // Names of the hash read last.
        let mut group: (u64, Vec<Vec<u8>>) = (0, Vec::new());
        loop {
            let (page_no, bytes, count) = match walk.next(self.pool)? {
                Ok(Some(leaf)) => leaf,
                Ok(None) => return Ok(Ok(good)),
                Err(broken) => return Ok(Err(broken)),
            };
            let leaf = Leaf::new(&bytes, page_no, count);
            for entry in (0..count).filter_map(|i| leaf.entry(i).ok()) {
                let name = String::from_utf8_lossy(entry.name);
                let finding = |code| {
                    let detail = format!("entry {name:?} of inode {}", entry.ino.0);
                    Finding::new(code).ino(dir.ino.0).page(page_no.0).detail(detail)
                };
                if Name::new(entry.name).is_ok_and(|name| !name.is_session_dir()) {
                    if group.0 != entry.key >> 4 {
                        group = (entry.key >> 4, Vec::new());
                    }
                    if !self.key_fits(entry.key, entry.name) {
                        self.find(finding(Code::EntryKey))?;
                        good = false;
                    } else if group.1.iter().any(|other| other == entry.name) {
                        self.find(finding(Code::EntryTwice))?;
                        good = false;
                    }
                    group.1.push(entry.name.to_vec());
                } else {
                    self.find(finding(Code::EntryName))?;
                    good = false;
                }
            }
        }
    }

    /// Entries with good names under good keys. Inodes whose place was one of the keys that change follow.
    fn settled(&mut self, dir: &Inode, entries: Vec<Kept>) -> Run<Vec<Kept>> {
        let named = entries
            .into_iter()
            .filter(|entry| Name::new(&entry.name).is_ok_and(|name| !name.is_session_dir()))
            .collect();
        let mut settled = Vec::new();
        for (entry, had) in self.settle_keys(named) {
            if had != entry.key
                && self.census.place(entry.ino) == fingerprint(dir.ino.0, had)
                && let Some(mut inode) = self.inode(entry.ino)?
            {
                inode.place_key = entry.key;
                self.put_inode(&inode)?;
                self.census.set_place(entry.ino, fingerprint(dir.ino.0, entry.key));
            }
            settled.push(entry);
        }
        Ok(settled)
    }

    /// A directory whose tree is in order: its entries one by one, without keeping them.
    fn directory_in_order(&mut self, dir: &mut Inode, todo: &mut Vec<u64>) -> Run<()> {
        let mut walk = TreeWalk::new(dir);
        let mut changes: Vec<(u64, Verdict)> = Vec::new();
        let mut entries = 0;
        while let Ok(Some((page_no, bytes, count))) = walk.next(self.pool)? {
            let leaf = Leaf::new(&bytes, page_no, count);
            for entry in (0..count).filter_map(|i| leaf.entry(i).ok()) {
                let (key, name) = (entry.key, entry.name.to_vec());
                let entry = Kept { key, ino: entry.ino.0, kind: entry.kind, name };
                entries += 1;
                match self.entry(dir, &entry, todo)? {
                    Verdict::Keep => {}
                    other => changes.push((key, other)),
                }
            }
        }
        if !changes.is_empty() {
            let mut kept = self.entries_of(dir)?;
            let change =
                |key: u64| changes.binary_search_by_key(&key, |(key, _)| *key).ok().map(|at| &changes[at].1);
            kept.retain_mut(|entry| match change(entry.key) {
                Some(Verdict::Drop) => false,
                Some(Verdict::Kind(kind)) => {
                    entry.kind = *kind;
                    true
                }
                _ => true,
            });
            return self.build_tree(dir, &kept);
        }
        if dir.entries != entries {
            self.find(Finding::new(Code::DirEntries).ino(dir.ino.0).values(entries, dir.entries))?;
            dir.entries = entries;
            self.put_inode(dir)?;
        }
        Ok(())
    }

    /// An entry against the inode that it names.
    fn entry(&mut self, dir: &Inode, entry: &Kept, todo: &mut Vec<u64>) -> Run<Verdict> {
        let ino = entry.ino;
        let about = |code, detail: &str| {
            let detail = format!("entry {:?}: {detail}", String::from_utf8_lossy(&entry.name));
            Finding::new(code).ino(dir.ino.0).detail(detail)
        };
        let kind = match self.census.state(ino) {
            State::Used(Kind::Rows) => {
                self.find(about(Code::EntryDangling, &format!("inode {ino} is a hidden one")))?;
                return Ok(Verdict::Drop);
            }
            State::Used(kind) => kind,
            State::Never | State::Free => {
                self.find(about(Code::EntryDangling, &format!("inode {ino}")))?;
                return Ok(Verdict::Drop);
            }
        };
        let kind = if kind == entry.kind { kind } else { self.settle_kind(ino, kind, entry.kind)? };
        if kind == Kind::Dir && (ino == ROOT_INO.0 || ino == dir.ino.0 || self.census.is_reached(ino)) {
            self.find(about(Code::EntryDir, &format!("inode {ino}")))?;
            return Ok(Verdict::Drop);
        }
        if self.census.is_orphan(ino) {
            self.find(about(Code::OrphanLinked, &format!("inode {ino}")))?;
            self.unorphan(ino)?;
        }
        self.census.set_reached(ino);
        let place = fingerprint(dir.ino.0, entry.key);
        if self.census.place(ino) == place {
            self.census.set_placed(ino);
        }
        if kind == Kind::Dir {
            self.census.add_link(dir.ino.0);
            if !self.census.is_placed(ino) {
                self.place_directory(dir, entry)?;
            }
            todo.push(ino);
        } else {
            self.census.add_link(ino);
        }
        if kind == entry.kind {
            return Ok(Verdict::Keep);
        }
        self.find(about(Code::EntryKind, &format!("inode {ino}")).values(kind as u64, entry.kind as u64))?;
        Ok(Verdict::Kind(kind))
    }

    /// A directory's place is the one name it has.
    fn place_directory(&mut self, parent: &Inode, entry: &Kept) -> Run<()> {
        let Some(mut inode) = self.inode(entry.ino)? else { return Ok(()) };
        let finding = Finding::new(Code::InodePlace).ino(entry.ino);
        self.find(finding.values(parent.ino.0, inode.place_dir.0))?;
        (inode.place_dir, inode.place_key) = (parent.ino, entry.key);
        self.census.set_place(entry.ino, fingerprint(parent.ino.0, entry.key));
        self.census.set_placed(entry.ino);
        self.put_inode(&inode)
    }

    /// What an inode is when an entry says something else: as its content says, else as it says itself.
    fn settle_kind(&mut self, ino: u64, own: Kind, said: Kind) -> Run<Kind> {
        let content = self.content(ino)?;
        let Some(mut inode) = self.inode(ino)? else { return Ok(own) };
        let is_dir_by_mistake = own == Kind::Dir && said != Kind::Dir && !content.is_dir && inode.size > 0;
        let kind = match (own, said) {
            _ if own != Kind::Dir && said == Kind::Dir && content.is_dir => Kind::Dir,
            (Kind::Dir, Kind::File) if is_dir_by_mistake => Kind::File,
            _ => return Ok(own),
        };
        self.find(Finding::new(Code::InodeKind).ino(ino).values(kind as u64, own as u64))?;
        inode.kind = kind;
        if kind == Kind::Dir {
            inode.nlink = inode.nlink.max(2);
            if !inode.size.is_multiple_of(layout::addr::PAGE as u64) {
                inode.size = content.class0_end;
            }
        } else {
            inode.entries = 0;
            inode.flags.remove(layout::inode::InodeFlags::COLLECTION);
            inode.rows_ino = Ino(0);
            self.collections.remove(&ino);
        }
        self.put_inode(&inode)?;
        self.census.set_state(ino, State::Used(kind));
        Ok(kind)
    }
}
