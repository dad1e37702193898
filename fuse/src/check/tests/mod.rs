//! Checks of volumes in memory: whole ones, ones with known damage, and ones spoiled at random.

mod damage;
mod hostile;
mod image;
mod raw;

use std::sync::Arc;

use blockd::device::Device;
use blockd::session::{BootId, GrantCell, OpenMode, Session};

use super::{Finding, Mode, Outcome, Pool, Stop, Walker, Watch};
use crate::engine::ram::RamDevice;

/// Keeps what was found.
#[derive(Default)]
pub struct Notes {
    pub found: Vec<Finding>,
    /// Progress calls: a check that does not end shows as a failed test.
    calls: u64,
}

const CALLS_MAX: u64 = 3_000_000;

impl Watch for Notes {
    fn found(&mut self, finding: &Finding) {
        self.found.push(finding.clone());
    }

    fn pass(&mut self, _number: u32, _title: &'static str) {}

    fn progress(&mut self, _done: u64, _total: u64) {
        self.calls += 1;
        assert!(self.calls < CALLS_MAX, "the check does not end");
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

impl Notes {
    /// The codes found, each once, in the order of the alphabet.
    pub fn codes(&self) -> Vec<&'static str> {
        let mut codes: Vec<_> = self.found.iter().map(|finding| finding.code.name()).collect();
        codes.sort_unstable();
        codes.dedup();
        codes
    }

    pub fn text(&self) -> String {
        self.found.iter().map(|finding| format!("{finding}\n")).collect()
    }
}

/// Runs a check over a device.
pub fn check(device: &Arc<RamDevice>, mode: Mode) -> (Result<Outcome, Stop>, Notes) {
    check_with(device, mode, Walker::Native, false)
}

pub fn check_with(
    device: &Arc<RamDevice>,
    mode: Mode,
    walker: Walker,
    data: bool,
) -> (Result<Outcome, Stop>, Notes) {
    let device = Arc::clone(device) as Arc<dyn Device>;
    let client = device.connect();
    let session = (mode != Mode::Look).then(|| {
        let cell = GrantCell::default();
        Session::open(Arc::clone(&device), client, OpenMode::ReadWrite, BootId([1; 16]), &cell).unwrap()
    });
    let mut pool = Pool::new(device, client, session, walker);
    if mode == Mode::Repair {
        // So few that changes are sent in the midst of every pass.
        pool = pool.with_bounds(7, 3);
    }
    let mut notes = Notes::default();
    let outcome = super::run(&mut pool, mode, data, &mut notes);
    (outcome, notes)
}
