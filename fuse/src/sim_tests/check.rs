//! The structures of a volume on which nothing is open: the one place where a checker is called.

use std::sync::Arc;

use blockd::buf::AlignedBuf;
use blockd::device::{ClientId, Device, IoOp, blocking};
use blockd::volume::simulated::SimDaemon;
use layout::addr::{Owner, PAGE, PageNo, owner};
use layout::fs::{Fs, MountOptions};
use layout::testing::{MemStore, check};

use super::clock;
use crate::check::{Finding, Mode, Pool, Walker, Watch};

#[derive(Default)]
struct Findings(String);

impl Watch for Findings {
    fn found(&mut self, finding: &Finding) {
        self.0.push_str(&format!("{finding}; "));
    }

    fn pass(&mut self, _number: u32, _title: &'static str) {}

    fn progress(&mut self, _done: u64, _total: u64) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// # Panics
/// Where a rule of FORMAT.md is broken, or a page is mapped that belongs to nothing.
pub(super) fn committed(daemon: &Arc<SimDaemon>) {
    let device = Arc::clone(daemon) as Arc<dyn Device>;
    let mut pool = Pool::new(device, ClientId(0), None, Walker::Native);
    let mut found = Findings::default();
    let outcome = crate::check::run(&mut pool, Mode::Look, false, &mut found).expect("fsck can look");
    assert!(outcome.findings == 0 && outcome.unrepairable == 0, "fsck finds: {}", found.0);
    let store = copy(daemon);
    let options = MountOptions { read_only: true, session: 0, now: clock::tick() };
    let fs = Fs::mount(store, options).expect("a committed volume mounts");
    if let Err(broken) = check(&fs) {
        panic!("the volume is not sound: {broken}");
    }
}

/// Every page that is mapped.
fn copy(daemon: &SimDaemon) -> MemStore {
    let store = MemStore::new();
    let client = ClientId(0);
    for (first, count) in daemon.mapped().expect("the map can be read") {
        for page in (first..first + count).filter(|page| owner(PageNo(*page)) == Owner::Mounter) {
            let op = IoOp::Read { offset: page * PAGE as u64, buf: AlignedBuf::zeroed(PAGE) };
            let buf = blocking(daemon, client, op)
                .expect("a mapped page can be read")
                .expect("a read gives its buffer");
            store.put(PageNo(page), buf[..].try_into().expect("a page"));
        }
    }
    store
}
