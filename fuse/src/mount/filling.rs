//! Rows that were put before the file's bytes came: tar sets attributes before it writes, and with the kernel's
//! write-back cache bytes written before may come after. They are stale on disk as soon as bytes come, as
//! always; when the next handle of the file is closed, they are made fresh again. A crash in between leaves
//! them stale.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use layout::fs::{FreshRows, Ino};
use parking_lot::Mutex;

/// Most files at once; the oldest is forgotten (its rows will be stale).
const FILES_MAX: usize = 1 << 16;

#[derive(Default)]
struct State {
    rows: HashMap<Ino, FreshRows>,
    /// In the order of their arrival; some may be gone, or there twice.
    order: VecDeque<Ino>,
}

/// Files whose bytes are still to come.
#[derive(Default)]
pub struct Filling {
    state: Mutex<State>,
    /// Files in `state`, to be looked at without its lock at each close.
    count: AtomicUsize,
}

impl Filling {
    /// The file's rows hold for the bytes that it has at its next close.
    pub fn begin(&self, rows: FreshRows) {
        let mut state = self.state.lock();
        if state.rows.insert(rows.ino(), rows).is_none() {
            state.order.push_back(rows.ino());
        }
        while state.order.len() > FILES_MAX {
            if let Some(ino) = state.order.pop_front() {
                state.rows.remove(&ino);
            }
        }
        self.count.store(state.rows.len(), Ordering::Relaxed);
    }

    /// A handle of the file was closed: gives its rows, if they wait for that.
    pub fn end(&self, ino: Ino) -> Option<FreshRows> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut state = self.state.lock();
        let rows = state.rows.remove(&ino);
        if state.rows.is_empty() {
            state.order.clear();
        }
        self.count.store(state.rows.len(), Ordering::Relaxed);
        rows
    }
}
