//! Random bytes at every stage, to the server and to the client: no panic, no hang.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoOp, blocking};
use blockd::nbd::client::{ConnectOptions, NbdClient, Target};
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
        (8u32..11, 0u32..4, 0u32..20, proptest::sample::select(vec!["", "base:", "base:allocation"]))
            .prop_map(|(option, count, len, query)| {
                let mut data = [0u32, count].map(u32::to_be_bytes).concat();
                for _ in 0..count {
                    data.extend(len.to_be_bytes());
                    data.extend(query.as_bytes());
                }
                let mut out = b"IHAVEOPT".to_vec();
                out.extend(option.to_be_bytes());
                out.extend((data.len() as u32).to_be_bytes());
                out.extend(data);
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
        6 => (0u16..32, 0u16..9, any::<u64>(), number, len, any::<bool>()).prop_map(
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

/// Sends everything while taking whatever comes, then half-closes; the other side must end it.
fn drive(stream: UnixStream, bytes: &[u8]) {
    let mut reading = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut sink = [0; 65536];
            while matches!(reading.read(&mut sink), Ok(n) if n > 0) {}
        });
        // The other side may close before it has taken everything.
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
        0..3,
        proptest::collection::vec(option_piece(), 0..8),
        proptest::collection::vec(request_piece(), 0..24),
    );
    runner
        .run(&pieces, |(stage, options, requests)| {
            let options = options.concat();
            let requests = requests.concat();
            if stage == 0 {
                drive(Peer::transmitting(&path).0, &requests);
            } else if stage == 1 {
                drive(Peer::structured(&path).0, &requests);
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

/// A reply to the client's only request (its cookie is 1), often nearly right.
fn reply_piece() -> impl Strategy<Value = Vec<u8>> {
    let good = (prop_oneof![Just(0u32), Just(5), any::<u32>()], prop_oneof![Just(1u64), any::<u64>()]);
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        (good, 0usize..5000).prop_map(|((errno, cookie), len)| {
            let mut out = 0x6744_6698u32.to_be_bytes().to_vec();
            out.extend(errno.to_be_bytes());
            out.extend(cookie.to_be_bytes());
            out.resize(out.len() + len, 0x5a);
            out
        }),
    ]
}

fn option_reply_piece() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![Just(1u32), Just(3), 0x8000_0001u32..0x8000_000a, any::<u32>()];
    prop_oneof![
        1 => proptest::collection::vec(any::<u8>(), 0..64),
        4 => (kind, 0u16..5, proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(kind, info, data)| {
            let mut out = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
            out.extend(7u32.to_be_bytes());
            out.extend(kind.to_be_bytes());
            out.extend((data.len() as u32 + 2).to_be_bytes());
            out.extend(info.to_be_bytes());
            out.extend(data);
            out
        }),
        2 => Just({
            // A usable export of 1 MiB, whole and acknowledged.
            let mut out = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
            out.extend(7u32.to_be_bytes());
            out.extend(3u32.to_be_bytes());
            out.extend(12u32.to_be_bytes());
            out.extend([0, 0]);
            out.extend((1u64 << 20).to_be_bytes());
            out.extend(0b110_1101u16.to_be_bytes());
            out.extend(0x0003_e889_0455_65a9u64.to_be_bytes());
            out.extend(7u32.to_be_bytes());
            out.extend(1u32.to_be_bytes());
            out.extend(0u32.to_be_bytes());
            out
        }),
    ]
}

#[test]
fn random_bytes_never_harm_the_client() {
    let (_dir, path) = socket();
    let listener = UnixListener::bind(&path).unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let pieces = (
        proptest::bool::weighted(0.9),
        proptest::collection::vec(option_reply_piece(), 0..4),
        proptest::collection::vec(reply_piece(), 0..4),
    );
    runner
        .run(&pieces, |(greeted, options, replies)| {
            let greeting = if greeted { b"NBDMAGICIHAVEOPT\0\x03".to_vec() } else { Vec::new() };
            let bytes = [greeting, options.concat(), replies.concat()].concat();
            std::thread::scope(|scope| {
                scope.spawn(|| drive(listener.accept().unwrap().0, &bytes));
                let options = ConnectOptions { handshake_timeout_ms: 60_000, ..ConnectOptions::fail_fast() };
                if let Ok(client) = NbdClient::connect(&Target::socket(&path), options) {
                    let op = IoOp::Read { offset: 0, buf: AlignedBuf::zeroed(4096) };
                    // Whatever the answer is, there is one, of the right length.
                    if let Ok(buf) = blocking(&client, client.connect(), op) {
                        assert_eq!(buf.expect("a buffer").len(), 4096);
                    }
                }
            });
            Ok(())
        })
        .unwrap();
}
