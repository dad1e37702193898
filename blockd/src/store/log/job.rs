//! What the log is asked to do, and how it is cut into records.

use std::collections::VecDeque;
use std::sync::Arc;

use layout::addr::PAGE;

use crate::buf::AlignedBuf;
use crate::device::IoError;
use crate::storage::Chunk;
use crate::store::format::record::{Entry, EntryList, SessionState};
use crate::store::format::{Loc, page_crc};
use crate::store::space::Class;

static ZERO_PAGE: [u8; PAGE] = [0; PAGE];

/// Called once with a job's outcome.
pub type JobDone = Box<dyn FnOnce(Result<(), IoError>) + Send>;

/// One change of a job.
pub enum Op {
    /// Whole pages of `buf` from `page_in_buf` on.
    Write {
        /// First device page.
        first: u64,
        /// The bytes.
        buf: Arc<AlignedBuf>,
        /// First page within `buf`.
        page_in_buf: usize,
        /// Number of pages.
        pages: usize,
    },
    /// Pages that read as zeros from now on.
    Discard {
        /// First device page.
        first: u64,
        /// Number of pages.
        count: u64,
    },
    /// Pages that are as others are now, and stand where those do. A job has nothing else, or none of these.
    Clone {
        /// First page as which they are.
        from: u64,
        /// First device page.
        to: u64,
        /// Number of pages.
        count: u64,
    },
    /// A copy of a page, valid only if it still stands at `old`.
    Relocate {
        /// The device page.
        page: u64,
        /// Where it was found.
        old: Loc,
        /// Its crc.
        crc: u32,
        /// The bytes.
        buf: Arc<AlignedBuf>,
        /// Page within `buf`.
        page_in_buf: usize,
    },
}

impl Op {
    /// Data pages that it writes, at most.
    pub(super) fn pages(&self) -> u64 {
        match self {
            Op::Write { pages, .. } => *pages as u64,
            Op::Discard { .. } | Op::Clone { .. } => 0,
            Op::Relocate { .. } => 1,
        }
    }

    /// Pages that it needs room for. A clone takes as much as a copy, which it may become when its place is cleaned.
    pub(super) fn charged_pages(&self) -> u64 {
        match self {
            Op::Clone { count, .. } => *count,
            other => other.pages(),
        }
    }
}

/// A request to the log.
pub struct Job {
    /// In order.
    pub ops: VecDeque<Op>,
    /// First drop the open epoch.
    pub rollback: bool,
    /// Commit afterwards.
    pub commit: bool,
    /// The session state from this job on.
    pub session: Option<SessionState>,
    /// Acknowledge only when it and all before it are durable.
    pub durable: bool,
    /// All of it (two pages at most, and a discard) goes into one record, so that a crash leaves all or nothing.
    pub whole: bool,
    /// Pages of zeros are written like others, and not made holes: they take their space.
    pub keep_zeros: bool,
    /// How deep it may dig into the reserve.
    pub class: Class,
    /// Told the outcome.
    pub done: JobDone,
}

impl Job {
    /// A job of these operations and nothing else.
    pub fn new(ops: impl Into<VecDeque<Op>>, done: JobDone) -> Self {
        Job {
            ops: ops.into(),
            rollback: false,
            commit: false,
            session: None,
            durable: false,
            whole: false,
            keep_zeros: false,
            class: Class::Data,
            done,
        }
    }

    /// Pages that it needs room for.
    pub(super) fn charged_pages(&self) -> u64 {
        self.ops.iter().map(Op::charged_pages).sum()
    }

    /// It clones pages.
    pub(super) fn clones(&self) -> bool {
        matches!(self.ops.front(), Some(Op::Clone { .. }))
    }

    /// Whether all of it fits into the record besides what is there; zeros that become discards take no page, but more of the header.
    pub(super) fn fits(&self, list: &EntryList, pages_max: u32) -> bool {
        let pages: u64 = self.ops.iter().map(Op::pages).sum();
        u64::from(list.pages()) + pages <= u64::from(pages_max)
            && list.has_room_for(self.ops.len() + pages as usize)
    }

    /// Changes nothing (a flush behind other jobs): it needs no record.
    pub(super) fn is_bare(&self) -> bool {
        self.ops.is_empty() && !self.rollback && !self.commit && self.session.is_none()
    }
}

/// Moves as much of a job as fits into the record: whether nothing of it is left, and how many
/// pages of zeros became discards.
pub(super) fn fill(
    job: &mut Job,
    list: &mut EntryList,
    chunks: &mut Vec<Chunk>,
    pages_max: u32,
) -> (bool, u64) {
    let mut zeros = 0;
    let keep_zeros = job.keep_zeros;
    while let Some(op) = job.ops.front_mut() {
        match op {
            Op::Discard { first, count } => {
                if !list.push_discard(*first, *count) {
                    return (false, zeros);
                }
            }
            // It has records of its own.
            Op::Clone { .. } => return (false, zeros),
            Op::Relocate { page, old, crc, buf, page_in_buf } => {
                let entry = Entry::Relocate { page: *page, old: *old, crc: *crc };
                if list.pages() >= pages_max || !list.push(entry) {
                    return (false, zeros);
                }
                push_chunk(chunks, buf, *page_in_buf, *page_in_buf + 1);
            }
            Op::Write { first, buf, page_in_buf, pages } => {
                let start = *page_in_buf;
                let mut chunk_start = start;
                while *pages > 0 {
                    let bytes = &buf[*page_in_buf * PAGE..(*page_in_buf + 1) * PAGE];
                    let zero = !keep_zeros && bytes == ZERO_PAGE;
                    let pushed = if zero {
                        list.push_discard(*first, 1)
                    } else {
                        list.pages() < pages_max && list.push_write(*first, page_crc(*first, bytes))
                    };
                    if zero || !pushed {
                        push_chunk(chunks, buf, chunk_start, *page_in_buf);
                        chunk_start = *page_in_buf + 1;
                    }
                    if !pushed {
                        return (false, zeros);
                    }
                    zeros += u64::from(zero);
                    *first += 1;
                    *page_in_buf += 1;
                    *pages -= 1;
                }
                push_chunk(chunks, buf, chunk_start, *page_in_buf);
            }
        }
        job.ops.pop_front();
    }
    (true, zeros)
}

fn push_chunk(chunks: &mut Vec<Chunk>, buf: &Arc<AlignedBuf>, from: usize, to: usize) {
    if to > from {
        let chunk = Chunk::new(Arc::clone(buf), from * PAGE, (to - from) * PAGE);
        if !chunks.last_mut().is_some_and(|last| last.join(&chunk)) {
            chunks.push(chunk);
        }
    }
}
