//! Counts operations and their time, leaving out what goes on between batches of them.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::contender::Work;
use crate::cpu;

/// What was measured so far.
#[derive(Default)]
pub struct Meter {
    latencies: Vec<Duration>,
    /// Time of whole batches; more than the sum of latencies where a batch's end counts.
    elapsed: Duration,
    client_cpu: Duration,
}

impl Meter {
    /// Time measured so far.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Calls `operation` with 0, 1, 2... while `goes_on` says so of the count and the batch's time; what `end` does counts too.
    pub fn batch(
        &mut self,
        goes_on: impl Fn(u64, Duration) -> bool,
        mut operation: impl FnMut(u64) -> Result<()>,
        end: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let cpu = cpu::of_this_thread()?;
        let start = Instant::now();
        let (mut count, mut last) = (0, Duration::ZERO);
        while goes_on(count, last) {
            operation(count)?;
            let now = start.elapsed();
            self.latencies.push(now - last);
            (count, last) = (count + 1, now);
        }
        end()?;
        self.elapsed += start.elapsed();
        self.client_cpu += cpu::of_this_thread()? - cpu;
        Ok(())
    }

    /// The sum.
    pub fn work(mut self) -> Work {
        let operations = self.latencies.len();
        let mut nth = |n: usize| (n < operations).then(|| *self.latencies.select_nth_unstable(n).1);
        let (p50, p99) = (nth(operations / 2), nth(operations * 99 / 100));
        Work { operations: operations as u64, elapsed: self.elapsed, client_cpu: self.client_cpu, p50, p99 }
    }
}

/// Calls `operation` with 0, 1, 2... for about `time`.
pub fn repeat(time: Duration, operation: impl FnMut(u64) -> Result<()>) -> Result<Work> {
    let mut meter = Meter::default();
    meter.batch(|_, elapsed| elapsed < time, operation, || Ok(()))?;
    Ok(meter.work())
}
