//! Clients that come while a volume is between two states, and gets another size.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver as Channel, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use blockd::buf::AlignedBuf;
use blockd::device::{ClientId, IoOp, VolumeKind, blocking};
use blockd::nbd::server::{Exports, Limits, Listener};
use blockd::volume::backup::{BackupError, Receiver, create_target};
use blockd::volume::resize::{ResizeOptions, resize};
use blockd::volume::snapshot::SnapshotError;
use blockd::volume::{CreateOptions, OpenOptions, Volume};
use tempfile::TempDir;

use crate::peer::{Peer, go};
use crate::served::{Served, socket};

const PAGE: u64 = 4096;
const PAGES_BEFORE: u64 = 2000;
const PAGES_AFTER: u64 = 3000;

fn open(path: &Path) -> Arc<Volume> {
    Volume::open(path, &OpenOptions::default()).expect("it opens")
}

fn write(volume: &Volume, page: u64, value: u8) {
    let mut buf = AlignedBuf::zeroed(PAGE as usize);
    buf.fill(value);
    blocking(volume, ClientId(9), IoOp::Write { offset: page * PAGE, buf, fua: false }).expect("a write");
}

/// Streams of a volume that grew: a full one, and one that continues it.
fn streams(dir: &TempDir) -> (Vec<u8>, Vec<u8>) {
    let path = dir.path().join("source.img");
    let create = CreateOptions {
        kind: VolumeKind::Raw,
        uuid: uuid::Uuid::from_bytes([9; 16]),
        size_bytes: 64 << 20,
        raw_size_bytes: PAGES_BEFORE * PAGE,
        segment_bytes: 0,
        force: false,
    };
    Volume::create(&path, &create).expect("a new volume");
    let volume = open(&path);
    write(&volume, 5, 1);
    volume.snapshot_create("a").expect("a snapshot");
    volume.shutdown().expect("it ends");
    drop(volume);
    let wanted = ResizeOptions { volume_bytes: Some(PAGES_AFTER * PAGE), ..ResizeOptions::default() };
    resize(&path, &wanted, &mut |_| {}).expect("it grows");
    let volume = open(&path);
    (0..1000).for_each(|page| write(&volume, page, 2));
    volume.snapshot_create("b").expect("a snapshot");
    let stream = |from, to| {
        let mut out = Vec::new();
        volume.send(from, to, &mut out, |_| {}).expect("a stream");
        out
    };
    (stream(None, "a"), stream(Some("a"), "b"))
}

/// A volume with the first state, served.
struct Target {
    volume: Arc<Volume>,
    served: Served,
    path: std::path::PathBuf,
    /// Goes last.
    _dir: TempDir,
}

impl Target {
    fn new(dir: &TempDir, full: &[u8], limits: Limits) -> Target {
        let image = dir.path().join("target.img");
        let receiver = Receiver::new(full).expect("a header");
        create_target(&image, receiver.header(), 0).expect("a target");
        let volume = open(&image);
        volume.receive(receiver, |_| {}).expect("a full stream");
        let (dir, path) = socket();
        let device = Arc::clone(&volume);
        let exports = Exports::single(blockd::nbd::server::Export::new("disk", device).expect("an export"));
        let (served, _) = Served::listening(vec![Listener::unix(&path)], exports, limits);
        Target { volume, served, path, _dir: dir }
    }

    fn end(self) {
        self.served.stop();
        self.volume.shutdown().expect("it ends");
    }
}

/// A stream being received, its last byte yet to come.
struct Half {
    pipe: UnixStream,
    last: u8,
    receiving: JoinHandle<Result<(), BackupError>>,
}

impl Half {
    fn begin(volume: &Arc<Volume>, stream: &[u8]) -> Half {
        let (mut pipe, theirs) = UnixStream::pair().expect("a pair");
        let (begun, has_begun) = channel();
        let volume = Arc::clone(volume);
        let receiving = std::thread::spawn(move || {
            let receiver = Receiver::new(theirs)?;
            volume.receive(receiver, |_| begun.send(()).unwrap_or(())).map(|_| ())
        });
        let (last, all) = stream.split_last().expect("it is not empty");
        pipe.write_all(all).expect("it is read");
        has_begun.recv().expect("the first data is taken");
        Half { pipe, last: *last, receiving }
    }

    fn finish(mut self) -> Result<(), BackupError> {
        self.pipe.write_all(&[self.last]).expect("it is read");
        drop(self.pipe);
        self.receiving.join().expect("no panic")
    }

    fn break_off(self) {
        drop(self.pipe);
        self.receiving.join().expect("no panic").expect_err("it is not whole");
    }
}

/// What a client was told.
#[derive(PartialEq, Eq, Debug)]
enum Told {
    Pages(u64),
    Refused(String),
}

/// A client that asks for the export; what it is told comes later, and it stays until it is let go.
fn client(path: &Path, old: bool) -> (Channel<Told>, Sender<()>, JoinHandle<()>) {
    let (tell, told) = channel();
    let (let_go, stay) = channel();
    let mut peer = Peer::negotiating(path);
    let thread = std::thread::spawn(move || {
        if old {
            peer.option(1, b"disk");
            let size = peer.take(10)[..8].try_into().expect("8 bytes");
            drop(tell.send(Told::Pages(u64::from_be_bytes(size) / PAGE)));
        } else {
            peer.option(7, &go("disk", &[]));
            drop(tell.send(answer(&mut peer)));
        }
        let _ = stay.recv();
    });
    (told, let_go, thread)
}

fn answer(peer: &mut Peer<impl Read + Write>) -> Told {
    let mut pages = 0;
    loop {
        let (_, kind, data) = peer.option_reply();
        match kind {
            1 => return Told::Pages(pages),
            3 if data[..2] == [0, 0] => {
                pages = u64::from_be_bytes(data[2..10].try_into().expect("8 bytes")) / PAGE;
            }
            3 => {}
            _ => return Told::Refused(String::from_utf8(data).expect("a sentence")),
        }
    }
}

/// It does not hear anything before its time, however long that is.
fn assert_waits(told: &Channel<Told>) {
    assert_eq!(told.recv_timeout(Duration::from_millis(300)), Err(RecvTimeoutError::Timeout));
}

#[test]
fn clients_that_come_while_a_volume_gets_another_size_are_told_the_new_one() {
    let dir = TempDir::new().expect("a directory");
    let (full, more) = streams(&dir);
    let target = Target::new(&dir, &full, Limits::default());
    for old in [false, true] {
        let half = Half::begin(&target.volume, &more);
        let (told, let_go, thread) = client(&target.path, old);
        assert_waits(&told);
        half.break_off();
        assert_eq!(told.recv(), Ok(Told::Pages(PAGES_BEFORE)), "it was broken off");
        // Whoever was told keeps the volume as it is.
        let refused = target.volume.snapshot_rollback("a", |_| {}).expect_err("a client is connected");
        assert!(matches!(refused, SnapshotError::Connected(1)), "{refused}");
        drop(let_go);
        thread.join().expect("no panic");
        while matches!(target.volume.snapshot_rollback("a", |_| {}), Err(SnapshotError::Connected(_))) {
            // It is not known yet that the client is gone.
            std::thread::yield_now();
        }
    }
    let half = Half::begin(&target.volume, &more);
    let (told, let_go, thread) = client(&target.path, false);
    assert_waits(&told);
    half.finish().expect("it is whole");
    assert_eq!(told.recv(), Ok(Told::Pages(PAGES_AFTER)));
    drop(let_go);
    thread.join().expect("no panic");
    target.end();
}

#[test]
fn a_client_is_not_kept_waiting_for_ever() {
    let dir = TempDir::new().expect("a directory");
    let (full, more) = streams(&dir);
    let target = Target::new(&dir, &full, Limits { handshake_timeout_ms: 4_000, ..Limits::default() });
    let half = Half::begin(&target.volume, &more);
    let (told, let_go, thread) = client(&target.path, false);
    let Ok(Told::Refused(why)) = told.recv() else { panic!("it is told that it cannot be served") };
    assert!(why.contains("rolled back") && why.contains("wait"), "{why}");
    drop(let_go);
    thread.join().expect("no panic");
    half.finish().expect("it was in nobody's way");
    target.end();
}
