//! Commits and early write-out: the two ways in which dirty pages reach the device.

use std::time::Duration;

use blockd::device::{Commit, IoError};
use blockd::session::SessionError;
use layout::addr::{PageNo, SUPERBLOCK_PAGE};
use layout::error::{Error, Result};
use layout::page_store::PageBytes;
use parking_lot::{Condvar, Mutex};

use super::cache::Batch;
use super::pager::Engine;
use super::transfer::{write_pages, write_superblock};

/// How often, and after what time, pages are sent again that found no space.
const NO_SPACE_TRIES_MAX: u32 = 50;
const NO_SPACE_WAIT: Duration = Duration::from_millis(100);

/// Most pages that are committed in one request; with the superblock they fill a record. To write more takes longer than to wait once more.
const TOGETHER_PAGES_MAX: usize = 255;

/// Gives the page-0 image of the epoch being closed. Called with all operations excluded.
pub trait EpochSource {
    /// Closes the epoch; `clean` marks the last commit of a mount.
    ///
    /// # Errors
    /// When the file system logic was stopped in the middle of a change.
    fn close_epoch(&self, clean: bool) -> Result<Box<PageBytes>>;
}

/// Lets callers that wait for durability share commits: a caller needs the first commit whose
/// freeze begins after its call.
#[derive(Default)]
pub struct Tickets {
    state: Mutex<TicketState>,
    done: Condvar,
}

#[derive(Default)]
struct TicketState {
    /// Freezes begun.
    begun: u64,
    /// Freezes whose commit is acknowledged (or failed).
    finished: u64,
    /// Someone is carrying out a commit.
    leading: bool,
    failed: Option<Error>,
}

/// Waits a while at each call, and says whether to try again. Credits were given for all that is
/// sent, so that the cleaner is only late.
fn waits_for_space() -> impl FnMut() -> bool {
    let mut tries = 0;
    move || {
        tries += 1;
        std::thread::sleep(NO_SPACE_WAIT);
        tries <= NO_SPACE_TRIES_MAX
    }
}

impl Engine {
    /// Makes everything that happened before the call durable. Many callers share one commit. Must
    /// not be called inside an operation.
    ///
    /// # Errors
    /// Why the commit failed: the mount is read-only (or lost) from then on.
    pub fn commit(&self, source: &dyn EpochSource) -> Result<()> {
        let mut state = self.tickets.state.lock();
        let needed = state.begun + 1;
        loop {
            if state.finished >= needed {
                return state.failed.map_or(Ok(()), Err);
            }
            if !state.leading {
                break;
            }
            self.tickets.done.wait(&mut state);
        }
        if let Some(error) = state.failed {
            return Err(error);
        }
        state.leading = true;
        drop(state);
        let result = self.lead_commit(source, false);
        self.finish_lead(&result);
        result
    }

    /// The last commit of a mount: marks the volume clean. No operation may be running or begin.
    ///
    /// # Errors
    /// As [`Engine::commit`].
    pub fn commit_clean(&self, source: &dyn EpochSource) -> Result<()> {
        let mut state = self.tickets.state.lock();
        while state.leading {
            self.tickets.done.wait(&mut state);
        }
        if let Some(error) = state.failed {
            return Err(error);
        }
        state.leading = true;
        drop(state);
        let result = self.lead_commit(source, true);
        self.finish_lead(&result);
        result
    }

    fn finish_lead(&self, result: &Result<()>) {
        let mut state = self.tickets.state.lock();
        state.leading = false;
        state.finished = state.begun;
        if let Err(error) = result {
            state.failed = Some(*error);
        }
        self.tickets.done.notify_all();
    }

    fn lead_commit(&self, source: &dyn EpochSource, clean: bool) -> Result<()> {
        let _one_batch = self.write_back.lock();
        let frozen = {
            let _excluded = self.gate.write();
            // Whoever asks from here on needs the next commit.
            self.tickets.state.lock().begun += 1;
            if self.health.is_read_only() {
                return Err(if self.health.is_lost() { Error::Fenced } else { Error::Aborted });
            }
            let mut cache = self.cache.lock();
            if !cache.is_touched() && !clean {
                None
            } else {
                drop(cache);
                let superblock = source.close_epoch(clean).inspect_err(|e| {
                    self.health.stop_writes(&format!("the epoch could not be closed: {e}"));
                })?;
                cache = self.cache.lock();
                self.credits.freeze();
                Some((cache.freeze(), superblock))
            }
        };
        let Some((batch, superblock)) = frozen else { return Ok(()) };
        self.free(&batch)?;
        if !self.write_together(&batch, &superblock)? {
            self.write_pages(&batch)?;
            self.write_superblock(&superblock)?;
        }
        let available = self.status().map(|s| s.available_pages.get());
        match available {
            Ok(pages) => self.credits.committed(pages),
            Err(error) => tracing::warn!("cannot read the status page after a commit: {error}"),
        }
        self.land(&batch);
        Ok(())
    }

    /// Writes dirty data pages within the open epoch, if no commit is being written; gives whether
    /// it wrote any.
    ///
    /// # Errors
    /// Why the write failed.
    pub fn write_out_early(&self, pages_max: usize) -> Result<bool> {
        let Some(_one_batch) = self.write_back.try_lock() else { return Ok(false) };
        self.health.check_write()?;
        let batch = self.cache.lock().take_data(pages_max);
        if batch.pages.is_empty() && batch.frees.is_empty() {
            return Ok(false);
        }
        self.send(&batch)?;
        self.land(&batch);
        Ok(true)
    }

    /// Commits with one request, if the pages are few; false if they are not, or do not find space at once: then they are
    /// to be sent one by one, and wait for it.
    fn write_together(&self, batch: &Batch, superblock: &PageBytes) -> Result<bool> {
        if batch.pages.len() > TOGETHER_PAGES_MAX {
            return Ok(false);
        }
        let pages = batch.pages.iter().map(|(page, bytes)| (*page, &***bytes));
        match self.device.commit(self.client, Commit::new(pages, superblock)) {
            Ok(()) => Ok(true),
            // What was written of it is in the open epoch, where the same pages come again.
            Err(IoError::NoSpace) => Ok(false),
            Err(error) => Err(self.commit_failed(error)),
        }
    }

    fn write_superblock(&self, superblock: &PageBytes) -> Result<()> {
        let mut wait_for_space = waits_for_space();
        loop {
            match write_superblock(&*self.device, self.client, superblock) {
                Err(IoError::NoSpace) if wait_for_space() => {}
                written => return written.map_err(|error| self.commit_failed(error)),
            }
        }
    }

    fn commit_failed(&self, error: IoError) -> Error {
        self.write_failed("the commit", SUPERBLOCK_PAGE, &SessionError::Device(error))
    }

    /// Sends a batch within its epoch.
    pub(super) fn send(&self, batch: &Batch) -> Result<()> {
        self.free(batch)?;
        self.write_pages(batch)
    }

    /// Sends a batch's discards.
    fn free(&self, batch: &Batch) -> Result<()> {
        let mut wait_for_space = waits_for_space();
        while !batch.frees.is_empty() {
            match self.free_ranges(&batch.frees) {
                Ok(()) => break,
                // What a snapshot keeps of them needs space. Freeing some of them twice is harmless.
                Err(error) if error.is_no_space() && wait_for_space() => {}
                Err(error) => return Err(self.write_failed("freeing space", batch.frees[0].first, &error)),
            }
        }
        Ok(())
    }

    fn write_pages(&self, batch: &Batch) -> Result<()> {
        write_pages(&*self.device, self.client, &batch.pages, waits_for_space())
            .map_err(|(page, e)| self.write_failed("writing pages", page, &SessionError::Device(e)))
    }

    pub(super) fn land(&self, batch: &Batch) {
        self.cache.lock().landed(batch);
        self.room.notify_all();
    }

    /// What was taken from the dirty set can't be committed any more: stops the mount.
    pub(super) fn write_failed(&self, doing: &str, page: PageNo, error: &SessionError) -> Error {
        let result = if error.is_fenced() {
            self.health.lose_session(&error.to_string());
            Error::Fenced
        } else {
            self.health.stop_writes(&format!(
                "{doing} failed at page {:#x}: {error} (space counted here, in pages: {})",
                page.0, self.credits
            ));
            if error.is_no_space() { Error::NoSpace } else { Error::Io(page) }
        };
        // Under the cache lock, so that no writer misses it between its check and its wait.
        let _cache = self.cache.lock();
        self.room.notify_all();
        result
    }
}
