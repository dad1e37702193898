//! Places: the parent of a directory, and the path of an inode (FORMAT.md section 5.5).

use super::Fs;
use crate::cycle::Cycle;
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, Kind};
use crate::name::Name;
use crate::page_store::PageStore;

impl<P: PageStore> Fs<P> {
    /// The directory that holds a directory; the root's is itself.
    ///
    /// # Errors
    /// [`Error::NotDir`]; [`Error::NotFound`] for a removed directory.
    pub fn parent(&self, dir: Ino) -> Result<Ino> {
        let dir = self.directory(dir)?;
        if dir.ino == self.superblock.root {
            return Ok(dir.ino);
        }
        if dir.nlink == 0 {
            return Err(Error::NotFound);
        }
        if dir.place_dir.0 == 0 {
            return Err(self.corrupt_inode(dir.ino, "place of a directory", 1, 0));
        }
        Ok(dir.place_dir)
    }

    /// Gives `start` and each directory above it, up to the root, until `each` says false.
    ///
    /// # Errors
    /// As [`Fs::parent`]; [`Error::Corrupt`] if the directories form a loop.
    pub fn ancestors(&self, start: Ino, each: &mut dyn FnMut(&Inode) -> Result<bool>) -> Result<()> {
        let mut ino = start;
        let mut cycle = Cycle::new();
        loop {
            let dir = self.directory(ino)?;
            if !each(&dir)? || dir.ino == self.superblock.root {
                return Ok(());
            }
            ino = self.parent(dir.ino)?;
            if cycle.closes(ino.0) {
                return Err(self.corrupt_inode(ino, "directories without a loop", 0, start.0));
            }
        }
    }

    /// The name of an inode's place, put at the end of `out`; gives its length and the directory. None
    /// if the place is unknown: 0, or its entry names another inode.
    ///
    /// # Errors
    /// [`Error::Range`] if `out` is shorter than the name; what reading gives.
    pub fn place_name(&self, inode: &Inode, out: &mut [u8]) -> Result<Option<(usize, Inode)>> {
        if inode.place_dir.0 == 0 {
            return Ok(None);
        }
        let dir = match self.directory(inode.place_dir) {
            Ok(dir) => dir,
            Err(Error::NotFound | Error::NotDir) => return Ok(None),
            Err(error) => return Err(error),
        };
        let copied = self.entry_of_key(&dir, inode.place_key, |entry| {
            if entry.ino != inode.ino {
                return Ok(None);
            }
            let start = out.len().checked_sub(entry.name.len()).ok_or(Error::Range)?;
            out.get_mut(start..).ok_or(Error::Range)?.copy_from_slice(entry.name);
            Ok(Some(entry.name.len()))
        })?;
        Ok(copied.transpose()?.flatten().map(|len| (len, dir)))
    }

    /// Makes a name of an inode its place: the one by which it was given rows.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the name is not one of the inode's.
    pub fn set_place(&mut self, ino: Ino, dir: Ino, name: &[u8]) -> Result<Inode> {
        let dir = self.directory(dir)?;
        let found = self.search(&dir, Name::new(name)?)?.found.filter(|found| found.ino == ino);
        let key = found.ok_or(Error::NotFound)?.key;
        self.inode_update(ino, |inode| (inode.place_dir, inode.place_key) = (dir.ino, key))
    }

    /// The path of an inode below the directory `stop_at`, without a leading `/`, at the start of `out`;
    /// gives its length, 0 for `stop_at` itself.
    ///
    /// # Errors
    /// [`Error::NotFound`] if a place on the way is unknown or the inode is not below `stop_at`,
    /// [`Error::Range`] if `out` is too short.
    pub fn path(&self, ino: Ino, stop_at: Ino, out: &mut [u8]) -> Result<usize> {
        let mut inode = self.inode(ino)?;
        let mut start = out.len();
        while inode.ino != stop_at {
            if inode.ino == self.superblock.root || (inode.kind == Kind::Dir && inode.nlink == 0) {
                return Err(Error::NotFound);
            }
            if start != out.len() {
                start = start.checked_sub(1).ok_or(Error::Range)?;
                *out.get_mut(start).ok_or(Error::Range)? = b'/';
            }
            // Each turn takes a byte of `out` at least, so a loop of places ends in Range.
            let free = out.get_mut(..start).ok_or(Error::Range)?;
            let (len, dir) = self.place_name(&inode, free)?.ok_or(Error::NotFound)?;
            start = start.checked_sub(len).ok_or(Error::Range)?;
            inode = dir;
        }
        let len = out.len() - start;
        out.copy_within(start.., 0);
        Ok(len)
    }
}
