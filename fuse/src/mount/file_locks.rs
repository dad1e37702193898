//! A lock for each file's bytes, striped: writers and truncates of a file exclude each other and
//! its readers.

use layout::fs::Ino;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

const STRIPES: usize = 256;

/// Striped locks by inode number. A thread holds at most one at a time.
pub struct FileLocks(Box<[RwLock<()>]>);

impl Default for FileLocks {
    fn default() -> Self {
        FileLocks((0..STRIPES).map(|_| RwLock::new(())).collect())
    }
}

impl FileLocks {
    /// For reading the file's bytes.
    pub fn shared(&self, ino: Ino) -> RwLockReadGuard<'_, ()> {
        self.stripe(ino).read()
    }

    /// For changing the file's bytes or size.
    pub fn exclusive(&self, ino: Ino) -> RwLockWriteGuard<'_, ()> {
        self.stripe(ino).write()
    }

    fn stripe(&self, ino: Ino) -> &RwLock<()> {
        &self.0[ino.0 as usize % STRIPES]
    }
}
