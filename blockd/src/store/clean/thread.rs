//! The cleaner's thread, and how it is told that there may be work.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::machine::{Cleaner, Next};
use super::watch::Watch;
use crate::store::Shared;
use crate::volume::worker::InternalSender;

/// Tells the cleaner that there may be work.
#[derive(Clone)]
pub struct CleanerLink {
    bell: Arc<Bell>,
    shared: Arc<Shared>,
}

struct Bell {
    signal: Mutex<Signal>,
    ring: Condvar,
    /// The cleaner rests, or ends.
    rest: Condvar,
    watch: Watch,
}

#[derive(Default)]
struct Signal {
    /// Free space is low.
    low: bool,
    /// Writers wait; which stall of the log.
    stall: Option<u64>,
    /// An outcome arrived.
    outcome: bool,
    /// Times that somebody asked and waits for the rest that follows, and which of them it followed.
    asked: u64,
    rested: u64,
    stop: bool,
}

impl CleanerLink {
    /// Users wait for space: `stall` numbers the occasion.
    pub fn want_space(&self, stall: u64) {
        self.bell.signal.lock().stall = Some(stall);
        self.bell.ring.notify_one();
    }

    /// Wakes the cleaner if free space ran low since it last looked, or its settings changed.
    pub fn look(&self) {
        if self.bell.watch.wants(&self.shared) {
            self.bell.signal.lock().low = true;
            self.bell.ring.notify_one();
        }
    }

    /// Wakes the cleaner in any case; gives the number by which [`CleanerLink::rests`] is asked.
    pub fn ask(&self) -> u64 {
        let mut signal = self.bell.signal.lock();
        signal.asked += 1;
        signal.low = true;
        self.bell.ring.notify_one();
        signal.asked
    }

    /// Whether the cleaner has found nothing more to do since it was asked, or has ended; waits for it, but not longer than so.
    pub fn rests(&self, asked: u64, wait_max: Duration) -> bool {
        let mut signal = self.bell.signal.lock();
        let busy = |signal: &mut Signal| signal.rested < asked && !signal.stop;
        !self.bell.rest.wait_while_for(&mut signal, busy, wait_max).timed_out()
    }

    /// Ends the thread; what it gave the log is carried out.
    pub fn stop(&self) {
        self.bell.signal.lock().stop = true;
        self.bell.ring.notify_one();
    }

    /// Starts the thread.
    pub(crate) fn start(
        shared: Arc<Shared>,
        log: InternalSender,
        threads: &mut Vec<JoinHandle<()>>,
    ) -> CleanerLink {
        let bell = Arc::new(Bell {
            signal: Mutex::new(Signal::default()),
            ring: Condvar::new(),
            rest: Condvar::new(),
            watch: Watch::default(),
        });
        let link = CleanerLink { bell: Arc::clone(&bell), shared: Arc::clone(&shared) };
        let ring = Arc::clone(&bell);
        let cleaner = Cleaner::new(
            shared,
            Box::new(move || {
                ring.signal.lock().outcome = true;
                ring.ring.notify_one();
            }),
        );
        let spawned =
            std::thread::Builder::new().name("vexfs-clean".into()).spawn(move || bell.run(cleaner, &log));
        match spawned {
            Ok(handle) => threads.push(handle),
            Err(e) => tracing::error!("cannot start the cleaner's thread: {e}"),
        }
        link
    }
}

impl Bell {
    fn run(&self, mut cleaner: Cleaner, log: &InternalSender) {
        let mut next = Next::Rest;
        loop {
            let asked;
            {
                let mut signal = self.signal.lock();
                self.wait(&mut signal, next);
                if signal.stop {
                    self.rest.notify_all();
                    return;
                }
                asked = signal.asked;
                let (low, stall) = (std::mem::take(&mut signal.low), signal.stall.take());
                signal.outcome = false;
                drop(signal);
                if low || stall.is_some() {
                    cleaner.ask(stall);
                }
            }
            next = cleaner.step(&mut |message| log.send(message));
            if next == Next::Rest {
                self.signal.lock().rested = asked;
                self.rest.notify_all();
            }
        }
    }

    fn wait(&self, signal: &mut parking_lot::MutexGuard<'_, Signal>, next: Next) {
        let until = match next {
            Next::Again => return,
            Next::Pause(time) => Some(Instant::now() + time),
            Next::Rest | Next::Await => None,
        };
        while !signal.stop && signal.stall.is_none() {
            match (next, until) {
                (Next::Rest, _) if signal.low => return,
                (Next::Await, _) if signal.outcome => return,
                (_, Some(until)) => {
                    if self.ring.wait_until(signal, until).timed_out() {
                        return;
                    }
                }
                _ => self.ring.wait(signal),
            }
        }
    }
}
