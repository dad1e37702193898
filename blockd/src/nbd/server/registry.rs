//! The live connections, so that they can be counted, stopped and told apart from dead ones.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

struct Entry {
    stream: Arc<UnixStream>,
    /// No request of it is being carried out, and none will be.
    executed: bool,
}

#[derive(Default)]
struct Live {
    entries: BTreeMap<u64, Entry>,
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
    /// Enters a connection; numbers grow.
    ///
    /// # Errors
    /// When `max` are live, or the server is stopping.
    pub fn enter(&self, number: u64, stream: &Arc<UnixStream>, max: usize) -> Result<(), Refused> {
        let mut live = self.live.lock();
        if live.stopped {
            return Err(Refused::Stopping);
        }
        if live.entries.len() >= max {
            return Err(Refused::Full);
        }
        live.entries.insert(number, Entry { stream: Arc::clone(stream), executed: false });
        Ok(())
    }

    /// Every request of a connection was carried out, and no more will be.
    pub fn executed(&self, number: u64) {
        if let Some(entry) = self.live.lock().entries.get_mut(&number) {
            entry.executed = true;
        }
        self.changed.notify_all();
    }

    /// A connection is closed.
    pub fn leave(&self, number: u64) {
        self.live.lock().entries.remove(&number);
        self.changed.notify_all();
    }

    /// Waits until nothing sent on older connections that their peers have left can still be
    /// carried out. A client that lost its connection sends its requests again on this one: what
    /// it sent before must not overtake what it sends after.
    pub fn wait_for_dead_ones(&self, number: u64) {
        let mut live = self.live.lock();
        while live.entries.range(..number).any(|(_, entry)| !entry.executed && is_left(&entry.stream)) {
            self.changed.wait(&mut live);
        }
    }

    /// No connection is taken any more, and those that live read no more requests.
    pub fn stop_reading(&self) {
        let mut live = self.live.lock();
        live.stopped = true;
        for entry in live.entries.values() {
            // Fails only if the peer has gone already.
            let _ = entry.stream.shutdown(Shutdown::Read);
        }
    }

    /// Waits until all are closed; cuts those that are not when the time is over.
    pub fn drain(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut live = self.live.lock();
        while !live.entries.is_empty() {
            if self.changed.wait_until(&mut live, until).timed_out() {
                break;
            }
        }
        if live.entries.is_empty() {
            return;
        }
        tracing::warn!(
            connections = live.entries.len(),
            "NBD clients do not take their replies; cutting them"
        );
        for entry in live.entries.values() {
            let _ = entry.stream.shutdown(Shutdown::Both);
        }
        while !live.entries.is_empty() {
            self.changed.wait(&mut live);
        }
    }
}

/// The peer has closed its end, at least for writing.
fn is_left(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(_) => fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR),
        // Cannot happen with one valid descriptor; waiting for a live peer would be worse.
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_left_connection_is_told_from_a_live_one() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(!is_left(&ours));
        theirs.shutdown(Shutdown::Write).unwrap();
        assert!(is_left(&ours));
        drop(theirs);
        assert!(is_left(&ours));
    }

    #[test]
    fn a_new_connection_waits_for_left_ones_only() {
        let registry = Registry::default();
        let (one, peer_of_one) = UnixStream::pair().unwrap();
        let (two, _peer_of_two) = UnixStream::pair().unwrap();
        registry.enter(1, &Arc::new(one), 2).unwrap();
        registry.wait_for_dead_ones(2);
        registry.enter(2, &Arc::new(two), 2).unwrap();
        assert_eq!(registry.enter(3, &Arc::new(UnixStream::pair().unwrap().0), 2), Err(Refused::Full));
        drop(peer_of_one);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| registry.wait_for_dead_ones(2));
            registry.executed(1);
            waiting.join().unwrap();
        });
        registry.leave(1);
        registry.leave(2);
        registry.drain(Duration::ZERO);
    }
}
