//! Operations on names: lookup, create, link, unlink, rename, readdir.
//!
//! Each inode that one of these gives goes to the kernel, which knows it until [`Mounted::forget`].

use layout::error::{Error, Result};
use layout::fs::{DirEntry, Ino, Inode, NewInode, RenameFlags};

use super::volume::{Mounted, now};
use crate::engine::Cost;
use crate::session::SESSION_DIR;

/// The session directory's name can't be made, removed or replaced.
fn ordinary(name: &[u8]) -> Result<()> {
    if name == SESSION_DIR.as_bytes() { Err(Error::NotPermitted) } else { Ok(()) }
}

impl Mounted {
    /// `.` is an inode of any kind itself: the kernel finds what a file handle means so (FUSE_EXPORT_SUPPORT).
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Inode> {
        let fs = self.reading()?;
        // An inode without links has no handle that still means it.
        let inode = Some(fs.lookup(dir, name)?).filter(|inode| inode.nlink > 0).ok_or(Error::NotFound)?;
        self.known.given(inode.ino);
        Ok(inode)
    }

    /// Makes a file, directory or special file; `open` counts a handle of it at once.
    ///
    /// # Errors
    /// As [`layout::fs::Fs::create`].
    pub fn create(&self, dir: Ino, name: &[u8], new: NewInode, open: bool) -> Result<Inode> {
        ordinary(name)?;
        self.change(Cost::Pages(0), |fs| {
            let inode = fs.create(dir, name, new, now())?;
            if open {
                self.files.opened(inode.ino);
            }
            self.known.given(inode.ino);
            Ok(inode)
        })
    }

    /// Makes a file without a name and counts a handle of it at once (O_TMPFILE): its last close frees it,
    /// unless it was linked.
    ///
    /// # Errors
    /// As [`layout::fs::Fs::tmpfile`].
    pub fn tmpfile(&self, dir: Ino, new: NewInode) -> Result<Inode> {
        self.change(Cost::Pages(0), |fs| {
            let inode = fs.tmpfile(dir, new, now())?;
            self.files.opened(inode.ino);
            self.known.given(inode.ino);
            self.known.unlinked(inode.ino);
            Ok(inode)
        })
    }

    /// # Errors
    /// As [`layout::fs::Fs::symlink`].
    pub fn symlink(&self, dir: Ino, name: &[u8], target: &[u8], owner: (u32, u32)) -> Result<Inode> {
        ordinary(name)?;
        self.change(Cost::Pages(1), |fs| {
            let inode = fs.symlink(dir, name, target, owner.0, owner.1, now())?;
            self.known.given(inode.ino);
            Ok(inode)
        })
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// As [`layout::fs::Fs::readlink`].
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let mut target = vec![0; layout::addr::PAGE];
        let len = self.reading()?.readlink(ino, &mut target)?;
        target.truncate(len);
        Ok(target)
    }

    /// # Errors
    /// As [`layout::fs::Fs::link`].
    pub fn link(&self, ino: Ino, dir: Ino, name: &[u8]) -> Result<Inode> {
        ordinary(name)?;
        self.change(Cost::Pages(0), |fs| {
            let inode = fs.link(ino, dir, name, now())?;
            self.known.given(inode.ino);
            Ok(inode)
        })
    }

    /// Removes a name; the inode is freed with its last link, once it is not in use.
    ///
    /// # Errors
    /// As [`layout::fs::Fs::unlink`].
    pub fn unlink(&self, dir: Ino, name: &[u8]) -> Result<()> {
        ordinary(name)?;
        self.change(Cost::Freeing, |fs| {
            let inode = fs.unlink(dir, name, now())?;
            if inode.nlink == 0 { self.reap_if_unused(fs, inode.ino) } else { Ok(()) }
        })
    }

    /// # Errors
    /// As [`layout::fs::Fs::rmdir`].
    pub fn rmdir(&self, dir: Ino, name: &[u8]) -> Result<()> {
        ordinary(name)?;
        self.change(Cost::Freeing, |fs| {
            let inode = fs.rmdir(dir, name, now())?;
            self.reap_if_unused(fs, inode.ino)
        })
    }

    /// # Errors
    /// As [`layout::fs::Fs::rename`].
    pub fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: RenameFlags) -> Result<()> {
        ordinary(from.1)?;
        ordinary(to.1)?;
        self.change(Cost::Pages(0), |fs| {
            let replaced = fs.rename(from.0, from.1, to.0, to.1, flags, now())?;
            match replaced {
                Some(inode) if inode.nlink == 0 => self.reap_if_unused(fs, inode.ino),
                _ => Ok(()),
            }
        })
    }

    /// Gives the entries after a cookie until `each` returns false, with the attributes of each if
    /// `with_inodes` (but for `.` and `..`, and for a damaged inode, which hides no other name).
    ///
    /// # Errors
    /// As [`layout::fs::Fs::readdir`].
    pub fn readdir(
        &self,
        dir: Ino,
        after: u64,
        with_inodes: bool,
        each: &mut dyn FnMut(&DirEntry<'_>, Option<Inode>) -> bool,
    ) -> Result<()> {
        let fs = self.reading()?;
        let mut failed = Ok(());
        fs.readdir(dir, after, &mut |entry| {
            let dots = entry.name == b"." || entry.name == b"..";
            let inode = match with_inodes && !dots {
                true => match fs.inode(entry.ino) {
                    Ok(inode) => Some(inode),
                    Err(Error::Corrupt(_) | Error::Io(_)) => None,
                    Err(error) => {
                        failed = Err(error);
                        return false;
                    }
                },
                false => None,
            };
            let taken = each(entry, inode);
            if taken && let Some(inode) = inode {
                self.known.given(inode.ino);
            }
            taken
        })?;
        failed
    }
}
