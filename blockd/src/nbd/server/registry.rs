//! The live connections, so that they can be counted and stopped.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

#[derive(Default)]
struct Live {
    streams: HashMap<u64, Arc<UnixStream>>,
    stopped: bool,
}

/// See the module.
#[derive(Default)]
pub struct Registry {
    live: Mutex<Live>,
    changed: Condvar,
}

/// Why a connection is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// As many as allowed are live.
    Full,
    /// The server stops.
    Stopping,
}

impl Registry {
    /// Enters a connection.
    ///
    /// # Errors
    /// When `max` are live, or the server is stopping.
    pub fn enter(&self, number: u64, stream: &Arc<UnixStream>, max: usize) -> Result<(), Refused> {
        let mut live = self.live.lock();
        if live.stopped {
            return Err(Refused::Stopping);
        }
        if live.streams.len() >= max {
            return Err(Refused::Full);
        }
        live.streams.insert(number, Arc::clone(stream));
        Ok(())
    }

    /// A connection is closed.
    pub fn leave(&self, number: u64) {
        self.live.lock().streams.remove(&number);
        self.changed.notify_all();
    }

    /// No connection is taken any more, and those that live read no more requests.
    pub fn stop_reading(&self) {
        let mut live = self.live.lock();
        live.stopped = true;
        for stream in live.streams.values() {
            // Fails only if the peer has gone already.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    /// Waits until all are closed; cuts those that are not when the time is over.
    pub fn drain(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut live = self.live.lock();
        while !live.streams.is_empty() {
            if self.changed.wait_until(&mut live, until).timed_out() {
                break;
            }
        }
        if live.streams.is_empty() {
            return;
        }
        tracing::warn!(connections = live.streams.len(), "NBD clients do not take their replies; cutting them");
        for stream in live.streams.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        while !live.streams.is_empty() {
            self.changed.wait(&mut live);
        }
    }
}
