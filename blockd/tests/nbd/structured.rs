//! Structured replies, metadata contexts and block status, byte by byte.

use blockd::device::{DeviceInfo, IoError, VolumeKind};

use crate::peer::{CACHE, Chunk, FLUSH, Peer, READ, TRIM, WRITE, ZEROES, meta};
use crate::ram::{Ram, Seen, tagged};
use crate::served::{Served, socket};

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;
const INVALID: u32 = (1 << 31) + 3;

fn done(kind: u16, cookie: u64, payload: impl Into<Vec<u8>>) -> Chunk {
    Chunk { flags: 1, kind, cookie, payload: payload.into() }
}

#[test]
fn reads_come_as_data_and_holes() {
    let (_dir, path) = socket();
    let ram = Ram::new(4 * MIB);
    let _served = Served::start(&path, ram.clone());
    let mut plain = Peer::transmitting(&path);
    assert_eq!(plain.write(0, 256 * KIB, &tagged(7, 64 << 10)), 0);
    let mut peer = Peer::structured(&path);
    peer.request(0, READ, 5, 0, 512);
    assert_eq!(peer.chunks(), [done(2, 5, [&[0; 8][..], &512u32.to_be_bytes()].concat())]);
    // Hole, data, hole.
    peer.request(0, READ, 6, 0, 1 << 20);
    let chunks = peer.chunks();
    assert_eq!(chunks.iter().map(|c| (c.kind, c.flags)).collect::<Vec<_>>(), [(2, 0), (1, 0), (2, 1)]);
    assert!(chunks.iter().all(|c| c.cookie == 6));
    assert_eq!(chunks[0].payload, [&[0; 8][..], &(256u32 << 10).to_be_bytes()].concat());
    assert_eq!(chunks[1].payload[..8], (256 * KIB).to_be_bytes());
    assert!(chunks[1].payload[8..] == tagged(7, 64 << 10)[..]);
    assert_eq!(
        chunks[2].payload,
        [&(320 * KIB).to_be_bytes()[..], &((1u32 << 20) - (320 << 10)).to_be_bytes()].concat()
    );
    // DF: in one piece all the same.
    peer.request(4, READ, 7, 0, 1 << 20);
    let chunks = peer.chunks();
    assert_eq!((chunks.len(), chunks[0].kind, chunks[0].payload.len()), (1, 1, 8 + (1 << 20)));
    assert_eq!(chunks[0].payload[8..], ram.bytes(0, 1 << 20));
    peer.request(4, READ, 8, MIB, 4096);
    assert_eq!(peer.chunks(), [done(2, 8, [&MIB.to_be_bytes()[..], &4096u32.to_be_bytes()].concat())]);
    // A client that did not ask for chunks gets none.
    assert_eq!(plain.read(0, 1 << 20), ram.bytes(0, 1 << 20));
    assert_eq!(plain.call(4, READ, 0, 512), 22, "DF without structured replies");
}

#[test]
fn the_largest_read_of_many_holes_is_whole() {
    let (_dir, path) = socket();
    let ram = Ram::new(32 * MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::structured(&path);
    for i in 0..256 {
        peer.request(0, WRITE, i, i * 128 * KIB, 64 << 10);
        peer.put(&tagged(i + 1, 64 << 10));
        assert_eq!(peer.chunks(), [done(0, i, [])]);
    }
    peer.request(0, READ, 5, 0, 32 << 20);
    let chunks = peer.chunks();
    assert_eq!(chunks.len(), 512);
    let mut bytes = vec![0xee; 32 << 20];
    for chunk in chunks {
        let at = u64::from_be_bytes(chunk.payload[..8].try_into().unwrap()) as usize;
        if chunk.kind == 1 {
            bytes[at..at + chunk.payload.len() - 8].copy_from_slice(&chunk.payload[8..]);
        } else {
            assert_eq!(chunk.kind, 2);
            let len = u32::from_be_bytes(chunk.payload[8..].try_into().unwrap());
            bytes[at..at + len as usize].fill(0);
        }
    }
    assert!(bytes == ram.bytes(0, 32 << 20));
}

#[test]
fn commands_without_data_and_errors_come_in_chunks_too() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::structured(&path);
    for (flags, command, len) in
        [(0, FLUSH, 0), (0, TRIM, 4096), (0b1_0001, ZEROES, 4096), (0, CACHE, 4096), (0, CACHE, 1 << 20)]
    {
        peer.request(flags, command, 3, 0, len);
        assert_eq!(peer.chunks(), [done(0, 3, [])], "{command}");
    }
    assert_eq!(ram.take_seen(), [Seen::Flush, Seen::Trim(0, 4096), Seen::WriteZeroes(0, 4096)]);
    let long = format!("page {}é", "x".repeat(300));
    ram.set_fault(move |_| Some(IoError::Io(long.clone())));
    for command in [READ, FLUSH] {
        peer.request(0, command, 4, 0, if command == READ { 512 } else { 0 });
        let chunks = peer.chunks();
        assert_eq!((chunks.len(), chunks[0].kind), (1, 0x8001));
        assert_eq!(chunks[0].payload[..6], [0, 0, 0, 5, 1, 0]);
        assert!(chunks[0].payload[6..].starts_with(b"I/O error: page xxx"));
        assert_eq!(chunks[0].payload.len(), 6 + 256);
    }
    assert_eq!(peer.status(0, 0, 4096), Err(5));
    ram.set_fault(|_| None);
    // Refused before the device hears of it; the stream stays in step.
    peer.request(0, WRITE, 9, MIB, 512);
    peer.put(&[1; 512]);
    assert_eq!(peer.chunk().payload[..4], 28u32.to_be_bytes());
    assert_eq!(peer.status(0, 0, 4096), Ok(vec![(4096, 3)]));
    ram.set_fault(|_| Some(IoError::Shutdown));
    peer.request(0, crate::peer::STATUS, 1, 0, 512);
    peer.assert_closed();
}

#[test]
fn block_status_tells_holes_and_keeps_its_bounds() {
    let (_dir, path) = socket();
    let ram = Ram::new(32 * MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::structured(&path);
    for page in [1u64, 2, 5] {
        peer.request(0, WRITE, 1, page * 4096, 4096);
        peer.put(&[1; 4096]);
        peer.chunks();
    }
    let all = [(4096, 3), (8192, 0), (8192, 3), (4096, 0), ((1 << 20) - 6 * 4096, 3)];
    assert_eq!(peer.status(0, 0, 1 << 20), Ok(all.to_vec()));
    assert_eq!(peer.status(8, 0, 1 << 20), Ok(vec![(4096, 3)]), "REQ_ONE");
    assert_eq!(peer.status(8, 4096, 1 << 20), Ok(vec![(8192, 0)]));
    assert_eq!(peer.status(0, 4096 + 512, 4096), Ok(vec![(4096, 0)]));
    assert_eq!(peer.status(0, 8192 + 512, 4096), Ok(vec![(3584, 0), (512, 3)]));
    assert_eq!(peer.status(0, 32 * MIB - 512, 512), Ok(vec![(512, 3)]));
    // Trimmed pages are holes again.
    peer.request(0, TRIM, 1, 4096, 4096);
    peer.chunks();
    assert_eq!(peer.status(0, 0, 4 * 4096), Ok(vec![(8192, 3), (4096, 0), (4096, 3)]));
    for (flags, offset, len) in [
        (0, 0, 0),
        (0, 1, 512),
        (0, 0, 100),
        (0, 32 * MIB, 512),
        (0, u64::MAX - 511, 512),
        (0, 0, u32::MAX),
        (4, 0, 512),
    ] {
        assert_eq!(peer.status(flags, offset, len), Err(22), "{flags} {offset} {len}");
    }
    // Every other page: more extents than one answer may have.
    for page in (0..4096u64).step_by(2) {
        peer.request(0, WRITE, 1, 16 * MIB + page * 4096, 4096);
        peer.put(&[1; 4096]);
        peer.chunks();
    }
    let extents = peer.status(0, 16 * MIB, 16 << 20).unwrap();
    assert_eq!(extents.len(), 1024);
    assert!(extents.iter().enumerate().all(|(i, &e)| e == (4096, if i % 2 == 0 { 0 } else { 3 })));
}

#[test]
fn contexts_are_listed_chosen_and_forgotten() {
    let (_dir, path) = socket();
    let _served = Served::start(&path, Ram::new(MIB));
    let allocation = |number: u8| [&[0, 0, 0, number][..], b"base:allocation"].concat();
    let mut peer = Peer::negotiating(&path);
    peer.option(10, &meta("", &["base:allocation"]));
    assert_eq!(peer.option_reply().1, INVALID, "structured replies come first");
    peer.option(8, b"x");
    assert_eq!(peer.option_reply().1, INVALID);
    peer.option(8, b"");
    assert_eq!(peer.option_reply(), (8, 1, vec![]));
    for (queries, found) in [
        (&[][..], true),
        (&["base:"][..], true),
        (&["x:y", "base:allocation"][..], true),
        (&["base:allocatio", "x:", ""][..], false),
    ] {
        peer.option(9, &meta("disk", queries));
        if found {
            assert_eq!(peer.option_reply(), (9, 4, allocation(0)), "{queries:?}");
        }
        assert_eq!(peer.option_reply(), (9, 1, vec![]), "{queries:?}");
    }
    // No wildcards when choosing.
    for queries in [&[][..], &["base:"]] {
        peer.option(10, &meta("disk", queries));
        assert_eq!(peer.option_reply(), (10, 1, vec![]));
    }
    for option in [9, 10] {
        peer.option(option, &meta("other", &["base:allocation"]));
        assert_eq!(peer.option_reply().1, (1 << 31) + 6);
        let mut lying = meta("", &["base:allocation"]);
        lying[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        for data in [&[][..], &[0xff; 100], &lying, &meta("", &[&"q".repeat(4097)])] {
            peer.option(option, data);
            assert_eq!(peer.option_reply().1, INVALID, "{data:?}");
        }
    }
    // A choice, and a failed one after it, which voids it.
    peer.option(10, &meta("disk", &["base:allocation"]));
    assert_eq!(peer.option_reply(), (10, 4, allocation(1)));
    assert_eq!(peer.option_reply().1, 1);
    peer.option(10, b"");
    assert_eq!(peer.option_reply().1, INVALID);
    assert_eq!(peer.go("disk"), 0b1101_1110_1101, "SEND_DF");
    assert_eq!(peer.status(0, 0, 512), Err(22));
    // Chosen for a name, used under another.
    let mut peer = Peer::negotiating(&path);
    peer.option(8, b"");
    peer.option_reply();
    peer.option(10, &meta("disk", &["base:allocation"]));
    peer.option_reply();
    peer.option_reply();
    peer.go("");
    assert_eq!(peer.status(0, 0, 512), Err(22));
}

#[test]
fn a_read_only_export_says_its_status_and_refuses_changes() {
    let (_dir, path) = socket();
    let info = DeviceInfo {
        kind: VolumeKind::Raw,
        size_bytes: MIB,
        block_bytes_min: 512,
        read_only: true,
        uuid: uuid::Uuid::nil(),
    };
    let _served = Served::start(&path, Ram::with(info));
    let mut peer = Peer::structured(&path);
    for (command, flags) in [(WRITE, 0), (TRIM, 0), (ZEROES, 16)] {
        peer.request(flags, command, 1, 0, 512);
        if command == WRITE {
            peer.put(&[1; 512]);
        }
        let chunk = peer.chunk();
        assert_eq!((chunk.kind, &chunk.payload[..4]), (0x8001, &[0, 0, 0, 1][..]));
    }
    assert_eq!(peer.status(0, 0, 1 << 20), Ok(vec![(1 << 20, 3)]));
}
