//! Where the pages of a checkpoint go, and which of its writes are under way.

use std::sync::Arc;

use layout::addr::PAGE;

use crate::buf::AlignedBuf;
use crate::device::IoError;
use crate::storage::Chunk;
use crate::store::format::checkpoint::MapId;
use crate::store::format::segment::Stream;
use crate::store::format::{Loc, Mapping};
use crate::store::log::{Head, Log};
use crate::store::map::Maps;

/// Pages given to [`Writer::write`] at once, at most, but for the payload.
pub(super) const BATCH_PAGES: usize = 64;
/// Batches under way at once: few, so that records do not wait for long behind them.
const BATCHES_MAX: usize = 4;
/// Longest single write, in pages.
const WRITE_PAGES_MAX: usize = 256;
/// Tokens of a checkpoint's writes; records have their sequence, which is below 2^62.
const TOKENS: u64 = 1 << 63;

/// Whether a completion is for a checkpoint (this one, or one that was given up).
pub(in crate::store) fn is_checkpoint_token(token: u64) -> bool {
    token & TOKENS != 0
}

/// A leaf whose page is being written.
pub(super) struct WrittenLeaf {
    pub(super) map: MapId,
    pub(super) key: u64,
    pub(super) page: Mapping,
    pub(super) count: u16,
}

/// Writes that are of interest only when all are finished.
struct Batch {
    tokens: Vec<u64>,
    leaves: Vec<WrittenLeaf>,
}

/// The writes under way.
#[derive(Default)]
pub(super) struct Writer {
    batches: Vec<Batch>,
    /// Segments that this checkpoint writes into, the first one perhaps begun by the one before.
    pub(super) segments: Vec<u32>,
    /// Headers of segments just taken.
    headers: Vec<(Loc, AlignedBuf)>,
}

impl Writer {
    pub(super) fn is_idle(&self) -> bool {
        self.batches.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.batches.len() < BATCHES_MAX
    }

    /// The next page of the meta stream.
    ///
    /// # Errors
    /// [`IoError::Io`] if it takes more than was reserved for it, which is a mistake in the reckoning.
    pub(super) fn allocate(&mut self, log: &mut Log, maps: &mut Maps) -> Result<Loc, IoError> {
        let limit = log.shared.geometry.segment_pages;
        let head = match log.meta_head {
            // Offset 0 (the header's place) stands for a full segment: 65536 does not fit 16 bits.
            Some(head) if head.at.offset != 0 => head,
            old => {
                let use_seq = log.next_use_seq;
                let Some(segment) = maps.segments.take_reserved(use_seq) else {
                    debug_assert!(false, "a checkpoint outgrew what was reserved for it");
                    return Err(IoError::Io(
                        "a checkpoint outgrew what was reserved for it: please report this".into(),
                    ));
                };
                log.next_use_seq += 1;
                let mut page = AlignedBuf::zeroed(PAGE);
                log.segment_header(segment, Stream::Meta, use_seq).encode_into(&mut page);
                self.headers.push((Loc { segment, offset: 0 }, page));
                if let Some(old) = old {
                    maps.segments.close(old.at.segment);
                }
                Head { at: Loc { segment, offset: 1 }, use_seq, fresh: false }
            }
        };
        if self.segments.last() != Some(&head.at.segment) {
            self.segments.push(head.at.segment);
        }
        let next = u32::from(head.at.offset) + 1;
        maps.segments.wrote(head.at.segment, next);
        maps.segments.add_meta(head.at);
        let offset = if next == limit { 0 } else { next as u16 };
        log.meta_head = Some(Head { at: Loc { offset, ..head.at }, ..head });
        Ok(head.at)
    }

    /// Writes pages to their places, in few writes where they stand one after another.
    pub(super) fn write(
        &mut self,
        log: &mut Log,
        pages: &Arc<AlignedBuf>,
        places: &[Loc],
        leaves: Vec<WrittenLeaf>,
    ) {
        let mut batch = Batch { tokens: Vec::new(), leaves };
        for (at, page) in std::mem::take(&mut self.headers) {
            let offset = log.shared.geometry.byte(at);
            batch.tokens.push(queue_write(log, offset, Chunk::new(Arc::new(page), 0, PAGE)));
        }
        let mut i = 0;
        while i < places.len() {
            let first = places[i];
            let follows = |(n, at): (usize, &Loc)| {
                at.segment == first.segment && usize::from(at.offset) == usize::from(first.offset) + n
            };
            let count =
                places[i..].iter().enumerate().take(WRITE_PAGES_MAX).take_while(|&p| follows(p)).count();
            let chunk = Chunk::new(Arc::clone(pages), i * PAGE, count * PAGE);
            let offset = log.shared.geometry.byte(first);
            batch.tokens.push(queue_write(log, offset, chunk));
            i += count;
        }
        if !batch.tokens.is_empty() {
            self.batches.push(batch);
        }
    }

    /// Writes a page outside the segments.
    pub(super) fn write_at(&mut self, log: &mut Log, offset: u64, page: AlignedBuf) {
        let len = page.len();
        let token = queue_write(log, offset, Chunk::new(Arc::new(page), 0, len));
        self.batches.push(Batch { tokens: vec![token], leaves: Vec::new() });
    }

    /// Makes all that is written durable.
    pub(super) fn sync(&mut self, log: &mut Log) {
        let token = next_token(log);
        log.queue.sync(token);
        log.queue.submit();
        self.batches.push(Batch { tokens: vec![token], leaves: Vec::new() });
    }

    /// A write or sync is finished; gives the leaves of its batch, if that is finished with it.
    pub(super) fn finish(&mut self, token: u64) -> Vec<WrittenLeaf> {
        let Some(i) = self.batches.iter().position(|batch| batch.tokens.contains(&token)) else {
            return Vec::new();
        };
        self.batches[i].tokens.retain(|t| *t != token);
        if self.batches[i].tokens.is_empty() { self.batches.swap_remove(i).leaves } else { Vec::new() }
    }
}

fn next_token(log: &mut Log) -> u64 {
    log.checkpoint_tokens += 1;
    TOKENS | log.checkpoint_tokens
}

fn queue_write(log: &mut Log, offset: u64, chunk: Chunk) -> u64 {
    let token = next_token(log);
    log.shared.counters.checkpoint_bytes.add(chunk.bytes().len() as u64);
    log.queue.write(token, offset, vec![chunk]);
    log.queue.submit();
    token
}
