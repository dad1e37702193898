//! Tests of the file system logic over the in-memory page store.

mod acl;
mod directories;
mod hostile;
mod numbers;
mod posix;
mod random;
mod scale;
mod tree;

use crate::inode::Kind;
use crate::page_store::Timespec;

use super::NewInode;

pub(super) const NOW: Timespec = Timespec { secs: 1_800_000_000, nanos: 7 };

/// A time `n` seconds after [`NOW`].
pub(super) const fn at(n: i64) -> Timespec {
    Timespec { secs: NOW.secs + n, nanos: 7 }
}

pub(super) const fn new(kind: Kind, perm: u16) -> NewInode {
    NewInode { kind, perm, umask: 0, uid: 1000, gid: 1000, rdev: 0x0103 }
}
