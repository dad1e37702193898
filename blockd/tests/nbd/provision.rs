//! NBD_CMD_WRITE_ZEROES with NBD_CMD_FLAG_NO_HOLE: the space is taken, bit by bit, and for nobody's harm.

use blockd::device::{Device, IoError, VolumeKind};
use blockd::volume::{CreateOptions, OpenOptions, Volume};

use crate::peer::{Peer, READ, ZEROES};
use crate::ram::{Ram, Seen};
use crate::served::{Served, socket};

const MIB: u64 = 1 << 20;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const FAST_ZERO: u16 = 16;

#[test]
fn zeros_without_holes_are_written_in_portions_and_made_durable_at_the_end() {
    let (_dir, path) = socket();
    let ram = Ram::new(8 * MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    assert_eq!(peer.write(0, 0, &vec![7; 4 << 20]), 0);
    ram.take_seen();
    assert_eq!(peer.call(NO_HOLE | FUA, ZEROES, 512, (2 * MIB) as u32), 0);
    let portions =
        [(512, MIB - 512), (MIB, MIB), (2 * MIB, 512)].map(|(offset, len)| Seen::NoHole(offset, len));
    assert_eq!(ram.take_seen(), [&portions[..], &[Seen::Flush]].concat());
    assert_eq!(ram.bytes(0, 512), [7; 512]);
    assert!(ram.bytes(512, 2 << 20).iter().all(|&byte| byte == 0));
    assert_eq!(ram.bytes(2 * MIB + 512, 512), [7; 512]);
    // What fits into one is a request like others.
    assert_eq!(peer.call(NO_HOLE, ZEROES, 512, 4096), 0);
    assert_eq!(ram.take_seen(), [Seen::NoHole(512, 4096)]);
    assert_eq!(peer.call(0, ZEROES, 0, (2 * MIB) as u32), 0);
    assert_eq!(ram.take_seen(), [Seen::WriteZeroes(0, 2 * MIB)]);
    assert_eq!(peer.call(NO_HOLE | FAST_ZERO, ZEROES, 0, 4096), 95, "not as fast as that");
    assert_eq!(ram.take_seen(), []);
}

#[test]
fn other_requests_come_in_between() {
    let (_dir, path) = socket();
    let ram = Ram::new(8 * MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    ram.hold();
    peer.request(NO_HOLE, ZEROES, 1, 0, (8 * MIB) as u32);
    ram.wait_held(1);
    peer.request(0, READ, 2, 0, 512);
    ram.wait_held(2);
    assert_eq!(ram.held(), 2, "one portion at a time");
    ram.release(1);
    assert_eq!(peer.reply(), (0, 2));
    peer.take(512);
    ram.release_all();
    assert_eq!(peer.reply(), (0, 1));
    assert_eq!(ram.take_seen().len(), 9);
}

#[test]
fn a_failure_ends_it() {
    let (_dir, path) = socket();
    let ram = Ram::new(8 * MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    ram.set_fault(|seen| (*seen == Seen::NoHole(MIB, MIB)).then_some(IoError::NoSpace));
    assert_eq!(peer.call(NO_HOLE | FUA, ZEROES, 0, (4 * MIB) as u32), 28);
    assert_eq!(ram.take_seen(), [Seen::NoHole(0, MIB), Seen::NoHole(MIB, MIB)]);
}

#[test]
fn nothing_more_is_written_for_a_client_that_is_gone() {
    let (_dir, path) = socket();
    let ram = Ram::new(64 * MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    ram.hold();
    peer.request(NO_HOLE, ZEROES, 1, 0, (64 * MIB) as u32);
    ram.wait_held(1);
    drop(peer);
    ram.release_all();
    ram.wait_connected(0);
    assert_eq!(ram.take_seen(), [Seen::NoHole(0, MIB)]);
}

#[test]
fn a_volume_keeps_room_for_what_is_written_there_later() {
    let (dir, path) = socket();
    let image = dir.path().join("image");
    // More than fits, so that space is what it is about.
    let size = 8192 * MIB;
    let options = CreateOptions {
        kind: VolumeKind::Raw,
        uuid: uuid::Uuid::new_v4(),
        size_bytes: 64 * MIB,
        raw_size_bytes: size,
        segment_bytes: 0,
        force: false,
    };
    Volume::create(&image, &options).unwrap();
    let volume = Volume::open(&image, &OpenOptions::default()).unwrap();
    let served = Served::start(&path, volume.clone());
    let mut peer = Peer::structured(&path);
    let zeroes = |peer: &mut Peer, flags, offset, len| {
        peer.request(flags, ZEROES, 1, offset, len);
        let chunk = peer.chunk();
        (chunk.kind != 0).then(|| u32::from_be_bytes(chunk.payload[..4].try_into().unwrap()))
    };
    let (base, len) = (MIB, (4 << 20) as u32);
    assert_eq!(zeroes(&mut peer, 0, base, len), None);
    assert_eq!(peer.status(0, base, len), Ok(vec![(len, 3)]), "holes");
    // Neither its beginning nor its end is that of a page.
    assert_eq!(zeroes(&mut peer, NO_HOLE | FUA, base + 512, len - 1024), None);
    assert_eq!(peer.status(0, base, len), Ok(vec![(len, 0)]), "data");
    peer.request(0, READ, 2, base, len);
    let read: Vec<_> = peer.chunks();
    let zeros =
        |chunk: &crate::peer::Chunk| chunk.kind == 2 || chunk.payload[8..].iter().all(|&byte| byte == 0);
    assert!(read.iter().all(zeros));

    // The rest of the image is filled, by a request that is larger than all of it.
    let mut greedy = Peer::extended(&path);
    let offset = 16 * MIB;
    greedy.long_request(NO_HOLE, ZEROES, 3, offset, size - offset);
    let chunks = greedy.long_chunks(offset);
    assert_eq!((chunks.len(), &chunks[0].payload[..4]), (1, &28u32.to_be_bytes()[..]), "no space left");
    let write = |peer: &mut Peer, offset: u64| {
        peer.request(0, crate::peer::WRITE, 4, offset, 65536);
        peer.put(&[9; 65536]);
        peer.chunk().kind == 0
    };
    let mut full = false;
    for i in 0..1000 {
        full = full || !write(&mut peer, size / 2 + i * 65536);
    }
    assert!(full, "nothing new fits");
    for _ in 0..3 {
        for offset in (base..base + u64::from(len)).step_by(65536) {
            assert!(write(&mut peer, offset), "there is room for what was provided");
        }
    }
    served.stop();
    assert_eq!(volume.info().size_bytes, size);
    volume.shutdown().unwrap();
}
