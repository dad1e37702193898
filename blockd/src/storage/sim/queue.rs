//! The simulated [`WriteQueue`]: requests complete in the order of their latencies.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;

use super::{Fate, Pending, Queued, Slot, State};
use crate::storage::{Chunk, Completion, Waiter, Waker, WriteQueue};

pub(super) struct SimQueue {
    state: Arc<Mutex<State>>,
    done: Vec<Completion>,
    /// Given and not told of yet.
    under_way: Vec<u64>,
    inline: bool,
    synchronous: bool,
}

impl SimQueue {
    /// Inline until the thread that will wait for it says otherwise, as the real ones.
    pub(super) fn new(state: Arc<Mutex<State>>) -> Self {
        let synchronous = state.lock().synchronous;
        SimQueue { state, done: Vec::new(), under_way: Vec::new(), inline: true, synchronous }
    }

    fn push(&mut self, token: u64, typical_us: u64, what: Queued) {
        let mut s = self.state.lock();
        let due_us = s.timeline.now_us() + s.latency_us(typical_us);
        s.queued.push(Slot { token, due_us, what });
        self.under_way.push(token);
        drop(s);
        // Inline, a request is finished when it was made.
        while self.inline && !self.under_way.is_empty() {
            let s = self.state.lock();
            if let Some(i) = s.earliest() {
                let left_us = s.queued[i].due_us.saturating_sub(s.timeline.now_us());
                s.timeline.pass(left_us);
            }
            drop(s);
            self.finish_due();
        }
    }

    /// Finishes all that is due.
    fn finish_due(&mut self) {
        let mut s = self.state.lock();
        if s.power().is_err() {
            // What was queued stays so: the image decides what of it arrived.
            for token in self.under_way.drain(..) {
                let result = Err(io::Error::other("simulated: the power is off"));
                self.done.push(Completion { token, result });
            }
            return;
        }
        let now_us = s.timeline.now_us();
        while let Some(i) = s.earliest().filter(|&i| s.queued[i].due_us <= now_us) {
            let slot = s.queued.swap_remove(i);
            let result = match slot.what {
                Queued::Write(write) => {
                    s.complete(write);
                    Ok(())
                }
                Queued::Sync(upto) => {
                    s.make_durable(upto);
                    Ok(())
                }
                Queued::Fail(errno) => Err(io::Error::from_raw_os_error(errno)),
            };
            self.under_way.retain(|&token| token != slot.token);
            self.done.push(Completion { token: slot.token, result });
        }
    }
}

impl State {
    fn earliest(&self) -> Option<usize> {
        (0..self.queued.len()).min_by_key(|&i| (self.queued[i].due_us, self.queued[i].token))
    }
}

impl WriteQueue for SimQueue {
    fn write(&mut self, token: u64, offset: u64, chunks: Vec<Chunk>) {
        let bytes: Vec<u8> = chunks.iter().flat_map(|c| c.bytes().iter().copied()).collect();
        assert_eq!((offset | bytes.len() as u64) % 4096, 0, "writes are whole pages");
        let mut write = Pending::new(offset as usize, bytes);
        let mut s = self.state.lock();
        let fate = s.count(&mut write);
        drop(s);
        match fate {
            Ok(Fate::Done | Fate::Cut) => self.push(token, 100, Queued::Write(write)),
            Ok(Fate::Fails(errno)) => self.push(token, 100, Queued::Fail(errno)),
            Err(e) => self.done.push(Completion { token, result: Err(e) }),
        }
    }

    fn sync(&mut self, token: u64) {
        let mut s = self.state.lock();
        let upto = s.completed;
        let what = if s.count_sync() { Queued::Fail(libc::EIO) } else { Queued::Sync(upto) };
        drop(s);
        self.push(token, 500, what);
    }

    fn submit(&mut self) {}

    fn reap(&mut self, out: &mut Vec<Completion>) {
        // The processor takes its time too.
        self.state.lock().timeline.pass(2);
        self.finish_due();
        out.append(&mut self.done);
    }

    fn has_finished(&self) -> bool {
        !self.done.is_empty()
    }

    fn wait(&mut self) {
        if !self.done.is_empty() {
            return;
        }
        let mut s = self.state.lock();
        if let Some(i) = s.earliest() {
            // Awake a little after the first is done; others may be by then.
            let slack_us = s.rng.random_range(0..100);
            let left_us = s.queued[i].due_us.saturating_sub(s.timeline.now_us());
            s.timeline.pass(left_us + slack_us);
        }
        drop(s);
        self.finish_due();
    }

    fn waker(&self) -> Waker {
        Arc::new(|| {})
    }

    fn waiter(&self) -> Waiter {
        Box::new(|| {})
    }

    fn set_inline(&mut self, inline: bool) {
        self.inline = inline || self.synchronous;
    }

    fn is_synchronous(&self) -> bool {
        self.synchronous
    }
}
