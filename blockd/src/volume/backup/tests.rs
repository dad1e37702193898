//! Streams between two real volumes, and streams that are no good. [`sizes`]: of volumes that were made larger and smaller.

mod sizes;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layout::addr::PAGE;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use super::frame::{Frame, FrameReader, FrameWriter};
use super::{BackupError, Progress, Receiver, create_target};
use crate::buf::AlignedBuf;
use crate::device::{ClientId, Device, IoOp, VolumeKind, blocking};
use crate::session::{BootId, GrantCell, OpenMode, Session};
use crate::storage::IoEngine;
use crate::volume::resize::{ResizeOptions, resize};
use crate::volume::snapshot::SnapshotError;
use crate::volume::{CreateOptions, OpenOptions, Volume};

const RAW_PAGES: u64 = 3000;
const BOOT: BootId = BootId([3; 16]);

type Plain = BTreeMap<u64, u8>;

fn options() -> OpenOptions {
    OpenOptions { io: IoEngine::Sync, boot_id: BOOT.0, ..OpenOptions::default() }
}

/// The image at `path` gets a raw volume of another size.
fn resize_image(path: &Path, pages: u64) {
    let wanted = ResizeOptions { volume_bytes: Some(pages * PAGE as u64), image_bytes: None, force: true };
    resize(path, &wanted, &mut |_| {}).expect("a resize");
}

struct Source {
    dir: TempDir,
    volume: Arc<Volume>,
    kind: VolumeKind,
    /// Of a raw volume.
    pages: u64,
    plain: Plain,
    rng: StdRng,
}

impl Source {
    fn new(kind: VolumeKind, seed: u64) -> Self {
        let dir = TempDir::new().expect("a directory");
        let create = CreateOptions {
            kind,
            uuid: uuid::Uuid::from_bytes([9; 16]),
            size_bytes: 64 << 20,
            raw_size_bytes: if kind == VolumeKind::Raw { RAW_PAGES * PAGE as u64 } else { 0 },
            segment_bytes: 0,
            force: false,
        };
        let path = dir.path().join("source.img");
        Volume::create(&path, &create).expect("a new volume");
        let volume = Volume::open(&path, &options()).expect("it opens");
        let (plain, rng) = (Plain::new(), StdRng::seed_from_u64(seed));
        Source { dir, volume, kind, pages: RAW_PAGES, plain, rng }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target.img")
    }

    fn page(&mut self) -> u64 {
        match self.kind {
            VolumeKind::Raw => self.rng.random_range(0..self.pages - 40),
            // Inodes, and files of class 0, with gaps of units between.
            VolumeKind::VexFs if self.rng.random_ratio(1, 3) => (1 << 34) + self.rng.random_range(0..300),
            VolumeKind::VexFs => {
                (1 << 45) + (self.rng.random_range(0..6u64) << 17) + self.rng.random_range(0..200)
            }
        }
    }

    /// Changes some pages; on VexFS in one session, committed at the end.
    fn change(&mut self) {
        let client = self.volume.connect();
        let device: Arc<dyn Device> = Arc::clone(&self.volume) as _;
        let session = (self.kind == VolumeKind::VexFs).then(|| {
            Session::open(Arc::clone(&device), client, OpenMode::ReadWrite, BOOT, &GrantCell::default())
                .expect("a session")
        });
        for _ in 0..40 {
            let (first, count) = (self.page(), self.rng.random_range(1..40));
            let offset = first * PAGE as u64;
            if self.rng.random_ratio(1, 4) {
                let op = IoOp::Trim { offset, len_bytes: count * PAGE as u64, fua: false };
                blocking(&*device, client, op).expect("a trim");
                self.plain.retain(|p, _| !(first..first + count).contains(p));
            } else {
                let mut buf = AlignedBuf::zeroed(count as usize * PAGE);
                for (page, bytes) in (first..).zip(buf.chunks_exact_mut(PAGE)) {
                    let value = self.rng.random_range(1..255);
                    bytes.fill(value);
                    self.plain.insert(page, value);
                }
                blocking(&*device, client, IoOp::Write { offset, buf, fua: false }).expect("a write");
            }
        }
        if let Some(session) = session {
            let mut superblock = AlignedBuf::zeroed(PAGE);
            superblock.fill(self.rng.random_range(1..255));
            self.plain.insert(0, superblock[0]);
            blocking(&*device, client, IoOp::Write { offset: 0, buf: superblock, fua: true })
                .expect("a commit");
            session.close().expect("a close");
        }
        self.volume.disconnect(client);
    }

    fn reopen(&mut self) {
        self.volume.shutdown().expect("a clean end");
        self.volume = Volume::open(&self.dir.path().join("source.img"), &options()).expect("it opens");
    }

    /// Gives the volume another size, with nothing beyond it.
    fn resize(&mut self, pages: u64) {
        self.volume.shutdown().expect("a clean end");
        resize_image(&self.dir.path().join("source.img"), pages);
        self.reopen();
        self.pages = pages;
        self.plain.retain(|page, _| *page < pages);
    }

    /// Writes the last pages.
    fn write_end(&mut self, value: u8) {
        let client = self.volume.connect();
        let mut buf = AlignedBuf::zeroed(8 * PAGE);
        buf.fill(value);
        let first = self.pages - 8;
        let op = IoOp::Write { offset: first * PAGE as u64, buf, fua: false };
        blocking(&*self.volume, client, op).expect("a write");
        self.plain.extend((first..self.pages).map(|page| (page, value)));
        self.volume.disconnect(client);
    }

    fn snapshot(&self, name: &str) -> Plain {
        self.volume.snapshot_create(name).expect("a snapshot");
        self.plain.clone()
    }

    fn send(&self, from: Option<&str>, to: &str) -> Vec<u8> {
        let mut stream = Vec::new();
        let mut last = Progress::default();
        self.volume.send(from, to, &mut stream, |p| last = p).expect("a stream");
        assert!(last.done_bytes <= last.total_bytes);
        stream
    }
}

fn receive(volume: &Volume, stream: &[u8]) -> Result<(), BackupError> {
    let receiver = Receiver::new(stream)?;
    let to = receiver.header().to.clone();
    let info = volume.receive(receiver, |_| {})?;
    assert_eq!((info.name, info.time_ns), (to.name, to.time_ns));
    Ok(())
}

fn check(device: &dyn Device, plain: &Plain, pages: impl Iterator<Item = u64>) {
    let client = ClientId(77);
    for page in pages {
        let op = IoOp::Read { offset: page * PAGE as u64, buf: AlignedBuf::zeroed(PAGE) };
        let buf = blocking(device, client, op).expect("a read").expect("its buffer");
        let expected = plain.get(&page).copied().unwrap_or(0);
        assert!(buf.iter().all(|&b| b == expected), "page {page:#x}: {} and not {expected}", buf[0]);
    }
}

fn all_pages(states: &[Plain]) -> Vec<u64> {
    let mut pages: Vec<u64> = states.iter().flat_map(|s| s.keys().copied()).collect();
    pages.sort_unstable();
    pages.dedup();
    pages
}

fn streams_carry_all_snapshots(kind: VolumeKind) {
    let mut source = Source::new(kind, 5);
    let mut states = Vec::new();
    for name in ["a", "b", "c", "d"] {
        source.change();
        states.push(source.snapshot(name));
    }
    source.change();
    let full = source.send(None, "a");
    let target = source.target();
    create_target(&target, Receiver::new(&full[..]).expect("a header").header(), 0).expect("a target");
    let volume = Volume::open(&target, &options()).expect("it opens");
    assert_eq!(volume.info().uuid, source.volume.info().uuid);
    receive(&volume, &full).expect("a full stream");
    // From b to d in one, c having gone before.
    let ab = source.send(Some("a"), "b");
    source.volume.snapshot_delete("c").expect("it goes");
    source.volume.snapshot_settle(|_| {}).expect("its space is given back");
    let bd = source.send(Some("b"), "d");
    assert!(
        matches!(receive(&volume, &bd), Err(BackupError::Refused(why)) if why.contains("continues snapshot \"b\""))
    );
    receive(&volume, &ab).expect("it continues");
    receive(&volume, &bd).expect("it continues");
    assert!(matches!(receive(&volume, &ab), Err(BackupError::Snapshot(SnapshotError::Exists(_)))));
    let pages = all_pages(&states);
    for (name, state) in [("a", &states[0]), ("b", &states[1]), ("d", &states[3])] {
        let device = volume.open_snapshot(name).expect("it was received");
        check(&*device, state, pages.iter().copied());
    }
    check(&*volume, &states[3], pages.iter().copied());
    assert!(ab.len() < full.len() * 2, "{} and {}", ab.len(), full.len());
    let names: Vec<String> = volume.snapshots().snapshots.into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["a", "b", "d"]);
}

#[test]
fn streams_carry_all_snapshots_of_a_raw_volume() {
    streams_carry_all_snapshots(VolumeKind::Raw);
}

#[test]
fn streams_carry_all_snapshots_of_a_vexfs_volume() {
    streams_carry_all_snapshots(VolumeKind::VexFs);
}

#[test]
fn a_stream_that_breaks_off_or_is_damaged_anywhere_changes_nothing() {
    let mut source = Source::new(VolumeKind::Raw, 6);
    let mut states = Vec::new();
    for name in ["a", "b"] {
        source.change();
        states.push(source.snapshot(name));
    }
    let (full, ab) = (source.send(None, "a"), source.send(Some("a"), "b"));
    let target = source.target();
    create_target(&target, Receiver::new(&full[..]).expect("a header").header(), 0).expect("a target");
    let volume = Volume::open(&target, &options()).expect("it opens");
    let pages = all_pages(&states);
    let nothing = Plain::new();
    let mut rng = StdRng::seed_from_u64(1);
    for (stream, before) in [(&full, &nothing), (&ab, &states[0])] {
        for i in 0..14 {
            let mut bad = stream.clone();
            match i {
                0 => bad.truncate(stream.len() - 1),
                1 => bad.push(0),
                _ if i % 2 == 0 => bad.truncate(rng.random_range(0..stream.len())),
                _ => {
                    let at = rng.random_range(0..stream.len());
                    bad[at] ^= 1 << rng.random_range(0..8);
                }
            }
            let error = receive(&volume, &bad).expect_err("it is no good");
            assert!(matches!(error, BackupError::Stream(_)), "{error}");
            check(&*volume, before, pages.iter().copied().step_by(7));
        }
        assert_eq!(volume.snapshots().snapshots.len(), before.len().min(1));
        receive(&volume, stream).expect("the good one is taken after all");
    }
    check(&*volume, &states[1], pages.into_iter());
}

#[test]
fn streams_that_do_not_fit_are_refused() {
    let mut source = Source::new(VolumeKind::Raw, 7);
    source.change();
    source.snapshot("a");
    source.change();
    source.snapshot("b");
    let (full, ab) = (source.send(None, "a"), source.send(Some("a"), "b"));
    assert!(matches!(
        source.volume.send(Some("b"), "a", &mut Vec::new(), |_| {}),
        Err(BackupError::Refused(_))
    ));
    assert!(matches!(
        source.volume.send(Some("b"), "x", &mut Vec::new(), |_| {}),
        Err(BackupError::Snapshot(SnapshotError::Unknown(_)))
    ));
    let header = |stream: &[u8]| Receiver::new(stream).expect("a header").header().clone();
    let target = source.target();
    assert!(matches!(create_target(&target, &header(&ab), 0), Err(BackupError::Refused(_))));
    assert!(!target.exists());
    create_target(&target, &header(&full), 0).expect("a target");
    let volume = Volume::open(&target, &options()).expect("it opens");
    let client = volume.connect();
    let refused = receive(&volume, &full).expect_err("a client is connected");
    assert!(matches!(refused, BackupError::Snapshot(SnapshotError::Connected(1))), "{refused}");
    volume.disconnect(client);
    receive(&volume, &full).expect("a full stream");
    let again = receive(&volume, &full).expect_err("it has data");
    assert!(matches!(again, BackupError::Snapshot(SnapshotError::Exists(_))), "{again}");
    // Changed since.
    let client = volume.connect();
    let buf = AlignedBuf::zeroed(PAGE);
    blocking(&*volume, client, IoOp::Write { offset: 0, buf, fua: false }).expect("a write");
    let mut buf = AlignedBuf::zeroed(PAGE);
    buf.fill(1);
    blocking(&*volume, client, IoOp::Write { offset: 0, buf, fua: false }).expect("a write");
    volume.disconnect(client);
    assert!(matches!(receive(&volume, &ab), Err(BackupError::Refused(why)) if why.contains("rollback")));
    volume.snapshot_rollback("a", |_| {}).expect("it goes back");
    receive(&volume, &ab).expect("it continues again");
    assert!(matches!(Receiver::new(&[][..]), Err(BackupError::Stream(_))));
}

/// A stream of its own making, correct in every crc.
fn forged(header: &super::Header, frames: &[Frame]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = FrameWriter::new(&mut out);
    writer.header(header).expect("to memory");
    for frame in frames {
        match frame {
            Frame::Data { first, bytes } => writer.data(*first, bytes).expect("to memory"),
            Frame::Holes(ranges) => writer.holes(ranges).expect("to memory"),
            Frame::Header(_) | Frame::Trailer { .. } => {}
        }
    }
    writer.trailer().expect("to memory");
    out
}

#[test]
fn hostile_streams_get_an_error_each() {
    for kind in [VolumeKind::Raw, VolumeKind::VexFs] {
        let mut source = Source::new(kind, 8);
        source.change();
        source.snapshot("a");
        let full = source.send(None, "a");
        let header = Receiver::new(&full[..]).expect("a header").header().clone();
        let target = source.target();
        create_target(&target, &header, 0).expect("a target");
        let volume = Volume::open(&target, &options()).expect("it opens");
        let page = vec![1; PAGE];
        let data = |first| Frame::Data { first, bytes: page.clone() };
        let hostile = [
            data(u64::MAX),
            data(1 << 50),
            data(if kind == VolumeKind::Raw { RAW_PAGES } else { 1 }),
            data(if kind == VolumeKind::Raw { RAW_PAGES } else { (1 << 49) + (1 << 48) }),
            Frame::Holes(vec![(0, 0)]),
            Frame::Holes(vec![(5, u64::MAX)]),
            Frame::Holes(vec![(0, 1 << 45)]),
        ];
        for frame in hostile {
            let stream = forged(&header, &[frame]);
            let error = receive(&volume, &stream).expect_err("no volume has such pages");
            assert!(matches!(&error, BackupError::Stream(why) if why.contains("no volume")), "{error}");
        }
        assert_eq!(volume.snapshots().snapshots.len(), 0);
        receive(&volume, &full).expect("the good one is taken after all");
    }
}

#[test]
fn frames_come_back_as_they_were_written_and_endless_input_ends() {
    let mut source = Source::new(VolumeKind::Raw, 9);
    source.change();
    source.snapshot("a");
    let full = source.send(None, "a");
    let mut frames = FrameReader::new(&full[..]);
    let header = frames.header().expect("a header");
    let mut all = Vec::new();
    while let Some(frame) = frames.frame().expect("a frame") {
        all.push(frame);
    }
    assert!(
        matches!(all.last(), Some(Frame::Trailer { data_pages, .. }) if *data_pages == source.plain.len() as u64)
    );
    assert_eq!(forged(&header, &all), full);
    let endless = std::io::repeat(b'V');
    assert!(matches!(Receiver::new(endless), Err(BackupError::Stream(_))));
    let zeros = std::io::repeat(0).take(1 << 20);
    assert!(matches!(Receiver::new(zeros), Err(BackupError::Stream(_))));
}
