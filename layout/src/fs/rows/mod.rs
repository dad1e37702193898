//! Collections and rows: what happens to a rows file (FORMAT.md sections 6.1 to 6.3).
//!
//! Life of a row: put (LIVE, fresh) -> its file changes (stale) -> its file is put again, or freed
//! (DEAD) -> its chunk is dead as a whole (unmapped). Slots at and above `next_row` are unused; what
//! stands in their vectors has no meaning.

mod collection;
mod kill;
mod put;
mod read;
mod set;
#[cfg(test)]
mod tests;

pub use put::Put;
pub use set::{FreshRows, RowSet};

use crate::addr::{PAGE, PageNo, SUPERBLOCK_PAGE};
use crate::error::{Result, corrupt};
use crate::inode::Inode;
use crate::schema::{CHUNK_ROWS, CollectionHeader, Schema};
use crate::windows::map_page;

/// A collection's rows file, as decoded at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowsFile {
    /// The hidden inode.
    pub inode: Inode,
    /// The header in its first page.
    pub header: CollectionHeader,
}

impl RowsFile {
    /// What the vectors are.
    pub fn schema(&self) -> &Schema {
        &self.header.schema
    }

    /// Chunks that have at least one row; the last one may be partly used.
    pub fn chunks(&self) -> u64 {
        self.header.next_row.div_ceil(CHUNK_ROWS)
    }

    /// Rows given out of a chunk: 64, fewer in the last one.
    pub fn chunk_rows(&self, chunk: u64) -> usize {
        let first = chunk.saturating_mul(CHUNK_ROWS);
        self.header.next_row.saturating_sub(first).min(CHUNK_ROWS) as usize
    }

    /// Whether every row id of the chunk was given out: its vectors never change any more.
    pub fn chunk_is_full(&self, chunk: u64) -> bool {
        chunk < self.header.next_row / CHUNK_ROWS
    }

    /// The device page of the header.
    fn header_page(&self) -> Result<PageNo> {
        self.page_at(0)
    }

    /// The device page of a chunk's row headers.
    pub fn row_page(&self, chunk: u64) -> Result<PageNo> {
        self.page_at(self.chunk_offset(chunk)?)
    }

    /// Where a chunk begins in the rows file.
    fn chunk_offset(&self, chunk: u64) -> Result<u64> {
        self.header
            .schema
            .chunk_offset(chunk)
            .ok_or_else(|| self.corrupt("rows file: chunk number", self.chunks(), chunk))
    }

    /// The device page of a byte of the rows file.
    fn page_at(&self, offset: u64) -> Result<PageNo> {
        map_page(&self.inode, offset / PAGE as u64)
            .ok_or_else(|| self.corrupt("rows file: a used chunk has no window", 1, offset))
    }

    fn corrupt(&self, what: &'static str, expected: u64, found: u64) -> crate::error::Error {
        corrupt(self.inode.ino.page().unwrap_or(SUPERBLOCK_PAGE), what, expected, found)
    }
}

/// Chunk and slot of a row id.
fn split(row: u64) -> (u64, usize) {
    (row / CHUNK_ROWS, (row % CHUNK_ROWS) as usize)
}
