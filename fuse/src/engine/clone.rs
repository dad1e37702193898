//! Clones: data pages that are as others are from now on, without a byte being moved (FORMAT.md 3.2, CLONE_RANGE).
//!
//! The device clones what it has. So what is dirty of the source goes out first, with all discards; and what the cache has of the
//! destination is dropped once the clone is made: it is older. Between, and until the operation ends, no other batch may be on its way
//! (the write-back lock) and the epoch may not be closed (the gate).

use std::sync::atomic::Ordering;
use std::time::Duration;

use blockd::session::SessionError;
use layout::addr::PageNo;
use layout::command::CommandClone;
use layout::error::Result;
use parking_lot::MutexGuard;

use super::credits::Cost;
use super::pager::{Engine, Operation};

/// How long a clone waits for a commit or a write-out under way. Copying the bytes, which needs no wait, is not much slower then.
const BATCH_WAIT_MAX: Duration = Duration::from_millis(500);

/// A running operation that clones.
pub struct Cloning<'a> {
    engine: &'a Engine,
    /// Before the lock, so that the epoch is let go of first.
    _operation: Operation<'a>,
    _one_batch: MutexGuard<'a, ()>,
    /// After the lock.
    _wake: WakeFlusher<'a>,
}

/// At its end the flusher looks whether there is much to write: it could not while the write-back lock was held, and whoever waits
/// for room has woken it in vain.
struct WakeFlusher<'a>(&'a Engine);

impl Drop for WakeFlusher<'_> {
    fn drop(&mut self) {
        if self.0.is_crowded() {
            self.0.signal.wake();
        }
    }
}

/// Some pages of data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClonedPages {
    /// First page as which they are to be.
    pub from: u64,
    /// First of them.
    pub to: u64,
    /// How many.
    pub count: u64,
}

impl Engine {
    /// Whether the device is known to clone nothing.
    pub fn cannot_clone(&self) -> bool {
        self.no_clones.load(Ordering::Relaxed)
    }

    /// As [`Engine::begin`], for an operation that clones pages, and may change as many others. Waits for a batch under way, but
    /// not for long: `None` if that takes longer.
    ///
    /// # Errors
    /// As [`Engine::begin`].
    pub fn begin_cloning(&self, pages: u64) -> Result<Option<Cloning<'_>>> {
        // Whoever waits for room waits for a batch: not with the lock that keeps it from being sent.
        let reserved = self.reserve(Cost::Pages(pages))?;
        self.wait_for_room();
        let Some(one_batch) = self.write_back.try_lock_for(BATCH_WAIT_MAX) else { return Ok(None) };
        self.health.check_write()?;
        let (_operation, _wake) = (reserved.begin_now(), WakeFlusher(self));
        Ok(Some(Cloning { engine: self, _operation, _one_batch: one_batch, _wake }))
    }
}

impl Cloning<'_> {
    /// Clones pages; the operation excludes other writers of both files, and has credit for them. False if it was not done: each page
    /// of the destination is as it was, or as it was to be, but where the cache has it.
    ///
    /// # Errors
    /// [`Fenced`](layout::error::Error::Fenced), or why what was dirty could not be written: the mount has stopped.
    pub fn clone_pages(&self, clones: &[ClonedPages]) -> Result<bool> {
        let engine = self.engine;
        let batch = {
            let mut cache = engine.cache.lock();
            cache.touch();
            cache.take_data_of(|page| clones.iter().any(|c| (c.from..c.from + c.count).contains(&page)))
        };
        engine.send(&batch)?;
        engine.land(&batch);
        let command: Vec<CommandClone> = clones
            .iter()
            .map(|c| CommandClone {
                from_page: c.from.into(),
                to_page: c.to.into(),
                page_count: c.count.into(),
            })
            .collect();
        let pages = clones.iter().map(|c| c.count).sum();
        // Also if it fails: some of it may have been done.
        engine.credits.charge(pages);
        if let Err(error) = engine.clone_ranges(&command) {
            return self.refused(clones, &error);
        }
        let mut cache = engine.cache.lock();
        let dropped = clones.iter().map(|c| cache.forget(c.to, c.to + c.count)).sum();
        drop(cache);
        engine.credits.refund(dropped);
        engine.room.notify_all();
        Ok(true)
    }

    fn refused(&self, clones: &[ClonedPages], error: &SessionError) -> Result<bool> {
        let engine = self.engine;
        if error.is_fenced() {
            let page = PageNo(clones.first().map_or(0, |c| c.to));
            return Err(engine.write_failed("cloning", page, error));
        }
        if matches!(error, SessionError::Refused { errno: libc::EOPNOTSUPP, .. }) {
            engine.no_clones.store(true, Ordering::Relaxed);
        }
        tracing::debug!("bytes are copied, and not shared: {error}");
        // What the device has changed is not what the cache knows.
        let mut cache = engine.cache.lock();
        clones.iter().for_each(|c| cache.forget_clean(c.to, c.to + c.count));
        Ok(false)
    }
}
