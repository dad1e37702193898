//! Which inodes the kernel knows: what it was given and has not forgotten (FUSE_FORGET). An inode without links is freed when it
//! is forgotten: until then a descriptor, a working directory or a mapping may need it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use layout::fs::Ino;
use parking_lot::Mutex;

const SHARDS: usize = 64;

/// What the kernel knows of an inode.
#[derive(Default)]
struct Given {
    /// How often it was given to the kernel.
    count: u64,
    /// It may have no link.
    unlinked: bool,
}

/// The inodes that were given to the kernel, once [`Known::track`] was called. Changed under the file system
/// lock, so that an unlink and a lookup of the same inode see each other.
pub struct Known {
    shards: Box<[Mutex<HashMap<Ino, Given>>]>,
    tracks: AtomicBool,
    /// Inodes that are `unlinked`.
    unlinked: AtomicUsize,
}

impl Default for Known {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Known { shards, tracks: AtomicBool::new(false), unlinked: AtomicUsize::new(0) }
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
            self.shard(ino).lock().entry(ino).or_default().count += 1;
        }
    }

    /// The inode has no link; true if the kernel knows it, so that it can't be freed before it is forgotten.
    pub fn unlinked(&self, ino: Ino) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some(given) = shard.get_mut(&ino) else { return false };
        if !std::mem::replace(&mut given.unlinked, true) {
            self.unlinked.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// Whether inodes without links are still to be forgotten.
    pub fn has_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Relaxed) > 0
    }

    /// The kernel forgets `count` of the times that it was given the inode; true if it does not know it any more, and it
    /// may have no link.
    pub fn forgotten(&self, ino: Ino, count: u64) -> bool {
        match self.shard(ino).lock().entry(ino) {
            Entry::Occupied(mut entry) if entry.get().count > count => {
                entry.get_mut().count -= count;
                false
            }
            Entry::Occupied(entry) => {
                let unlinked = entry.remove().unlinked;
                self.unlinked.fetch_sub(usize::from(unlinked), Ordering::Relaxed);
                unlinked
            }
            Entry::Vacant(_) => false,
        }
    }

    /// Whether the kernel knows the inode.
    pub fn has(&self, ino: Ino) -> bool {
        self.shard(ino).lock().contains_key(&ino)
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Given>> {
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
        assert!(!known.unlinked(ino) && !known.forgotten(ino, 1), "never given");
        for _ in 0..3 {
            known.given(ino);
        }
        assert!(!known.forgotten(ino, 2) && known.has(ino));
        assert!(!known.forgotten(ino, 1) && !known.has(ino), "it has its links");
        known.given(ino);
        assert!(!known.has_unlinked() && known.unlinked(ino) && known.unlinked(ino));
        known.given(ino);
        assert!(!known.forgotten(ino, 1) && known.has(ino) && known.has_unlinked());
        assert!(known.forgotten(ino, 9) && !known.has_unlinked(), "more than was given");
        known.given(ino);
        assert!(!known.forgotten(ino, 1), "another inode of the same number");
    }
}
