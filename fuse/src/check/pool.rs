//! The pages of the volume under check: read from the device in large pieces, changed in memory,
//! sent in the open epoch of the check's own session, and made true by one commit at the end.
//!
//! A check that may not change anything works the same way, on changes that are never sent: so both
//! find the same. Memory for pages is bounded: what was read is kept in two generations of
//! [`KEPT_PAGES`], what was changed is sent once there are [`CHANGED_PAGES_MAX`] of it (or, where nothing may be
//! sent, ends the check).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use blockd::buf::AlignedBuf;
use blockd::device::{ClientId, Device, IoError, IoOp, batch, blocking};
use blockd::session::Session;
use layout::addr::{PAGE, PAGE_SHIFT, PageNo, PageRange, SUPERBLOCK_PAGE};
use layout::page_store::PageBytes;

use super::mapped::{Mapped, Walker};
use crate::engine::{PageArc, PageBuf, RangeSet};

/// Pages kept of those read last, twice (64 MiB together).
const KEPT_PAGES: usize = 8192;
/// Changed pages in memory, at most (256 MiB).
const CHANGED_PAGES_MAX: usize = 65_536;
/// Calls of [`Pool::free`] that wait to be sent, at most (some 50 bytes each).
const FREES_MAX: u32 = 1 << 20;
/// Pages of one request.
pub const RUN_PAGES: u64 = 256;
/// Requests sent at once.
const ROUND: usize = 64;

/// Why a check can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The device fails in a way that is not one bad page.
    #[error("the volume cannot be used any more: {0}")]
    Device(IoError),
    /// The session's commands fail.
    #[error(transparent)]
    Session(#[from] blockd::session::SessionError),
    /// Too much would change for a check that keeps changes in memory.
    #[error("too much is to be changed for a check that keeps it in memory; repair with -y")]
    TooMuch,
    /// The user broke it off.
    #[error("cancelled; nothing was changed")]
    Cancelled,
    /// A preening check met damage whose repair may lose something.
    #[error("UNEXPECTED INCONSISTENCY; run fsck.vexfs manually (without -a or -p)")]
    Unsafe,
    /// There is no VexFS file system here, or one of a newer version.
    #[error("{0}")]
    Unusable(String),
}

/// One page that can't be read.
#[derive(Clone, Debug)]
pub struct Unreadable(pub String);

/// Result of something that only a lost device can stop.
pub type Run<T> = Result<T, Stop>;

/// See the module's text.
pub struct Pool {
    device: Arc<dyn Device>,
    client: ClientId,
    /// Where changes go; without one they stay in memory.
    session: Option<Session>,
    walker: Walker,
    young: HashMap<u64, PageArc>,
    old: HashMap<u64, PageArc>,
    changed: BTreeMap<u64, PageArc>,
    freed: RangeSet,
    frees: u32,
    changed_max: usize,
    frees_max: u32,
    /// How often changes were sent: what a walk over mapped pages has looked up before is stale then.
    sent: u64,
    /// Page 0 as changed: only the commit writes it.
    superblock: Option<PageArc>,
    /// Anything was ever changed, sent or not.
    touched: bool,
}

impl Pool {
    /// Pages of a device; changes are sent if there is a session.
    pub fn new(device: Arc<dyn Device>, client: ClientId, session: Option<Session>, walker: Walker) -> Self {
        Pool {
            device,
            client,
            session,
            walker,
            young: HashMap::new(),
            old: HashMap::new(),
            changed: BTreeMap::new(),
            freed: RangeSet::default(),
            frees: 0,
            changed_max: CHANGED_PAGES_MAX,
            frees_max: FREES_MAX,
            sent: 0,
            superblock: None,
            touched: false,
        }
    }

    /// With other bounds on what waits to be sent.
    #[cfg(test)]
    pub(super) fn with_bounds(self, changed_max: usize, frees_max: u32) -> Self {
        Pool { changed_max, frees_max, ..self }
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Whether a commit would change anything.
    pub fn is_touched(&self) -> bool {
        self.touched
    }

    /// The session's number; 0 without one.
    pub fn session_number(&self) -> u64 {
        self.session.as_ref().map_or(0, Session::number)
    }

    /// A page as changed so far.
    ///
    /// # Errors
    /// [`Stop`]; inside, that this one page can't be read.
    pub fn read(&mut self, page: PageNo) -> Run<Result<PageArc, Unreadable>> {
        if let Some(bytes) = self.at_hand(page.0) {
            return Ok(Ok(bytes));
        }
        let op = IoOp::Read { offset: page.byte(), buf: AlignedBuf::zeroed(PAGE) };
        match blocking(&*self.device, self.client, op) {
            Ok(Some(buf)) if buf.len() == PAGE => {
                let bytes = PageBuf::copy_of(&buf);
                self.keep(page.0, &bytes);
                Ok(Ok(bytes))
            }
            Ok(_) => Ok(Err(Unreadable("a short read".into()))),
            Err(IoError::Io(why)) => Ok(Err(Unreadable(why))),
            Err(other) => Err(Stop::Device(other)),
        }
    }

    /// As [`Pool::read`], bringing in the pages behind it too: for whoever goes on in order.
    ///
    /// # Errors
    /// As [`Pool::read`].
    pub fn read_on(&mut self, page: PageNo, end: PageNo) -> Run<Result<PageArc, Unreadable>> {
        if let Some(bytes) = self.at_hand(page.0) {
            return Ok(Ok(bytes));
        }
        let count = end.0.saturating_sub(page.0).clamp(1, RUN_PAGES);
        self.fetch(&[(page.0, count)])?;
        self.read(page)
    }

    /// Brings single pages into memory at once; those that can't be read show when they are read.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn prefetch(&mut self, pages: impl IntoIterator<Item = PageNo>) -> Run<()> {
        let missing: Vec<(u64, u64)> =
            pages.into_iter().map(|p| p.0).filter(|p| self.at_hand(*p).is_none()).map(|p| (p, 1)).collect();
        missing.chunks(ROUND).try_for_each(|some| self.fetch(some))
    }

    fn fetch(&mut self, runs: &[(u64, u64)]) -> Run<()> {
        if runs.is_empty() {
            return Ok(());
        }
        let ops = runs.iter().map(|&(first, count)| IoOp::Read {
            offset: first << PAGE_SHIFT,
            buf: AlignedBuf::zeroed(count as usize * PAGE),
        });
        let results = batch(&*self.device, self.client, ops);
        for (result, &(first, count)) in results.into_iter().zip(runs) {
            match result {
                Ok(Some(buf)) if buf.len() == count as usize * PAGE => {
                    for (page, bytes) in (first..).zip(buf.chunks_exact(PAGE)) {
                        if self.at_hand(page).is_none() {
                            self.keep(page, &PageBuf::copy_of(bytes));
                        }
                    }
                }
                Ok(_) | Err(IoError::Io(_)) => {}
                Err(other) => return Err(Stop::Device(other)),
            }
        }
        Ok(())
    }

    fn at_hand(&mut self, page: u64) -> Option<PageArc> {
        if let Some(bytes) = self.superblock.as_ref().filter(|_| page == SUPERBLOCK_PAGE.0) {
            return Some(Arc::clone(bytes));
        }
        if let Some(bytes) = self.changed.get(&page).or_else(|| self.young.get(&page)) {
            return Some(Arc::clone(bytes));
        }
        if self.freed.contains(page) {
            return Some(PageBuf::zeroed());
        }
        let bytes = self.old.get(&page).cloned()?;
        self.keep(page, &bytes);
        Some(bytes)
    }

    fn keep(&mut self, page: u64, bytes: &PageArc) {
        if self.young.len() >= KEPT_PAGES {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(page, Arc::clone(bytes));
    }

    fn forget(&mut self, page: u64) {
        self.young.remove(&page);
        self.old.remove(&page);
    }

    /// Reads whole runs of pages past the cache, for their errors alone: `bad` gets each page that can't be read.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn probe(&mut self, first: u64, count: u64, bad: &mut dyn FnMut(u64, Unreadable)) -> Run<()> {
        let pieces: Vec<(u64, u64)> = (first..first + count)
            .step_by(RUN_PAGES as usize)
            .map(|at| (at, RUN_PAGES.min(first + count - at)))
            .collect();
        for some in pieces.chunks(8) {
            let ops = some.iter().map(|&(first, count)| IoOp::Read {
                offset: first << PAGE_SHIFT,
                buf: AlignedBuf::zeroed(count as usize * PAGE),
            });
            for (result, &(first, count)) in batch(&*self.device, self.client, ops).into_iter().zip(some) {
                match result {
                    Ok(_) => {}
                    Err(IoError::Io(_)) => {
                        for page in first..first + count {
                            if let Err(why) = self.read(PageNo(page))? {
                                bad(page, why);
                            }
                        }
                    }
                    Err(other) => return Err(Stop::Device(other)),
                }
            }
        }
        Ok(())
    }

    /// Changes a page.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn write(&mut self, page: PageNo, bytes: &PageBytes) -> Run<()> {
        self.touched = true;
        if page == SUPERBLOCK_PAGE {
            self.superblock = Some(PageBuf::copy_of(bytes));
            return Ok(());
        }
        self.forget(page.0);
        self.changed.insert(page.0, PageBuf::copy_of(bytes));
        if self.changed.len() >= self.changed_max {
            self.send()?;
        }
        Ok(())
    }

    /// Unmaps pages.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn free(&mut self, range: PageRange) -> Run<()> {
        if range.count == 0 {
            return Ok(());
        }
        self.touched = true;
        let (first, end) = (range.first.0, range.first.0.saturating_add(range.count));
        let gone: Vec<u64> = self.changed.range(first..end).map(|(p, _)| *p).collect();
        for page in gone {
            self.changed.remove(&page);
        }
        if range.count <= 2 * KEPT_PAGES as u64 {
            (first..end).for_each(|page| self.forget(page));
        } else {
            self.young.clear();
            self.old.clear();
        }
        self.freed.insert(first, end);
        self.frees += 1;
        if self.frees >= self.frees_max { self.send() } else { Ok(()) }
    }

    /// Sends what was changed, in the open epoch; it shows on the device from then on, and is gone if no commit follows.
    fn send(&mut self) -> Run<()> {
        let Some(session) = &self.session else { return Err(Stop::TooMuch) };
        // Unmapped first: pages written later to the same place stay.
        let frees: Vec<PageRange> = self
            .freed
            .iter()
            .map(|(first, end)| PageRange { first: PageNo(first), count: end - first })
            .collect();
        session.free_ranges(&frees)?;
        self.freed.clear();
        (self.frees, self.sent) = (0, self.sent + 1);
        self.walker.forget();
        let changed: Vec<(u64, PageArc)> = std::mem::take(&mut self.changed).into_iter().collect();
        for some in changed.chunks(RUN_PAGES as usize * 8) {
            let mut ops = Vec::new();
            let mut rest = some;
            while let Some(((first, _), _)) = rest.split_first() {
                let run = rest.iter().zip(*first..).take_while(|((page, _), expected)| page == expected);
                let count = run.take(RUN_PAGES as usize).count();
                let mut buf = AlignedBuf::zeroed(count * PAGE);
                for (room, (_, bytes)) in buf.chunks_exact_mut(PAGE).zip(rest) {
                    room.copy_from_slice(&bytes[..]);
                }
                ops.push(IoOp::Write { offset: first << PAGE_SHIFT, buf, fua: false });
                rest = &rest[count..];
            }
            for result in batch(&*self.device, self.client, ops) {
                result.map_err(Stop::Device)?;
            }
        }
        Ok(())
    }

    /// The next run of mapped pages that begins in, or reaches into, `from..end`: first page and one past the last,
    /// cut to that range.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn next_mapped(&mut self, cursor: &mut Mapped) -> Run<Option<(u64, u64)>> {
        cursor.forget_before(self.sent);
        cursor.next(&*self.device, self.client, &mut self.walker, &self.changed, &self.freed)
    }

    /// Whether the range has a mapped page.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn has_mapped(&mut self, range: PageRange) -> Run<bool> {
        let mut cursor = Mapped::new(range.first.0, range.first.0.saturating_add(range.count));
        Ok(self.next_mapped(&mut cursor)?.is_some())
    }

    /// Sends everything, then the superblock: all changes become true at once, durably.
    ///
    /// # Errors
    /// [`Stop`]; then nothing changed.
    pub fn commit(&mut self, superblock: &PageBytes) -> Run<()> {
        self.send()?;
        let buf = AlignedBuf::from_slice(superblock);
        let op = IoOp::Write { offset: SUPERBLOCK_PAGE.byte(), buf, fua: true };
        blocking(&*self.device, self.client, op).map_err(Stop::Device)?;
        (self.touched, self.superblock) = (false, None);
        self.forget(SUPERBLOCK_PAGE.0);
        Ok(())
    }

    /// Ends the session: what was not committed is rolled back.
    ///
    /// # Errors
    /// When the session can't be ended in order; the next mount does it.
    pub fn close(mut self) -> Run<()> {
        match self.session.take() {
            Some(session) => Ok(session.close()?),
            None => Ok(()),
        }
    }
}
