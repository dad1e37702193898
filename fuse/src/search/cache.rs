//! Full chunks in RAM, contiguous.
//!
//! Nothing has to be invalidated: the vectors of a full chunk never change (FORMAT.md section 6.2),
//! which rows are alive is read from the header page each time, and a rows file whose number is
//! used again has another generation.

use std::collections::HashMap;
use std::sync::Arc;

use layout::fs::RowsFile;
use parking_lot::Mutex;
use rand::Rng;

use super::Chunk;

type Key = (u64, u32, u64);

/// A bounded cache of chunks.
///
/// When it is full a random chunk goes: a scan longer than the cache, which would find nothing left
/// under least-recently-used, still finds a share of its chunks.
#[derive(Debug)]
pub struct ChunkCache {
    most_bytes: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    chunks: HashMap<Key, (Arc<Chunk>, usize)>,
    /// Every key once, so that one can be drawn; the map knows each one's position.
    keys: Vec<Key>,
    bytes: usize,
}

impl ChunkCache {
    /// A cache of at most `most_bytes` (0: none is kept).
    pub fn new(most_bytes: usize) -> Self {
        ChunkCache { most_bytes, inner: Mutex::default() }
    }

    /// A chunk that was kept.
    pub fn get(&self, rows: &RowsFile, chunk: u64) -> Option<Arc<Chunk>> {
        self.inner.lock().chunks.get(&key(rows, chunk)).map(|(chunk, _)| chunk.clone())
    }

    /// Keeps a chunk if it is full.
    pub fn insert(&self, rows: &RowsFile, number: u64, chunk: &Arc<Chunk>) {
        let bytes = chunk.memory_bytes();
        if !rows.chunk_is_full(number) || bytes > self.most_bytes {
            return;
        }
        let mut inner = self.inner.lock();
        while inner.bytes + bytes > self.most_bytes && !inner.keys.is_empty() {
            let at = rand::rng().random_range(0..inner.keys.len());
            inner.remove_at(at);
        }
        inner.insert(key(rows, number), chunk.clone());
    }

    /// Bytes of memory in use.
    pub fn bytes(&self) -> usize {
        self.inner.lock().bytes
    }
}

impl Inner {
    fn insert(&mut self, key: Key, chunk: Arc<Chunk>) {
        if self.chunks.contains_key(&key) {
            return;
        }
        self.bytes += chunk.memory_bytes();
        self.chunks.insert(key, (chunk, self.keys.len()));
        self.keys.push(key);
    }

    fn remove_at(&mut self, at: usize) {
        let key = self.keys.swap_remove(at);
        if let Some((chunk, _)) = self.chunks.remove(&key) {
            self.bytes -= chunk.memory_bytes();
        }
        if let Some(moved) = self.keys.get(at).and_then(|key| self.chunks.get_mut(key)) {
            moved.1 = at;
        }
    }
}

fn key(rows: &RowsFile, chunk: u64) -> Key {
    (rows.inode.ino.0, rows.inode.generation, chunk)
}
