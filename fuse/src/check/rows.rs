//! Pass 7: the row headers of every rows file: each live row is on the chain of its file, the counter is right, and
//! chunks without live rows are not mapped.

use layout::addr::{PAGE, PAGE_SHIFT, PageNo};
use layout::inode::MAX_FILE_BYTES;
use layout::page_store::PageBytes;
use layout::rows::{RawRow, headers, headers_mut};
use layout::schema::CHUNK_ROWS;
use layout::windows::{CLASSES, class_pages, class_range, map_page};
use zerocopy::FromZeros;

use super::collections::Rows;
use super::context::Check;
use super::finding::{Code, Finding};
use super::mapped::Mapped;
use super::pool::Run;

/// The device page of a chunk's row headers.
pub fn row_page(rows: &Rows, chunk: u64) -> Option<PageNo> {
    map_page(&rows.inode, rows.header.schema.chunk_offset(chunk)? / PAGE as u64)
}

impl Check<'_> {
    /// The whole pass.
    pub(super) fn pass_rows(&mut self) -> Run<()> {
        let files: Vec<u64> = self.rows.keys().copied().collect();
        for (done, ino) in files.iter().enumerate() {
            self.progress(done as u64, files.len() as u64)?;
            let Some(rows) = self.rows.remove(ino) else { continue };
            self.rows_of(&rows)?;
        }
        Ok(())
    }

    fn rows_of(&mut self, rows: &Rows) -> Run<()> {
        let ino = rows.inode.ino.0;
        let chunk_pages = rows.header.schema.chunk_bytes() >> PAGE_SHIFT;
        let (mut live, mut strays) = (0, 0);
        for class in 0..CLASSES {
            if class > 0 && !self.owns(&rows.inode, class) {
                continue;
            }
            let Some(range) = class_pages(&rows.inode, class, 0, MAX_FILE_BYTES) else { continue };
            let first_index = class_range(class).0 >> PAGE_SHIFT;
            let mut cursor = Mapped::new(range.first.0, range.first.0 + range.count);
            while let Some((from, to)) = self.pool.next_mapped(&mut cursor)? {
                let index = first_index + (from - range.first.0);
                // Headers stand on pages 1, 1 + n, 1 + 2n, ...
                let chunk = index.saturating_sub(1).div_ceil(chunk_pages);
                let header = 1 + chunk * chunk_pages;
                let page = from + (header - index.min(header));
                if page >= to {
                    continue;
                }
                if chunk * CHUNK_ROWS < rows.header.next_row {
                    let (chained, killed) = self.chunk(rows, chunk, PageNo(page))?;
                    live += chained;
                    strays += killed;
                }
                // On with the rest of the run, and what comes behind it.
                cursor = Mapped::new(page + 1, range.first.0 + range.count);
            }
        }
        if live + strays != rows.header.live_rows {
            self.find(Finding::new(Code::RowsLive).ino(ino).values(live + strays, rows.header.live_rows))?;
        }
        if live != rows.header.live_rows {
            let mut header = rows.header;
            header.live_rows = live;
            self.put_header(&rows.inode, &header)?;
        }
        Ok(())
    }

    /// Checks the rows of one chunk; gives how many are live, and how many were until now.
    fn chunk(&mut self, rows: &Rows, chunk: u64, page: PageNo) -> Run<(u64, u64)> {
        let ino = rows.inode.ino.0;
        let first = chunk * CHUNK_ROWS;
        let given = (rows.header.next_row - first).min(CHUNK_ROWS);
        let mut bytes: PageBytes = match self.pool.read(page)? {
            Ok(bytes) => **bytes,
            Err(why) => {
                self.find(Finding::new(Code::RowsPage).ino(ino).page(page.0).detail(why.0))?;
                self.pool.write(page, &[0; PAGE])?;
                [0; PAGE]
            }
        };
        let (mut live, mut strays, mut changed) = (0, 0, false);
        for slot in 0..given as usize {
            let row = first + slot as u64;
            let raw: &mut RawRow = &mut headers_mut(&mut bytes)[slot];
            let finding = match raw.decode(page) {
                Ok(None) => continue,
                Ok(Some(_)) if rows.chained.contains(row) => {
                    live += 1;
                    continue;
                }
                Ok(Some(found)) => {
                    strays += 1;
                    let detail = format!("row {row} of inode {}", found.ino.0);
                    Finding::new(Code::RowStray).ino(ino).page(page.0).detail(detail)
                }
                Err(error) => Finding::new(Code::RowDamaged).ino(ino).of(&error).page(page.0),
            };
            *raw = RawRow::new_zeroed();
            raw.kill();
            changed = true;
            self.find(finding)?;
        }
        let full = given == CHUNK_ROWS;
        if full && !headers(&bytes).iter().any(RawRow::is_live) {
            if !changed {
                self.find(
                    Finding::new(Code::RowsChunk).ino(ino).page(page.0).detail(format!("chunk {chunk}")),
                )?;
            }
            let begin = rows.header.schema.chunk_offset(chunk).unwrap_or(0);
            for class in 0..CLASSES {
                if let Some(range) =
                    class_pages(&rows.inode, class, begin, begin + rows.header.schema.chunk_bytes())
                    && (class == 0 || self.owns(&rows.inode, class))
                {
                    self.pool.free(range)?;
                }
            }
        } else if changed {
            self.pool.write(page, &bytes)?;
        }
        Ok((live, strays))
    }
}
