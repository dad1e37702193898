//! Connections that go from one server to another: nothing sent is lost, nothing is carried out twice, and what was
//! negotiated still holds.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use blockd::nbd::server::{Export, Exports, Limits, Listener, Parked, Security, Server, Stopper};

use crate::peer::{FLUSH, Peer, READ, WRITE, request};
use crate::ram::Ram;
use crate::served::socket;

const SIZE: u64 = 1 << 20;

struct Running {
    stopper: Stopper,
    thread: JoinHandle<Vec<Parked>>,
    sockets: Vec<Listener>,
}

fn limits(drain_timeout_ms: u64) -> Limits {
    Limits { drain_timeout_ms, ..Limits::default() }
}

fn serve(listeners: Vec<Listener>, ram: &Arc<Ram>, parked: Vec<Parked>, limits: Limits) -> Running {
    let exports = Exports::single(Export::new("disk", ram.clone()).unwrap());
    let mut server = Server::bind(listeners, exports, limits).unwrap();
    let sockets = server.sockets().unwrap();
    server.resume(parked);
    Running {
        stopper: server.stopper(),
        thread: std::thread::spawn(move || server.run()),
        sockets: sockets.into_iter().map(|(_, socket)| Listener::adopted(socket, Security::Socket)).collect(),
    }
}

fn first(path: &Path, ram: &Arc<Ram>) -> Running {
    serve(vec![Listener::unix(path)], ram, Vec::new(), Limits::default())
}

impl Running {
    /// Everything goes to a server over another device.
    fn hand_over(self, ram: &Arc<Ram>) -> Running {
        self.stopper.hand_over();
        let parked = self.thread.join().unwrap();
        serve(self.sockets, ram, parked, Limits::default())
    }

    fn stop(self) {
        self.stopper.stop();
        assert!(self.thread.join().unwrap().is_empty(), "a plain stop parks nothing");
    }
}

#[test]
fn idle_and_busy_connections_go_on_with_what_they_negotiated() {
    let (_dir, path) = socket();
    let (old, new) = (Ram::new(SIZE), Ram::new(SIZE));
    let server = first(&path, &old);
    let mut plain = Peer::transmitting(&path);
    let mut structured = Peer::structured(&path);
    assert_eq!(plain.write(0, 0, &[7; 4096]), 0);
    let server = server.hand_over(&new);
    // Both are idle at the moment: a read waited, and the next one finds all in step.
    assert_eq!(plain.write(0, 4096, &[8; 4096]), 0);
    assert_eq!(plain.read(4096, 4096), vec![8; 4096]);
    assert_eq!(old.bytes(4096, 4096), vec![0; 4096], "the old server is out of it");
    structured.request(0, READ, 5, 4096, 4096);
    let chunk = structured.chunk();
    assert_eq!((chunk.cookie, chunk.flags, chunk.payload[8..].to_vec()), (5, 1, vec![8; 4096]));
    assert!(structured.status(0, 0, 4096).is_ok(), "base:allocation is still served");
    // Newcomers find the same socket.
    let mut late = Peer::transmitting(&path);
    assert_eq!(late.read(4096, 4096), vec![8; 4096]);
    let connections = server.stopper.connections();
    assert_eq!(connections.len(), 3);
    server.stop();
    plain.assert_closed();
    assert!(!path.exists(), "the last one removes the socket's file");
}

#[test]
fn a_request_that_came_in_parts_is_carried_out_once_by_the_successor() {
    let (_dir, path) = socket();
    let (old, new) = (Ram::new(SIZE), Ram::new(SIZE));
    let server = first(&path, &old);
    let mut peer = Peer::transmitting(&path);
    assert_eq!(peer.call(0, FLUSH, 0, 0), 0);
    // A whole request, and the beginning of the next one's head.
    let head = request(0, READ, 9, 0, 512);
    peer.put(&[&request(0, READ, 8, 0, 512)[..], &head[..11]].concat());
    assert_eq!(peer.reply(), (0, 8));
    peer.take(512);
    let server = server.hand_over(&new);
    peer.put(&head[11..]);
    assert_eq!(peer.reply(), (0, 9));
    peer.take(512);
    server.stop();
}

#[test]
fn nobody_goes_on_with_another_volume_than_the_one_that_was_negotiated() {
    let info = |ram: &Arc<Ram>| blockd::device::Device::info(&**ram);
    let changed: [fn(&mut blockd::device::DeviceInfo); 4] = [
        |info| info.uuid = uuid::Uuid::from_u128(8),
        |info| info.size_bytes *= 2,
        |info| info.block_bytes_min = 4096,
        |info| info.read_only = true,
    ];
    for change in changed {
        let (_dir, path) = socket();
        let old = Ram::new(SIZE);
        let mut other = info(&old);
        change(&mut other);
        let other = Ram::with(other);
        let server = first(&path, &old);
        let mut peer = Peer::transmitting(&path);
        assert_eq!(peer.write(0, 0, &[7; 4096]), 0);
        let server = server.hand_over(&other);
        peer.assert_closed();
        assert_eq!(other.bytes(0, 4096), vec![0; 4096]);
        server.stop();
    }
}

#[test]
fn requests_in_flight_are_answered_before() {
    let (_dir, path) = socket();
    let (old, new) = (Ram::new(SIZE), Ram::new(SIZE));
    let server = first(&path, &old);
    let mut busy = Peer::transmitting(&path);
    old.hold();
    busy.request(0, READ, 1, 0, 4096);
    busy.request(0, READ, 2, 4096, 4096);
    old.wait_held(2);
    server.stopper.hand_over();
    assert!(!server.thread.is_finished(), "two requests are under way");
    old.release_all();
    let parked = server.thread.join().unwrap();
    assert_eq!(parked.len(), 1);
    for _ in 0..2 {
        assert_eq!(busy.reply().0, 0, "the reply was sent by the old server");
        busy.take(4096);
    }
    let server = serve(server.sockets, &new, parked, Limits::default());
    assert_eq!(busy.write(0, 0, &[1; 512]), 0);
    assert_eq!(new.bytes(0, 512), [1; 512]);
    server.stop();
}

#[test]
fn many_hand_overs_under_load_lose_no_request() {
    let (_dir, path) = socket();
    let ram = Ram::new(SIZE);
    let mut server = first(&path, &ram);
    let last = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4u64)
            .map(|client| {
                let mut peer = Peer::transmitting(&path);
                scope.spawn(move || {
                    let area = client * 65536;
                    for round in 0..300u32 {
                        let byte = (round % 251) as u8 + 1;
                        // Several in flight: the socket holds requests that nobody has read at a hand-over.
                        for i in 0..4u64 {
                            peer.put(&request(0, WRITE, i, area + i * 4096, 4096));
                            peer.put(&[byte; 4096]);
                        }
                        let mut seen: Vec<u64> = (0..4)
                            .map(|_| {
                                let (error, cookie) = peer.reply();
                                assert_eq!(error, 0);
                                cookie
                            })
                            .collect();
                        seen.sort_unstable();
                        assert_eq!(seen, [0, 1, 2, 3], "each once");
                        assert_eq!(peer.read(area + u64::from(round % 4) * 4096, 4096), vec![byte; 4096]);
                    }
                })
            })
            .collect();
        let mut hand_overs = 0;
        while clients.iter().any(|client| !client.is_finished()) || hand_overs == 0 {
            server = server.hand_over(&ram);
            hand_overs += 1;
        }
        server
    });
    last.stop();
}

#[test]
fn a_client_that_takes_no_replies_is_cut_and_does_not_hold_the_others_up() {
    let (_dir, path) = socket();
    let ram = Ram::new(SIZE);
    let server = serve(vec![Listener::unix(&path)], &ram, Vec::new(), limits(300));
    let mut deaf = Peer::transmitting(&path);
    let mut good = Peer::transmitting(&path);
    for i in 0..64 {
        deaf.request(0, READ, i, 0, SIZE as u32);
    }
    // Its first reply is larger than the socket: from here on the server waits for the client to take it.
    while ram.take_seen().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(good.write(0, 0, &[3; 512]), 0);
    let server = server.hand_over(&ram);
    assert_eq!(good.read(0, 512), vec![3; 512]);
    assert_eq!(server.stopper.connections().len(), 1);
    server.stop();
}

#[test]
fn a_client_that_stopped_in_the_middle_of_a_write_is_cut_and_holds_nobody_up() {
    let (_dir, path) = socket();
    let ram = Ram::new(SIZE);
    // It is not the limit of the drain that ends it.
    let limits = Limits { drain_timeout_ms: 600_000, stalled_timeout_ms: 20, ..Limits::default() };
    let server = serve(vec![Listener::unix(&path)], &ram, Vec::new(), limits);
    let mut good = Peer::transmitting(&path);
    let mut stalled = [(); 2].map(|()| Peer::transmitting(&path));
    // One that is taken, and one that is refused and only skipped.
    for (peer, offset) in stalled.iter_mut().zip([0, SIZE]) {
        assert_eq!(peer.write(0, 0, &[1; 512]), 0);
        peer.request(0, WRITE, 1, offset, SIZE as u32);
        // More than the socket holds, so the server has begun to read it.
        peer.put(&[2; SIZE as usize - 4096]);
    }
    let server = server.hand_over(&ram);
    assert_eq!(good.read(0, 512), vec![1; 512], "half a write is none");
    assert_eq!(server.stopper.connections().len(), 1);
    stalled.into_iter().for_each(Peer::assert_closed);
    server.stop();
}

#[test]
fn a_write_that_keeps_coming_is_carried_out_before() {
    let (_dir, path) = socket();
    let (old, new) = (Ram::new(SIZE), Ram::new(SIZE));
    // Only its end is waited for.
    let limits = Limits { drain_timeout_ms: 600_000, stalled_timeout_ms: 600_000, ..Limits::default() };
    let server = serve(vec![Listener::unix(&path)], &old, Vec::new(), limits);
    let mut slow = Peer::transmitting(&path);
    slow.request(0, WRITE, 1, 0, SIZE as u32);
    // More than the socket holds, so the server has begun to read it.
    slow.put(&[2; SIZE as usize - 4096]);
    server.stopper.hand_over();
    slow.put(&[2; 4096]);
    let parked = server.thread.join().unwrap();
    assert_eq!(slow.reply(), (0, 1));
    assert!(old.bytes(0, SIZE as usize) == vec![2; SIZE as usize]);
    let server = serve(server.sockets, &new, parked, Limits::default());
    assert_eq!(slow.read(0, 512), vec![0; 512], "the successor goes on with it");
    server.stop();
}
