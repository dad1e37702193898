//! One search on several threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use layout::distance::distance;
use layout::error::Result;
use layout::fs::{Fs, RowsFile};
use layout::inode::Ino;
use layout::page_store::PageStore;
use layout::search::{Bounds, Credentials, Filter, Gate, Hit, Limit, Scorer, TopK, Verdict, scan};

use super::{Chunk, ChunkCache, Kernel};

/// Chunks that make another thread worth its start (about 30 us, or some 1,000 rows).
const CHUNKS_PER_THREAD: u64 = 32;

/// A search whose request was checked.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Directory of the collection.
    pub collection: Ino,
    /// Directory that the files must lie below: the collection's, or one in it.
    pub scope: Ino,
    /// The query vector in the collection's element type, accepted by [`layout::vector::check`].
    pub vector: &'a [u8],
    /// Rows wanted.
    pub k: usize,
    /// Which rows count.
    pub filter: Filter,
    /// Who asks.
    pub who: Credentials<'a>,
}

/// What a search found.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// The open epoch: all its changes acknowledged so far are seen.
    pub epoch: u64,
    /// Rows whose distance was looked at.
    pub rows_scanned: u64,
    /// The nearest permitted rows, nearest first.
    pub hits: Vec<Hit>,
}

/// Searches; shared by all sessions of a mount.
#[derive(Debug)]
pub struct Searcher {
    cache: ChunkCache,
    threads: usize,
}

impl Searcher {
    /// Uses at most `threads` threads a search, and `cache_bytes` of RAM for vectors.
    pub fn new(threads: usize, cache_bytes: usize) -> Self {
        Searcher { cache: ChunkCache::new(cache_bytes), threads: threads.max(1) }
    }

    /// The vectors in RAM.
    pub fn cache(&self) -> &ChunkCache {
        &self.cache
    }

    /// Finds the k nearest permitted rows. The caller holds the file system's shared lock.
    ///
    /// # Errors
    /// As [`Fs::rows_file`]; [`layout::error::Error::Corrupt`], [`layout::error::Error::Io`].
    pub fn search<P: PageStore>(&self, fs: &Fs<P>, query: &Query<'_>) -> Result<Answer>
    where
        Fs<P>: Sync,
    {
        let rows = fs.rows_file(query.collection)?;
        let next = AtomicU64::new(0);
        let limit = Limit::new();
        let work = || self.scan_some(fs, &rows, query, &next, &limit);
        let threads = (rows.chunks() / CHUNKS_PER_THREAD).clamp(1, self.threads as u64);

        let mut parts = std::thread::scope(|scope| -> Result<Vec<(u64, Vec<Hit>)>> {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut parts = vec![work()];
            for other in others {
                parts.push(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            parts.into_iter().collect()
        })?;
        let rows_scanned = parts.iter().map(|(scanned, _)| scanned).sum();
        let mut hits = parts.remove(0).1;
        if !parts.is_empty() {
            let mut room = vec![Hit::EMPTY; query.k];
            let mut top = TopK::new(&mut room);
            let merged = Limit::new();
            let others = parts.into_iter().flat_map(|(_, hits)| hits);
            hits.into_iter().chain(others).for_each(|hit| top.push(hit, &merged));
            hits = top.into_sorted().to_vec();
        }
        Ok(Answer { epoch: fs.open_epoch(), rows_scanned, hits })
    }

    /// One thread's share: takes chunks until none is left.
    fn scan_some<P: PageStore>(
        &self,
        fs: &Fs<P>,
        rows: &RowsFile,
        query: &Query<'_>,
        next: &AtomicU64,
        limit: &Limit,
    ) -> Result<(u64, Vec<Hit>)> {
        let mut memory =
            vec![Verdict::EMPTY; (rows.header.live_rows as usize).next_power_of_two().clamp(64, 16384)];
        let mut gate = Gate::new(fs, query.scope, rows.inode.ino, query.who, &mut memory);
        let mut scorer = CachedScorer {
            fs,
            cache: &self.cache,
            kernel: Kernel::new(rows.schema(), query.vector),
            query: query.vector,
            rows,
            chunk: None,
        };
        let mut room = vec![Hit::EMPTY; query.k];
        let mut top = TopK::new(&mut room);
        let chunks = rows.chunks();
        let mut next_chunk = || {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            (chunk < chunks).then_some(chunk)
        };
        let scanned = scan(rows, &query.filter, &mut next_chunk, &mut gate, &mut scorer, &mut top, limit)?;
        Ok((scanned, top.into_sorted().to_vec()))
    }
}

/// Bounds by the kernel over cached chunks, distances by definition.
struct CachedScorer<'a, P: PageStore> {
    fs: &'a Fs<P>,
    cache: &'a ChunkCache,
    kernel: Kernel,
    query: &'a [u8],
    rows: &'a RowsFile,
    chunk: Option<Arc<Chunk>>,
}

impl<P: PageStore> Scorer for CachedScorer<'_, P> {
    fn bounds(&mut self, rows: &RowsFile, number: u64, wanted: u64, bounds: &mut Bounds) -> Result<()> {
        let chunk = match self.cache.get(rows, number) {
            Some(chunk) => chunk,
            None => {
                let chunk = Arc::new(Chunk::load(self.fs, rows, number)?);
                self.cache.insert(rows, number, &chunk);
                chunk
            }
        };
        self.kernel.bounds(&chunk, wanted, bounds);
        self.chunk = Some(chunk);
        Ok(())
    }

    fn exact(&mut self, slot: usize) -> f64 {
        let schema = self.rows.schema();
        let len = schema.vector_bytes();
        let chunk = self.chunk.as_deref().map(Chunk::bytes).unwrap_or_default();
        let vector = chunk.get(slot * len..(slot + 1) * len).unwrap_or_default();
        distance(schema.metric(), schema.element(), self.query, vector)
    }
}
