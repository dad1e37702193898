//! Extended attributes.

use bitflags::bitflags;

use super::Fs;
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode};
use crate::page_store::{PageStore, Timespec};

bitflags! {
    /// As `XATTR_*` of setxattr(2), with the same values.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct XattrFlags: u32 {
        /// Fail if the attribute exists.
        const CREATE = 1;
        /// Fail if it does not.
        const REPLACE = 2;
    }
}

impl<P: PageStore> Fs<P> {
    /// Value of an attribute.
    pub fn getxattr(&self, _ino: Ino, _name: &[u8], _out: &mut [u8]) -> Result<usize> {
        Err(Error::Unsupported)
    }

    /// Names.
    pub fn listxattr(&self, _ino: Ino, _each: &mut dyn FnMut(&[u8])) -> Result<()> {
        Err(Error::Unsupported)
    }

    /// Sets.
    pub fn setxattr(
        &mut self,
        _ino: Ino,
        _name: &[u8],
        _value: &[u8],
        _flags: XattrFlags,
        _now: Timespec,
    ) -> Result<Inode> {
        Err(Error::Unsupported)
    }

    /// Removes.
    pub fn removexattr(&mut self, _ino: Ino, _name: &[u8], _now: Timespec) -> Result<Inode> {
        Err(Error::Unsupported)
    }
}
