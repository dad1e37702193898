//! How far a scrub is, how fast it may go, and whether it should stop.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Longest sleep between two looks at the rate and at the stop flag.
const SLEEP_MAX: Duration = Duration::from_millis(50);

/// How far a scrub is.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Progress {
    /// Bytes read.
    pub done_bytes: u64,
    /// Bytes to read in all, as far as is known.
    pub total_bytes: u64,
    /// Bad pages so far.
    pub bad_count: u64,
}

/// What its caller has in hand.
pub struct Control<'a> {
    /// Most bytes to read a second, 0 = no limit; may change at any time.
    pub bytes_per_s: &'a AtomicU64,
    /// Set by anyone to end it.
    pub stop: &'a AtomicBool,
    /// Told after each piece read (4 MiB at most) and at the end.
    pub progress: &'a mut dyn FnMut(Progress),
}

/// Keeps a scrub to its rate.
pub(super) struct Pace<'a> {
    control: Control<'a>,
    done_bytes: u64,
    total_bytes: u64,
    /// Bytes read that the rate has not yet allowed for.
    owed_bytes: f64,
    since: Instant,
}

impl<'a> Pace<'a> {
    pub(super) fn new(control: Control<'a>, total_bytes: u64) -> Self {
        Pace { control, done_bytes: 0, total_bytes, owed_bytes: 0.0, since: Instant::now() }
    }

    /// So much was read; waits as long as the rate asks for.
    pub(super) fn advance(&mut self, bytes: u64, bad_count: u64) -> ControlFlow<()> {
        self.done_bytes += bytes;
        self.owed_bytes += bytes as f64;
        self.tell(bad_count);
        loop {
            if self.control.stop.load(Ordering::Relaxed) {
                return ControlFlow::Break(());
            }
            let rate = self.control.bytes_per_s.load(Ordering::Relaxed) as f64;
            let now = Instant::now();
            self.owed_bytes -= now.duration_since(self.since).as_secs_f64() * rate;
            self.since = now;
            if rate == 0.0 || self.owed_bytes <= 0.0 {
                // What was not used is not saved up.
                self.owed_bytes = 0.0;
                return ControlFlow::Continue(());
            }
            std::thread::sleep(SLEEP_MAX.min(Duration::from_secs_f64(self.owed_bytes / rate)));
        }
    }

    /// The last word.
    pub(super) fn finish(&mut self, bad_count: u64) {
        self.total_bytes = self.done_bytes;
        self.tell(bad_count);
    }

    fn tell(&mut self, bad_count: u64) {
        let total_bytes = self.total_bytes.max(self.done_bytes);
        (self.control.progress)(Progress { done_bytes: self.done_bytes, total_bytes, bad_count });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_ends_even_the_slowest_scrub_and_progress_never_passes_the_total() {
        let (rate, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let mut seen = Vec::new();
        let mut progress = |p: Progress| {
            seen.push(p);
            if p.done_bytes >= 30 {
                // From here on it would take years.
                rate.store(1, Ordering::Relaxed);
                stop.store(true, Ordering::Relaxed);
            }
        };
        let control = Control { bytes_per_s: &rate, stop: &stop, progress: &mut progress };
        let mut pace = Pace::new(control, 20);
        assert!(pace.advance(10, 0).is_continue());
        assert!(pace.advance(1 << 40, 1).is_break());
        pace.finish(1);
        let last = seen.last().expect("it was told");
        assert_eq!((last.done_bytes, last.total_bytes, last.bad_count), (10 + (1 << 40), 10 + (1 << 40), 1));
        assert!(seen.iter().all(|p| p.done_bytes <= p.total_bytes));
    }
}
