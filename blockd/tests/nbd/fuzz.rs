//! Random bytes at every stage: no panic, the connection ends, and the server lives.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use crate::peer::{Peer, go, request};
use crate::ram::Ram;
use crate::served::{Served, socket};

/// A piece of a stream: often nearly right.
fn option_piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        (0u32..12, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(option, data)| {
            let mut out = b"IHAVEOPT".to_vec();
            out.extend(option.to_be_bytes());
            out.extend((data.len() as u32).to_be_bytes());
            out.extend(data);
            out
        }),
        (0u32..12, any::<u32>()).prop_map(|(option, len)| {
            let mut out = b"IHAVEOPT".to_vec();
            out.extend(option.to_be_bytes());
            out.extend(len.to_be_bytes());
            out
        }),
        proptest::collection::vec(0u16..5, 0..4).prop_map(|infos| {
            let data = go("disk", &infos);
            let mut out = b"IHAVEOPT\0\0\0\x07".to_vec();
            out.extend((data.len() as u32).to_be_bytes());
            out.extend(data);
            out
        }),
    ]
}

fn request_piece() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![Just(0u64), Just(512), Just((1 << 20) - 512), Just(1 << 20), any::<u64>()];
    let len =
        prop_oneof![Just(0u32), Just(512), Just(4096), Just(65536), 0u32..5000, Just(32 << 20), any::<u32>()];
    prop_oneof![
        1 => proptest::collection::vec(any::<u8>(), 0..64),
        6 => (0u16..4, 0u16..9, any::<u64>(), number, len, any::<bool>()).prop_map(
            |(flags, command, cookie, offset, len, complete)| {
                // A disconnect would end most streams at once.
                let command = if command == 2 { 1 } else { command };
                let mut out = request(flags, command, cookie, offset, len);
                if command == 1 && complete && len <= 65536 {
                    out.resize(out.len() + len as usize, 0xa5);
                }
                out
            }
        ),
    ]
}

/// Sends everything while taking whatever comes, then half-closes; the server must end it.
fn drive(stream: UnixStream, bytes: &[u8]) {
    let mut reading = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut sink = [0; 65536];
            while matches!(reading.read(&mut sink), Ok(n) if n > 0) {}
        });
        // The server may close before it has taken everything.
        let mut writing = &stream;
        let _ = writing.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
    });
}

#[test]
fn random_bytes_never_harm_the_server() {
    let (_dir, path) = socket();
    let ram = Ram::new(1 << 20);
    let _served = Served::start(&path, ram.clone());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let pieces = (
        any::<bool>(),
        proptest::collection::vec(option_piece(), 0..8),
        proptest::collection::vec(request_piece(), 0..24),
    );
    runner
        .run(&pieces, |(transmitting, options, requests)| {
            let options = options.concat();
            let requests = requests.concat();
            if transmitting {
                drive(Peer::transmitting(&path).0, &requests);
            } else {
                let mut peer = Peer::greeted(&path);
                peer.put(&3u32.to_be_bytes());
                drive(peer.0, &[options, requests].concat());
            }
            ram.wait_connected(0);
            Ok(())
        })
        .unwrap();
    assert_eq!(Peer::transmitting(&path).read(0, 512).len(), 512);
}
