//! The thread that commits every few seconds and writes data out early.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::commit::EpochSource;
use super::pager::Engine;

/// Wakes the flusher before its time.
#[derive(Default)]
pub struct Signal {
    state: Mutex<SignalState>,
    changed: Condvar,
}

#[derive(Default)]
struct SignalState {
    wake: bool,
    stop: bool,
}

impl Signal {
    /// There is much to write.
    pub fn wake(&self) {
        let mut state = self.state.lock();
        if !state.wake {
            state.wake = true;
            self.changed.notify_one();
        }
    }

    fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_one();
    }

    /// Waits until woken or `deadline`; false when the thread should end.
    fn wait_until(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while !state.wake && !state.stop {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.wake = false;
        !state.stop
    }
}

/// The flusher of an engine; stops (without a commit) when dropped.
pub struct Flusher {
    engine: Arc<Engine>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    /// Starts the thread; it commits every `interval` if anything changed.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn start(
        engine: Arc<Engine>,
        source: Arc<dyn EpochSource + Send + Sync>,
        interval: Duration,
    ) -> std::io::Result<Self> {
        let worker = Arc::clone(&engine);
        let thread = std::thread::Builder::new()
            .name("vexfs-flush".to_owned())
            .spawn(move || run(&worker, &*source, interval))?;
        Ok(Flusher { engine, thread: Some(thread) })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.engine.signal.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the flusher thread panicked");
        }
    }
}

fn run(engine: &Engine, source: &dyn EpochSource, interval: Duration) {
    let mut next_commit = Instant::now() + interval;
    while engine.signal.wait_until(next_commit) {
        // Failures were logged where they happened, and stop the mount's writes.
        let due = Instant::now() >= next_commit;
        let (metadata, _) = engine.cache.lock().dirty_pages();
        if due || metadata >= engine.dirty_pages_soft {
            let _ = engine.commit(source);
            next_commit = Instant::now() + interval;
        } else {
            while engine.cache.lock().dirty_pages().1 >= engine.dirty_pages_soft / 2
                && matches!(engine.write_out_early(engine.dirty_pages_soft), Ok(true))
            {}
        }
    }
}
