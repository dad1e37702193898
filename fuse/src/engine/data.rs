//! File bytes: reads overlay the cache over the device, writes make dirty pages.

use blockd::buf::AlignedBuf;
use layout::addr::{PAGE, PAGE_SHIFT, PageNo};
use layout::error::Result;

use super::cache::Content;
use super::page::{PageArc, PageBuf};
use super::pager::Engine;
use super::transfer::{read_pages, read_runs};

/// Bytes read, in the page-aligned buffer that the device filled.
#[derive(Debug)]
pub struct DataBuf {
    buf: AlignedBuf,
    start: usize,
    len: usize,
}

impl std::ops::Deref for DataBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf[self.start..self.start + self.len]
    }
}

/// One page's part of a byte range.
struct Piece {
    page: u64,
    /// Offset in the page.
    at: usize,
    len: usize,
    /// Offset in the caller's bytes.
    from: usize,
}

/// Cuts `len` bytes at device address `address` at page borders.
fn pieces(address: u64, len: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let byte = address + done as u64;
        let at = (byte as usize) & (PAGE - 1);
        let piece = Piece { page: byte >> PAGE_SHIFT, at, len: (PAGE - at).min(len - done), from: done };
        done += piece.len;
        Some(piece)
    })
}

impl Engine {
    /// Reads `len` bytes at device address `address` (file data, inside one contiguous run).
    /// Clean pages read from the device are not kept: the kernel caches them.
    ///
    /// # Errors
    /// As [`layout::page_store::PageStore::read`].
    pub fn read_data(&self, address: u64, len: usize) -> Result<DataBuf> {
        self.health.check_read()?;
        let start = (address as usize) & (PAGE - 1);
        let first = address >> PAGE_SHIFT;
        let count = (start + len).div_ceil(PAGE);
        let end = first + count as u64;
        if len == 0 {
            return Ok(DataBuf { buf: AlignedBuf::zeroed(0), start: 0, len: 0 });
        }

        let mut here: Vec<(u64, Option<PageArc>)> = Vec::new();
        {
            let mut cache = self.cache.lock();
            while !cache.lookup_range(first, end, |page, bytes| here.push((page, Some(bytes.clone())))) {
                here.clear();
                self.returned.wait(&mut cache);
            }
            if cache.has_discards() {
                let zeroed: Vec<u64> = cache.discarded_in(first, end).flat_map(|(a, b)| a..b).collect();
                here.extend(zeroed.into_iter().map(|page| (page, None)));
                // A cached page stands before the discard's entry of the same page and wins below.
                here.sort_by_key(|(page, bytes)| (*page, bytes.is_none()));
                here.dedup_by_key(|(page, _)| *page);
            }
        }
        if here.is_empty() {
            let buf = read_pages(&*self.device, self.client, first, count)
                .map_err(|e| self.read_failed(PageNo(first), &e))?;
            return Ok(DataBuf { buf, start, len });
        }

        let mut buf = AlignedBuf::zeroed(count * PAGE);
        let mut missing: Vec<(u64, usize)> = Vec::new();
        let mut next = first;
        for (page, bytes) in &here {
            if *page > next {
                missing.push((next, (*page - next) as usize));
            }
            next = page + 1;
            if let Some(bytes) = bytes {
                let at = (*page - first) as usize * PAGE;
                buf[at..at + PAGE].copy_from_slice(&bytes[..]);
            }
        }
        if next < end {
            missing.push((next, (end - next) as usize));
        }
        let runs = read_runs(&*self.device, self.client, &missing)
            .map_err(|e| self.read_failed(PageNo(missing.first().map_or(first, |m| m.0)), &e))?;
        for ((page, pages), run) in missing.iter().zip(runs) {
            let at = (*page - first) as usize * PAGE;
            buf[at..at + pages * PAGE].copy_from_slice(&run);
        }
        Ok(DataBuf { buf, start, len })
    }

    /// Changes bytes at device address `address` in the open epoch (inside one contiguous run;
    /// the caller's operation has credit for the pages and excludes other writers of this file).
    /// Pages at or above `unmapped_from` (a device address) are known to hold nothing and are not read.
    ///
    /// # Errors
    /// As [`layout::page_store::PageStore::write`].
    pub fn write_data(&self, address: u64, bytes: &[u8], unmapped_from: u64) -> Result<()> {
        self.health.check_write()?;
        let mut changed: Vec<(u64, PageArc, Content)> = Vec::with_capacity(bytes.len() / PAGE + 2);
        for piece in pieces(address, bytes.len()) {
            let part = &bytes[piece.from..piece.from + piece.len];
            if piece.len == PAGE {
                changed.push((piece.page, PageBuf::copy_of(part), Content::Data { whole: true }));
                continue;
            }
            let mut page = if piece.page << PAGE_SHIFT >= unmapped_from {
                PageBuf::zeroed()
            } else {
                self.page(PageNo(piece.page))?
            };
            std::sync::Arc::make_mut(&mut page)[piece.at..piece.at + piece.len].copy_from_slice(part);
            changed.push((piece.page, page, Content::Data { whole: false }));
        }
        let mut cache = self.cache.lock();
        let mut newly = 0;
        for (page, bytes, content) in changed {
            newly += u64::from(cache.put_dirty(page, bytes, content));
        }
        self.charge(newly, &cache);
        Ok(())
    }

    /// Reads a page into the cache, so that a part of it can be zeroed soon after without fail.
    ///
    /// # Errors
    /// As [`layout::page_store::PageStore::read`].
    pub fn load(&self, address: u64) -> Result<()> {
        self.page(PageNo::containing(address)).map(drop)
    }

    /// Zeroes bytes from `address` to the end of its page, if the page has any content.
    ///
    /// # Errors
    /// As [`Engine::write_data`].
    pub fn zero_tail(&self, address: u64) -> Result<()> {
        match (address as usize) & (PAGE - 1) {
            0 => Ok(()),
            at => self.zero(address, PAGE - at),
        }
    }

    /// Zeroes bytes inside one page, if there is anything else.
    ///
    /// # Errors
    /// As [`Engine::write_data`].
    pub fn zero(&self, address: u64, len: usize) -> Result<()> {
        let at = (address as usize) & (PAGE - 1);
        let page = self.page(PageNo::containing(address))?;
        if page[at..at + len].iter().all(|&b| b == 0) {
            return Ok(());
        }
        self.write_data(address, &[0; PAGE][..len], u64::MAX)
    }
}
