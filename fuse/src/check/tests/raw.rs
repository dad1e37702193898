//! Images spoiled at random below the store's checksums: whoever opens one is told what is wrong, a check ends, and a repair
//! leaves what can be read again. Over a real store, in memory.

use std::sync::Arc;

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoOp, VolumeKind, blocking};
use blockd::session::{BootId, GrantCell, OpenMode, Session};
use blockd::storage::Storage;
use blockd::storage::memory::MemoryStorage;
use blockd::store::create::{NewStore, create};
use blockd::volume::{OpenOptions, Volume};
use layout::addr::{PAGE, PageNo};
use layout::fs::{Fs, MountOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::{Code, Mode, Outcome, Pool, Stop, Walker, run};
use super::hostile::walk;
use super::{Notes, image};
use crate::engine::{Engine, EngineOptions, Pages};

const IMAGE_BYTES: u64 = 12 << 20;
const BOOT: [u8; 16] = [5; 16];
/// Cases of a usual run; VEXFS_FSCK_RAW_CASES says otherwise.
const CASES: u64 = 400;

fn open(storage: &MemoryStorage, read_only: bool) -> Result<Arc<Volume>, String> {
    let options = OpenOptions { read_only, boot_id: BOOT, cleaner: false, ..OpenOptions::default() };
    Volume::open_storage(Arc::new(storage.clone()), &options).map_err(|error| error.to_string())
}

/// A store with the rich volume in it, in several commits and checkpoints.
fn stored() -> MemoryStorage {
    let storage = MemoryStorage::new(IMAGE_BYTES);
    let new = NewStore { kind: VolumeKind::VexFs, uuid: [0; 16], raw_bytes: 0, segment_bytes: 64 << 10 };
    create(Arc::new(storage.clone()), new).unwrap();
    let fs = image::rich(60);
    let volume = open(&storage, false).unwrap();
    let client = volume.connect();
    let device = Arc::clone(&volume) as Arc<dyn Device>;
    let session =
        Session::open(device, client, OpenMode::ReadWrite, BootId(BOOT), &GrantCell::default()).unwrap();
    let write = |page: PageNo, fua| {
        let buf = AlignedBuf::from_slice(&fs.store().get(page));
        blocking(&*volume, client, IoOp::Write { offset: page.byte(), buf, fua }).unwrap();
    };
    let pages = fs.store().mapped();
    for (i, page) in pages.iter().enumerate().skip(1) {
        write(*page, false);
        if i % 100 == 99 {
            write(PageNo(0), true);
        }
        if i == pages.len() / 2 {
            volume.checkpoint().unwrap();
        }
    }
    write(PageNo(0), true);
    session.close().unwrap();
    volume.shutdown().unwrap();
    storage
}

fn copy(storage: &MemoryStorage) -> MemoryStorage {
    let copy = MemoryStorage::new(IMAGE_BYTES);
    let mut buf = AlignedBuf::zeroed(1 << 20);
    for offset in (0..IMAGE_BYTES).step_by(buf.len()) {
        storage.read_exact(offset, &mut buf).unwrap();
        copy.write_all(offset, &buf).unwrap();
    }
    copy
}

fn spoil(storage: &MemoryStorage, rng: &mut StdRng, used: &[u64]) {
    let at = used[rng.random_range(0..used.len())];
    let mut page = AlignedBuf::zeroed(PAGE);
    storage.read_exact(at, &mut page).unwrap();
    match rng.random_range(0..6) {
        0 => page.fill(0),
        1 => storage.read_exact(used[rng.random_range(0..used.len())], &mut page).unwrap(),
        2 => rng.fill(&mut page[..]),
        _ => page[rng.random_range(0..PAGE)] ^= 1 << rng.random_range(0..8),
    }
    storage.write_all(at, &page).unwrap();
}

fn checked(volume: &Arc<Volume>, mode: Mode, notes: &mut Notes) -> Result<Outcome, Stop> {
    let device = Arc::clone(volume) as Arc<dyn Device>;
    let client = device.connect();
    let session = match mode {
        Mode::Look => None,
        _ => Some(Session::open(
            Arc::clone(&device),
            client,
            OpenMode::ReadWrite,
            BootId(BOOT),
            &GrantCell::default(),
        )?),
    };
    let mut pool = Pool::new(device, client, session, Walker::Native);
    let outcome = run(&mut pool, mode, true, notes);
    let closed = pool.close();
    let outcome = outcome?;
    closed.map(|()| outcome)
}

/// A mount's file system logic over the store.
fn mounted_walk(volume: &Arc<Volume>, rng: &mut StdRng) {
    let device = Arc::clone(volume) as Arc<dyn Device>;
    let client = device.connect();
    let opened =
        Session::open(Arc::clone(&device), client, OpenMode::ReadWrite, BootId(BOOT), &GrantCell::default());
    let Ok(session) = opened else { return };
    let number = session.number();
    let Ok(engine) = Engine::new(device, client, Some(session), EngineOptions::default()) else { return };
    let options = MountOptions { read_only: false, session: number, now: image::NOW };
    if let Ok(mut fs) = Fs::mount(Pages(Arc::clone(&engine)), options) {
        walk(&mut fs, rng);
    }
    let _ = engine.close_session();
}

fn one_case(good: &MemoryStorage, used: &[u64], seed: u64) -> &'static str {
    let rng = &mut StdRng::seed_from_u64(seed);
    let storage = copy(good);
    for _ in 0..rng.random_range(1..4) {
        spoil(&storage, rng, used);
    }
    let volume = match open(&storage, true) {
        Ok(volume) => volume,
        Err(why) => {
            assert!(!why.is_empty(), "seed {seed}");
            return "not opened";
        }
    };
    let mut notes = Notes::default();
    let looked = checked(&volume, Mode::Look, &mut notes);
    drop(volume);
    let found = match looked {
        Ok(outcome) => outcome.findings + outcome.unrepairable > 0,
        Err(Stop::Unusable(_) | Stop::Device(_)) => return "unusable",
        Err(other) => panic!("seed {seed}: {other}"),
    };
    let Ok(volume) = open(&storage, false) else { return "read only" };
    let mut notes = Notes::default();
    match checked(&volume, Mode::Repair, &mut notes) {
        Ok(_) => {}
        Err(Stop::Device(_) | Stop::Session(_)) => return "not repaired",
        Err(other) => panic!("seed {seed}: {other}\n{}", notes.text()),
    }
    let mut notes = Notes::default();
    let again = checked(&volume, Mode::Look, &mut notes).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    assert_eq!(again.findings, 0, "seed {seed}: after the repair\n{}", notes.text());
    let only_data = notes.found.iter().all(|finding| finding.code == Code::DataUnreadable);
    assert!(only_data, "seed {seed}: after the repair\n{}", notes.text());
    mounted_walk(&volume, rng);
    drop(volume);
    if found { "repaired" } else { "unharmed" }
}

#[test]
fn spoiled_images_are_told_of_and_repaired_as_far_as_they_can_be_read() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("VEXFS_TEST_SEED").unwrap_or(1);
    let cases = number("VEXFS_FSCK_RAW_CASES").unwrap_or(CASES);
    let good = stored();
    let mut page = AlignedBuf::zeroed(PAGE);
    let used: Vec<u64> = (0..IMAGE_BYTES)
        .step_by(PAGE)
        .filter(|at| {
            good.read_exact(*at, &mut page).unwrap();
            page.iter().any(|b| *b != 0)
        })
        .collect();
    let mut counts = std::collections::BTreeMap::new();
    for seed in first..first + cases {
        *counts.entry(one_case(&good, &used, seed)).or_insert(0) += 1;
    }
    eprintln!("{counts:?} of {} pages", used.len());
    assert!(counts.get("repaired").is_some_and(|n| n * 20 > cases), "{counts:?}");
}
