//! Which inodes the kernel knows: what it was given and has not forgotten (FUSE_FORGET). An inode without links is freed when it
//! is forgotten: until then a descriptor, a working directory or a mapping may need it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};

use layout::fs::Ino;
use parking_lot::Mutex;

const SHARDS: usize = 64;

/// Counts of how often each inode was given to the kernel, once [`Known::track`] was called. Changed under the file system
/// lock, so that an unlink and a lookup of the same inode see each other.
pub struct Known {
    shards: Box<[Mutex<HashMap<Ino, u64>>]>,
    tracks: AtomicBool,
}

impl Default for Known {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Known { shards, tracks: AtomicBool::new(false) }
    }
}

impl Known {
    /// From now on there is a kernel, and it will forget what it is given.
    pub fn track(&self) {
        self.tracks.store(true, Ordering::Release);
    }

    /// The inode goes to the kernel.
    pub fn given(&self, ino: Ino) {
        if self.tracks.load(Ordering::Acquire) {
            *self.shard(ino).lock().entry(ino).or_insert(0) += 1;
        }
    }

    /// The kernel forgets `count` of the times that it was given the inode; true if it does not know it any more.
    pub fn forgotten(&self, ino: Ino, count: u64) -> bool {
        match self.shard(ino).lock().entry(ino) {
            Entry::Occupied(mut entry) if *entry.get() > count => {
                *entry.get_mut() -= count;
                false
            }
            Entry::Occupied(entry) => {
                entry.remove();
                true
            }
            Entry::Vacant(_) => false,
        }
    }

    /// Whether the kernel knows the inode.
    pub fn has(&self, ino: Ino) -> bool {
        self.shard(ino).lock().contains_key(&ino)
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, u64>> {
        &self.shards[ino.0 as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_known_until_all_is_forgotten() {
        let known = Known::default();
        let ino = Ino(7);
        known.given(ino);
        assert!(!known.has(ino), "no kernel yet");
        known.track();
        assert!(!known.forgotten(ino, 1), "never given");
        for _ in 0..3 {
            known.given(ino);
        }
        assert!(!known.forgotten(ino, 2) && known.has(ino));
        assert!(known.forgotten(ino, 1) && !known.has(ino));
        known.given(ino);
        assert!(known.forgotten(ino, 9), "more than was given");
    }
}
