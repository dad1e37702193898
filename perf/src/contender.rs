//! What is measured: a contender does the same work as its rivals.

use std::time::Duration;

use anyhow::Result;

use crate::bars::Bar;
use crate::env::Env;

/// One program under test. Lifecycle: `start`, any number of `round`s of any of the workload's cases, `stop`.
/// A contender that is dropped without `stop` (after an error) ends its processes and mounts as well.
pub trait Contender {
    /// As it stands in the report.
    fn name(&self) -> String;
    /// Starts it and prepares its data.
    fn start(&mut self, env: &Env) -> Result<()>;
    /// Whether it can do case `case`; if not, it is left out there.
    fn can(&self, case: usize) -> bool {
        let _ = case;
        true
    }
    /// Works on case `case` (an index into [`Workload::cases`]) for about `time`.
    fn round(&mut self, case: usize, time: Duration) -> Result<Work>;
    /// Removes what a round left behind; not measured.
    fn tidy(&mut self) -> Result<()> {
        Ok(())
    }
    /// The process whose CPU time is charged to the operations; `None` when the client does the work itself.
    fn server_pid(&self) -> Option<u32>;
    /// Ends it.
    fn stop(&mut self) -> Result<()>;
}

/// What a contender did in one round.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Operations done.
    pub operations: u64,
    /// In this time.
    pub elapsed: Duration,
    /// CPU time that the load generator used.
    pub client_cpu: Duration,
    /// Median latency of the operations, if it was measured.
    pub p50: Option<Duration>,
    /// 99th percentile of the operations' latency, if it was measured.
    pub p99: Option<Duration>,
}

/// Contenders, ours first, and the cases to run them on.
pub struct Workload {
    /// Prefix of the cases' names.
    pub name: &'static str,
    /// What to know when reading the figures.
    pub about: String,
    /// Names of the cases.
    pub cases: Vec<&'static str>,
    /// What one operation is, e.g. `ops`; the report prints it as `ops/s`.
    pub unit: &'static str,
    /// Ours first.
    pub contenders: Vec<Box<dyn Contender>>,
    /// What ratios have to reach.
    pub bars: Vec<Bar>,
    /// Rivals that are not there, each with what to do about it.
    pub missing: Vec<String>,
}

/// A workload, or the sentence that says what is missing to run it.
pub type Prepared = std::result::Result<Workload, String>;
