//! Requests that change a part of a page (raw volumes): the rest of the page is read and written with it.
//!
//! What the rest is must be known when the request gets its place in the order. It is in the map, unless a change of the
//! page is under way. If that is a change of a part too, its page is kept here until the log has applied it, so that
//! small requests in sequence need not wait for one another; else the request waits until the page is in the map.
//! Requests of other pages are never waited for.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use layout::addr::PAGE;
use parking_lot::Mutex;

use crate::buf::AlignedBuf;
use crate::device::IoError;
use crate::store::Shared;
use crate::store::log::{Job, JobDone, Log, Op};

/// The newest content of a page.
#[derive(Clone)]
struct Content {
    /// Of the request that made it.
    request: u64,
    buf: Arc<AlignedBuf>,
    page_in_buf: usize,
}

/// Pages whose newest content was made by a change of a part, and is not in the map yet.
#[derive(Default)]
pub(super) struct Parts {
    pages: Arc<Mutex<HashMap<u64, Content>>>,
    next_request: u64,
}

/// Pages of a byte range that are covered only in part: the first and the last at most.
fn edges(offset: u64, len_bytes: u64) -> impl Iterator<Item = u64> + Clone {
    let size = PAGE as u64;
    let end = offset + len_bytes;
    let head = (!offset.is_multiple_of(size) && len_bytes > 0).then_some(offset / size);
    let tail = (!end.is_multiple_of(size) && len_bytes > 0).then_some(end / size);
    head.into_iter().chain(tail.filter(|_| head != tail))
}

impl Parts {
    /// Whether a change of this range has to wait until the log has applied others.
    pub(super) fn must_wait(&self, log: &Log, offset: u64, len_bytes: u64) -> bool {
        edges(offset, len_bytes).any(|page| !self.pages.lock().contains_key(&page) && log.changes(page))
    }

    /// Whole pages are changed: what is kept of them is no longer the newest.
    pub(super) fn replaced(&self, first: u64, count: u64) {
        let mut pages = self.pages.lock();
        if !pages.is_empty() {
            pages.retain(|&page, _| page < first || page - first >= count);
        }
    }

    /// A job that writes these bytes and leaves what stands around them. It must not wait.
    ///
    /// # Errors
    /// The rest of a page cannot be read.
    pub(super) fn write(
        &mut self,
        store: &Shared,
        offset: u64,
        bytes: &[u8],
        done: JobDone,
    ) -> Result<Job, (JobDone, IoError)> {
        let first = offset / PAGE as u64;
        let skip = (offset % PAGE as u64) as usize;
        let mut buf = AlignedBuf::zeroed((skip + bytes.len()).next_multiple_of(PAGE));
        let edges = edges(offset, bytes.len() as u64);
        for page in edges.clone() {
            let at = (page - first) as usize * PAGE;
            if let Err(e) = self.read(store, page, &mut buf[at..at + PAGE]) {
                return Err((done, e));
            }
        }
        buf[skip..skip + bytes.len()].copy_from_slice(bytes);
        let (pages, buf) = (buf.len() / PAGE, Arc::new(buf));
        self.replaced(first, pages as u64);
        let made = edges.map(|page| (page, Arc::clone(&buf), (page - first) as usize)).collect();
        let done = self.keep(made, done);
        let mut job = Job::new([Op::Write { first, buf, page_in_buf: 0, pages }], done);
        job.whole = bytes.len() <= PAGE;
        Ok(job)
    }

    /// A job after which the range reads as zeros: whole pages are discarded, parts overwritten. It must not wait.
    ///
    /// # Errors
    /// The rest of a page cannot be read.
    pub(super) fn zero(
        &mut self,
        store: &Shared,
        offset: u64,
        len_bytes: u64,
        done: JobDone,
    ) -> Result<Job, (JobDone, IoError)> {
        let (size, end) = (PAGE as u64, offset + len_bytes);
        let mut ops = VecDeque::new();
        let mut made = Vec::new();
        for page in edges(offset, len_bytes) {
            let mut buf = AlignedBuf::zeroed(PAGE);
            if let Err(e) = self.read(store, page, &mut buf) {
                return Err((done, e));
            }
            let start = page * size;
            buf[(offset.max(start) - start) as usize..(end.min(start + size) - start) as usize].fill(0);
            let buf = Arc::new(buf);
            ops.push_back(Op::Write { first: page, buf: Arc::clone(&buf), page_in_buf: 0, pages: 1 });
            made.push((page, buf, 0));
        }
        let (first_whole, end_whole) = (offset.div_ceil(size), end / size);
        if end_whole > first_whole {
            ops.push_back(Op::Discard { first: first_whole, count: end_whole - first_whole });
        }
        if len_bytes > 0 {
            self.replaced(offset / size, end.div_ceil(size) - offset / size);
        }
        let done = self.keep(made, done);
        let mut job = Job::new(ops, done);
        job.whole = len_bytes <= size;
        Ok(job)
    }

    /// The newest content of a page.
    fn read(&self, store: &Shared, page: u64, to: &mut [u8]) -> Result<(), IoError> {
        let kept = self.pages.lock().get(&page).cloned();
        match kept {
            Some(c) => to.copy_from_slice(&c.buf[c.page_in_buf * PAGE..(c.page_in_buf + 1) * PAGE]),
            None => store.read_run(page, to)?,
        }
        Ok(())
    }

    /// Keeps pages until `done` is called; gives what to call instead of it.
    fn keep(&mut self, made: Vec<(u64, Arc<AlignedBuf>, usize)>, done: JobDone) -> JobDone {
        if made.is_empty() {
            return done;
        }
        self.next_request += 1;
        let request = self.next_request;
        let mut keys = Vec::with_capacity(made.len());
        {
            let mut pages = self.pages.lock();
            for (page, buf, page_in_buf) in made {
                keys.push(page);
                pages.insert(page, Content { request, buf, page_in_buf });
            }
        }
        let pages = Arc::clone(&self.pages);
        Box::new(move |result| {
            {
                let mut pages = pages.lock();
                for page in keys {
                    if pages.get(&page).is_some_and(|c| c.request == request) {
                        pages.remove(&page);
                    }
                }
            }
            done(result);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_the_pages_covered_in_part() {
        let of = |offset, len| edges(offset, len).collect::<Vec<_>>();
        assert!(of(0, 4096).is_empty());
        assert!(of(0, 0).is_empty());
        assert!(of(100, 0).is_empty());
        assert_eq!(of(512, 512), [0]);
        assert_eq!(of(0, 512), [0]);
        assert_eq!(of(4096 - 512, 512), [0]);
        assert_eq!(of(4096 - 512, 1024), [0, 1]);
        assert_eq!(of(4096, 8192 + 1), [3]);
        assert_eq!(of(1, 3 * 4096), [0, 3]);
    }
}
