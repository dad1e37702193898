//! Names: lookup, listing, creation, links and their removal.

use super::Fs;
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, Kind};
use crate::page_store::{PageStore, Timespec};

/// What [`Fs::readdir`] gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    /// The inode.
    pub ino: Ino,
    /// Its kind.
    pub kind: Kind,
    /// The name.
    pub name: &'a [u8],
    /// Give this as `after` to go on behind this entry; it stays good under every change.
    pub cookie: u64,
}

/// The inode to create.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewInode {
    /// Anything but a symlink or a rows file.
    pub kind: Kind,
    /// Permission bits, umask applied already.
    pub perm: u16,
    /// The caller's uid.
    pub uid: u32,
    /// The caller's gid; a setgid directory gives its own instead.
    pub gid: u32,
    /// Device number of a device, Linux `new_encode_dev`.
    pub rdev: u32,
}

impl<P: PageStore> Fs<P> {
    /// The inode of a name.
    pub fn lookup(&self, _dir: Ino, _name: &[u8]) -> Result<Inode> {
        Err(Error::Unsupported)
    }

    /// Lists.
    pub fn readdir(
        &self,
        _dir: Ino,
        _after: u64,
        _each: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<()> {
        Err(Error::Unsupported)
    }

    /// Creates.
    pub fn create(&mut self, _dir: Ino, _name: &[u8], _new: NewInode, _now: Timespec) -> Result<Inode> {
        Err(Error::Unsupported)
    }

    /// Symlink.
    pub fn symlink(
        &mut self,
        _dir: Ino,
        _name: &[u8],
        _target: &[u8],
        _uid: u32,
        _gid: u32,
        _now: Timespec,
    ) -> Result<Inode> {
        Err(Error::Unsupported)
    }

    /// Target.
    pub fn readlink(&self, _ino: Ino, _out: &mut [u8]) -> Result<usize> {
        Err(Error::Unsupported)
    }

    /// Links.
    pub fn link(&mut self, _ino: Ino, _dir: Ino, _name: &[u8], _now: Timespec) -> Result<Inode> {
        Err(Error::Unsupported)
    }

    /// Unlinks.
    pub fn unlink(&mut self, _dir: Ino, _name: &[u8], _now: Timespec) -> Result<Inode> {
        Err(Error::Unsupported)
    }

    /// Rmdir.
    pub fn rmdir(&mut self, _dir: Ino, _name: &[u8], _now: Timespec) -> Result<Inode> {
        Err(Error::Unsupported)
    }
}
