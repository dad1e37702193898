//! The daemon goes away and comes back: nothing is lost, and the order is kept.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier};

use blockd::buf::AlignedBuf;
use blockd::device::{Device, DeviceInfo, IoError, IoOp, IoResult, VolumeKind, blocking};
use blockd::nbd::client::{ConnectOptions, HookOutcome, NbdClient, Target};
use blockd::nbd::server::Limits;

use crate::ram::{Ram, Seen, tagged};
use crate::served::{Served, socket};

const MIB: u64 = 1 << 20;

/// A daemon written by hand: answers the handshake as a raw volume of 1 MiB with uuid 7, then takes
/// `requests` writes of 512 bytes without a reply and dies.
fn dying_daemon(listener: &UnixListener, requests: usize) {
    let (mut stream, _) = listener.accept().unwrap();
    handshake(&mut stream);
    let mut request = [0; 28 + 512];
    for _ in 0..requests {
        stream.read_exact(&mut request).unwrap();
    }
}

fn handshake(stream: &mut UnixStream) {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    // It knows nothing but NBD_OPT_GO.
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head).unwrap();
        let len = u32::from_be_bytes(head[12..].try_into().unwrap());
        stream.read_exact(&mut vec![0; len as usize]).unwrap();
        if head[8..12] == 7u32.to_be_bytes() {
            break;
        }
        let mut out = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
        out.extend(&head[8..12]);
        out.extend(0x8000_0001u32.to_be_bytes());
        out.extend([0; 4]);
        stream.write_all(&out).unwrap();
    }
    let mut reply = |kind: u32, data: &[u8]| {
        let mut out = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
        out.extend(7u32.to_be_bytes());
        out.extend(kind.to_be_bytes());
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
        stream.write_all(&out).unwrap();
    };
    let mut export = vec![0, 0];
    export.extend(MIB.to_be_bytes());
    export.extend(0b110_1101u16.to_be_bytes());
    reply(3, &export);
    reply(3, &[0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]);
    let uuid = uuid::Uuid::from_u128(7);
    reply(3, format!("\0\x02vexfs-blockd raw volume {uuid}").as_bytes());
    reply(1, b"");
}

fn submit(client: &NbdClient, op: IoOp) -> Receiver<IoResult> {
    let (send, receive) = channel();
    client.submit(blockd::device::ClientId(1), op, Box::new(move |result| send.send(result).unwrap()));
    receive
}

/// Connects to a dying daemon and leaves `n` writes unacknowledged, the daemon being gone.
fn orphaned(path: &Path, n: u64, options: ConnectOptions) -> (NbdClient, Vec<Receiver<IoResult>>) {
    let listener = UnixListener::bind(path).unwrap();
    let barrier = Arc::new(Barrier::new(2));
    let at_daemon = Arc::clone(&barrier);
    let daemon = std::thread::spawn(move || {
        dying_daemon(&listener, n as usize);
        drop(listener);
        at_daemon.wait();
    });
    let client = NbdClient::connect(&Target::socket(path), options).unwrap();
    let results = (0..n)
        .map(|i| submit(&client, IoOp::Write { offset: i * 512, buf: tagged(i, 512), fua: i % 2 == 0 }))
        .collect();
    barrier.wait();
    daemon.join().unwrap();
    (client, results)
}

#[test]
fn unacknowledged_requests_are_sent_again_in_their_order() {
    let (_dir, path) = socket();
    let (client, results) = orphaned(&path, 40, ConnectOptions::default());
    assert_eq!(client.pending(), 40);
    // Submitted while nobody is there: it queues behind the others.
    let queued = submit(&client, IoOp::Write { offset: 0, buf: tagged(99, 512), fua: false });
    let read = submit(&client, IoOp::Read { offset: 512, buf: AlignedBuf::zeroed(512) });
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    for result in results.into_iter().chain([queued]) {
        assert!(result.recv().unwrap().unwrap().is_none());
    }
    assert_eq!(read.recv().unwrap().unwrap().unwrap()[..], tagged(1, 512)[..]);
    let mut expected: Vec<Seen> =
        (0..40).map(|i| Seen::Write { offset: i * 512, len: 512, fua: i % 2 == 0 }).collect();
    expected.push(Seen::Write { offset: 0, len: 512, fua: false });
    expected.push(Seen::Read(512, 512));
    assert_eq!(ram.take_seen(), expected);
    assert_eq!(client.pending(), 0);
}

#[test]
fn the_hook_speaks_first_on_every_fresh_connection() {
    let (_dir, path) = socket();
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let options = ConnectOptions {
        hook: Some(Box::new(move |connection| {
            connection.write(MIB - 512, &[9; 512], true).unwrap();
            let mut back = [0; 512];
            connection.read(MIB - 512, &mut back).unwrap();
            assert_eq!(back, [9; 512]);
            // The first time it asks for another attempt.
            if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                HookOutcome::Retry("not yet".into())
            } else {
                HookOutcome::Continue
            }
        })),
        ..ConnectOptions::default()
    };
    let (client, results) = orphaned(&path, 3, options);
    assert_eq!(calls.load(Ordering::SeqCst), 0, "not on the first connection");
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    for result in results {
        result.recv().unwrap().unwrap();
    }
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    let seen = ram.take_seen();
    let attach = [Seen::Write { offset: MIB - 512, len: 512, fua: true }, Seen::Read(MIB - 512, 512)];
    assert_eq!(seen[..2], attach);
    assert_eq!(seen[2..4], attach);
    assert_eq!(seen.len(), 7, "the writes came only after the hook agreed");
    drop(client);
}

#[test]
fn a_lost_session_fails_everything_pending_and_later() {
    let (_dir, path) = socket();
    let options = ConnectOptions {
        hook: Some(Box::new(|_| HookOutcome::Lost("another mounter took the volume".into()))),
        ..ConnectOptions::default()
    };
    let (client, results) = orphaned(&path, 5, options);
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    for result in results {
        let error = result.recv().unwrap().unwrap_err();
        assert!(matches!(&error, IoError::Fenced(text) if text.contains("another mounter")), "{error}");
    }
    let later = blocking(&client, client.connect(), IoOp::Flush);
    assert!(matches!(later, Err(IoError::Fenced(_))));
    ram.wait_connected(0);
    assert_eq!(ram.take_seen(), [], "nothing was written");
}

#[test]
fn a_tool_is_told_instead_of_waiting() {
    let (_dir, path) = socket();
    let (client, results) = orphaned(&path, 3, ConnectOptions::fail_fast());
    for result in results {
        let error = result.recv().unwrap().unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()) && error.contains("start the daemon"), "{error}");
    }
    assert!(blocking(&client, client.connect(), IoOp::Flush).is_err());
}

#[test]
fn another_volume_at_the_same_socket_is_not_written_to() {
    let (_dir, path) = socket();
    let (client, results) = orphaned(&path, 3, ConnectOptions::default());
    let stranger = Ram::with(DeviceInfo {
        kind: VolumeKind::Raw,
        size_bytes: MIB,
        block_bytes_min: 512,
        read_only: false,
        uuid: uuid::Uuid::from_u128(8),
    });
    let served = Served::start(&path, stranger.clone());
    // The client has looked, and has gone again.
    stranger.wait_connected(1);
    stranger.wait_connected(0);
    served.stop();
    assert_eq!(stranger.take_seen(), []);
    assert_eq!(client.pending(), 3);
    let right = Ram::new(MIB);
    let _served = Served::start(&path, right.clone());
    for result in results {
        result.recv().unwrap().unwrap();
    }
    assert_eq!(right.take_seen().len(), 3);
}

#[test]
fn a_server_without_extended_headers_is_not_used_where_one_with_them_was() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    let served = Served::start(&path, ram.clone());
    let client = NbdClient::connect(&Target::socket(&path), ConnectOptions::default()).unwrap();
    drop(served);
    let result = submit(&client, IoOp::Write { offset: 512, buf: tagged(3, 512), fua: false });
    let listener = UnixListener::bind(&path).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    handshake(&mut stream);
    // It leaves without a request, and comes again.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
    drop((stream, listener));
    std::fs::remove_file(&path).unwrap();
    let _served = Served::start(&path, ram.clone());
    result.recv().unwrap().unwrap();
    assert_eq!(ram.bytes(512, 512), tagged(3, 512)[..]);
}

#[test]
fn a_daemon_that_talks_nonsense_is_left_and_waited_for() {
    let (_dir, path) = socket();
    let listener = UnixListener::bind(&path).unwrap();
    let daemon = std::thread::spawn(move || {
        for nonsense in [&[0xee; 16][..], b"gDf\x98\0\0\0\0\0\0\0\0\0\0\xff\xff"] {
            let (mut stream, _) = listener.accept().unwrap();
            handshake(&mut stream);
            stream.read_exact(&mut [0; 28 + 512]).unwrap();
            stream.write_all(nonsense).unwrap();
            // The client hangs up.
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        }
    });
    let client = NbdClient::connect(&Target::socket(&path), ConnectOptions::default()).unwrap();
    let result = submit(&client, IoOp::Write { offset: 512, buf: tagged(3, 512), fua: false });
    daemon.join().unwrap();
    let ram = Ram::new(MIB);
    let _served = Served::start(&path, ram.clone());
    result.recv().unwrap().unwrap();
    assert_eq!(ram.bytes(512, 512), tagged(3, 512)[..]);
}

#[test]
fn a_read_cut_off_in_its_payload_is_sent_again() {
    let (_dir, path) = socket();
    let listener = UnixListener::bind(&path).unwrap();
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        handshake(&mut stream);
        let mut request = [0; 28];
        stream.read_exact(&mut request).unwrap();
        let mut reply = 0x6744_6698u32.to_be_bytes().to_vec();
        reply.extend([0; 4]);
        reply.extend(&request[8..16]);
        reply.extend([0xdd; 1000]);
        stream.write_all(&reply).unwrap();
    });
    let client = NbdClient::connect(&Target::socket(&path), ConnectOptions::default()).unwrap();
    let result = submit(&client, IoOp::Read { offset: 0, buf: AlignedBuf::zeroed(4096) });
    daemon.join().unwrap();
    let _served = Served::start(&path, Ram::new(MIB));
    assert_eq!(result.recv().unwrap().unwrap().unwrap()[..], [0; 4096], "nothing of the cut reply is left");
}

#[test]
fn a_daemon_that_restarts_under_load_loses_nothing() {
    let (_dir, path) = socket();
    let ram = Ram::new(MIB);
    // Replies that are not written yet are cut off, as if it was killed.
    let limits = Limits { drain_timeout_ms: 0, ..Limits::default() };
    let mut served = Some(Served::with(&path, ram.clone(), limits.clone()));
    let client = NbdClient::connect(&Target::socket(&path), ConnectOptions::default()).unwrap();
    let written = AtomicU64::new(0);
    let rounds = 15;
    let stop = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (stop, written, client, ram) = (&stop, &written, &client, &ram);
        for t in 0..4u64 {
            scope.spawn(move || {
                let id = client.connect();
                let mut i = 0u64;
                while stop.load(Ordering::SeqCst) == 0 {
                    i += 1;
                    let offset = (t * 16 + i % 16) * 4096;
                    let buf = tagged(i, 4096);
                    blocking(client, id, IoOp::Write { offset, buf, fua: false }).unwrap();
                    let buf = AlignedBuf::zeroed(4096);
                    let back = blocking(client, id, IoOp::Read { offset, buf }).unwrap().unwrap();
                    assert!(back[..] == tagged(i, 4096)[..], "thread {t} reads what it wrote last");
                    written.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for _ in 0..rounds {
            let before = written.load(Ordering::SeqCst);
            while written.load(Ordering::SeqCst) < before + 40 {
                std::thread::yield_now();
            }
            drop(served.take());
            served = Some(Served::with(&path, ram.clone(), limits.clone()));
        }
        stop.store(1, Ordering::SeqCst);
    });
    assert!(written.load(Ordering::SeqCst) >= rounds * 40);
    drop(client);
    drop(served);
}
