//! The server's side of the protocol, byte by byte, with an honest peer.

use blockd::device::{DeviceInfo, IoError, VolumeKind};

use crate::peer::{DISC, FLUSH, Peer, READ, TRIM, WRITE, ZEROES, go, request};
use crate::ram::{Ram, Seen};
use crate::served::{Served, socket};

const MIB: u64 = 1 << 20;

#[test]
fn info_gives_size_flags_block_sizes_and_texts() {
    let (_dir, path) = socket();
    let _served = Served::start(&path, Ram::new(MIB));
    let mut peer = Peer::negotiating(&path);
    peer.option(6, &go("disk", &[1, 2, 3]));
    let mut items = Vec::new();
    loop {
        match peer.option_reply() {
            (6, 3, data) => items.push(data),
            (6, 1, data) => {
                assert!(data.is_empty());
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    // HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN,
    // SEND_CACHE, SEND_FAST_ZERO.
    let mut export = vec![0, 0];
    export.extend(MIB.to_be_bytes());
    export.extend(0b1101_0110_1101u16.to_be_bytes());
    assert_eq!(items[0], export);
    let mut blocks = vec![0, 3];
    for n in [512u32, 4096, 32 << 20] {
        blocks.extend(n.to_be_bytes());
    }
    assert_eq!(items[1], blocks);
    assert_eq!(items[2], b"\0\x01disk");
    assert!(String::from_utf8_lossy(&items[3]).contains("vexfs-blockd raw volume"));
    assert_eq!(items.len(), 4);
    // The negotiation goes on after an INFO.
    peer.option(2, b"");
    assert_eq!(peer.option_reply(), (2, 1, vec![]));
    peer.assert_closed();
}

#[test]
fn a_vexfs_volume_is_said_to_need_pages_and_one_connection() {
    let (_dir, path) = socket();
    let info = DeviceInfo {
        kind: VolumeKind::VexFs,
        size_bytes: 1 << 62,
        block_bytes_min: 4096,
        read_only: false,
        uuid: uuid::Uuid::from_u128(9),
    };
    let _served = Served::start(&path, Ram::with(info));
    let mut peer = Peer::negotiating(&path);
    peer.option(6, &go("", &[]));
    let (_, _, export) = peer.option_reply();
    assert_eq!(export[2..10], (1u64 << 62).to_be_bytes());
    assert_eq!(export[10..], 0b1100_0110_1101u16.to_be_bytes(), "no CAN_MULTI_CONN");
    let (_, _, blocks) = peer.option_reply();
    assert_eq!(blocks[2..6], 4096u32.to_be_bytes());
}

#[test]
fn list_names_the_export_and_unknown_names_are_refused() {
    let (_dir, path) = socket();
    let _served = Served::start(&path, Ram::new(MIB));
    let mut peer = Peer::negotiating(&path);
    peer.option(3, b"");
    assert_eq!(peer.option_reply(), (3, 2, b"\0\0\0\x04disk".to_vec()));
    assert_eq!(peer.option_reply(), (3, 1, vec![]));
    peer.option(7, &go("other", &[]));
    let (option, kind, text) = peer.option_reply();
    assert_eq!((option, kind), (7, (1 << 31) + 6));
    assert!(String::from_utf8_lossy(&text).contains("disk"));
    for option in [4, 4711] {
        peer.option(option, b"");
        let (answered, kind, _) = peer.option_reply();
        assert_eq!((answered, kind), (option, (1 << 31) + 1));
    }
    peer.option(7, &go("disk", &[]));
    assert_eq!(peer.option_reply().1, 3);
}

#[test]
fn export_name_begins_the_transmission_with_and_without_zeroes() {
    let (_dir, path) = socket();
    let _served = Served::start(&path, Ram::new(MIB));
    for (client_flags, zeroes) in [(3u32, 0), (1, 124)] {
        let mut peer = Peer::greeted(&path);
        peer.put(&client_flags.to_be_bytes());
        peer.option(1, b"disk");
        let answer = peer.take(10 + zeroes);
        assert_eq!(answer[..8], MIB.to_be_bytes());
        assert!(answer[10..].iter().all(|&b| b == 0));
        assert_eq!(peer.call(0, FLUSH, 0, 0), 0);
        peer.request(0, DISC, 1, 0, 0);
        peer.assert_closed();
    }
    let mut peer = Peer::negotiating(&path);
    peer.option(1, b"unknown");
    peer.assert_closed();
}

#[test]
fn every_command_reaches_the_device_with_its_flags() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    assert_eq!(peer.write(1, 512, &[7; 1024]), 0);
    assert_eq!(peer.read(0, 2048), ram.bytes(0, 2048));
    assert_eq!(ram.bytes(512, 1024), [7; 1024]);
    assert_eq!(peer.call(0, FLUSH, 0, 0), 0);
    assert_eq!(peer.call(0, TRIM, 512, 512), 0);
    assert_eq!(peer.call(3, ZEROES, 1024, 512), 0);
    assert_eq!(peer.call(1, ZEROES, 1024, 512), 0);
    assert_eq!(peer.read(0, 2048), [0; 2048]);
    assert_eq!(
        ram.take_seen(),
        [
            Seen::Write { offset: 512, len: 1024, fua: true },
            Seen::Read(0, 2048),
            Seen::Flush,
            Seen::Trim(512, 512),
            Seen::NoHole(1024, 512),
            Seen::WriteZeroes(1024, 512),
            Seen::Read(0, 2048),
        ]
    );
}

#[test]
fn the_only_small_read_in_flight_is_carried_out_by_the_connection() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    for i in 0..20 {
        assert_eq!(peer.read(i * 4096, 4096), [0; 4096]);
    }
    assert_eq!(ram.submitted_here(), 20);
    peer.read(0, 256 << 10);
    assert_eq!(ram.submitted_here(), 20, "large ones would keep others waiting");
    // Two at once: no one is the only one.
    let both = [request(0, READ, 1, 0, 4096), request(0, READ, 2, 4096, 4096)].concat();
    ram.hold();
    peer.put(&both);
    ram.wait_held(2);
    ram.release_all();
    for _ in 0..2 {
        assert_eq!(peer.reply().0, 0);
        peer.take(4096);
    }
    assert_eq!(ram.submitted_here(), 20);
}

#[test]
fn replies_come_in_the_order_of_completion() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    ram.hold();
    for cookie in 0..4 {
        peer.request(0, READ, cookie, cookie * 4096, 4096);
    }
    ram.wait_held(4);
    for (i, cookie) in [(2, 2), (0, 0), (1, 3), (0, 1)] {
        ram.release(i);
        assert_eq!(peer.reply(), (0, cookie));
        peer.take(4096);
    }
}

#[test]
fn device_errors_become_their_nbd_numbers() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    for (error, number) in [
        (IoError::Io("bad page".into()), 5),
        (IoError::NoSpace, 28),
        (IoError::Invalid("no".into()), 22),
        (IoError::Fenced("gone".into()), 108),
        (IoError::ReadOnly, 1),
    ] {
        let clone = error.clone();
        ram.set_fault(move |_| Some(clone.clone()));
        assert_eq!(peer.call(0, READ, 0, 4096), number, "{error}");
        assert_eq!(peer.write(0, 0, &[1; 512]), number, "{error}");
        assert_eq!(peer.call(0, FLUSH, 0, 0), number, "{error}");
    }
    ram.set_fault(|_| None);
    assert_eq!(peer.read(0, 512), [0; 512], "in step after all the errors");
    // A device that shuts down is no reason to fail a client: it may come back and ask again.
    ram.set_fault(|_| Some(IoError::Shutdown));
    peer.request(0, READ, 1, 0, 512);
    peer.assert_closed();
}

#[test]
fn a_read_only_device_refuses_changes_and_stays_in_step() {
    let (_dir, path) = socket();
    let info = DeviceInfo {
        kind: VolumeKind::Raw,
        size_bytes: MIB,
        block_bytes_min: 512,
        read_only: true,
        uuid: uuid::Uuid::nil(),
    };
    let _served = Served::start(&path, Ram::with(info));
    let mut peer = Peer::transmitting(&path);
    assert_eq!(peer.write(0, 0, &[1; 70_000 / 512 * 512]), 1);
    assert_eq!(peer.call(0, TRIM, 0, 512), 1);
    assert_eq!(peer.call(0, ZEROES, 0, 512), 1);
    assert_eq!(peer.read(0, 512), [0; 512]);
}

#[test]
fn the_largest_payload_goes_through_both_ways() {
    let (_dir, path) = socket();
    let ram = Ram::new(64 * MIB);
    let _served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    let bytes: Vec<u8> = (0..32 << 20).map(|i: u32| (i / 977) as u8).collect();
    assert_eq!(peer.write(0, 4096, &bytes), 0);
    assert!(peer.read(4096, 32 << 20) == bytes);
    assert_eq!(peer.call(0, WRITE, 0, 0), 22, "an empty write is refused");
}

#[test]
fn stopping_drains_what_is_in_flight_and_disconnects() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let served = Served::start(&path, ram.clone());
    let mut peer = Peer::transmitting(&path);
    ram.hold();
    for cookie in 0..3 {
        peer.request(0, READ, cookie, 0, 512);
    }
    ram.wait_held(3);
    served.stopper().stop();
    ram.release_all();
    for cookie in 0..3 {
        assert_eq!(peer.reply(), (0, cookie));
        peer.take(512);
    }
    peer.assert_closed();
    served.stop();
    assert_eq!(ram.connected(), 0);
    assert!(!path.exists(), "the socket file is removed");
}
