//! Putting rows.

use super::{RowsFile, split};
use crate::addr::PAGE;
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::inode::{Ino, Inode, InodeFlags, Kind};
use crate::page_store::{PageStore, Timespec};
use crate::rows::{RawRow, Row, headers_mut};
use crate::schema::CHUNK_ROWS;
use crate::uapi::raw::vexfs_put_row;
use crate::vector;

/// What a put did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Put {
    /// Id of the first row; the others follow by one. 0 without rows.
    pub first_row: u64,
    /// Rows put.
    pub count: u32,
}

impl<P: PageStore> Fs<P> {
    /// Gives a file its rows: kills the old ones unless `append`, adds the new ones, and marks them fresh. Sets
    /// of rows that are kept as attributes (FORMAT.md 6.6) go.
    ///
    /// `vectors` holds `[rows.len()][dim]` elements of the collection's own type. New rows stand
    /// before the old ones in the file's chain. The caller has decided that the file lies below the
    /// collection and may be written.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is not a regular file, for vectors that [`vector::check`] refuses,
    /// and for an append to rows in another collection; [`Error::TooBig`], [`Error::NoSpace`]. A put
    /// that fails changed no row.
    pub fn put_rows(
        &mut self,
        collection: Ino,
        file: Ino,
        rows: &[vexfs_put_row],
        vectors: &[u8],
        append: bool,
        now: Timespec,
    ) -> Result<Put> {
        self.put_marked_rows(collection, file, rows, vectors, &|_| false, append, now)
    }

    /// As [`Fs::put_rows`], with rows that are stale from the beginning: those whose number `stale` says so of.
    ///
    /// # Errors
    /// As [`Fs::put_rows`].
    #[expect(clippy::too_many_arguments, reason = "a put with one thing more")]
    pub fn put_marked_rows(
        &mut self,
        collection: Ino,
        file: Ino,
        rows: &[vexfs_put_row],
        vectors: &[u8],
        stale: &dyn Fn(usize) -> bool,
        append: bool,
        now: Timespec,
    ) -> Result<Put> {
        self.writable()?;
        let inode = self.inode(file)?;
        if inode.kind != Kind::File {
            return Err(Error::Invalid("only a regular file can have rows"));
        }
        if inode.nlink == 0 {
            return Err(Error::NotFound);
        }
        let rows_file = self.rows_file(collection)?;
        check_rows(&rows_file, rows, vectors)?;
        let count = u32::try_from(rows.len()).map_err(|_| Error::TooBig)?;

        let appends = append && inode.row_count > 0 && self.rows_file_at(inode.rows_ino)?.is_some();
        if appends && inode.rows_ino != rows_file.inode.ino {
            return Err(Error::Invalid("the file has rows in another collection; put without append"));
        }
        let row_count = if appends { inode.row_count } else { 0 };
        let row_count = row_count.checked_add(count).ok_or(Error::TooBig)?;
        let next_row = rows_file.header.next_row.checked_add(count.into()).ok_or(Error::TooBig)?;

        let rows_file = self.touch_put(rows_file, next_row, vectors)?;
        let chain = if appends { None } else { Some(self.touch_chain(&inode)?) };
        self.touch_inode(file)?;
        self.apply(|fs| {
            if let Some(chain) = chain {
                fs.kill_chain(&inode, &chain)?;
            }
            let old_first = if appends { inode.first_row.checked_sub(1) } else { None };
            fs.write_rows(&rows_file, &inode, rows, stale, old_first)?;
            fs.count_rows(collection, next_row, count)?;
            let mut inode = inode;
            inode.row_count = row_count;
            inode.ctime = now;
            if count > 0 {
                inode.rows_ino = rows_file.inode.ino;
                inode.first_row = rows_file.header.next_row + 1;
                if (0..rows.len()).any(|row| !stale(row)) {
                    inode.flags |= InodeFlags::ROWS_FRESH;
                } else if !appends {
                    inode.flags.remove(InodeFlags::ROWS_FRESH);
                }
            } else if !appends {
                inode.rows_ino = Ino(0);
                inode.first_row = 0;
                inode.flags.remove(InodeFlags::ROWS_FRESH);
            }
            fs.write_inode(&inode)
        })?;
        match self.forget_kept_sets(file, now) {
            // They are hidden by the rows, and go with the next put.
            Ok(()) | Err(Error::NoSpace) => {}
            Err(error) => return Err(error),
        }
        Ok(Put { first_row: if count > 0 { rows_file.header.next_row } else { 0 }, count })
    }

    /// Prepare: windows, all pages that will change, and the vectors themselves, which mean nothing
    /// before `next_row` covers them. Gives the rows file with its windows.
    fn touch_put(&mut self, mut rows: RowsFile, next_row: u64, vectors: &[u8]) -> Result<RowsFile> {
        drop(self.store().write(rows.header_page()?)?);
        let ino = rows.inode.ino;
        let first = rows.header.next_row;
        if next_row == first {
            return Ok(rows);
        }
        let begin = rows.chunk_offset(first / CHUNK_ROWS)?;
        let end = rows.schema().chunk_offset(next_row.div_ceil(CHUNK_ROWS)).ok_or(Error::TooBig)?;
        rows.inode = self.ensure_windows(ino, begin, end - begin)?;
        self.touch_inode(ino)?;
        rows.inode.size = rows.inode.size.max(end);

        let mut vectors = vectors;
        let mut row = first;
        while row < next_row {
            let (chunk, slot) = split(row);
            let slots = (next_row - row).min(CHUNK_ROWS - slot as u64) as usize;
            let page = rows.row_page(chunk)?;
            drop(if slot == 0 { self.store().fresh(page)? } else { self.store().write(page)? });
            let len = slots * rows.schema().vector_bytes();
            let (now, later) = vectors.split_at_checked(len).ok_or(Error::Range)?;
            self.write_vectors(&rows, chunk, slot * rows.schema().vector_bytes(), now)?;
            vectors = later;
            row += slots as u64;
        }
        Ok(rows)
    }

    /// Writes bytes of unused slots of a chunk, from byte `from` of its vectors.
    fn write_vectors(&self, rows: &RowsFile, chunk: u64, from: usize, bytes: &[u8]) -> Result<()> {
        let begin = rows.chunk_offset(chunk)? + PAGE as u64;
        let mut at = from;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let in_page = at % PAGE;
            let len = bytes.len().min(PAGE - in_page);
            let page_no = rows.page_at(begin + at as u64)?;
            // Only a page that begins before the first new slot can hold something to keep.
            let mut page =
                if in_page == 0 { self.store().fresh(page_no)? } else { self.store().write(page_no)? };
            let (now, later) = bytes.split_at_checked(len).ok_or(Error::Range)?;
            page.get_mut(in_page..in_page + len).ok_or(Error::Range)?.copy_from_slice(now);
            bytes = later;
            at += len;
        }
        Ok(())
    }

    /// Apply: writes the headers of the new rows, chained in order, the last one to `old_first`.
    fn write_rows(
        &mut self,
        rows_file: &RowsFile,
        file: &Inode,
        rows: &[vexfs_put_row],
        stale: &dyn Fn(usize) -> bool,
        old_first: Option<u64>,
    ) -> Result<()> {
        let mut id = rows_file.header.next_row;
        let last = id + rows.len() as u64;
        let mut rest = rows.iter().enumerate();
        // Versions only grow: the file never comes back to the one before.
        let version = |row| file.data_version.wrapping_sub(u64::from(stale(row)));
        while id < last {
            let (chunk, slot) = split(id);
            let mut page = self.store().write(rows_file.row_page(chunk)?)?;
            let slots = headers_mut(&mut page).iter_mut().skip(slot);
            for (raw, (number, row)) in slots.zip(rest.by_ref().take(CHUNK_ROWS as usize - slot)) {
                id += 1;
                *raw = RawRow::live(&Row {
                    ino: file.ino,
                    generation: file.generation,
                    data_version: version(number),
                    offset: row.offset.get(),
                    length: row.length.get(),
                    tag: row.tag.get(),
                    next: if id < last { Some(id) } else { old_first },
                });
            }
        }
        if last > rows_file.header.next_row {
            self.write_inode(&rows_file.inode)?;
        }
        Ok(())
    }

    /// Apply: counts the new rows in the collection's header (which a kill just before may have changed).
    fn count_rows(&mut self, collection: Ino, next_row: u64, count: u32) -> Result<()> {
        let rows = self.rows_file(collection)?;
        let mut header = rows.header;
        header.next_row = next_row;
        header.live_rows += u64::from(count);
        header.encode(&mut *self.store().write(rows.header_page()?)?);
        Ok(())
    }
}

fn check_rows(rows_file: &RowsFile, rows: &[vexfs_put_row], vectors: &[u8]) -> Result<()> {
    let schema = rows_file.schema();
    let vector_bytes = schema.vector_bytes();
    if rows.len().checked_mul(vector_bytes) != Some(vectors.len()) {
        return Err(Error::Invalid(
            "the vectors of the put have not rows x dim elements of the collection's type",
        ));
    }
    vectors.chunks_exact(vector_bytes).try_for_each(|vector| vector::check(schema, vector))?;
    let ends_inside = |row: &vexfs_put_row| {
        row.offset.get().checked_add(row.length.get()).is_some_and(|end| end <= i64::MAX as u64)
    };
    if !rows.iter().all(ends_inside) {
        return Err(Error::Invalid("a row's passage ends beyond 2^63 - 1"));
    }
    Ok(())
}
