//! Extended headers, byte by byte: 64-bit lengths, and payloads that the flags announce.

use blockd::device::{DeviceInfo, IoError, VolumeKind};

use crate::peer::{CACHE, Chunk, FLUSH, Peer, READ, STATUS, TRIM, WRITE, ZEROES, long_request, meta};
use crate::ram::{Ram, Seen, tagged};
use crate::served::{Served, socket};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
const INVALID: u32 = (1 << 31) + 3;

fn done(kind: u16, cookie: u64, payload: impl Into<Vec<u8>>) -> Chunk {
    Chunk { flags: 1, kind, cookie, payload: payload.into() }
}

fn error_of(chunks: &[Chunk]) -> u32 {
    assert_eq!((chunks.len(), chunks[0].kind), (1, 0x8001));
    u32::from_be_bytes(chunks[0].payload[..4].try_into().unwrap())
}

/// NBD_CMD_BLOCK_STATUS: (length, state) of each extent, or the error.
fn status(peer: &mut Peer, flags: u16, offset: u64, len: u64) -> Result<Vec<(u64, u64)>, u32> {
    peer.long_request(flags, STATUS, 79, offset, len);
    let chunks = peer.long_chunks(offset);
    if chunks[0].kind != 6 {
        return Err(error_of(&chunks));
    }
    let payload = &chunks[0].payload;
    let words: Vec<u64> =
        payload[8..].chunks_exact(8).map(|w| u64::from_be_bytes(w.try_into().unwrap())).collect();
    assert_eq!(payload[..4], [0, 0, 0, 1], "the context");
    assert_eq!(payload[4..8], ((words.len() / 2) as u32).to_be_bytes(), "the count");
    Ok(words.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

#[test]
fn ranges_beyond_32_bits_pass_in_one_request() {
    let (_dir, path) = socket();
    let ram = Ram::new(4 * TIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::extended(&path);
    peer.long_request(1, WRITE, 1, TIB, 8192);
    peer.put(&tagged(7, 8192));
    assert_eq!(peer.long_chunks(TIB), [done(0, 1, [])]);
    assert_eq!(
        status(&mut peer, 0, 0, 4 * TIB),
        Ok(vec![(TIB, 3), (8192, 0), (3 * TIB - 8192, 3)]),
        "one answer for all"
    );
    assert_eq!(status(&mut peer, 8, TIB - 512, 2 * TIB), Ok(vec![(512, 3)]), "REQ_ONE");
    peer.long_request(0, TRIM, 2, MIB, 2 * TIB);
    assert_eq!(peer.long_chunks(MIB), [done(0, 2, [])]);
    peer.long_request(0b1_0001, ZEROES, 3, 0, 4 * TIB);
    assert_eq!(peer.long_chunks(0), [done(0, 3, [])]);
    peer.long_request(0, CACHE, 4, 0, 4 * TIB);
    assert_eq!(peer.long_chunks(0), [done(0, 4, [])]);
    peer.long_request(0, FLUSH, 5, 0, 0);
    assert_eq!(peer.long_chunks(0), [done(0, 5, [])]);
    assert_eq!(status(&mut peer, 0, 0, 4 * TIB), Ok(vec![(4 * TIB, 3)]));
    let seen: Vec<_> = ram.take_seen().into_iter().filter(|s| !matches!(s, Seen::Allocation(..))).collect();
    assert_eq!(
        seen,
        [
            Seen::Write { offset: TIB, len: 8192, fua: true },
            Seen::Trim(MIB, 2 * TIB),
            Seen::WriteZeroes(0, 4 * TIB),
            Seen::Flush
        ]
    );
    for (command, offset, len, number) in [
        (TRIM, MIB, 4 * TIB, 22),
        (ZEROES, MIB, 4 * TIB, 28),
        (TRIM, 512, u64::MAX - 511, 22),
        (ZEROES, 0, u64::MAX, 22),
        (CACHE, 4 * TIB, 512, 22),
        (READ, 0, 4 * TIB, 22),
        (READ, 0, (32 << 20) + 512, 22),
        (FLUSH, 0, 1 << 32, 22),
        (STATUS, 0, 1 << 63, 22),
    ] {
        peer.long_request(0, command, 9, offset, len);
        assert_eq!(error_of(&peer.long_chunks(offset)), number, "{command} {offset} {len}");
    }
    assert_eq!(ram.take_seen(), [], "nothing of this reached the device");
}

#[test]
fn reads_and_errors_come_in_extended_chunks_only() {
    let (_dir, path) = socket();
    let ram = Ram::new(4 * MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::extended(&path);
    peer.long_request(0, WRITE, 1, 256 * KIB, 64 * KIB);
    peer.put(&tagged(7, 64 << 10));
    assert_eq!(peer.long_chunks(256 * KIB), [done(0, 1, [])]);
    peer.long_request(0, READ, 2, 4096, 512 * KIB);
    let chunks = peer.long_chunks(4096);
    assert_eq!(chunks.iter().map(|c| (c.kind, c.flags)).collect::<Vec<_>>(), [(2, 0), (1, 0), (2, 1)]);
    assert_eq!(chunks[0].payload, [&4096u64.to_be_bytes()[..], &(252u32 << 10).to_be_bytes()].concat());
    assert_eq!(chunks[1].payload[..8], (256 * KIB).to_be_bytes());
    assert!(chunks[1].payload[8..] == tagged(7, 64 << 10)[..]);
    peer.long_request(4, READ, 3, 0, 512 * KIB);
    let chunks = peer.long_chunks(0);
    assert_eq!((chunks.len(), chunks[0].payload.len()), (1, 8 + (512 << 10)), "DF");
    ram.set_fault(|_| Some(IoError::Io("page 77 is bad".into())));
    for command in [READ, WRITE, FLUSH, STATUS] {
        let len = if command == FLUSH { 0 } else { 512 };
        peer.long_request(0, command, 4, 0, len);
        if command == WRITE {
            peer.put(&[1; 512]);
        }
        let chunks = peer.long_chunks(0);
        assert_eq!(error_of(&chunks), 5);
        assert!(chunks[0].payload.ends_with(b"page 77 is bad"));
    }
}

#[test]
fn payloads_are_where_the_flag_says_and_stay_in_step() {
    let (_dir, path) = socket();
    let ram = Ram::new(4 * MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::extended(&path);
    // A payload behind any other command is skipped, and the command refused.
    for command in [READ, FLUSH, TRIM, CACHE, ZEROES, STATUS, 99] {
        peer.long_request(32, command, 1, 0, 70_000 / 512 * 512);
        peer.put(&vec![0x21; 70_000 / 512 * 512]);
        assert_eq!(error_of(&peer.long_chunks(0)), 22, "{command}");
    }
    // As QEMU 10 sends it: a write without the flag has its payload all the same.
    peer.put(&long_request(0, WRITE, 2, 4096, 512));
    peer.put(&[5; 512]);
    assert_eq!(peer.long_chunks(4096), [done(0, 2, [])]);
    assert_eq!(ram.take_seen(), [Seen::Write { offset: 4096, len: 512, fua: false }]);
    // A write that is refused.
    peer.long_request(0, WRITE, 3, 4 * MIB, 1024);
    peer.put(&[5; 1024]);
    assert_eq!(error_of(&peer.long_chunks(4 * MIB)), 28);
    peer.long_request(0, READ, 4, 4096, 512);
    assert_eq!(peer.long_chunks(4096)[0].payload[8..], [5; 512], "in step");
    // More than any payload may have: the connection ends, it is not read for ever.
    for len in [(32 << 20) + 1, u64::MAX, 1 << 32] {
        let mut peer = Peer::extended(&path);
        peer.long_request(0, WRITE, 5, 0, len);
        peer.assert_closed();
        let mut peer = Peer::extended(&path);
        peer.long_request(32, READ, 5, 0, len);
        peer.assert_closed();
    }
    // A compact request on such a connection.
    let mut peer = Peer::extended(&path);
    peer.request(0, READ, 1, 0, 512);
    peer.put(&[0; 4]);
    peer.assert_closed();
    ram.wait_connected(1);
}

#[test]
fn extended_headers_are_chosen_once_and_include_chunks() {
    let (_dir, path) = socket();
    let _served = Served::start(&path, Ram::new(MIB));
    let mut peer = Peer::negotiating(&path);
    peer.option(11, b"x");
    assert_eq!(peer.option_reply().1, INVALID);
    peer.option(8, b"");
    assert_eq!(peer.option_reply().1, 1, "chunks first do no harm");
    peer.option(11, b"");
    assert_eq!(peer.option_reply(), (11, 1, vec![]));
    peer.option(11, b"");
    assert_eq!(peer.option_reply().1, INVALID, "twice");
    peer.option(8, b"");
    assert_eq!(peer.option_reply().1, (1 << 31) + 10, "extended headers are chosen");
    peer.option(10, &meta("disk", &["base:allocation"]));
    assert_eq!(peer.option_reply().1, 4);
    assert_eq!(peer.option_reply().1, 1);
    assert_eq!(peer.go("disk"), 0b1101_1110_1101, "SEND_DF");
    assert_eq!(status(&mut peer, 0, 0, 512), Ok(vec![(512, 3)]));
    // NBD_OPT_EXPORT_NAME must not follow.
    let mut peer = Peer::negotiating(&path);
    peer.option(11, b"");
    peer.option_reply();
    peer.option(1, b"disk");
    peer.assert_closed();
}

#[test]
fn the_whole_of_a_vexfs_device_is_one_request() {
    let (_dir, path) = socket();
    let info = DeviceInfo {
        kind: VolumeKind::VexFs,
        size_bytes: 1 << 62,
        block_bytes_min: 4096,
        read_only: false,
        uuid: uuid::Uuid::from_u128(9),
    };
    let ram = Ram::with(info);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::extended(&path);
    assert_eq!(status(&mut peer, 0, 0, 1 << 62), Ok(vec![(1 << 62, 3)]));
    peer.long_request(0, ZEROES, 1, 4096, (1 << 62) - 4096);
    assert_eq!(peer.long_chunks(4096), [done(0, 1, [])]);
    assert_eq!(ram.take_seen().last(), Some(&Seen::WriteZeroes(4096, (1 << 62) - 4096)));
}
