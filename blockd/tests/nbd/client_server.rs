//! Our client against our server.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoError, IoOp, VolumeKind, batch, blocking};
use blockd::nbd::client::{ConnectOptions, NbdClient, Replies, Target};

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
    run(IoOp::WriteZeroes { offset: 8192, len_bytes: 4096, fua: true, no_hole: false }).unwrap();
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
fn long_ranges_are_split_unless_headers_are_extended() {
    let (_dir, path) = socket();
    let ram = Ram::new(1 << 40);
    let _served = Served::start(&path, ram.clone());
    let extended = connect(&path);
    let id = extended.connect();
    blocking(&extended, id, IoOp::Trim { offset: 4096, len_bytes: 1 << 39, fua: false }).unwrap();
    assert_eq!(ram.take_seen(), [Seen::Trim(4096, 1 << 39)]);
    let options = ConnectOptions { form: Replies::Chunks, ..ConnectOptions::fail_fast() };
    let client = NbdClient::connect(&Target::socket(&path), options).expect("connected");
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
    let failed =
        blocking(&client, id, IoOp::WriteZeroes { offset: 0, len_bytes, fua: false, no_hole: false });
    assert!(matches!(failed, Err(IoError::NoSpace)), "one part failed");
    let endless = blocking(&client, id, IoOp::Trim { offset: 0, len_bytes: 1 << 62, fua: false });
    assert!(matches!(endless, Err(IoError::Invalid(_))));
}

#[test]
fn every_form_of_replies_carries_the_same() {
    for form in [Replies::Simple, Replies::Chunks, Replies::Extended] {
        let (_dir, path) = socket();
        let ram = Ram::new(64 * MIB);
        let _served = Served::start(&path, ram.clone());
        let options = ConnectOptions { form, ..ConnectOptions::fail_fast() };
        let client = NbdClient::connect(&Target::socket(&path), options).expect("connected");
        let id = client.connect();
        // Data and holes in turn, read at once and many times over each other.
        let writes = (0..32).map(|i| IoOp::Write {
            offset: i * MIB,
            buf: tagged(i + 1, (i as usize % 5 + 1) * 102_400),
            fua: false,
        });
        assert!(batch(&client, id, writes).iter().all(Result::is_ok));
        let range = |i: u64| ((i * 7 % 40) * MIB / 2 + i % 3 * 4096, (1 + i as usize % 6) * 716_800);
        let reads = (0..60).map(|i| {
            let (offset, len) = range(i);
            let mut buf = AlignedBuf::zeroed(len);
            // A hole must overwrite what was in the buffer.
            buf.fill(0xee);
            IoOp::Read { offset, buf }
        });
        for (i, result) in batch(&client, id, reads).into_iter().enumerate() {
            let (offset, len) = range(i as u64);
            assert!(result.unwrap().unwrap()[..] == ram.bytes(offset, len)[..], "{form:?}, read {i}");
        }
        ram.set_fault(|_| Some(IoError::Io("page 77 is bad".into())));
        let read = IoOp::Read { offset: 0, buf: AlignedBuf::zeroed(4096) };
        let said = blocking(&client, id, read).unwrap_err().to_string();
        assert_eq!(said.contains("page 77 is bad"), form != Replies::Simple, "{said}");
        ram.set_fault(|_| None);
        blocking(&client, id, IoOp::Flush).unwrap();
        assert_eq!(client.pending(), 0);
    }
}

#[test]
fn a_hole_costs_no_bytes_on_the_wire() {
    let (dir, path) = socket();
    let ram = Ram::new(64 * MIB);
    let _served = Served::start(&path, ram.clone());
    // In between, somebody counts what the server sends.
    let between = dir.path().join("between");
    let listener = UnixListener::bind(&between).unwrap();
    let counting = std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = UnixStream::connect(&path).unwrap();
        let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let asking = std::thread::spawn(move || {
            let _ = std::io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(Shutdown::Write);
        });
        let mut sent = 0;
        let mut buffer = [0; 65536];
        while let Ok(n @ 1..) = (&server).read(&mut buffer) {
            sent += n;
            // The client may have gone.
            let _ = (&client).write_all(&buffer[..n]);
        }
        asking.join().unwrap();
        sent
    });
    let client = connect(&between);
    let id = client.connect();
    let back = blocking(&client, id, IoOp::Read { offset: 0, buf: AlignedBuf::zeroed(32 << 20) });
    assert!(back.unwrap().unwrap().iter().all(|&b| b == 0));
    drop(client);
    let sent = counting.join().unwrap();
    assert!(sent < 4096, "{sent} bytes for 32 MiB of zeros");
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
            let _ = stream.shutdown(Shutdown::Write);
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
