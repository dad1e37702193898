//! How much of a connection is in flight: the bound on its memory, and how its end waits for
//! what was begun.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::stats::{Kind, RequestCounters};

#[derive(Clone, Copy, Default)]
struct Used {
    requests: usize,
    /// Of these, how many the device has not finished.
    executing: usize,
    payload_bytes: usize,
}

/// Counts what a connection holds.
pub struct Budget {
    requests_max: usize,
    payload_bytes_max: usize,
    used: Mutex<Used>,
    changed: Condvar,
    counters: Arc<RequestCounters>,
}

/// One request's share, given back when dropped: after its reply was written or thrown away.
pub struct Permit {
    budget: Arc<Budget>,
    payload_bytes: usize,
    executing: bool,
    received: Instant,
}

impl Budget {
    /// Requests are counted in `counters` when they end.
    pub fn new(requests_max: usize, payload_bytes_max: usize, counters: Arc<RequestCounters>) -> Arc<Self> {
        let (used, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Budget { requests_max, payload_bytes_max, used, changed, counters })
    }

    /// A share if there is room now. The only request in flight always has room.
    pub fn try_acquire(self: &Arc<Self>, payload_bytes: usize) -> Option<Permit> {
        let mut used = self.used.lock();
        self.take(&mut used, payload_bytes)
    }

    /// As [`Budget::try_acquire`], waiting for room.
    pub fn acquire(self: &Arc<Self>, payload_bytes: usize) -> Permit {
        let mut used = self.used.lock();
        loop {
            if let Some(permit) = self.take(&mut used, payload_bytes) {
                return permit;
            }
            self.changed.wait(&mut used);
        }
    }

    fn take(self: &Arc<Self>, used: &mut Used, payload_bytes: usize) -> Option<Permit> {
        let fits = used.requests < self.requests_max
            && used.payload_bytes.saturating_add(payload_bytes) <= self.payload_bytes_max;
        if !fits && used.requests > 0 {
            return None;
        }
        used.requests += 1;
        used.executing += 1;
        used.payload_bytes += payload_bytes;
        Some(Permit { budget: Arc::clone(self), payload_bytes, executing: true, received: Instant::now() })
    }

    /// Waits until the device has finished everything; replies may still wait to be written.
    pub fn wait_executed(&self) {
        let mut used = self.used.lock();
        while used.executing > 0 {
            self.changed.wait(&mut used);
        }
    }

    /// Waits until nothing is in flight.
    pub fn wait_idle(&self) {
        let mut used = self.used.lock();
        while used.requests > 0 {
            self.changed.wait(&mut used);
        }
    }
}

impl Permit {
    /// Counts the request, which ends now.
    pub fn count(&self, kind: Kind, len_bytes: u64, ok: bool) {
        self.budget.counters.finished(kind, len_bytes, self.received.elapsed(), ok);
    }

    /// No other request of the connection is in flight.
    pub fn is_alone(&self) -> bool {
        self.budget.used.lock().requests == 1
    }

    /// The device has finished the request; `true` if no other one is in flight.
    pub fn executed(&mut self) -> bool {
        let mut used = self.budget.used.lock();
        if std::mem::take(&mut self.executing) {
            used.executing -= 1;
            if used.executing == 0 {
                self.budget.changed.notify_all();
            }
        }
        used.requests == 1
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut used = self.budget.used.lock();
        used.requests -= 1;
        used.payload_bytes -= self.payload_bytes;
        if self.executing {
            used.executing -= 1;
        }
        drop(used);
        self.budget.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_bytes_are_bounded_but_one_always_goes() {
        let budget = Budget::new(2, 100, Arc::default());
        let mut big = budget.try_acquire(500).expect("alone, so it goes");
        assert!(big.executed(), "alone");
        budget.wait_executed();
        assert!(budget.try_acquire(0).is_none(), "bytes are exceeded");
        drop(big);
        let a = budget.try_acquire(60).unwrap();
        assert!(budget.try_acquire(60).is_none());
        let mut b = budget.try_acquire(40).unwrap();
        assert!(!b.executed());
        assert!(budget.try_acquire(0).is_none(), "two requests at most");
        drop(a);
        assert!(budget.try_acquire(60).is_some());
        drop(b);
        budget.wait_idle();
    }
}
