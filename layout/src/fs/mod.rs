//! The file system logic: every operation of a mounter over a [`PageStore`].
//!
//! Each change goes in two steps. *Prepare* reads everything that can fail, checks it, and touches
//! (marks dirty) each page that will change; an error there leaves the volume as it was. *Apply*
//! changes pages and the superblock in memory; an error there poisons the [`Fs`]: later changes
//! give [`Error::Aborted`], and the open epoch must not be committed any more.

mod acl;
mod alloc;
mod attr;
mod data;
mod format;
mod hidden;
mod names;
mod orphans;
mod place;
mod rename;
mod rows;
mod rows_hook;
mod table;
mod tree;
mod tree_insert;
mod tree_remove;
mod xattrs;
mod zero;

#[cfg(test)]
mod tests;

use crate::addr::SUPERBLOCK_PAGE;
use crate::error::{Error, Result};
use crate::inode::Kind;
use crate::page_store::{PageBytes, PageStore, Timespec};
use crate::superblock::Superblock;
use crate::windows::CLASSES;

pub use crate::inode::{Ino, Inode, InodeFlags};
pub use crate::windows::Run;
pub use attr::SetAttr;
pub use data::{Keep, ZeroTail};
pub use format::{FormatParams, format};
pub use names::{DirEntry, NewInode};
pub use rename::RenameFlags;
pub use rows::{FreshRows, Put, RowSet, RowsFile};
pub use xattrs::XattrFlags;
pub use zero::ZeroPart;

/// How to mount.
#[derive(Clone, Copy, Debug)]
pub struct MountOptions {
    /// Every change gives [`Error::ReadOnly`].
    pub read_only: bool,
    /// The session granted by the daemon, kept in each commit.
    pub session: u64,
    /// Time of the mount.
    pub now: Timespec,
}

/// A mounted file system.
///
/// Life: *mounted* -> changes, `close_epoch` per commit -> dropped (after a last `close_epoch` with
/// `clean`), or *poisoned* by an error in the middle of a change -> dropped without a commit.
#[derive(Debug)]
pub struct Fs<P: PageStore> {
    store: P,
    superblock: Superblock,
    /// Of each free stack that is pushed on in the open epoch, how many entries are older than the epoch.
    older: [u64; CLASSES],
    session: u64,
    read_only: bool,
    poisoned: bool,
}

impl<P: PageStore> Fs<P> {
    /// Reads and checks the superblock and the root directory's inode; writes nothing.
    ///
    /// # Errors
    /// As [`Superblock::decode`], and what the store gives.
    pub fn mount(store: P, options: MountOptions) -> Result<Self> {
        let mut superblock = Superblock::decode(&*store.read(SUPERBLOCK_PAGE)?, options.read_only)?;
        if !options.read_only {
            superblock.mount_count = superblock.mount_count.wrapping_add(1);
        }
        let mut fs = Fs {
            store,
            superblock,
            older: [0; CLASSES],
            session: options.session,
            read_only: options.read_only,
            poisoned: false,
        };
        fs.begin_epoch();
        let root = fs.inode(fs.superblock.root)?;
        if root.kind != Kind::Dir {
            return Err(fs.corrupt_inode(
                root.ino,
                "root is a directory",
                Kind::Dir as u64,
                root.kind as u64,
            ));
        }
        Ok(fs)
    }

    /// The page store.
    pub fn store(&self) -> &P {
        &self.store
    }

    /// The superblock as changed in the open epoch; `epoch` is the last commit's.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The number of the open epoch: the commit being built.
    pub fn open_epoch(&self) -> u64 {
        self.superblock.epoch.wrapping_add(1)
    }

    /// An earlier error in the middle of a change stopped this mount: do not commit.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Ends the open epoch and gives its page-0 image; the next epoch is open from now on.
    ///
    /// Call it with operations excluded, after the set of dirty pages was taken, and never once
    /// [`Fs::is_poisoned`]. `clean` says that this is the last commit of an orderly unmount.
    pub fn close_epoch(&mut self, now: Timespec, clean: bool) -> PageBytes {
        self.superblock.epoch = self.open_epoch();
        self.superblock.session = self.session;
        self.superblock.clean = clean;
        self.superblock.commit_time = now;
        self.begin_epoch();
        self.superblock.encode()
    }

    /// Whether changes are allowed now.
    fn writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        if self.poisoned {
            return Err(Error::Aborted);
        }
        Ok(())
    }

    /// Runs the apply step of a change; an error in it poisons the mount.
    fn apply<T>(&mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let result = change(self);
        self.poisoned |= result.is_err();
        result
    }
}
