//! The death of rows: with a new put, with an attribute removed, with their file.

use super::{RowsFile, split};
use crate::cycle::Cycle;
use crate::error::Result;
use crate::fs::Fs;
use crate::inode::{Ino, Inode, InodeFlags, Kind};
use crate::page_store::PageStore;
use crate::rows::{headers, headers_mut};
use crate::windows::{CLASSES, class_pages};

/// The chain of a file's rows, read and touched by the prepare step.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    /// Where the rows stand; none if the file has no rows any more.
    rows: Option<RowsFile>,
    first: Option<u64>,
    /// Rows of the chain at most.
    most: u32,
}

impl<P: PageStore> Fs<P> {
    /// Kills all rows of a file, in whichever collection they are.
    ///
    /// # Errors
    /// [`crate::error::Error::NotFound`] without such a file.
    pub fn kill_rows(&mut self, file: Ino) -> Result<Inode> {
        self.writable()?;
        let mut inode = self.inode(file)?;
        if inode.rows_ino.0 == 0 {
            return Ok(inode);
        }
        let chain = self.touch_chain(&inode)?;
        self.touch_inode(file)?;
        self.apply(|fs| {
            fs.kill_chain(&inode, &chain)?;
            inode.rows_ino = Ino(0);
            inode.first_row = 0;
            inode.row_count = 0;
            inode.flags.remove(InodeFlags::ROWS_FRESH);
            fs.write_inode(&inode)?;
            Ok(inode)
        })
    }

    /// What [`Fs::rows_before_free`] does: see there.
    pub(in crate::fs) fn rows_end(&mut self, inode: Inode) -> Result<Inode> {
        match inode.kind {
            Kind::File if inode.rows_ino.0 != 0 => self.kill_rows(inode.ino),
            Kind::Dir if inode.flags.contains(InodeFlags::COLLECTION) => self.collection_free(&inode),
            _ => Ok(inode),
        }
    }

    /// Prepare: follows the chain, touches every page that [`Fs::kill_chain`] will change.
    ///
    /// The chain ends at the first row that is not this file's: the rows file that the file knew may
    /// be gone, and its number in use again. One that leads back to itself ends there.
    pub(super) fn touch_chain(&self, file: &Inode) -> Result<Chain> {
        let rows = self.rows_file_at(file.rows_ino)?;
        let chain = Chain { rows, first: file.first_row.checked_sub(1), most: file.row_count };
        let Some(rows) = rows else { return Ok(chain) };
        drop(self.store().write(rows.header_page()?)?);
        let mut next = chain.first;
        let mut cycle = Cycle::new();
        for _ in 0..chain.most {
            let Some(row) = next.filter(|row| *row < rows.header.next_row && !cycle.closes(*row)) else {
                break;
            };
            let (chunk, slot) = split(row);
            let page = rows.row_page(chunk)?;
            let guard = self.store().write(page)?;
            let Some(raw) = headers(&guard).get(slot) else { break };
            match raw.decode(page)? {
                Some(row) if row.ino == file.ino && row.generation == file.generation => next = row.next,
                _ => break,
            }
        }
        Ok(chain)
    }

    /// Apply: kills the rows of the chain, and unmaps full chunks that have no live row left.
    pub(super) fn kill_chain(&mut self, file: &Inode, chain: &Chain) -> Result<()> {
        let Some(rows) = chain.rows else { return Ok(()) };
        let mut next = chain.first;
        let mut killed = 0;
        for _ in 0..chain.most {
            let Some(row) = next.filter(|row| *row < rows.header.next_row) else { break };
            let (chunk, slot) = split(row);
            let page = rows.row_page(chunk)?;
            let mut guard = self.store().write(page)?;
            let chunk_headers = headers_mut(&mut guard);
            let Some(raw) = chunk_headers.get_mut(slot) else { break };
            match raw.decode(page)? {
                Some(row) if row.ino == file.ino && row.generation == file.generation => next = row.next,
                _ => break,
            }
            raw.kill();
            killed += 1;
            let empty = rows.chunk_is_full(chunk) && !chunk_headers.iter().any(|raw| raw.is_live());
            drop(guard);
            if empty {
                self.unmap_chunk(&rows, chunk)?;
            }
        }
        let mut header = rows.header;
        header.live_rows = header.live_rows.saturating_sub(killed);
        header.encode(&mut *self.store().write(rows.header_page()?)?);
        Ok(())
    }

    fn unmap_chunk(&mut self, rows: &RowsFile, chunk: u64) -> Result<()> {
        let begin = rows.chunk_offset(chunk)?;
        let end = begin + rows.schema().chunk_bytes();
        for class in 0..CLASSES {
            if let Some(range) = class_pages(&rows.inode, class, begin, end) {
                self.store().discard(range)?;
            }
        }
        Ok(())
    }
}
