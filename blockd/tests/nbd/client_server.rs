//! Our client against our server.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoError, IoOp, VolumeKind, batch, blocking};
use blockd::nbd::client::{ConnectOptions, NbdClient, Target};

use crate::ram::{Ram, Seen, tagged};
use crate::served::{Served, socket};

const MIB: u64 = 1 << 20;

fn connect(path: &std::path::Path) -> NbdClient {
    NbdClient::connect(&Target::socket(path), ConnectOptions::fail_fast()).expect("connected")
}

#[test]
fn every_operation_passes_through_unchanged() {
    let (_dir, path) = socket();
    let ram = Ram::new(64 * MIB);
    let _served = Served::start(&path, ram.clone());
    let client = connect(&path);
    let info = client.info();
    assert_eq!((info.kind, info.size_bytes, info.block_bytes_min), (VolumeKind::Raw, 64 * MIB, 512));
    assert_eq!(info.uuid, uuid::Uuid::from_u128(7), "the uuid comes with the description");
    assert!(!info.read_only);
    let id = client.connect();
    let run = |op| blocking(&client, id, op);
    assert!(run(IoOp::Write { offset: 4096, buf: tagged(5, 100_352), fua: true }).unwrap().is_none());
    let back = run(IoOp::Read { offset: 0, buf: AlignedBuf::zeroed(8192) }).unwrap().unwrap();
    assert_eq!(back[..4096], [0; 4096]);
    assert_eq!(back[4096..], tagged(5, 4096)[..]);
    run(IoOp::Flush).unwrap();
    run(IoOp::Trim { offset: 4096, len_bytes: 4096, fua: false }).unwrap();
    run(IoOp::WriteZeroes { offset: 8192, len_bytes: 4096, fua: true }).unwrap();
    assert_eq!(
        ram.take_seen(),
        [
            Seen::Write { offset: 4096, len: 100_352, fua: true },
            Seen::Read(0, 8192),
            Seen::Flush,
            Seen::Trim(4096, 4096),
            Seen::WriteZeroes(8192, 4096),
        ]
    );
    client.disconnect(id);
    drop(client);
    ram.wait_connected(0);
}

#[test]
fn many_requests_in_flight_find_their_own_answers() {
    let (_dir, path) = socket();
    let ram = Ram::new(64 * MIB);
    let _served = Served::start(&path, ram.clone());
    let client = connect(&path);
    let id = client.connect();
    let len = |i: u64| (1 + (i as usize * 7) % 40) * 4096;
    let slot = |i: u64| i * 40 * 4096;
    let writes = (0..300).map(|i| IoOp::Write { offset: slot(i), buf: tagged(i, len(i)), fua: false });
    assert!(batch(&client, id, writes).iter().all(Result::is_ok));
    let reads = (0..300).map(|i| IoOp::Read { offset: slot(i), buf: AlignedBuf::zeroed(len(i)) });
    for (i, result) in batch(&client, id, reads).into_iter().enumerate() {
        let buf = result.unwrap().unwrap();
        assert!(buf[..] == tagged(i as u64, len(i as u64))[..], "request {i}");
    }
    assert_eq!(client.pending(), 0);
}

#[test]
fn many_threads_share_a_client() {
    let (_dir, path) = socket();
    let ram = Ram::new(64 * MIB);
    let _served = Served::start(&path, ram.clone());
    let client = connect(&path);
    std::thread::scope(|scope| {
        for t in 0..4u64 {
            let client = &client;
            scope.spawn(move || {
                let id = client.connect();
                for i in 0..200u64 {
                    let offset = (t * 200 + i) * 4096;
                    blocking(client, id, IoOp::Write { offset, buf: tagged(offset, 4096), fua: false })
                        .unwrap();
                    let buf = AlignedBuf::zeroed(4096);
                    let back = blocking(client, id, IoOp::Read { offset, buf }).unwrap().unwrap();
                    assert!(back[..] == tagged(offset, 4096)[..]);
                }
            });
        }
    });
}

#[test]
fn errors_keep_their_kind() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    let client = connect(&path);
    let id = client.connect();
    let write = |offset| blocking(&client, id, IoOp::Write { offset, buf: tagged(1, 512), fua: false });
    assert!(matches!(write(MIB), Err(IoError::NoSpace)), "beyond the end");
    assert!(matches!(write(1), Err(IoError::Invalid(_))), "unaligned");
    for error in [IoError::Io("bad".into()), IoError::Fenced("gone".into()), IoError::ReadOnly] {
        let clone = error.clone();
        ram.set_fault(move |_| Some(clone.clone()));
        assert_eq!(write(0).unwrap_err().errno(), error.errno());
    }
    ram.set_fault(|_| None);
    write(0).unwrap();
    let too_long = IoOp::Read { offset: 0, buf: AlignedBuf::zeroed((32 << 20) + 4096) };
    assert!(
        matches!(blocking(&client, id, too_long), Err(IoError::Invalid(text)) if text.contains("33554432"))
    );
}

#[test]
fn long_ranges_are_split() {
    let (_dir, path) = socket();
    let ram = Ram::new(1 << 40);
    let _served = Served::start(&path, ram.clone());
    let client = connect(&path);
    let id = client.connect();
    let len_bytes = (5 << 30) + 512;
    blocking(&client, id, IoOp::Trim { offset: 4096, len_bytes, fua: false }).unwrap();
    let seen = ram.take_seen();
    let mut at = 4096;
    for one in &seen {
        let Seen::Trim(offset, len) = one else { panic!("{one:?}") };
        assert_eq!(*offset, at);
        at += len;
    }
    assert_eq!((at, seen.len()), (4096 + len_bytes, 3));
    let mut calls = 0;
    ram.set_fault(move |_| {
        calls += 1;
        (calls == 2).then_some(IoError::NoSpace)
    });
    let failed = blocking(&client, id, IoOp::WriteZeroes { offset: 0, len_bytes, fua: false });
    assert!(matches!(failed, Err(IoError::NoSpace)), "one part failed");
    let endless = blocking(&client, id, IoOp::Trim { offset: 0, len_bytes: 1 << 62, fua: false });
    assert!(matches!(endless, Err(IoError::Invalid(_))));
}

#[test]
fn nobody_there_names_the_socket_and_the_remedy() {
    let (_dir, path) = socket();
    let fail = |options| match NbdClient::connect(&Target::socket(&path), options) {
        Ok(_) => panic!("connected to nobody"),
        Err(e) => e.to_string(),
    };
    let absent = fail(ConnectOptions::fail_fast());
    assert!(absent.contains(path.to_str().unwrap()) && absent.contains("vexfs-blockd serve"), "{absent}");
    // A dead peer: it listens and never answers.
    let listener = UnixListener::bind(&path).unwrap();
    let silent = fail(ConnectOptions { handshake_timeout_ms: 1, ..ConnectOptions::fail_fast() });
    assert!(silent.contains("does not answer") && silent.contains(path.to_str().unwrap()), "{silent}");
    drop(listener);
    let dead = fail(ConnectOptions { connect_timeout_ms: 30, ..ConnectOptions::fail_fast() });
    assert!(dead.contains("vexfs-blockd serve"), "{dead}");
}

#[test]
fn a_server_of_something_else_is_refused_clearly() {
    for (hello, why) in [
        (&b"220 smtp.example ESMTP ready\r\n"[..], "does not speak the NBD protocol"),
        (&b"NBDMAGICIHAVEOPT\0\0"[..], "fixed newstyle"),
        (&b"NBDMAGIC"[..], "closed the connection"),
        (&b""[..], "closed the connection"),
        (&b"NBDMAGICIHAVEOPT\0\x03garbage garbage garbage"[..], "breaks the NBD protocol"),
    ] {
        let (_dir, path) = socket();
        let listener = UnixListener::bind(&path).unwrap();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(hello).unwrap();
            let _ = stream.shutdown(std::net::Shutdown::Write);
            // Until the client goes.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let error = NbdClient::connect(&Target::socket(&path), ConnectOptions::fail_fast()).err().unwrap();
        assert!(error.to_string().contains(why), "{error}");
        peer.join().unwrap();
    }
}

#[test]
fn an_unknown_export_is_refused_with_the_servers_words() {
    let (_dir, path) = socket();
    let _served = Served::start(&path, Ram::new(MIB));
    let target = Target { socket: path.clone(), export: "nope".into() };
    let error = NbdClient::connect(&target, ConnectOptions::fail_fast()).err().unwrap().to_string();
    assert!(error.contains("nope") && error.contains("disk"), "{error}");
    let target = Target { socket: path, export: "disk".into() };
    NbdClient::connect(&target, ConnectOptions::fail_fast()).unwrap();
}

#[test]
fn dropping_the_client_fails_what_is_pending() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    let client = connect(&path);
    let id = client.connect();
    ram.hold();
    let (send, receive) = std::sync::mpsc::channel();
    client.submit(id, IoOp::Flush, Box::new(move |result| send.send(result).unwrap()));
    ram.wait_held(1);
    drop(client);
    assert!(matches!(receive.recv().unwrap(), Err(IoError::Shutdown)));
    ram.release_all();
    ram.wait_connected(0);
}

#[test]
fn done_may_submit_and_may_be_the_last_owner() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    let client = Arc::new(connect(&path));
    let id = client.connect();
    let (send, receive) = std::sync::mpsc::channel();
    fn chain(client: Arc<NbdClient>, left: u64, end: std::sync::mpsc::Sender<()>) {
        let device = Arc::clone(&client);
        let id = blockd::device::ClientId(1);
        device.submit(
            id,
            IoOp::Write { offset: left * 512, buf: tagged(left, 512), fua: false },
            Box::new(move |result| {
                result.unwrap();
                if left == 0 {
                    drop(client);
                    end.send(()).unwrap();
                } else {
                    chain(client, left - 1, end);
                }
            }),
        );
    }
    let _ = id;
    chain(client, 100, send);
    receive.recv().unwrap();
    assert_eq!(ram.bytes(512 * 77, 512), tagged(77, 512)[..]);
}
