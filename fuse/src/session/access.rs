//! How session files reach the file system.

use layout::fs::{Fs, Inode};
use layout::inode::Ino;
use layout::page_store::PageStore;

/// Gives the file system under the mounter's lock.
pub trait FsAccess {
    /// The page store below.
    type Store: PageStore;

    /// Runs `look` under the shared lock.
    fn read<R>(&self, look: impl FnOnce(&Fs<Self::Store>) -> R) -> R;

    /// Runs `change` under the exclusive lock; all that it changes belongs to one epoch.
    fn write<R>(&self, change: impl FnOnce(&mut Fs<Self::Store>) -> R) -> R;

    /// Called under the exclusive lock after a put, with the file as it is then.
    fn rows_put(&self, _file: &Inode) {}

    /// Called without a lock after a put renamed a file: names cached elsewhere are out of date, and
    /// a replaced inode without links wants its reap at last close.
    fn published(&self, _change: &Published<'_>) {}
}

/// A rename done by a put.
#[derive(Clone, Copy, Debug)]
pub struct Published<'a> {
    /// The directory of both names.
    pub dir: Ino,
    /// The name that is gone.
    pub old_name: &'a [u8],
    /// The name that the file has now.
    pub new_name: &'a [u8],
    /// What had that name before, as it is now (its link count may be 0).
    pub replaced: Option<Inode>,
}

impl<P: PageStore> FsAccess for parking_lot::RwLock<Fs<P>> {
    type Store = P;

    fn read<R>(&self, look: impl FnOnce(&Fs<P>) -> R) -> R {
        look(&parking_lot::RwLock::read(self))
    }

    fn write<R>(&self, change: impl FnOnce(&mut Fs<P>) -> R) -> R {
        change(&mut parking_lot::RwLock::write(self))
    }
}

impl<A: FsAccess> FsAccess for std::sync::Arc<A> {
    type Store = A::Store;

    fn read<R>(&self, look: impl FnOnce(&Fs<A::Store>) -> R) -> R {
        A::read(self, look)
    }

    fn write<R>(&self, change: impl FnOnce(&mut Fs<A::Store>) -> R) -> R {
        A::write(self, change)
    }

    fn rows_put(&self, file: &Inode) {
        A::rows_put(self, file);
    }

    fn published(&self, change: &Published<'_>) {
        A::published(self, change);
    }
}
