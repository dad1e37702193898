//! The connections that transmit, so that they can be counted, stopped and told apart from dead ones.
//!
//! Life of an entry: a *seat* is taken when the client asks for its export, before it is answered
//! ([`Registry::reserve`]) -> requests are read ([`Seat::begin`]) -> all were carried out
//! ([`Seat::executed`]) -> the seat is dropped. Since a client sends requests only after the answer, and a client
//! that comes again asks after it left, the order of the seats' numbers is the order of what clients did.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::export::Export;
use super::pause::Pause;

/// How often threads are called that have not answered.
const CALL_AGAIN: Duration = Duration::from_millis(2);

/// A connection, for people.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Grows with each connection of the server.
    pub number: u64,
    /// Name of its export.
    pub export: String,
    /// Who it is: address and port, or the process on the unix socket.
    pub peer: String,
    /// Everything is encrypted.
    pub tls: bool,
    /// When it asked for its export.
    pub since: SystemTime,
}

struct Entry {
    info: ConnectionInfo,
    /// Tells one device from another.
    device: usize,
    /// The client's own socket, to see whether it has left.
    peer: OwnedFd,
    /// What requests are read from; the same socket, or the clear side of TLS.
    stream: Option<Arc<UnixStream>>,
    /// No request of it is being carried out, and none will be.
    executed: bool,
    /// Its client left, and was in the way of others: it is not begun, or its replies go nowhere.
    cut: bool,
    /// Calls the thread that reads.
    pause: Arc<Pause>,
}

#[derive(Default)]
struct Live {
    entries: BTreeMap<u64, Entry>,
    last_number: u64,
    stopped: bool,
    pausing: bool,
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
    /// Its client left, and another one waited for the end of what it asked for.
    Left,
}

/// A connection's place in the registry.
pub struct Seat {
    registry: Arc<Registry>,
    number: u64,
}

impl Registry {
    /// Takes a seat for a connection to `export` over the socket `peer`, of which it is told.
    ///
    /// # Errors
    /// When `max` are taken, or the server is stopping.
    pub fn reserve(
        self: &Arc<Self>,
        export: &Export,
        peer: OwnedFd,
        (who, tls): (String, bool),
        max: usize,
    ) -> Result<Seat, Refused> {
        let mut live = self.live.lock();
        if live.stopped {
            return Err(Refused::Stopping);
        }
        if live.entries.len() >= max {
            return Err(Refused::Full);
        }
        live.last_number += 1;
        let number = live.last_number;
        let info =
            ConnectionInfo { number, export: export.name().into(), peer: who, tls, since: SystemTime::now() };
        let device = Arc::as_ptr(export.device()).cast::<()>() as usize;
        live.entries.insert(
            number,
            Entry { info, device, peer, stream: None, executed: false, cut: false, pause: Arc::default() },
        );
        Ok(Seat { registry: Arc::clone(self), number })
    }

    /// Those that are live, oldest first.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.live.lock().entries.values().map(|entry| entry.info.clone()).collect()
    }

    /// No connection is taken any more, and those that live read no more requests.
    pub fn stop_reading(&self) {
        let mut live = self.live.lock();
        live.stopped = true;
        live.entries.values().for_each(|entry| entry.pause.stop());
        for stream in live.entries.values().filter_map(|entry| entry.stream.as_ref()) {
            // Fails only if the peer has gone already.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    /// No connection is taken any more, and the threads of those that live are called away, except with TLS: those are
    /// read no more.
    pub fn pause(&self) {
        let mut live = self.live.lock();
        (live.stopped, live.pausing) = (true, true);
        for entry in live.entries.values().filter(|entry| entry.info.tls) {
            if let Some(stream) = &entry.stream {
                // Fails only if the peer has gone already.
                let _ = stream.shutdown(Shutdown::Read);
            }
        }
        live.call();
    }

    /// Cuts the connections of an export; what they began is carried out. Gives how many there were.
    pub fn cut(&self, export: &str) -> usize {
        let live = self.live.lock();
        let mut cut = 0;
        for entry in live.entries.values().filter(|entry| entry.info.export == export) {
            if let Some(stream) = &entry.stream {
                // Fails only if the peer has gone already.
                let _ = stream.shutdown(Shutdown::Both);
                cut += 1;
            }
        }
        cut
    }

    /// Waits until all are closed; cuts those that are not when the time is over.
    pub fn drain(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut live = self.live.lock();
        while !live.entries.is_empty() && Instant::now() < until {
            if live.pausing {
                live.call();
                self.changed.wait_until(&mut live, until.min(Instant::now() + CALL_AGAIN));
            } else {
                self.changed.wait_until(&mut live, until);
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
            if let Some(stream) = &entry.stream {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        while !live.entries.is_empty() {
            self.changed.wait(&mut live);
        }
    }
}

impl Entry {
    /// A newer connection to the device has to wait until all of this one is carried out.
    fn is_in_the_way(&self, device: usize) -> bool {
        let ended = self.executed || (self.cut && self.stream.is_none());
        self.device == device && !ended && is_left(&self.peer)
    }

    /// Begins nothing more; replies go nowhere.
    fn cut(&mut self) {
        if !std::mem::replace(&mut self.cut, true) {
            let ConnectionInfo { number, peer, .. } = &self.info;
            tracing::warn!(number, peer, "an NBD client left without taking its replies; cutting it");
        }
        if let Some(stream) = &self.stream {
            // Fails only if the peer has gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Live {
    /// Calls the threads that read.
    fn call(&self) {
        self.entries
            .values()
            .filter(|entry| !entry.info.tls && !entry.executed)
            .for_each(|entry| entry.pause.call());
    }
}

impl Seat {
    /// The connection has been there since then, with a predecessor.
    pub fn since(&self, since: SystemTime) {
        if let Some(entry) = self.registry.live.lock().entries.get_mut(&self.number) {
            entry.info.since = since;
        }
    }

    /// What is known of the connection, and what calls its thread; `None` only if it was never entered.
    pub fn entry(&self) -> Option<(ConnectionInfo, Arc<Pause>)> {
        let live = self.registry.live.lock();
        live.entries.get(&self.number).map(|entry| (entry.info.clone(), Arc::clone(&entry.pause)))
    }

    /// The connection's number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Requests are read from `stream` from now on.
    ///
    /// # Errors
    /// When the server is stopping, or the client left and was in the way of another.
    pub fn begin(&self, stream: &Arc<UnixStream>) -> Result<(), Refused> {
        let mut live = self.registry.live.lock();
        if live.stopped {
            return Err(Refused::Stopping);
        }
        if let Some(entry) = live.entries.get_mut(&self.number) {
            if entry.cut {
                return Err(Refused::Left);
            }
            entry.stream = Some(Arc::clone(stream));
        }
        Ok(())
    }

    /// Waits until nothing sent on older connections to the same device that their peers have left can still be
    /// carried out. A client that lost its connection sends its requests again on this one: what
    /// it sent before must not overtake what it sends after.
    ///
    /// One that a client has left only half, to take its replies late or never, is cut after `patience`: then nothing
    /// more of it is begun, and what was begun is waited for.
    pub fn wait_for_dead_ones(&self, patience: Duration) {
        let mut live = self.registry.live.lock();
        let Some(device) = live.entries.get(&self.number).map(|entry| entry.device) else { return };
        let mut until = Instant::now() + patience;
        while live.entries.range(..self.number).any(|(_, entry)| entry.is_in_the_way(device)) {
            if !self.registry.changed.wait_until(&mut live, until).timed_out() {
                continue;
            }
            let in_the_way = |(_, entry): &(&u64, &mut Entry)| entry.is_in_the_way(device);
            live.entries.range_mut(..self.number).filter(in_the_way).for_each(|(_, entry)| entry.cut());
            until = Instant::now() + patience;
        }
    }

    /// Every request of the connection was carried out, and no more will be.
    pub fn executed(&self) {
        if let Some(entry) = self.registry.live.lock().entries.get_mut(&self.number) {
            entry.executed = true;
        }
        self.registry.changed.notify_all();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.registry.live.lock().entries.remove(&self.number);
        self.registry.changed.notify_all();
    }
}

/// The peer has closed its end, at least for writing.
fn is_left(stream: &impl AsFd) -> bool {
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
    use crate::device::{ClientId, Device, DeviceInfo, Done, IoError, IoOp, VolumeKind};

    const LONG: Duration = Duration::from_secs(600);

    struct Nothing;

    impl Device for Nothing {
        fn info(&self) -> DeviceInfo {
            DeviceInfo {
                kind: VolumeKind::Raw,
                size_bytes: 1 << 20,
                block_bytes_min: 1,
                read_only: false,
                uuid: uuid::Uuid::nil(),
            }
        }
        fn connect(&self) -> ClientId {
            ClientId(1)
        }
        fn disconnect(&self, _client: ClientId) {}
        fn submit(&self, _client: ClientId, _op: IoOp, done: Done) {
            done(Err(IoError::Shutdown));
        }
    }

    fn reserve(registry: &Arc<Registry>, export: &Export, stream: &UnixStream) -> Result<Seat, Refused> {
        registry.reserve(export, stream.as_fd().try_clone_to_owned().unwrap(), ("test".into(), false), 2)
    }

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
    fn a_new_connection_waits_for_left_ones_of_its_device_only() {
        let export = Export::new("a", Arc::new(Nothing)).unwrap();
        let registry = Arc::new(Registry::default());
        let (one, peer_of_one) = UnixStream::pair().unwrap();
        let (two, _peer_of_two) = UnixStream::pair().unwrap();
        let first = reserve(&registry, &export, &one).unwrap();
        first.wait_for_dead_ones(LONG);
        let second = reserve(&registry, &export, &two).unwrap();
        assert_eq!(reserve(&registry, &export, &one).err(), Some(Refused::Full));
        second.wait_for_dead_ones(LONG);
        drop((one, peer_of_one));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| second.wait_for_dead_ones(LONG));
            first.executed();
            waiting.join().unwrap();
        });
        drop((first, second));
        registry.drain(Duration::ZERO);
    }

    #[test]
    fn a_left_one_that_does_not_end_is_cut_and_still_waited_for() {
        let export = Export::new("a", Arc::new(Nothing)).unwrap();
        let registry = Arc::new(Registry::default());
        let (one, mut peer_of_one) = UnixStream::pair().unwrap();
        let (two, _peer_of_two) = UnixStream::pair().unwrap();
        let one = Arc::new(one);
        let first = reserve(&registry, &export, &one).unwrap();
        first.begin(&one).unwrap();
        let second = reserve(&registry, &export, &two).unwrap();
        peer_of_one.shutdown(Shutdown::Write).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| second.wait_for_dead_ones(Duration::from_millis(1)));
            // It is cut: the end comes, though nobody else closes it.
            std::io::copy(&mut peer_of_one, &mut std::io::sink()).unwrap();
            assert!(!waiting.is_finished(), "what was begun is not finished");
            first.executed();
            waiting.join().unwrap();
        });
    }

    #[test]
    fn a_left_one_that_has_not_begun_is_not_begun_any_more() {
        let export = Export::new("a", Arc::new(Nothing)).unwrap();
        let registry = Arc::new(Registry::default());
        let (one, peer_of_one) = UnixStream::pair().unwrap();
        let (two, _peer_of_two) = UnixStream::pair().unwrap();
        let first = reserve(&registry, &export, &one).unwrap();
        let second = reserve(&registry, &export, &two).unwrap();
        peer_of_one.shutdown(Shutdown::Write).unwrap();
        second.wait_for_dead_ones(Duration::from_millis(1));
        assert_eq!(first.begin(&Arc::new(one)).err(), Some(Refused::Left));
    }

    #[test]
    fn the_dead_of_another_device_are_not_waited_for() {
        // Of a size, so that they have addresses.
        struct Sized(#[expect(dead_code, reason = "only its address matters")] u8);
        impl Device for Sized {
            fn info(&self) -> DeviceInfo {
                Nothing.info()
            }
            fn connect(&self) -> ClientId {
                ClientId(1)
            }
            fn disconnect(&self, _client: ClientId) {}
            fn submit(&self, _client: ClientId, _op: IoOp, done: Done) {
                done(Err(IoError::Shutdown));
            }
        }
        let [a, b] = ["a", "b"].map(|name| Export::new(name, Arc::new(Sized(1))).unwrap());
        let registry = Arc::new(Registry::default());
        let (one, peer_of_one) = UnixStream::pair().unwrap();
        let _first = reserve(&registry, &a, &one).unwrap();
        drop(peer_of_one);
        reserve(&registry, &b, &one).unwrap().wait_for_dead_ones(LONG);
    }

    #[test]
    fn a_stopped_registry_takes_nobody_and_begins_nothing() {
        let export = Export::new("a", Arc::new(Nothing)).unwrap();
        let registry = Arc::new(Registry::default());
        let (one, _peer) = UnixStream::pair().unwrap();
        let seat = reserve(&registry, &export, &one).unwrap();
        assert_eq!(registry.connections().len(), 1);
        registry.stop_reading();
        assert_eq!(seat.begin(&Arc::new(one.try_clone().unwrap())).err(), Some(Refused::Stopping));
        assert_eq!(reserve(&registry, &export, &one).err(), Some(Refused::Stopping));
    }
}
