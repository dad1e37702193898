//! How often each inode is open: one without links is freed at its last close.

use std::collections::HashMap;

use layout::fs::Ino;
use parking_lot::Mutex;

/// Counts of open handles. Changed under the file system lock, so that an unlink and an open of
/// the same inode see each other.
#[derive(Default)]
pub struct OpenFiles(Mutex<HashMap<Ino, u32>>);

impl OpenFiles {
    /// A handle was opened.
    pub fn opened(&self, ino: Ino) {
        *self.0.lock().entry(ino).or_insert(0) += 1;
    }

    /// A handle was closed; true if it was the last.
    pub fn closed(&self, ino: Ino) -> bool {
        let mut counts = self.0.lock();
        match counts.get_mut(&ino) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => counts.remove(&ino).is_some(),
        }
    }

    /// Whether any handle is open.
    pub fn is_open(&self, ino: Ino) -> bool {
        self.0.lock().contains_key(&ino)
    }
}
