//! Pass 3: inodes that no name leads to. The tops of lost subtrees and lost files get a name in /lost+found; what is
//! empty is freed.

use std::collections::{BTreeSet, HashSet};

use layout::inode::{Ino, Inode, Kind, ROOT_INO, RawInode};
use layout::name::Name;
use layout::windows::{CLASSES, class_pages};

use super::census::{State, fingerprint};
use super::context::Check;
use super::finding::{Code, Finding};
use super::pool::Run;
use super::tree::Kept;

/// Where lost inodes are linked.
const LOST_FOUND: &str = "lost+found";
/// Steps from a lost directory up to the top of its subtree.
const CLIMB_MAX: usize = 4096;

impl Check<'_> {
    /// The whole pass.
    pub(super) fn pass_unreachable(&mut self) -> Run<()> {
        let mut lost: Vec<Kept> = Vec::new();
        let is_lost = |census: &super::census::Census, ino, state| {
            matches!(state, State::Used(kind) if kind != Kind::Rows)
                && !census.is_reached(ino)
                && !census.is_orphan(ino)
        };
        // Directories first: what is below them is not lost then.
        for dirs in [true, false] {
            let mut from = ROOT_INO.0;
            let end = self.census.end();
            let wanted = |census: &super::census::Census, ino, state| {
                is_lost(census, ino, state) && (state == State::Used(Kind::Dir)) == dirs
            };
            while let Some(ino) = self.census.find(from, wanted) {
                self.progress(ino, end)?;
                if dirs {
                    self.lost_directory(ino, &mut lost)?;
                } else {
                    self.lost_file(ino, &mut lost)?;
                }
                from = if self.census.is_reached(ino) { ino + 1 } else { ino };
                if from == ino && !matches!(self.census.state(ino), State::Free) {
                    // The top that was found for it did not lead to it after all; it is a top of its own then.
                    self.link_lost(ino, &mut lost)?;
                }
            }
        }
        if lost.is_empty() { Ok(()) } else { self.put_lost(lost) }
    }

    fn lost_directory(&mut self, ino: u64, lost: &mut Vec<Kept>) -> Run<()> {
        let Some(dir) = self.inode(ino)? else { return Ok(()) };
        if dir.entries == 0
            && !Self::is_collection(&dir)
            && !dir.has_xattrs()
            && self.salvage_entries(&dir)?.entries.is_empty()
        {
            self.find_in(Code::InodeNameless, ino, "an empty directory")?;
            return self.free_inode(ino);
        }
        let top = self.top_of(&dir)?;
        self.link_lost(top, lost)
    }

    /// The highest lost directory that leads down to this one.
    fn top_of(&mut self, dir: &Inode) -> Run<u64> {
        let mut seen = vec![dir.ino.0];
        let mut at = *dir;
        while seen.len() < CLIMB_MAX {
            let above = at.place_dir.0;
            if self.census.kind(above) != Some(Kind::Dir)
                || self.census.is_reached(above)
                || self.census.is_orphan(above)
                || seen.contains(&above)
            {
                break;
            }
            let Some(parent) = self.inode(above)? else { break };
            if self.entry_at(&parent, at.place_key)?.is_none_or(|(child, _)| child != at.ino.0) {
                break;
            }
            seen.push(above);
            at = parent;
        }
        Ok(at.ino.0)
    }

    fn lost_file(&mut self, ino: u64, lost: &mut Vec<Kept>) -> Run<()> {
        let Some(inode) = self.inode(ino)? else { return Ok(()) };
        let mut empty =
            inode.kind == Kind::File && inode.row_count == 0 && inode.size == 0 && !inode.has_xattrs();
        for class in 0..CLASSES {
            if empty
                && (class == 0 || self.owns(&inode, class))
                && let Some(range) = class_pages(&inode, class, 0, layout::inode::MAX_FILE_BYTES)
            {
                empty = !self.pool.has_mapped(range)?;
            }
        }
        if empty {
            self.find_in(Code::InodeNameless, ino, "a file without content")?;
            return self.free_inode(ino);
        }
        self.link_lost(ino, lost)
    }

    /// Gives an inode a name for /lost+found; a directory is walked from there.
    fn link_lost(&mut self, ino: u64, lost: &mut Vec<Kept>) -> Run<()> {
        let Some(kind) = self.census.kind(ino) else { return Ok(()) };
        let kind_name = if kind == Kind::Dir { "a directory" } else { "a file" };
        self.find(Finding::new(Code::InodeUnreachable).ino(ino).detail(kind_name))?;
        let name = format!("#{ino}").into_bytes();
        lost.push(Kept { key: 0, ino, kind, name });
        self.census.set_reached(ino);
        if kind == Kind::Dir {
            self.walk_from(ino)?;
        } else {
            self.census.add_link(ino);
        }
        Ok(())
    }

    /// Puts what was lost into /lost+found, which is made if need be.
    fn put_lost(&mut self, lost: Vec<Kept>) -> Run<()> {
        let Some(mut dir) = self.lost_found()? else { return Ok(()) };
        let new: BTreeSet<u64> = lost.iter().map(|entry| entry.ino).collect();
        let mut entries = self.entries_of(&dir)?;
        let mut names: HashSet<Vec<u8>> = entries.iter().map(|entry| entry.name.clone()).collect();
        for mut entry in lost {
            while !names.insert(entry.name.clone()) {
                entry.name.push(b'~');
            }
            entries.push(entry);
        }
        let settled: Vec<Kept> = self.settle_keys(entries).into_iter().map(|(entry, _)| entry).collect();
        let dirs = settled.iter().filter(|entry| entry.kind == Kind::Dir && new.contains(&entry.ino)).count();
        dir.nlink = dir.nlink.saturating_add(dirs as u32);
        self.build_tree(&mut dir, &settled)?;
        let dir_ino = dir.ino.0;
        for entry in settled.iter().filter(|entry| new.contains(&entry.ino)) {
            let Some(mut inode) = self.inode(entry.ino)? else { continue };
            (inode.place_dir, inode.place_key) = (Ino(dir_ino), entry.key);
            self.put_inode(&inode)?;
            self.census.set_place(entry.ino, fingerprint(dir_ino, entry.key));
            self.census.set_placed(entry.ino);
            if entry.kind == Kind::Dir {
                self.census.add_link(dir_ino);
            }
        }
        Ok(())
    }

    /// The directory /lost+found.
    fn lost_found(&mut self) -> Run<Option<Inode>> {
        let Some(mut root) = self.inode(ROOT_INO.0)? else { return Ok(None) };
        let mut entries = self.entries_of(&root)?;
        let mut name = LOST_FOUND.to_owned();
        loop {
            match entries.iter().find(|entry| entry.name == name.as_bytes()) {
                None => break,
                Some(entry) if entry.kind == Kind::Dir => return self.inode(entry.ino),
                Some(_) => name.push('~'),
            }
        }
        let ino = self.new_number();
        let now = crate::mount::now();
        let generation = self.raw_slot(ino)?.generation.get().wrapping_add(1).max(1);
        let mut dir = Inode::new(Ino(ino), generation, Kind::Dir, 0o700, now);
        let key = Name::new(name.as_bytes()).map_or(16, |name| name.first_key(&self.superblock.hash_key));
        entries.push(Kept { key, ino, kind: Kind::Dir, name: name.clone().into_bytes() });
        let settled: Vec<Kept> = self.settle_keys(entries).into_iter().map(|(entry, _)| entry).collect();
        dir.place_dir = ROOT_INO;
        dir.place_key =
            settled.iter().find(|entry| entry.name == name.as_bytes()).map_or(key, |entry| entry.key);
        self.change_slot(ino, |raw| {
            *raw = RawInode::ZERO;
            dir.encode(raw);
        })?;
        self.census.set_state(ino, State::Used(Kind::Dir));
        self.census.set_reached(ino);
        self.census.set_place(ino, fingerprint(ROOT_INO.0, dir.place_key));
        self.census.set_placed(ino);
        self.census.add_link(ROOT_INO.0);
        root.nlink = root.nlink.saturating_add(1);
        self.build_tree(&mut root, &settled)?;
        Ok(Some(dir))
    }

    /// An inode number that is not in use.
    fn new_number(&mut self) -> u64 {
        self.numbers_changed = true;
        let free = self.census.find(ROOT_INO.0 + 1, |_, _, state| state == State::Free);
        free.unwrap_or_else(|| {
            let next = self.superblock.next_ino;
            self.superblock.next_ino = next + 1;
            self.superblock_changed = true;
            next
        })
    }
}
