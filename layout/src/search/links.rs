//! Where a file is linked, when its place does not say or lies elsewhere (FORMAT.md section 5.5).

use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::inode::{Ino, Kind};
use crate::page_store::PageStore;

/// A step of the walk below a directory.
enum Step {
    /// The link was found in this directory.
    Found,
    /// A subdirectory to look into.
    Down(Ino),
    /// The directory has nothing more.
    End,
}

impl<P: PageStore> Fs<P> {
    /// The directory below `scope`, and the key there, of the first link of a file, depth first in the order
    /// of names' keys. None if there is none.
    ///
    /// Needs no memory: a directory's own place says where to go on in its parent.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Io`].
    pub fn find_link(&self, ino: Ino, scope: Ino) -> Result<Option<(Ino, u64)>> {
        let mut dir = scope;
        let mut after = 0;
        loop {
            let mut step = Step::End;
            self.readdir(dir, after, &mut |entry| {
                if entry.name == b"." || entry.name == b".." {
                    return true;
                }
                after = entry.cookie;
                if entry.ino == ino {
                    step = Step::Found;
                } else if entry.kind == Kind::Dir {
                    step = Step::Down(entry.ino);
                } else {
                    return true;
                }
                false
            })?;
            match step {
                Step::Found => return Ok(Some((dir, after))),
                Step::Down(child) => {
                    let inode = self.inode(child)?;
                    // Only by its place: so the walk comes back here, and goes down to each directory
                    // once. On a damaged volume a loop could lead through the scope alone.
                    if inode.place_dir == dir && inode.place_key == after && child != scope {
                        (dir, after) = (child, 0);
                    }
                }
                Step::End if dir == scope => return Ok(None),
                Step::End => {
                    let inode = self.inode(dir)?;
                    if inode.place_dir.0 == 0 {
                        return Err(Error::NotFound);
                    }
                    (dir, after) = (inode.place_dir, inode.place_key);
                }
            }
        }
    }

    /// The path of a file by the link that a search below `scope` knows it by (its place, else the first that
    /// is found), relative to the directory `stop_at`.
    ///
    /// # Errors
    /// [`Error::NotFound`] without such a link, [`Error::Range`] if it does not fit.
    pub fn search_path(&self, ino: Ino, scope: Ino, stop_at: Ino, out: &mut [u8]) -> Result<usize> {
        match self.path(ino, scope, out) {
            Err(Error::NotFound) => {}
            Ok(_) if scope != stop_at => return self.path(ino, stop_at, out),
            done => return done,
        }
        let (dir, key) = self.find_link(ino, scope)?.ok_or(Error::NotFound)?;
        let mut at = 0;
        if dir != stop_at {
            at = self.path(dir, stop_at, out)?;
            *out.get_mut(at).ok_or(Error::Range)? = b'/';
            at += 1;
        }
        let mut end = Err(Error::NotFound);
        self.readdir(dir, key.saturating_sub(1), &mut |entry| {
            if entry.ino == ino && entry.cookie == key {
                let len = entry.name.len();
                end = match out.get_mut(at..at + len) {
                    Some(room) => {
                        room.copy_from_slice(entry.name);
                        Ok(at + len)
                    }
                    None => Err(Error::Range),
                };
            }
            false
        })?;
        end
    }
}
