//! Several exports and listeners of one server, and what an export may change about its device.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoError, IoOp, VolumeKind, blocking};
use blockd::nbd::client::{ConnectOptions, NbdClient, Target};
use blockd::nbd::server::{Export, Exports, Limits, Listener, SnapshotExports};
use blockd::volume::{CreateOptions, OpenOptions, Volume};

use crate::peer::{FLUSH, Peer, TRIM, WRITE, ZEROES, go, meta};
use crate::ram::{Ram, Seen, tagged};
use crate::served::{Served, socket};

const MIB: u64 = 1 << 20;
const UNKNOWN: u32 = (1 << 31) + 6;

fn export(name: &str, device: &Arc<Ram>) -> Export {
    Export::new(name, device.clone()).unwrap()
}

/// The names that NBD_OPT_LIST gives.
fn list(peer: &mut Peer) -> Vec<String> {
    peer.option(3, b"");
    let mut names = Vec::new();
    loop {
        match peer.option_reply() {
            (3, 2, data) => {
                assert_eq!(data[..4], ((data.len() - 4) as u32).to_be_bytes());
                names.push(String::from_utf8(data[4..].to_vec()).unwrap());
            }
            (3, 1, _) => return names,
            other => panic!("{other:?}"),
        }
    }
}

/// The kind of the first reply to NBD_OPT_INFO, and the size it says; the rest of the reply is taken.
fn info(peer: &mut Peer, name: &str) -> Result<u64, u32> {
    peer.option(6, &go(name, &[]));
    let (_, kind, data) = peer.option_reply();
    if kind != 3 {
        return Err(kind);
    }
    while peer.option_reply().1 != 1 {}
    Ok(u64::from_be_bytes(data[2..10].try_into().unwrap()))
}

#[test]
fn exports_are_listed_asked_for_and_served_by_name() {
    let (_dir, path) = socket();
    let (a, b) = (Ram::new(MIB), Ram::new(2 * MIB));
    let exports = Exports::single(export("a", &a));
    exports.add(export("b", &b)).unwrap();
    exports.add(export("ü/@", &b).read_only()).unwrap();
    let (served, _) = Served::listening(vec![Listener::unix(&path)], exports.clone(), Limits::default());
    let mut peer = Peer::negotiating(&path);
    assert_eq!(list(&mut peer), ["a", "b", "ü/@"]);
    assert_eq!((info(&mut peer, "a"), info(&mut peer, "b")), (Ok(MIB), Ok(2 * MIB)));
    for name in ["", "c", "A", "a\0"] {
        assert_eq!(info(&mut peer, name), Err(UNKNOWN), "{name:?}");
        peer.option(10, &meta(name, &[]));
        assert!(peer.option_reply().1 >= 1 << 31);
    }
    peer.option(6, b"\0\0\0\x02\xff\xfe\0\0");
    assert_eq!(peer.option_reply().1, UNKNOWN, "a name is UTF-8");
    exports.set_default("b");
    assert_eq!(info(&mut peer, ""), Ok(2 * MIB));
    // Each name reaches its device.
    peer.go("a");
    assert_eq!(peer.write(0, 0, &[1; 512]), 0);
    let mut other = Peer::negotiating(&path);
    other.go("");
    assert_eq!(other.write(0, 0, &[2; 512]), 0);
    let mut reader = Peer::negotiating(&path);
    assert_eq!(reader.go("ü/@") & 2, 2, "READ_ONLY");
    assert_eq!(reader.read(0, 512), [2; 512]);
    for command in [WRITE, TRIM, ZEROES] {
        reader.request(0, command, 1, 0, 512);
        if command == WRITE {
            reader.put(&[9; 512]);
        }
        assert_eq!(reader.reply(), (1, 1), "EPERM");
    }
    assert_eq!(reader.call(0, FLUSH, 0, 0), 0);
    assert_eq!((a.bytes(0, 1), b.bytes(0, 1)), (vec![1], vec![2]));
    let connections = served.stopper().connections();
    assert_eq!(connections.iter().map(|c| c.export.as_str()).collect::<Vec<_>>(), ["a", "b", "ü/@"]);
    assert!(connections[0].peer.contains("process"), "{connections:?}");
    // Removed: who has it keeps it until it is cut; nobody else gets it.
    assert!(exports.remove("a"));
    assert_eq!(peer.read(0, 512), [1; 512]);
    let mut late = Peer::negotiating(&path);
    assert_eq!(list(&mut late), ["b", "ü/@"]);
    assert_eq!(info(&mut late, "a"), Err(UNKNOWN));
    assert_eq!(served.stopper().cut("a"), 1);
    peer.assert_closed();
    assert_eq!(other.read(0, 512), [2; 512], "others go on");
}

#[test]
fn snapshots_are_opened_when_asked_for() {
    let (_dir, path) = socket();
    let live = Ram::new(MIB);
    let exports = Exports::single(export("disk", &live));
    let opened = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&opened);
    let monday = Ram::new(MIB);
    let kept = monday.clone();
    exports.add_source(SnapshotExports::new(
        "disk",
        move |name| match name {
            "monday" => {
                counted.fetch_add(1, Ordering::SeqCst);
                Ok(Some(kept.clone() as Arc<dyn Device>))
            }
            "bad" => Err("snapshot bad cannot be read: page 3".into()),
            _ => Ok(None),
        },
        || vec!["monday".into(), "bad".into()],
    ));
    let (_served, _) = Served::listening(vec![Listener::unix(&path)], exports, Limits::default());
    let mut peer = Peer::negotiating(&path);
    assert_eq!(list(&mut peer), ["disk", "disk@bad", "disk@monday"]);
    assert_eq!(info(&mut peer, ""), Ok(MIB), "the volume stays the default");
    assert_eq!((info(&mut peer, "disk@x"), opened.load(Ordering::SeqCst)), (Err(UNKNOWN), 0));
    peer.option(6, &go("disk@bad", &[]));
    let (_, kind, why) = peer.option_reply();
    assert!(kind >= 1 << 31 && String::from_utf8_lossy(&why).contains("page 3"));
    assert_eq!(peer.go("disk@monday") & 2, 2, "READ_ONLY");
    let mut second = Peer::negotiating(&path);
    second.go("disk@monday");
    assert_eq!(opened.load(Ordering::SeqCst), 1, "shared");
    assert_eq!(peer.write(0, 0, &[1; 512]), 1, "EPERM");
    assert_eq!(second.read(0, 512), [0; 512]);
    drop((peer, second));
    monday.wait_connected(0);
}

#[test]
fn a_server_listens_at_several_places_with_their_modes() {
    let (dir, path) = socket();
    let ram = Ram::new(MIB);
    let open = dir.path().join("open.sock");
    let insecure = blockd::nbd::server::Security::Insecure;
    let listeners = vec![
        Listener::unix(&path),
        Listener::unix(&open).mode(0o660),
        Listener::at("tcp:127.0.0.1:0".parse().unwrap(), insecure),
    ];
    let (served, addresses) =
        Served::listening(listeners, Exports::single(export("disk", &ram)), Limits::default());
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&open)), (0o600, 0o660));
    assert_eq!(addresses[0], format!("unix:{}", path.display()));
    assert_eq!(Peer::transmitting(&path).write(0, 0, &[1; 512]), 0);
    assert_eq!(Peer::transmitting(&open).read(0, 512), [1; 512]);
    let mut tcp = Peer(std::net::TcpStream::connect(addresses[2].strip_prefix("tcp:").unwrap()).unwrap());
    tcp.hear_greeting();
    tcp.put(&3u32.to_be_bytes());
    tcp.go("");
    assert_eq!(tcp.read(0, 512), [1; 512]);
    served.stop();
    assert!(!path.exists() && !open.exists());
    tcp.assert_closed();
}

#[test]
fn a_flush_on_one_connection_covers_what_others_were_acknowledged() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    let (mut one, mut two) = (Peer::negotiating(&path), Peer::negotiating(&path));
    assert_eq!(one.go("disk") & (1 << 8), 1 << 8, "CAN_MULTI_CONN");
    two.go("disk");
    // The flush is passed on to the one device, after the writes that were acknowledged, whoever sent them...
    assert_eq!(one.write(0, 0, &[1; 512]), 0);
    assert_eq!(two.call(0, FLUSH, 0, 0), 0);
    let write = Seen::Write { offset: 0, len: 512, fua: false };
    assert_eq!(ram.take_seen(), [write, Seen::Flush]);
    // ... and is not acknowledged before the device says so, even if no write came on its own connection.
    ram.hold();
    two.request(0, FLUSH, 5, 0, 0);
    ram.wait_held(1);
    ram.set_fault(|_| Some(IoError::Io("the disk is gone".into())));
    ram.release_all();
    assert_eq!(two.reply(), (5, 5), "EIO, cookie 5");
}

/// A raw volume of 16 MiB.
fn volume(dir: &std::path::Path) -> Arc<Volume> {
    let image = dir.join("image");
    let options = CreateOptions {
        kind: VolumeKind::Raw,
        uuid: uuid::Uuid::new_v4(),
        size_bytes: 128 * MIB,
        raw_size_bytes: 16 * MIB,
        segment_bytes: 0,
        force: false,
    };
    Volume::create(&image, &options).expect("a new volume");
    Volume::open(&image, &OpenOptions::default()).expect("the volume opens")
}

#[test]
fn an_export_with_blocks_of_512_bytes_says_so_and_refuses_less() {
    let (dir, path) = socket();
    let volume = volume(dir.path());
    let exports = Exports::new();
    for (name, bytes) in [("b512", 512), ("b4096", 4096)] {
        exports.add(Export::new(name, volume.clone()).unwrap().with_block_size(bytes).unwrap()).unwrap();
    }
    let (served, _) = Served::listening(vec![Listener::unix(&path)], exports, Limits::default());
    for (name, bytes) in [("b512", 512u32), ("b4096", 4096)] {
        let mut peer = Peer::negotiating(&path);
        peer.option(6, &go(name, &[3]));
        peer.option_reply();
        let (_, _, sizes) = peer.option_reply();
        assert_eq!(sizes[2..6], bytes.to_be_bytes());
        assert_eq!(sizes[6..10], 4096u32.to_be_bytes());
        peer.option_reply();
        peer.go(name);
        assert_eq!(peer.write(0, u64::from(bytes), &vec![7; bytes as usize]), 0);
        assert_eq!(peer.read(u64::from(bytes), bytes), vec![7; bytes as usize]);
        let half = bytes / 2;
        assert_eq!(peer.write(0, 0, &vec![7; half as usize]), 22);
        assert_eq!(peer.call(0, 0, u64::from(half), bytes), 22);
        assert_eq!(peer.call(0, TRIM, 0, half), 22);
        assert_eq!(peer.read(0, bytes), vec![0; bytes as usize], "nothing of it was written");
        peer.request(0, crate::peer::DISC, 0, 0, 0);
        peer.assert_closed();
        let mut peer = Peer::negotiating(&path);
        peer.go("b512");
        assert_eq!(peer.call(1, ZEROES, 0, 65536), 0);
    }
    served.stop();
    volume.shutdown().unwrap();
}

/// Writers of neighbouring blocks on connections of their own: each write is whole, and takes nothing of its
/// neighbours' with it.
#[test]
fn blocks_of_512_bytes_are_written_atomically_beside_each_other() {
    const PAGES: u64 = 4;
    const WRITERS: u64 = 4;
    const ROUNDS: u64 = 60;
    let (dir, path) = socket();
    let volume = volume(dir.path());
    let exports = Exports::single(Export::new("disk", volume.clone()).unwrap().with_block_size(512).unwrap());
    let (served, _) = Served::listening(vec![Listener::unix(&path)], exports, Limits::default());
    let connect = || NbdClient::connect(&Target::socket(&path), ConnectOptions::fail_fast()).unwrap();
    let content = |block: u64, round: u64| AlignedBuf::from_slice(&tagged(block << 32 | round, 512));
    // Writer w has the blocks w, w + 4, ... of every page.
    let last: BTreeMap<u64, u64> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..WRITERS)
            .map(|w| {
                scope.spawn(move || {
                    let client = connect();
                    let id = client.connect();
                    let mut last = BTreeMap::new();
                    for round in 1..=ROUNDS {
                        let block = (round * 7 % (PAGES * 2)) * WRITERS + w;
                        let offset = block * 512;
                        if round % 9 == 0 {
                            let op = IoOp::WriteZeroes { offset, len_bytes: 512, fua: false, no_hole: false };
                            blocking(&client, id, op).unwrap();
                            last.insert(block, 0);
                        } else {
                            let op = IoOp::Write { offset, buf: content(block, round), fua: round % 16 == 0 };
                            blocking(&client, id, op).unwrap();
                            last.insert(block, round);
                        }
                        let op = IoOp::Read { offset, buf: AlignedBuf::zeroed(512) };
                        let back = blocking(&client, id, op).unwrap().unwrap();
                        let expected =
                            if round % 9 == 0 { AlignedBuf::zeroed(512) } else { content(block, round) };
                        assert!(back[..] == expected[..], "writer {w}, block {block}, round {round}");
                    }
                    last
                })
            })
            .collect();
        running.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    served.stop();
    volume.shutdown().unwrap();
    drop(volume);
    let volume = Volume::open(&dir.path().join("image"), &OpenOptions::default()).unwrap();
    let id = volume.connect();
    for block in 0..PAGES * 8 {
        let op = IoOp::Read { offset: block * 512, buf: AlignedBuf::zeroed(512) };
        let back = blocking(&*volume, id, op).unwrap().unwrap();
        let expected = match last.get(&block) {
            Some(&round) if round > 0 => content(block, round),
            _ => AlignedBuf::zeroed(512),
        };
        assert!(back[..] == expected[..], "block {block} after a restart");
    }
    volume.shutdown().unwrap();
}
