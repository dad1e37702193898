//! The time of simulated mounts: each thread has its own, and the model is told the same.

use std::cell::Cell;

use layout::page_store::Timespec;

thread_local! {
    static NOW: Cell<Option<i64>> = const { Cell::new(None) };
}

fn at(tick: i64) -> Timespec {
    Timespec { secs: 1_800_000_000 + tick, nanos: 7 }
}

/// The simulated time of this thread, if it has one.
pub(crate) fn now() -> Option<Timespec> {
    NOW.get().map(at)
}

/// Begins a simulation in this thread.
pub(super) fn begin() {
    NOW.set(Some(0));
}

/// A second goes by; gives the new time.
pub(super) fn tick() -> Timespec {
    let tick = NOW.get().unwrap_or(0) + 1;
    NOW.set(Some(tick));
    at(tick)
}
