//! Space promised to operations, so that a full volume shows at write() and never at the commit.
//!
//! The volume is a log: every page made dirty in an epoch takes a new page, even an overwrite,
//! because the last commit keeps the old one. `available` is what the daemon said after the last
//! commit; against it stand the pages being committed, those dirty in the open epoch (or written
//! out early in it), and those promised to running operations. A reserve is left to operations
//! that free space.

use layout::error::{Error, Result};
use parking_lot::Mutex;

/// What an operation may make dirty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cost {
    /// Only reads.
    Nothing,
    /// Changes metadata and this many data pages.
    Pages(u64),
    /// Frees space: may use the reserve.
    Freeing,
}

/// Pages that a metadata change may make dirty (path of a directory tree with splits, inodes,
/// stacks, xattr area); an upper bound with room.
const METADATA_PAGES: u64 = 40;
/// Most pages held back for operations that free space, and for what the log adds (record headers,
/// segments that are not quite full).
const RESERVE_PAGES_MAX: u64 = 4096;

struct State {
    available: u64,
    reserve: u64,
    committing: u64,
    open_epoch: u64,
    promised: u64,
}

/// See the module's text. All numbers are pages.
pub struct Credits(Mutex<State>);

impl Credits {
    /// Credits of a volume with `available` of `capacity` pages free.
    pub fn new(available: u64, capacity: u64) -> Self {
        let reserve = (capacity / 24).clamp(2 * METADATA_PAGES, RESERVE_PAGES_MAX);
        Credits(Mutex::new(State { available, reserve, committing: 0, open_epoch: 0, promised: 0 }))
    }

    /// Promises the pages of an operation; the result goes to [`Credits::release`] at its end.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn promise(&self, cost: Cost) -> Result<u64> {
        let mut s = self.0.lock();
        let (pages, held_back) = match cost {
            Cost::Nothing => return Ok(0),
            Cost::Pages(data) => (METADATA_PAGES + data, s.reserve),
            Cost::Freeing => (METADATA_PAGES, 0),
        };
        let taken = s.committing + s.open_epoch + s.promised + held_back;
        // Pages bring leaves of the map along, of the open epoch and of the commit: an eighth is left to them.
        if (s.available / 8 * 7).saturating_sub(taken) < pages {
            return Err(Error::NoSpace);
        }
        s.promised += pages;
        Ok(pages)
    }

    /// The end of an operation: what it used was charged when the pages became dirty.
    pub fn release(&self, promised: u64) {
        self.0.lock().promised -= promised;
    }

    /// A page became dirty.
    pub fn charge(&self, pages: u64) {
        self.0.lock().open_epoch += pages;
    }

    /// Dirty pages were dropped before they were sent.
    pub fn refund(&self, pages: u64) {
        let mut s = self.0.lock();
        s.open_epoch = s.open_epoch.saturating_sub(pages);
    }

    /// The epoch was frozen.
    pub fn freeze(&self) {
        let mut s = self.0.lock();
        s.committing += std::mem::take(&mut s.open_epoch);
    }

    /// The commit was acknowledged, and the daemon says so many pages are available.
    pub fn committed(&self, available: u64) {
        let mut s = self.0.lock();
        s.available = available;
        s.committing = 0;
    }

    /// Pages charged to the open epoch.
    #[cfg(test)]
    pub fn charged(&self) -> u64 {
        self.0.lock().open_epoch
    }

    /// Pages free now, and pages that an ordinary operation may take.
    pub fn free_and_usable(&self) -> (u64, u64) {
        let s = self.0.lock();
        let free = s.available.saturating_sub(s.committing + s.open_epoch);
        (free, free.saturating_sub(s.reserve + METADATA_PAGES))
    }
}

impl std::fmt::Display for Credits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let s = self.0.lock();
        write!(
            f,
            "{} available at the last commit, {} being committed, {} in the open epoch, {} promised",
            s.available, s.committing, s.open_epoch, s.promised
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_volume_refuses_writes_but_not_deletes() {
        let credits = Credits::new(1000, 2400);
        let big = credits.promise(Cost::Pages(700)).unwrap();
        credits.charge(700);
        credits.release(big);
        assert_eq!(credits.promise(Cost::Pages(100)), Err(Error::NoSpace));
        let free = credits.promise(Cost::Freeing).unwrap();
        credits.release(free);
        credits.freeze();
        assert_eq!(credits.promise(Cost::Pages(100)), Err(Error::NoSpace), "still being committed");
        credits.committed(900);
        assert!(credits.promise(Cost::Pages(100)).is_ok());
    }

    #[test]
    fn promises_of_running_operations_count() {
        let credits = Credits::new(400, 2400);
        let first = credits.promise(Cost::Pages(200)).unwrap();
        assert!(credits.promise(Cost::Pages(200)).is_err());
        credits.release(first);
        assert!(credits.promise(Cost::Pages(200)).is_ok());
    }
}
