//! The exact scan: every chunk of the rows file, one page of headers and its vectors at a time.
//!
//! For each chunk: the headers say which rows are live and carry a wanted tag; the scorer gives a
//! lower bound of each one's distance; only rows whose bound could enter the top k are measured
//! exactly; only those that do enter are shown to the gate.

use super::gate::{Freshness, Gate};
use super::top::{Hit, Limit, TopK};
use crate::distance::distance;
use crate::error::{Error, Result};
use crate::fs::{Fs, RowsFile};
use crate::page_store::PageStore;
use crate::rows::headers;
use crate::schema::{CHUNK_ROWS, Schema};

/// Lower bounds of the distances of a chunk's rows; of unwanted rows they mean nothing.
pub type Bounds = [f64; CHUNK_ROWS as usize];

/// Measures the rows of a chunk.
pub trait Scorer {
    /// Makes `chunk` the current one and writes a number that is not above the distance for every
    /// slot in `wanted` (bit i: slot i). A NaN counts as unknown: the row is measured exactly.
    ///
    /// # Errors
    /// What reading the vectors gives.
    fn bounds(&mut self, rows: &RowsFile, chunk: u64, wanted: u64, bounds: &mut Bounds) -> Result<()>;

    /// The distance of a slot of the current chunk, as [`distance`] defines it.
    fn exact(&mut self, slot: usize) -> f64;
}

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    /// Only rows with one of these tag bits; 0: all.
    pub tags_any: u64,
    /// Leave out stale rows.
    pub fresh_only: bool,
}

/// Scans the chunks that `next_chunk` gives and keeps the nearest permitted rows in `top`. Gives
/// the number of rows whose distance was looked at.
///
/// Threads of one search have their own gate, scorer and top, and share `next_chunk`'s source and
/// `limit`; their tops together hold the k nearest.
///
/// # Errors
/// [`Error::Corrupt`] and [`Error::Io`].
pub fn scan<P: PageStore>(
    rows: &RowsFile,
    filter: &Filter,
    next_chunk: &mut dyn FnMut() -> Option<u64>,
    gate: &mut Gate<'_, P>,
    scorer: &mut dyn Scorer,
    top: &mut TopK<'_>,
    limit: &Limit,
) -> Result<u64> {
    let fs = gate.fs();
    let mut scanned = 0;
    let mut bounds = [0.0; CHUNK_ROWS as usize];
    while let Some(chunk) = next_chunk() {
        let page = fs.row_headers(rows, chunk)?;
        let page_no = rows.row_page(chunk)?;
        let given_out = headers(&page).iter().take(rows.chunk_rows(chunk)).enumerate();
        let wanted = given_out
            .clone()
            .filter(|(_, raw)| raw.is_live() && (filter.tags_any == 0 || raw.tag() & filter.tags_any != 0))
            .fold(0u64, |wanted, (slot, _)| wanted | 1 << slot);
        if wanted == 0 {
            continue;
        }
        scorer.bounds(rows, chunk, wanted, &mut bounds)?;
        scanned += u64::from(wanted.count_ones());
        for ((slot, raw), bound) in given_out.zip(bounds) {
            let id = chunk * CHUNK_ROWS + slot as u64;
            if wanted >> slot & 1 == 0 || (!bound.is_nan() && limit.excludes(bound)) {
                continue;
            }
            let distance = scorer.exact(slot);
            if limit.excludes(distance) || !top.wants(distance, id) {
                continue;
            }
            let Some(row) = raw.decode(page_no)? else { continue };
            let stale = match gate.admit(&row)? {
                Some(freshness) => freshness == Freshness::Stale,
                None => continue,
            };
            if stale && filter.fresh_only {
                continue;
            }
            let hit = Hit {
                distance,
                row: id,
                ino: row.ino,
                generation: row.generation,
                offset: row.offset,
                length: row.length,
                tag: row.tag,
                stale,
            };
            top.push(hit, limit);
        }
    }
    Ok(scanned)
}

/// The scorer by definition: every row is measured with [`distance`].
pub struct Reference<'a, P: PageStore> {
    fs: &'a Fs<P>,
    schema: Schema,
    query: &'a [u8],
    /// The current chunk's vectors.
    vectors: &'a mut [u8],
}

impl<'a, P: PageStore> Reference<'a, P> {
    /// A scorer for a query that [`crate::vector::check`] accepted; `memory` holds 64 vectors.
    ///
    /// # Errors
    /// [`Error::Range`] if `memory` is too small.
    pub fn new(fs: &'a Fs<P>, schema: Schema, query: &'a [u8], memory: &'a mut [u8]) -> Result<Self> {
        let len = schema.vector_bytes() * CHUNK_ROWS as usize;
        let vectors = memory.get_mut(..len).ok_or(Error::Range)?;
        Ok(Reference { fs, schema, query, vectors })
    }
}

impl<P: PageStore> Scorer for Reference<'_, P> {
    fn bounds(&mut self, rows: &RowsFile, chunk: u64, _wanted: u64, bounds: &mut Bounds) -> Result<()> {
        let used = rows.chunk_rows(chunk) * self.schema.vector_bytes();
        self.fs.chunk_vectors(rows, chunk, self.vectors.get_mut(..used).ok_or(Error::Range)?)?;
        bounds.fill(f64::NEG_INFINITY);
        Ok(())
    }

    fn exact(&mut self, slot: usize) -> f64 {
        let len = self.schema.vector_bytes();
        let vector = self.vectors.get(slot * len..(slot + 1) * len).unwrap_or_default();
        distance(self.schema.metric(), self.schema.element(), self.query, vector)
    }
}
