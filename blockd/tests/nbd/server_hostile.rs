//! Peers that break the protocol: the connection ends or the request fails, and the server lives.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use blockd::nbd::server::{Export, Exports, Limits, Listener, Security};

use crate::peer::{CACHE, DISC, FLUSH, Peer, READ, TRIM, WRITE, ZEROES, go, request};
use crate::ram::Ram;
use crate::served::{Served, socket};

const MIB: u64 = 1 << 20;

/// The server still serves honest clients.
fn assert_alive(path: &std::path::Path) {
    let mut peer = Peer::transmitting(path);
    assert_eq!(peer.read(0, 512).len(), 512);
    peer.request(0, DISC, 0, 0, 0);
    peer.assert_closed();
}

#[test]
fn a_broken_negotiation_closes_the_connection() {
    let (_dir, path) = socket();
    let _served = Served::start(&path, Ram::new(MIB));
    // Unknown client flags; not fixed newstyle.
    for flags in [0xffff_ffffu32, 4, 0] {
        let mut peer = Peer::greeted(&path);
        peer.put(&flags.to_be_bytes());
        peer.assert_closed();
    }
    // A wrong option magic.
    let mut peer = Peer::negotiating(&path);
    peer.put(&[b'X'; 16]);
    peer.assert_closed();
    // An option of 4 GiB.
    let mut peer = Peer::negotiating(&path);
    peer.put(b"IHAVEOPT");
    peer.put(&7u32.to_be_bytes());
    peer.put(&u32::MAX.to_be_bytes());
    peer.assert_closed();
    // Options without end.
    let mut peer = Peer::negotiating(&path);
    for _ in 0..64 {
        peer.option(3, b"");
    }
    for _ in 0..64 {
        peer.option_reply();
        peer.option_reply();
    }
    peer.assert_closed();
    // Gone in the middle of an option.
    let mut peer = Peer::negotiating(&path);
    peer.put(b"IHAVEOPT\0\0\0\x07\0\0\0\x20abc");
    peer.0.shutdown(Shutdown::Write).unwrap();
    peer.assert_closed();
    assert_alive(&path);
}

#[test]
fn a_malformed_option_is_refused_and_the_negotiation_goes_on() {
    let (_dir, path) = socket();
    let _served = Served::start(&path, Ram::new(MIB));
    let mut peer = Peer::negotiating(&path);
    let invalid = (1 << 31) + 3;
    let mut endless_name = u32::MAX.to_be_bytes().to_vec();
    endless_name.extend([0; 40]);
    let mut too_many = go("", &[]);
    *too_many.last_mut().unwrap() = 200;
    for data in [&[][..], &[0; 3], &endless_name, &too_many, &[0; 100]] {
        peer.option(7, data);
        let (option, kind, _) = peer.option_reply();
        assert_eq!((option, kind), (7, invalid), "{data:?}");
    }
    peer.option(3, b"x");
    assert_eq!(peer.option_reply().1, invalid);
    peer.option(7, &vec![0; 100_000]);
    assert_eq!(peer.option_reply().1, (1 << 31) + 9, "too big");
    peer.option(7, &go("disk", &[]));
    assert_eq!(peer.option_reply().1, 3);
}

#[test]
fn a_silent_peer_is_closed_after_the_handshake_limit() {
    let (_dir, path) = socket();
    let limits = Limits { handshake_timeout_ms: 1, ..Limits::default() };
    let _served = Served::with(&path, Ram::new(MIB), limits);
    Peer::greeted(&path).assert_closed();
}

#[test]
fn bad_requests_fail_with_their_number_and_the_stream_stays_in_step() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    const EINVAL: u32 = 22;
    const ENOSPC: u32 = 28;
    assert_eq!(peer.write(0, MIB - 512, &[1; 1024]), ENOSPC);
    assert_eq!(peer.write(0, u64::MAX - 511, &[1; 512]), ENOSPC);
    assert_eq!(peer.write(0, 1, &[1; 512]), EINVAL);
    assert_eq!(peer.write(0, 0, &[1; 513]), EINVAL);
    assert_eq!(peer.write(0x80, 0, &[1; 100_352]), EINVAL, "an unknown flag");
    assert_eq!(peer.call(0, READ, MIB, 512), EINVAL);
    assert_eq!(peer.call(0, READ, u64::MAX, u32::MAX), EINVAL);
    assert_eq!(peer.call(0, READ, 0, u32::MAX - 511), EINVAL);
    assert_eq!(peer.call(0, READ, 0, 0), EINVAL);
    assert_eq!(peer.call(0, TRIM, MIB - 512, 1024), EINVAL);
    assert_eq!(peer.call(0, ZEROES, MIB - 512, 1024), ENOSPC);
    assert_eq!(peer.call(0, FLUSH, 512, 0), EINVAL);
    assert_eq!(peer.call(0, 5, 0, 1024), 0, "NBD_CMD_CACHE has nothing to do");
    assert_eq!(peer.call(0, 5, MIB, 512), EINVAL, "but checks its range");
    assert_eq!(peer.call(0, 7, 0, 512), EINVAL, "NBD_CMD_BLOCK_STATUS was not negotiated");
    assert_eq!(peer.call(0, 0xffff, 0, 0), EINVAL);
    // A write longer than any payload: its bytes are skipped, not kept.
    let len = (32 << 20) + 512;
    peer.request(0, WRITE, 5, 0, len);
    for _ in 0..len / 512 {
        peer.put(&[9; 512]);
    }
    assert_eq!(peer.reply(), (EINVAL, 5));
    assert_eq!(ram.take_seen(), [], "nothing reached the device");
    assert_eq!(peer.read(0, 512), [0; 512]);
}

#[test]
fn a_wrong_request_magic_closes_the_connection_after_what_came_before() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    let mut bytes = request(0, READ, 1, 0, 512);
    bytes.extend([0; 28]);
    bytes.extend(request(0, WRITE, 2, 0, 512));
    bytes.extend([3; 512]);
    peer.put(&bytes);
    assert_eq!(peer.reply(), (0, 1));
    peer.take(512);
    peer.assert_closed();
    assert_eq!(ram.take_seen().len(), 1, "what follows is not carried out");
    ram.wait_connected(0);
    assert_alive(&path);
}

#[test]
fn a_write_cut_off_in_its_payload_is_not_carried_out() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    peer.request(0, WRITE, 1, 0, 65536);
    peer.put(&[1; 60_000]);
    drop(peer);
    ram.wait_connected(0);
    assert_eq!(ram.take_seen(), []);
    assert_alive(&path);
}

#[test]
fn a_peer_that_takes_no_replies_is_bounded_and_cut_when_the_server_stops() {
    let (_dir, path) = socket();
    let ram = Ram::new(64 * MIB);
    let limits = Limits { requests: 8, payload_bytes: 4 << 20, drain_timeout_ms: 1, ..Limits::default() };
    let served = Served::with(&path, ram.clone(), limits);
    let mut peer = Peer::transmitting(&path);
    for cookie in 0..64 {
        peer.request(0, READ, cookie, 0, 1 << 20);
    }
    // The first reply comes, so the server is at work; the rest is never read.
    assert_eq!(peer.reply(), (0, 0));
    served.stop();
    // At most the budget was read from the device, and what the reply we took made room for.
    assert!(ram.take_seen().len() <= 6, "memory is bounded");
    assert_eq!(ram.connected(), 0);
}

#[test]
fn requests_in_flight_are_bounded() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let limits = Limits { requests: 4, ..Limits::default() };
    let _served = Served::with(&path, ram.clone(), limits);
    let mut peer = Peer::transmitting(&path);
    ram.hold();
    for cookie in 0..10 {
        peer.request(0, READ, cookie, 0, 512);
    }
    ram.wait_held(4);
    for cookie in 0..10 {
        assert!(ram.held() <= 4);
        ram.wait_held(1);
        ram.release(0);
        assert_eq!(peer.reply(), (0, cookie));
        peer.take(512);
    }
}

#[test]
fn connections_beyond_the_limit_are_refused() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let limits = Limits { connections: 2, ..Limits::default() };
    let _served = Served::with(&path, ram.clone(), limits);
    let one = Peer::transmitting(&path);
    let _two = Peer::transmitting(&path);
    let mut three = Peer::negotiating(&path);
    three.option(7, &go("disk", &[]));
    let (option, kind, text) = three.option_reply();
    assert_eq!((option, kind), (7, (1 << 31) + 2), "by policy");
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("all 2 connections") && text.contains("--connections"), "{text}");
    // To ask costs no place.
    three.option(6, &go("disk", &[]));
    assert_eq!(three.option_reply().1, 3);
    assert_eq!(three.option_reply().1, 3);
    assert_eq!(three.option_reply().1, 1);
    drop(one);
    ram.wait_connected(1);
    // The place is given back once the connection's thread has ended.
    loop {
        let mut three = Peer::negotiating(&path);
        three.option(7, &go("disk", &[]));
        if three.option_reply().1 == 3 {
            break;
        }
    }
}

#[test]
fn a_new_connection_waits_for_what_a_left_one_began() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    let mut old = Peer::transmitting(&path);
    ram.hold();
    old.request(0, WRITE, 1, 0, 512);
    old.put(&[1; 512]);
    ram.wait_held(1);
    drop(old);
    // What is sent on a new connection must not be overtaken by the old write.
    let mut new = Peer::transmitting(&path);
    new.request(0, WRITE, 2, 0, 512);
    new.put(&[2; 512]);
    ram.release_all();
    assert_eq!(new.reply(), (0, 2));
    assert_eq!(ram.bytes(0, 512), [2; 512]);
    assert_eq!(ram.take_seen().len(), 2);
}

#[test]
fn a_client_that_left_half_and_takes_nothing_keeps_no_other_one_out() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let limits = Limits { requests: 8, payload_bytes: 4 << 20, left_timeout_ms: 1, ..Limits::default() };
    let _served = Served::with(&path, ram.clone(), limits);
    let mut old = Peer::transmitting(&path);
    for cookie in 0..64 {
        old.request(0, READ, cookie, 0, MIB as u32);
    }
    old.request(0, WRITE, 64, 0, 512);
    old.put(&[1; 512]);
    // The server is at work on it, and will wait for the client to take more.
    assert_eq!(old.reply(), (0, 0));
    old.0.shutdown(Shutdown::Write).unwrap();
    let mut new = Peer::transmitting(&path);
    assert_eq!(new.write(0, 0, &[2; 512]), 0);
    // The old one is at its end, and its write did not overtake the new one's.
    ram.wait_connected(1);
    assert_eq!(new.read(0, 512), [2; 512]);
    assert!(ram.take_seen().len() < 32, "what was left of the old one's requests is not carried out");
    drop(old);
}

#[test]
fn a_client_that_left_half_and_takes_its_replies_gets_them_all() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::with(&path, ram, Limits { left_timeout_ms: 600_000, ..Limits::default() });
    let mut old = Peer::transmitting(&path);
    for cookie in 0..64 {
        old.request(0, READ, cookie, 0, MIB as u32);
    }
    old.0.shutdown(Shutdown::Write).unwrap();
    let mut new = Peer::transmitting(&path);
    let reading = std::thread::spawn(move || {
        for cookie in 0..64 {
            assert_eq!(old.reply(), (0, cookie));
            old.take(MIB as usize);
        }
        old.assert_closed();
    });
    assert_eq!(new.write(0, 0, &[2; 512]), 0);
    reading.join().unwrap();
}

#[test]
fn a_server_that_stops_reads_no_more_than_had_come_from_a_client_that_never_pauses() {
    // More than sockets hold, by far.
    const REQUESTS_MAX: usize = 4_000_000;
    let exports = Exports::single(Export::new("disk", Ram::new(MIB)).unwrap());
    let listener = Listener::at("tcp:127.0.0.1:0".parse().unwrap(), Security::Insecure);
    // It is not the limit of the drain that ends it.
    let limits = Limits { drain_timeout_ms: 600_000, ..Limits::default() };
    let (served, addresses) = Served::listening(vec![listener], exports, limits);
    let mut peer = Peer(TcpStream::connect(addresses[0].strip_prefix("tcp:").unwrap()).unwrap());
    peer.hear_greeting();
    peer.put(&3u32.to_be_bytes());
    peer.go("");
    let many = Arc::new(request(0, CACHE, 7, 0, 512).repeat(1000));
    let mut sending = peer.0.try_clone().unwrap();
    let sender =
        std::thread::spawn(move || (0..REQUESTS_MAX / 1000).all(|_| sending.write_all(&many).is_ok()));
    for _ in 0..5000 {
        assert_eq!(peer.reply(), (0, 7));
    }
    let receiver = std::thread::spawn(move || {
        let mut some = vec![0; 1 << 20];
        while peer.0.read(&mut some).is_ok_and(|n| n > 0) {}
    });
    served.stop();
    assert!(!sender.join().unwrap(), "all was taken");
    receiver.join().unwrap();
}

#[test]
fn what_had_come_before_a_stop_is_answered() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    ram.hold();
    peer.request(0, READ, 0, 0, 512);
    ram.wait_held(1);
    let mut bytes = request(0, WRITE, 1, 0, 65536);
    bytes.extend([3; 65536]);
    bytes.extend(request(0, READ, 2, 0, 512));
    peer.put(&bytes);
    let stopper = served.stopper();
    stopper.stop();
    ram.release_all();
    let mut cookies: Vec<u64> = Vec::new();
    for _ in 0..3 {
        let (error, cookie) = peer.reply();
        assert_eq!(error, 0);
        if cookie != 1 {
            peer.take(512);
        }
        cookies.push(cookie);
    }
    cookies.sort_unstable();
    assert_eq!(cookies, [0, 1, 2]);
    peer.assert_closed();
}
