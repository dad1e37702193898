//! Reading rows and vectors.

use super::{RowsFile, split};
use crate::addr::PAGE;
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::inode::Ino;
use crate::page_store::PageStore;
use crate::rows::headers;
use crate::windows::map;

impl<P: PageStore> Fs<P> {
    /// The page of a chunk's row headers ([`crate::rows::headers`]).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the chunk is not one of the rows file's.
    pub fn row_headers(&self, rows: &RowsFile, chunk: u64) -> Result<P::Read> {
        self.store().read(rows.row_page(chunk)?)
    }

    /// Copies the first vectors of a chunk, as many as fill `out`, without gaps between them.
    ///
    /// # Errors
    /// As [`Fs::row_headers`]; [`Error::Range`] if `out` is larger than the chunk's vectors.
    pub fn chunk_vectors(&self, rows: &RowsFile, chunk: u64, out: &mut [u8]) -> Result<()> {
        self.vector_bytes(rows, chunk, 0, out)
    }

    /// Copies bytes of a chunk's vectors, from byte `from` of them.
    pub(super) fn vector_bytes(
        &self,
        rows: &RowsFile,
        chunk: u64,
        from: usize,
        out: &mut [u8],
    ) -> Result<()> {
        if (from + out.len()).div_ceil(PAGE) as u64 > rows.schema().chunk_vector_pages() {
            return Err(Error::Range);
        }
        let begin = rows.chunk_offset(chunk)? + PAGE as u64;
        let mut at = begin + from as u64;
        let mut out = out;
        while !out.is_empty() {
            let run = map(&rows.inode, at)
                .ok_or_else(|| rows.corrupt("rows file: a used chunk has no window", 1, at))?;
            let len = out.len().min(usize::try_from(run.len_bytes).unwrap_or(usize::MAX));
            let (now, later) = core::mem::take(&mut out).split_at_mut_checked(len).ok_or(Error::Range)?;
            self.store().read_bytes(run.byte, now)?;
            at += len as u64;
            out = later;
        }
        Ok(())
    }

    /// The vector of the first live row of a file, in the collection's element type; gives its bytes.
    /// An empty `out` asks for the size only.
    ///
    /// # Errors
    /// [`Error::NoAttr`] if the file has no live row, [`Error::Range`] if it does not fit.
    pub fn first_vector(&self, file: Ino, out: &mut [u8]) -> Result<usize> {
        let inode = self.inode(file)?;
        let rows = self.rows_file_at(inode.rows_ino)?.ok_or(Error::NoAttr)?;
        let row = inode.first_row.checked_sub(1).filter(|row| *row < rows.header.next_row);
        let (chunk, slot) = split(row.ok_or(Error::NoAttr)?);
        let page = rows.row_page(chunk)?;
        let raw = *headers(&*self.store().read(page)?).get(slot).ok_or(Error::NoAttr)?;
        match raw.decode(page)? {
            Some(row) if row.ino == file && row.generation == inode.generation => {}
            _ => return Err(Error::NoAttr),
        }
        let len = rows.schema().vector_bytes();
        if !out.is_empty() {
            let out = out.get_mut(..len).ok_or(Error::Range)?;
            self.vector_bytes(&rows, chunk, slot * len, out)?;
        }
        Ok(len)
    }
}
