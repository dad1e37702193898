//! The end of an epoch (FORMAT.md 3.4) as one request: the pages that are left to write, and the superblock.

use std::sync::Arc;

use layout::addr::{PAGE, PAGE_SHIFT, SUPERBLOCK_PAGE};
use layout::page_store::PageBytes;

use super::{ClientId, Device, IoError, IoOp, batch_of};
use crate::buf::AlignedBuf;

/// Consecutive device pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRun {
    /// The first one.
    pub first: u64,
    /// How many.
    pub pages: usize,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The pages of all runs, one after another; then the superblock.
    buf: Arc<AlignedBuf>,
    /// Those before the superblock.
    runs: Vec<PageRun>,
}

impl Commit {
    /// Writes these pages, and commits them with everything acknowledged before. The superblock is none of them: it comes last.
    pub fn new<'a>(
        pages: impl ExactSizeIterator<Item = (u64, &'a PageBytes)>,
        superblock: &PageBytes,
    ) -> Self {
        let mut buf = AlignedBuf::recycled((pages.len() + 1) * PAGE);
        let mut runs: Vec<PageRun> = Vec::new();
        let mut chunks = buf.chunks_exact_mut(PAGE);
        for ((page, bytes), chunk) in pages.zip(&mut chunks) {
            chunk.copy_from_slice(bytes);
            match runs.last_mut() {
                Some(run) if run.first + run.pages as u64 == page => run.pages += 1,
                _ => runs.push(PageRun { first: page, pages: 1 }),
            }
        }
        chunks.next().expect("the buffer has room for it").copy_from_slice(superblock);
        Commit { buf: Arc::new(buf), runs }
    }

    /// Pages of all runs and the superblock, one after another.
    pub fn buf(&self) -> &Arc<AlignedBuf> {
        &self.buf
    }

    /// The runs before the superblock, in their order.
    pub fn pages(&self) -> &[PageRun] {
        &self.runs
    }

    /// All runs in their order, that of the superblock last.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> + '_ {
        let superblock = PageRun { first: SUPERBLOCK_PAGE.0, pages: 1 };
        self.runs.iter().copied().chain([superblock])
    }

    /// Commits by what every device has: the pages are written, waited for, and then the superblock, with FUA.
    ///
    /// # Errors
    /// The first failure. The superblock was not sent if it is one of the pages'.
    pub(super) fn in_parts<D: Device + ?Sized>(&self, device: &D, client: ClientId) -> Result<(), IoError> {
        let (pages, superblock) = self.buf.split_at(self.buf.len() - PAGE);
        let mut at = 0;
        let writes = self.runs.iter().map(|run| {
            let bytes = &pages[at..at + run.pages * PAGE];
            at += bytes.len();
            let buf = AlignedBuf::from_slice(bytes);
            IoOp::Write { offset: run.first << PAGE_SHIFT, buf, fua: false }
        });
        batch_of(device, client, writes).into_iter().try_for_each(|result| result.map(drop))?;
        let buf = AlignedBuf::from_slice(superblock);
        let commit = IoOp::Write { offset: SUPERBLOCK_PAGE.byte(), buf, fua: true };
        batch_of(device, client, [commit]).into_iter().try_for_each(|result| result.map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run_and_the_superblock_comes_last() {
        let bytes: Vec<PageBytes> = (1..=4).map(|i| [i; PAGE]).collect();
        let pages = [7, 8, 20, 21].into_iter().zip(&bytes);
        let commit = Commit::new(pages, &[9; PAGE]);
        let runs: Vec<_> = commit.runs().map(|run| (run.first, run.pages)).collect();
        assert_eq!(runs, [(7, 2), (20, 2), (0, 1)]);
        let firsts: Vec<u8> = commit.buf().chunks(PAGE).map(|page| page[0]).collect();
        assert_eq!(firsts, [1, 2, 3, 4, 9]);
        let alone = Commit::new([].into_iter(), &[9; PAGE]);
        assert_eq!(alone.runs().count(), 1);
    }
}
