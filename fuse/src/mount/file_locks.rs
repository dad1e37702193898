//! A lock for each file's bytes, striped: writers and truncates of a file exclude each other and
//! its readers.

use layout::fs::Ino;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

const STRIPES: usize = 256;

/// Striped locks by inode number. A thread holds at most one at a time, or two that it took by [`FileLocks::pair`].
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

    /// For reading one file's bytes and changing another's, or the same one's.
    pub fn pair(&self, read: Ino, written: Ino) -> Pair<'_> {
        let (r, w) = (read.0 as usize % STRIPES, written.0 as usize % STRIPES);
        // By the order of the stripes, so that two who want the same ones do not wait for each other.
        let first = (r < w).then(|| self.shared(read));
        let exclusive = self.exclusive(written);
        let shared = first.or_else(|| (r > w).then(|| self.shared(read)));
        Pair { _shared: shared, _exclusive: exclusive }
    }

    fn stripe(&self, ino: Ino) -> &RwLock<()> {
        &self.0[ino.0 as usize % STRIPES]
    }
}

/// See [`FileLocks::pair`].
pub struct Pair<'a> {
    /// None if the other one is of the same stripe.
    _shared: Option<RwLockReadGuard<'a, ()>>,
    _exclusive: RwLockWriteGuard<'a, ()>,
}
