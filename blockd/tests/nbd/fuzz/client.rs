//! Streams of hostile servers: the client gives an answer of the right length, or an error, and never hangs.

use std::os::unix::net::UnixListener;

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoOp, blocking};
use blockd::nbd::client::{ConnectOptions, NbdClient, Target};
use proptest::prelude::*;

use super::{drive, runner};
use crate::served::socket;

const ACK: u32 = 1;
const UNSUPPORTED: u32 = 0x8000_0001;

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

/// What leads to simple replies, chunks or extended chunks.
fn form() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => Just(option_reply(11, ACK, b"")),
        3 => Just([option_reply(11, UNSUPPORTED, b""), option_reply(8, ACK, b"")].concat()),
        3 => Just([option_reply(11, UNSUPPORTED, b"no"), option_reply(8, UNSUPPORTED, b"")].concat()),
        1 => (0u32..14, any::<u32>()).prop_map(|(option, kind)| option_reply(option, kind, b"")),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
    ]
}

/// An export of 1 MiB, or something like it.
fn export() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![Just(1u32), Just(3), 0x8000_0001u32..0x8000_000b, any::<u32>()];
    prop_oneof![
        6 => Just({
            let mut data = vec![0, 0];
            data.extend((1u64 << 20).to_be_bytes());
            data.extend(0b110_1101u16.to_be_bytes());
            [option_reply(7, 3, &data), option_reply(7, ACK, b"")].concat()
        }),
        2 => (kind, 0u16..5, proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(kind, info, data)| {
            option_reply(7, kind, &[&info.to_be_bytes()[..], &data].concat())
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
    ]
}

/// A reply to the client's only request, a read of 4096 bytes at 0 with the cookie 1, or something like it.
fn reply() -> impl Strategy<Value = Vec<u8>> {
    let cookie = prop_oneof![9 => Just(1u64), 1 => any::<u64>()];
    let kind = prop_oneof![6 => 0u16..7, 2 => 0x8000u16..0x8004, 1 => any::<u16>()];
    let place = prop_oneof![4 => (0u64..9).prop_map(|n| n * 512), 1 => 0u64..5000, 1 => any::<u64>()];
    let len = prop_oneof![4 => (0usize..9).prop_map(|n| n * 512), 2 => 0usize..5000];
    let lie = prop_oneof![8 => Just(0u64), 1 => 0u64..20, 1 => any::<u64>()];
    prop_oneof![
        1 => proptest::collection::vec(any::<u8>(), 0..64),
        2 => (prop_oneof![Just(0u32), Just(5), any::<u32>()], cookie.clone(), 0usize..5000).prop_map(
            |(errno, cookie, len)| {
                let mut out = 0x6744_6698u32.to_be_bytes().to_vec();
                out.extend(errno.to_be_bytes());
                out.extend(cookie.to_be_bytes());
                out.resize(out.len() + len, 0x5a);
                out
            }
        ),
        8 => (any::<bool>(), 0u16..3, kind, cookie, place, len, lie).prop_map(
            |(extended, flags, kind, cookie, place, len, lie)| {
                let mut payload = place.to_be_bytes().to_vec();
                match kind {
                    0 => payload.clear(),
                    2 => payload.extend((len as u32).to_be_bytes()),
                    _ => payload.resize(8 + len, 0x77),
                }
                let announced = (payload.len() as u64).wrapping_add(lie);
                let mut out = if extended { 0x6e8a_278cu32 } else { 0x668e_33ef }.to_be_bytes().to_vec();
                out.extend(flags.to_be_bytes());
                out.extend(kind.to_be_bytes());
                out.extend(cookie.to_be_bytes());
                if extended {
                    out.extend(0u64.to_be_bytes());
                    out.extend(announced.to_be_bytes());
                } else {
                    out.extend((announced as u32).to_be_bytes());
                }
                out.extend(payload);
                out
            }
        ),
    ]
}

#[test]
fn random_bytes_never_harm_the_client() {
    let (_dir, path) = socket();
    let listener = UnixListener::bind(&path).unwrap();
    let pieces = (
        proptest::bool::weighted(0.95),
        form(),
        proptest::collection::vec(export(), 1..3),
        proptest::collection::vec(reply(), 0..6),
    );
    let mut answered = 0;
    runner(2)
        .run(&pieces, |(greeted, form, exports, replies)| {
            let greeting = if greeted { b"NBDMAGICIHAVEOPT\0\x03".to_vec() } else { Vec::new() };
            let bytes = [greeting, form, exports.concat(), replies.concat()].concat();
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
    // Replies that are right are taken as such, or the streams above say nothing.
    let whole = [
        b"NBDMAGICIHAVEOPT\0\x03".to_vec(),
        option_reply(11, ACK, b""),
        option_reply(
            7,
            3,
            &[&[0, 0][..], &(1u64 << 20).to_be_bytes(), &0b110_1101u16.to_be_bytes()].concat(),
        ),
        option_reply(7, ACK, b""),
        0x6e8a_278cu32.to_be_bytes().to_vec(),
        vec![0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1],
        [0u64.to_be_bytes(), 12u64.to_be_bytes(), 0u64.to_be_bytes()].concat(),
        4096u32.to_be_bytes().to_vec(),
    ]
    .concat();
    std::thread::scope(|scope| {
        scope.spawn(|| drive(listener.accept().unwrap().0, &whole));
        let client = NbdClient::connect(&Target::socket(&path), ConnectOptions::fail_fast()).unwrap();
        let mut buf = AlignedBuf::zeroed(4096);
        buf.fill(0xee);
        let back = blocking(&client, client.connect(), IoOp::Read { offset: 0, buf }).unwrap().unwrap();
        assert!(back.iter().all(|&b| b == 0), "a hole is zeros");
        answered += 1;
    });
    assert_eq!(answered, 1);
}
