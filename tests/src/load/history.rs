//! What a worker did, in order.

use super::namespace::Change;

/// One step of a worker.
#[derive(Debug, Clone)]
pub enum Step {
    /// Names or metadata.
    Change(Change),
    /// Pages of a file; the version is the step's number.
    Write { file: u64, first: u64, pages: u64 },
    /// A new size, in pages.
    Truncate { file: u64, pages: u64 },
    /// fsync of a file, or of the directory that stands for all names (`None`).
    Fsync { file: Option<u64> },
}

/// A step with the times of a clock shared by all workers.
#[derive(Debug, Clone)]
pub struct Record {
    /// What was done.
    pub step: Step,
    /// Before the system call.
    pub began: u64,
    /// After its success; `None` if it failed with the crash or was never answered.
    pub ended: Option<u64>,
}

/// The steps of one worker; step `n` (from 1) is at index `n - 1`.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// In order.
    pub records: Vec<Record>,
}

impl History {
    /// When the last acknowledged fsync began: what had ended by then is durable, of all workers.
    pub fn last_fsync_began(&self) -> Option<u64> {
        let fsyncs =
            self.records.iter().filter(|r| matches!(r.step, Step::Fsync { .. }) && r.ended.is_some());
        fsyncs.map(|record| record.began).max()
    }

    /// Number of steps that had ended before `time`.
    pub fn ended_before(&self, time: u64) -> usize {
        self.records.iter().take_while(|record| record.ended.is_some_and(|ended| ended < time)).count()
    }
}
