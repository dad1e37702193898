//! Which pages hold something: the daemon's allocation map (FORMAT.md 3.3) under what the cache
//! has not sent yet. For SEEK_HOLE, SEEK_DATA and st_blocks of sparse files.

use std::collections::BTreeSet;

use blockd::buf::AlignedBuf;
use layout::addr::{
    MAP_BASE, MAP_SUMMARY, MAP_UNIT_PAGES, MAP_UPPER, MAP_UPPER_PAGES, PAGE, PAGE_SHIFT, PageNo,
};
use layout::error::Result;

use super::pager::Engine;
use super::ranges::RangeSet;
use super::transfer::read_pages;

/// Pages whose bits stand in one page of the map.
const BITS_PER_PAGE: u64 = PAGE as u64 * 8;
const _: () = assert!(BITS_PER_PAGE == MAP_UNIT_PAGES);

/// The map and the cache over one range of pages.
struct Survey<'a> {
    engine: &'a Engine,
    unlanded: BTreeSet<u64>,
    discarded: RangeSet,
    /// The map page read last at each level, with its page number.
    recent: [Option<(u64, AlignedBuf)>; 3],
}

/// A piece of the range that one map entry, or one page of bits, describes.
enum Span {
    /// Nothing is mapped in it.
    Empty,
    /// Its count of mapped pages is known without its bits.
    Counted(u64),
    /// A unit whose bits must be looked at.
    Mixed,
}

impl Engine {
    /// Counts the pages of `first..end` that hold something.
    ///
    /// # Errors
    /// As a page read.
    pub fn count_mapped(&self, first: u64, end: u64) -> Result<u64> {
        let mut survey = self.survey(first, end);
        let mut count = 0;
        let mut at = first;
        while at < end {
            let (span, to) = survey.span(at, end)?;
            count += match span {
                Span::Empty => 0,
                Span::Counted(pages) => pages,
                Span::Mixed => survey.mapped(at, to)?.filter(|&mapped| mapped).count() as u64,
            };
            at = to;
        }
        Ok(count)
    }

    /// The first page of `first..end` that holds something (`mapped`), or nothing.
    ///
    /// # Errors
    /// As a page read.
    pub fn find_page(&self, first: u64, end: u64, mapped: bool) -> Result<Option<u64>> {
        let mut survey = self.survey(first, end);
        let mut at = first;
        while at < end {
            let (span, to) = survey.span(at, end)?;
            match span {
                Span::Empty if mapped => {}
                Span::Empty => return Ok(Some(at)),
                Span::Counted(pages) if !mapped && pages == to - at => {}
                Span::Counted(_) | Span::Mixed => {
                    let unit_end = to.min((at / MAP_UNIT_PAGES + 1) * MAP_UNIT_PAGES);
                    if let Some(i) = survey.mapped(at, unit_end)?.position(|m| m == mapped) {
                        return Ok(Some(at + i as u64));
                    }
                    at = unit_end;
                    continue;
                }
            }
            at = to;
        }
        Ok(None)
    }

    fn survey(&self, first: u64, end: u64) -> Survey<'_> {
        let cache = self.cache.lock();
        let mut discarded = RangeSet::default();
        for (from, to) in cache.discarded_in(first, end) {
            discarded.insert(from, to);
        }
        Survey {
            engine: self,
            unlanded: cache.unlanded_in(first, end).collect(),
            discarded,
            recent: [None, None, None],
        }
    }
}

impl Survey<'_> {
    /// What is known of `at..`, and where that knowledge ends.
    fn span(&mut self, at: u64, end: u64) -> Result<(Span, u64)> {
        let upper_end = end.min((at / MAP_UPPER_PAGES + 1) * MAP_UPPER_PAGES);
        if upper_end - at > MAP_UNIT_PAGES && !self.has_unlanded_in(at, upper_end) {
            let count = self.upper(at / MAP_UPPER_PAGES)?;
            if count == 0 {
                return Ok((Span::Empty, upper_end));
            }
            if upper_end - at == MAP_UPPER_PAGES && self.discarded.overlaps(at, upper_end).next().is_none() {
                return Ok((Span::Counted(count), upper_end));
            }
        }
        let unit_end = end.min((at / MAP_UNIT_PAGES + 1) * MAP_UNIT_PAGES);
        if self.has_unlanded_in(at, unit_end) {
            return Ok((Span::Mixed, unit_end));
        }
        let count = self.summary(at / MAP_UNIT_PAGES)?;
        if count == 0 {
            return Ok((Span::Empty, unit_end));
        }
        let whole = unit_end - at == MAP_UNIT_PAGES;
        if whole && self.discarded.overlaps(at, unit_end).next().is_none() {
            return Ok((Span::Counted(count), unit_end));
        }
        Ok((Span::Mixed, unit_end))
    }

    /// Whether each page of `from..to`, inside one unit, is mapped.
    fn mapped(&mut self, from: u64, to: u64) -> Result<impl Iterator<Item = bool> + '_> {
        let page = (MAP_BASE >> PAGE_SHIFT) + from / BITS_PER_PAGE;
        self.load(0, page)?;
        let this = &*self;
        Ok((from..to).map(move |page| {
            let bit = (page % BITS_PER_PAGE) as usize;
            let bits = this.recent[0].as_ref();
            let on_device = bits.is_some_and(|(_, bits)| bits[bit / 8] & (1 << (bit % 8)) != 0);
            this.unlanded.contains(&page) || (on_device && !this.discarded.contains(page))
        }))
    }

    fn has_unlanded_in(&self, from: u64, to: u64) -> bool {
        self.unlanded.range(from..to).next().is_some()
    }

    fn summary(&mut self, unit: u64) -> Result<u64> {
        let bytes: [u8; 4] = self.entry(1, MAP_BASE + MAP_SUMMARY + unit * 4)?;
        Ok(u64::from(u32::from_le_bytes(bytes)))
    }

    fn upper(&mut self, unit: u64) -> Result<u64> {
        Ok(u64::from_le_bytes(self.entry(2, MAP_BASE + MAP_UPPER + unit * 8)?))
    }

    fn entry<const N: usize>(&mut self, level: usize, address: u64) -> Result<[u8; N]> {
        self.load(level, address >> PAGE_SHIFT)?;
        let at = (address as usize) & (PAGE - 1);
        let mut bytes = [0; N];
        if let Some((_, page)) = &self.recent[level] {
            bytes.copy_from_slice(&page[at..at + N]);
        }
        Ok(bytes)
    }

    fn load(&mut self, level: usize, page: u64) -> Result<()> {
        if self.recent[level].as_ref().is_none_or(|(number, _)| *number != page) {
            let engine = self.engine;
            let bytes = read_pages(&*engine.device, engine.client, page, 1)
                .map_err(|e| engine.read_failed(PageNo(page), &e))?;
            self.recent[level] = Some((page, bytes));
        }
        Ok(())
    }
}
