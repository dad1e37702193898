//! The engine over a RAM device: atomicity, order, copies, discards, shared commits, credits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use blockd::device::{Device, IoError};
use blockd::session::{BootId, GrantCell, OpenMode, Session};
use layout::addr::{CLASS0_BASE, PAGE, PageNo, PageRange, SUPERBLOCK_PAGE};
use layout::error::{Error, Result};
use layout::page_store::{PageBytes, PageStore};

use super::ram::{Event, RamDevice};
use super::{ClonedPages, Cost, Engine, EngineOptions, EpochSource, Flusher, Pages};

/// Stands for the file system logic: page 0 holds the epoch's number.
#[derive(Default)]
struct Epochs(AtomicU64);

impl EpochSource for Epochs {
    fn close_epoch(&self, _clean: bool) -> Result<Box<PageBytes>> {
        let epoch = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        let mut page = Box::new([0; PAGE]);
        page[..8].copy_from_slice(&epoch.to_le_bytes());
        Ok(page)
    }
}

/// Metadata pages (in the inode table) and a data page, as page numbers.
const META: u64 = (1 << 46) / PAGE as u64;
const DATA: u64 = CLASS0_BASE / PAGE as u64;

fn engine_with(device: &Arc<RamDevice>, options: EngineOptions) -> (Arc<Engine>, Pages) {
    let device = Arc::clone(device) as Arc<dyn Device>;
    let client = device.connect();
    let boot = BootId([1; 16]);
    let session =
        Session::open(Arc::clone(&device), client, OpenMode::ReadWrite, boot, &GrantCell::default()).unwrap();
    assert_eq!(session.number(), 7);
    let engine = Engine::new(device, client, Some(session), options).unwrap();
    (Arc::clone(&engine), Pages(engine))
}

fn engine(device: &Arc<RamDevice>) -> (Arc<Engine>, Pages) {
    engine_with(device, EngineOptions::default())
}

fn set(pages: &Pages, page: u64, byte: u8) {
    let _op = pages.0.begin(Cost::Pages(0)).unwrap();
    pages.write(PageNo(page)).unwrap().fill(byte);
}

fn get(pages: &Pages, page: u64) -> u8 {
    pages.read(PageNo(page)).unwrap()[0]
}

fn write_data(engine: &Engine, page: u64, bytes: &[u8]) {
    let _op = engine.begin(Cost::Pages(bytes.len().div_ceil(PAGE) as u64)).unwrap();
    engine.write_data(page * PAGE as u64, bytes, u64::MAX).unwrap();
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if holds() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("waited in vain: {what}");
}

#[test]
fn a_crash_shows_the_last_commit_and_nothing_else() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    let epochs = Epochs::default();
    set(&pages, META, 1);
    set(&pages, META + 9, 1);
    engine.commit(&epochs).unwrap();
    set(&pages, META, 2);
    write_data(&engine, DATA, &[2; 3 * PAGE]);
    assert!(engine.write_out_early(100).unwrap(), "data goes out within the epoch");
    assert_eq!(device.byte(DATA), 2);

    let crashed = device.after_crash();
    assert_eq!(crashed.byte(META), 1);
    assert_eq!(crashed.byte(META + 9), 1);
    assert!(!crashed.is_mapped(DATA), "early data of an open epoch rolls back");

    engine.commit(&epochs).unwrap();
    let crashed = device.after_crash();
    assert_eq!((crashed.byte(META), crashed.byte(META + 9), crashed.byte(DATA + 2)), (2, 1, 2));
}

#[test]
fn nothing_of_the_next_epoch_is_sent_before_the_ack() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    let epochs = Arc::new(Epochs::default());
    set(&pages, META, 1);
    device.hold_commits();
    let committer = {
        let (engine, epochs) = (Arc::clone(&engine), Arc::clone(&epochs));
        thread::spawn(move || engine.commit(&*epochs))
    };
    wait_for("the commit is on its way", || device.is_holding());

    // Operations go on; the frozen page is copied; neither early write-out nor a second commit sends.
    set(&pages, META, 2);
    set(&pages, META + 1, 2);
    write_data(&engine, DATA, &[2; PAGE]);
    assert_eq!(get(&pages, META), 2);
    assert!(!engine.write_out_early(100).unwrap());
    let second = {
        let (engine, epochs) = (Arc::clone(&engine), Arc::clone(&epochs));
        thread::spawn(move || engine.commit(&*epochs))
    };
    thread::sleep(Duration::from_millis(20));
    assert_eq!(device.byte(META), 1, "the frozen bytes were written");
    assert!(!device.is_mapped(META + 1) && !device.is_mapped(DATA));
    assert_eq!(device.commits(), 1);

    device.let_go();
    committer.join().unwrap().unwrap();
    second.join().unwrap().unwrap();
    assert_eq!((device.byte(META), device.byte(META + 1), device.byte(DATA)), (2, 2, 2));
    assert_eq!(device.commits(), 2);
}

#[test]
fn a_commit_waits_for_running_operations() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    let epochs = Arc::new(Epochs::default());
    let op = engine.begin(Cost::Pages(0)).unwrap();
    pages.write(PageNo(META)).unwrap().fill(1);
    let committer = {
        let (engine, epochs) = (Arc::clone(&engine), Arc::clone(&epochs));
        thread::spawn(move || engine.commit(&*epochs))
    };
    thread::sleep(Duration::from_millis(20));
    assert_eq!(device.commits(), 0, "the operation holds the epoch open");
    pages.write(PageNo(META + 1)).unwrap().fill(1);
    drop(op);
    committer.join().unwrap().unwrap();
    let crashed = device.after_crash();
    assert_eq!((crashed.byte(META), crashed.byte(META + 1)), (1, 1));
}

#[test]
fn waiting_fsyncs_share_one_commit() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    let epochs = Arc::new(Epochs::default());
    set(&pages, META, 1);
    device.hold_commits();
    let mut threads = Vec::new();
    for i in 0..9u64 {
        let (engine, epochs, pages) = (Arc::clone(&engine), Arc::clone(&epochs), pages.clone());
        threads.push(thread::spawn(move || {
            set(&pages, META + 10 + i, 1);
            engine.commit(&*epochs)
        }));
        if i == 0 {
            wait_for("the first commit is on its way", || device.is_holding());
        }
    }
    // Eight are waiting for the second commit once all their pages are dirty.
    wait_for("all are dirty", || (0..9).all(|i| get(&pages, META + 10 + i) == 1));
    thread::sleep(Duration::from_millis(50));
    device.let_go();
    for t in threads {
        t.join().unwrap().unwrap();
    }
    assert_eq!(device.commits(), 2, "eight waiting fsyncs are one commit");
    let crashed = device.after_crash();
    assert!((0..9).all(|i| crashed.byte(META + 10 + i) == 1));
}

const PAGES: ClonedPages = ClonedPages { from: DATA, to: DATA + 100, count: 8 };

fn clone_pages(engine: &Engine, pages: ClonedPages) -> Result<bool> {
    engine.begin_cloning(pages.count).unwrap().expect("no batch is under way").clone_pages(&[pages])
}

/// What happened since, but for reads.
fn changes(device: &RamDevice, since: usize) -> Vec<Event> {
    device.events()[since..].iter().copied().filter(|e| !matches!(e, Event::Read(..))).collect()
}

#[test]
fn a_clone_has_what_was_dirty_and_replaces_what_is() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    write_data(&engine, DATA, &[1; 8 * PAGE]);
    write_data(&engine, DATA + 100, &[2; 8 * PAGE]);
    engine.commit(&Epochs::default()).unwrap();
    // Cached, older and newer than what the device has; of others nothing is sent.
    write_data(&engine, DATA + 3, &[3; PAGE]);
    write_data(&engine, DATA + 104, &[4; PAGE]);
    write_data(&engine, DATA + 105, &[5; 10]);
    write_data(&engine, DATA + 200, &[6; PAGE]);
    let op = engine.begin(Cost::Freeing).unwrap();
    pages.discard(PageRange { first: PageNo(DATA + 5), count: 2 }).unwrap();
    drop(op);
    let before = device.events().len();
    assert_eq!(clone_pages(&engine, PAGES), Ok(true));
    assert_eq!(
        changes(&device, before),
        [Event::Free(DATA + 5, 2), Event::Write(DATA + 3, 1), Event::Clone(DATA, DATA + 100, 8)]
    );
    let bytes = |first: u64| -> Vec<u8> {
        (0..8).map(|i| engine.read_data((first + i) * PAGE as u64, PAGE).unwrap()[0]).collect()
    };
    assert_eq!(bytes(DATA + 100), [1, 1, 1, 3, 1, 0, 0, 1]);
    // Both go their own ways.
    write_data(&engine, DATA, &[7; PAGE]);
    write_data(&engine, DATA + 101, &[8; PAGE]);
    assert_eq!(device.after_crash().byte(DATA + 100), 2, "a clone rolls back with its epoch");
    engine.commit(&Epochs::default()).unwrap();
    let crashed = device.after_crash();
    assert_eq!((crashed.byte(DATA), crashed.byte(DATA + 100), crashed.byte(DATA + 101)), (7, 1, 8));
    assert_eq!((crashed.byte(DATA + 104), crashed.byte(DATA + 200)), (1, 6));
    assert!(!crashed.is_mapped(DATA + 105));
    let (charged, dirty) = engine.charged_and_dirty();
    assert_eq!((charged, dirty), (0, 0));
}

#[test]
fn a_clone_alone_is_committed() {
    let device = RamDevice::new(10_000);
    let (engine, _pages) = engine(&device);
    write_data(&engine, DATA, &[1; 8 * PAGE]);
    engine.commit(&Epochs::default()).unwrap();
    assert_eq!(clone_pages(&engine, PAGES), Ok(true));
    assert_eq!(engine.charged_and_dirty(), (8, 0), "as much as a copy takes");
    engine.commit(&Epochs::default()).unwrap();
    assert_eq!(device.after_crash().byte(DATA + 107), 1);
}

#[test]
fn a_clone_that_is_refused_leaves_what_is_dirty() {
    let device = RamDevice::new(10_000);
    let (engine, _pages) = engine(&device);
    write_data(&engine, DATA, &[1; 8 * PAGE]);
    write_data(&engine, DATA + 101, &[2; PAGE]);
    device.no_space_for_commands(1);
    assert_eq!(clone_pages(&engine, PAGES), Ok(false));
    assert!(!engine.cannot_clone(), "another time it may be done");
    assert_eq!(engine.read_data((DATA + 101) * PAGE as u64, 1).unwrap()[0], 2);
    device.refuse_clones(libc::EOPNOTSUPP.unsigned_abs());
    assert_eq!(clone_pages(&engine, PAGES), Ok(false));
    assert!(engine.cannot_clone());
    engine.commit(&Epochs::default()).unwrap();
    assert_eq!(device.after_crash().byte(DATA + 101), 2);
}

#[test]
fn a_clone_waits_for_a_commit_under_way() {
    let device = RamDevice::new(10_000);
    let (engine, _pages) = engine(&device);
    write_data(&engine, DATA, &[1; 8 * PAGE]);
    device.hold_commits();
    let epochs = Arc::new(Epochs::default());
    let committer = {
        let (engine, epochs) = (Arc::clone(&engine), Arc::clone(&epochs));
        thread::spawn(move || engine.commit(&*epochs))
    };
    wait_for("the superblock is on its way", || device.is_holding());
    let cloner = {
        let engine = Arc::clone(&engine);
        thread::spawn(move || clone_pages(&engine, PAGES))
    };
    thread::sleep(Duration::from_millis(50));
    assert!(!cloner.is_finished(), "nothing is sent between the freeze and the acknowledgement");
    device.let_go();
    committer.join().unwrap().unwrap();
    assert_eq!(cloner.join().unwrap(), Ok(true));
    assert!(!device.after_crash().is_mapped(DATA + 100), "it belongs to the next epoch");
}

#[test]
fn a_commit_without_changes_sends_nothing() {
    let device = RamDevice::new(10_000);
    let (engine, _pages) = engine(&device);
    engine.commit(&Epochs::default()).unwrap();
    assert!(device.events().is_empty());
}

#[test]
fn discards_go_before_pages_and_later_writes_stay() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    let epochs = Epochs::default();
    write_data(&engine, DATA, &[1; 8 * PAGE]);
    engine.commit(&epochs).unwrap();

    let op = engine.begin(Cost::Freeing).unwrap();
    pages.discard(PageRange { first: PageNo(DATA), count: 8 }).unwrap();
    drop(op);
    let read = |page: u64| engine.read_data(page * PAGE as u64, PAGE).unwrap()[0];
    assert_eq!(read(DATA + 3), 0, "a miss inside a pending discard reads zeros");
    assert_eq!(device.byte(DATA + 3), 1, "the device does not know yet");
    write_data(&engine, DATA + 2, &[2; PAGE]);
    write_data(&engine, DATA + 4, &[3; 10]);
    assert_eq!(&engine.read_data((DATA + 4) * PAGE as u64 + 8, 4).unwrap()[..], [3, 3, 0, 0]);
    assert_eq!(device.after_crash().byte(DATA + 3), 1, "a discard rolls back with its epoch");

    let before = device.events().len();
    engine.commit(&epochs).unwrap();
    let events: Vec<Event> =
        device.events()[before..].iter().copied().filter(|e| !matches!(e, Event::Read(..))).collect();
    assert_eq!(
        events,
        [Event::Free(DATA, 8), Event::Write(DATA + 2, 1), Event::Write(DATA + 4, 1), Event::Commit]
    );
    let crashed = device.after_crash();
    assert_eq!((crashed.byte(DATA + 2), crashed.byte(DATA + 4)), (2, 3));
    assert!(!crashed.is_mapped(DATA + 3));
}

#[test]
fn a_discard_after_early_write_out_wins() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    write_data(&engine, DATA, &[1; PAGE]);
    engine.write_out_early(10).unwrap();
    let op = engine.begin(Cost::Freeing).unwrap();
    pages.discard(PageRange { first: PageNo(DATA), count: 1 }).unwrap();
    drop(op);
    engine.commit(&Epochs::default()).unwrap();
    assert!(!device.is_mapped(DATA));
}

#[test]
fn reads_overlay_dirty_pages_over_few_device_reads() {
    let device = RamDevice::new(10_000);
    let (engine, _pages) = engine(&device);
    write_data(&engine, DATA, &[1; 16 * PAGE]);
    engine.commit(&Epochs::default()).unwrap();
    write_data(&engine, DATA + 5, &[2; PAGE + 100]);
    let before = device.events().len();
    let got = engine.read_data(DATA * PAGE as u64 + 100, 15 * PAGE).unwrap();
    let mut expected = vec![1; 16 * PAGE];
    expected[5 * PAGE..6 * PAGE + 100].fill(2);
    assert_eq!(&got[..], &expected[100..100 + 15 * PAGE]);
    // The partly written page was read when it was written, and is here.
    assert_eq!(device.events()[before..], [Event::Read(DATA, 5), Event::Read(DATA + 7, 9)]);
}

#[test]
fn a_failed_commit_makes_the_mount_read_only() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    let epochs = Epochs::default();
    set(&pages, META, 1);
    engine.commit(&epochs).unwrap();
    set(&pages, META, 2);
    device.fail_writes(IoError::Io("bad backing".to_owned()));
    assert_eq!(engine.commit(&epochs), Err(Error::Io(SUPERBLOCK_PAGE)));
    assert_eq!(engine.begin(Cost::Pages(0)).err(), Some(Error::ReadOnly));
    assert!(engine.commit(&epochs).is_err(), "a later fsync must not claim success");
    assert_eq!(get(&pages, META), 2, "reads go on and agree with what was written");
    assert_eq!(device.after_crash().byte(META), 1);
}

#[test]
fn a_fenced_session_stops_everything() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    set(&pages, META, 1);
    device.fail_writes(IoError::Fenced("session 7 was replaced by 8".to_owned()));
    assert_eq!(engine.commit(&Epochs::default()), Err(Error::Fenced));
    assert_eq!(pages.read(PageNo(META)).err(), Some(Error::Fenced));
    assert_eq!(engine.begin(Cost::Nothing).err(), Some(Error::Fenced));
}

#[test]
fn a_session_lost_at_a_read_lets_waiting_writers_go() {
    let device = RamDevice::new(100_000);
    let options = EngineOptions { dirty_bytes: 16 * PAGE as u64, ..EngineOptions::default() };
    let (engine, pages) = engine_with(&device, options);
    for page in 0..4 {
        write_data(&engine, DATA + page * 16, &[1; 16 * PAGE]);
    }
    let writer = {
        let engine = Arc::clone(&engine);
        thread::spawn(move || engine.begin(Cost::Pages(1)).map(drop))
    };
    thread::sleep(Duration::from_millis(50));
    assert!(!writer.is_finished(), "too much is dirty");
    device.fail_reads(IoError::Fenced("session 7 was replaced by 8".to_owned()));
    assert_eq!(pages.read(PageNo(META)).err(), Some(Error::Fenced));
    wait_for("the writer hears of it", || writer.is_finished());
    assert_eq!(writer.join().unwrap(), Err(Error::Fenced));
}

#[test]
fn what_found_space_is_not_written_again_for_what_did_not() {
    let device = RamDevice::new(10_000);
    let (engine, _pages) = engine(&device);
    write_data(&engine, DATA, &[1; 200 * PAGE]);
    write_data(&engine, DATA + 1000, &[1; 200 * PAGE]);
    device.no_space_for(1);
    let before = device.events().len();
    engine.commit(&Epochs::default()).unwrap();
    // In a log each write takes new space, so writing all again would take what the cleaner just made.
    let events: Vec<Event> =
        device.events()[before..].iter().copied().filter(|e| !matches!(e, Event::Read(..))).collect();
    assert_eq!(events, [Event::Write(DATA + 1000, 200), Event::Write(DATA, 200), Event::Commit]);
}

#[test]
fn a_commit_that_finds_no_space_is_sent_again_as_it_was_frozen() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    set(&pages, META, 1);
    set(&pages, META + 10, 1);
    device.no_space_for(5);
    let committer = {
        let engine = Arc::clone(&engine);
        thread::spawn(move || engine.commit(&Epochs::default()))
    };
    wait_for("a part of it was refused", || device.no_space_left_for() < 5);
    set(&pages, META, 2);
    set(&pages, META + 20, 2);
    committer.join().unwrap().unwrap();
    assert_eq!(device.commits(), 1);
    let crashed = device.after_crash();
    assert_eq!((crashed.byte(META), crashed.byte(META + 10)), (1, 1));
    assert!(!crashed.is_mapped(META + 20), "nothing of the next epoch came along");
    engine.commit(&Epochs::default()).unwrap();
    let crashed = device.after_crash();
    assert_eq!((crashed.byte(META), crashed.byte(META + 20)), (2, 2));
}

#[test]
fn a_commit_waits_for_the_cleaner_too() {
    let device = RamDevice::new(10_000);
    let (engine, _pages) = engine(&device);
    device.no_space_for(2);
    engine.commit_clean(&Epochs::default()).unwrap();
    assert_eq!(device.commits(), 1);
}

#[test]
fn a_full_volume_fails_the_write_and_never_the_commit() {
    let device = RamDevice::new(1000);
    let (engine, pages) = engine(&device);
    let epochs = Epochs::default();
    let mut written = 0;
    let error = loop {
        match engine.begin(Cost::Pages(16)) {
            Ok(op) => {
                engine.write_data((DATA + written) * PAGE as u64, &[1; 16 * PAGE], u64::MAX).unwrap();
                written += 16;
                drop(op);
            }
            Err(error) => {
                engine.commit(&epochs).unwrap();
                if engine.begin(Cost::Pages(16)).is_err() {
                    break error;
                }
            }
        }
    };
    assert_eq!(error, Error::NoSpace);
    assert!(written >= 700, "only {written} of 1000 pages were usable");

    // A delete still works, and gives the space back.
    let op = engine.begin(Cost::Freeing).unwrap();
    pages.write(PageNo(META)).unwrap().fill(9);
    pages.discard(PageRange { first: PageNo(DATA), count: written }).unwrap();
    drop(op);
    engine.commit(&epochs).unwrap();
    assert!(engine.begin(Cost::Pages(600)).is_ok());
}

#[test]
fn the_flusher_writes_data_out_early_and_commits_in_time() {
    let device = RamDevice::new(100_000);
    let options = EngineOptions { dirty_bytes: 64 * PAGE as u64, ..EngineOptions::default() };
    let (engine, pages) = engine_with(&device, options);
    let epochs: Arc<Epochs> = Arc::new(Epochs::default());
    let source: Arc<dyn EpochSource + Send + Sync> = epochs;
    let flusher =
        Flusher::start(Arc::clone(&engine), Arc::clone(&source), Duration::from_secs(3600)).unwrap();
    for i in 0..100 {
        write_data(&engine, DATA + i * 16, &[1; 16 * PAGE]);
    }
    wait_for("data goes out", || device.byte(DATA) == 1);
    assert_eq!(device.commits(), 0, "early write-out is no commit");
    drop(flusher);
    set(&pages, META, 1);
    let flusher = Flusher::start(Arc::clone(&engine), source, Duration::from_millis(5)).unwrap();
    drop(flusher);
}

#[test]
fn the_timer_commits() {
    let device = RamDevice::new(1000);
    let (engine, pages) = engine(&device);
    set(&pages, META, 5);
    let source: Arc<dyn EpochSource + Send + Sync> = Arc::new(Epochs::default());
    let flusher = Flusher::start(engine, source, Duration::from_millis(5)).unwrap();
    wait_for("the timer commits", || device.after_crash().byte(META) == 5);
    drop(flusher);
}

#[test]
fn occupancy_counts_what_is_not_sent_yet() {
    let device = RamDevice::new(1000);
    let (engine, pages) = engine(&device);
    write_data(&engine, DATA + 10, &[1; 5 * PAGE]);
    engine.commit(&Epochs::default()).unwrap();
    write_data(&engine, DATA + 20, &[1; PAGE]);
    let op = engine.begin(Cost::Freeing).unwrap();
    pages.discard(PageRange { first: PageNo(DATA + 12), count: 2 }).unwrap();
    drop(op);
    assert_eq!(engine.count_mapped(DATA, DATA + 256).unwrap(), 4);
    let mut spans = Vec::new();
    let mut at = DATA;
    while let Some(data) = engine.find_page(at, DATA + 100_000, true).unwrap() {
        at = engine.find_page(data, DATA + 100_000, false).unwrap().unwrap();
        spans.push((data - DATA, at - DATA));
    }
    assert_eq!(spans, [(10, 12), (14, 15), (20, 21)]);
    let wide = (DATA - (1 << 30), DATA + (1 << 30));
    assert_eq!(engine.count_mapped(wide.0, wide.1).unwrap(), 4);
    assert_eq!(engine.find_page(wide.0, wide.1, true).unwrap(), Some(DATA + 10));
    assert_eq!(engine.find_page(DATA + 21, wide.1, true).unwrap(), None);
}

#[test]
fn concurrent_writers_and_commits_leave_a_consistent_crash_image() {
    // Each operation writes its counter to two pages; a crash image must show both or neither.
    let device = RamDevice::new(100_000);
    let (engine, pages) = engine(&device);
    let epochs = Arc::new(Epochs::default());
    let stop = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    for t in 0..3u64 {
        let (engine, pages, stop) = (Arc::clone(&engine), pages.clone(), Arc::clone(&stop));
        threads.push(thread::spawn(move || {
            let mut byte = 0u8;
            while stop.load(Ordering::Relaxed) == 0 {
                byte = byte.wrapping_add(1);
                let _op = engine.begin(Cost::Pages(1)).unwrap();
                pages.write(PageNo(META + t)).unwrap().fill(byte);
                engine.write_data((DATA + t) * PAGE as u64, &[byte; PAGE], u64::MAX).unwrap();
            }
        }));
    }
    for round in 0..100 {
        if round % 3 == 0 {
            engine.write_out_early(2).unwrap();
        }
        engine.commit(&*epochs).unwrap();
        let crashed = device.after_crash();
        for t in 0..3 {
            assert_eq!(crashed.byte(META + t), crashed.byte(DATA + t), "round {round}, thread {t}");
        }
    }
    stop.store(1, Ordering::Relaxed);
    for t in threads {
        t.join().unwrap();
    }
}

#[test]
fn operations_go_on_while_a_batch_is_held() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    let epochs = Arc::new(Epochs::default());
    set(&pages, META, 1);
    write_data(&engine, DATA, &[1; 4 * PAGE]);
    device.hold_pages();
    device.hold_commits();
    let committer = {
        let (engine, epochs) = (Arc::clone(&engine), Arc::clone(&epochs));
        thread::spawn(move || engine.commit(&*epochs))
    };
    for stage in ["pages", "superblock"] {
        wait_for("the batch is on its way", || device.is_holding());
        // None of these would come back if it waited for the commit.
        set(&pages, META, 2);
        set(&pages, META + 7, 2);
        write_data(&engine, DATA + 1, &[2; PAGE + 5]);
        assert_eq!(
            &engine.read_data(DATA * PAGE as u64, 3 * PAGE).unwrap()[..PAGE + 1],
            [[1; PAGE].as_slice(), &[2]].concat()
        );
        let op = engine.begin(Cost::Freeing).unwrap();
        pages.discard(PageRange { first: PageNo(DATA + 3), count: 1 }).unwrap();
        drop(op);
        drop(engine.reserve(Cost::Pages(8)).unwrap());
        assert_eq!(engine.read_data((DATA + 3) * PAGE as u64, 1).unwrap()[0], 0);
        assert!(device.is_holding() && !committer.is_finished(), "the {stage} are still held");
        device.let_these_go();
    }
    committer.join().unwrap().unwrap();
    let crashed = device.after_crash();
    assert_eq!((crashed.byte(META), crashed.byte(DATA + 1), crashed.byte(DATA + 3)), (1, 1, 1));
    assert!(!crashed.is_mapped(META + 7), "nothing of the next epoch");
    device.let_go();
    engine.commit(&*epochs).unwrap();
    let crashed = device.after_crash();
    assert_eq!((crashed.byte(META), crashed.byte(DATA + 1), crashed.byte(DATA + 2)), (2, 2, 2));
    assert!(!crashed.is_mapped(DATA + 3));
}

#[test]
fn parallel_fsyncs_share_commits() {
    const THREADS: u64 = 8;
    const FSYNCS: u64 = 64;
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    let epochs = Arc::new(Epochs::default());
    let (inside, running) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(THREADS)));
    device.hold_commits();
    let mut threads = Vec::new();
    for t in 0..THREADS {
        let (engine, epochs, pages) = (Arc::clone(&engine), Arc::clone(&epochs), pages.clone());
        let (inside, running) = (Arc::clone(&inside), Arc::clone(&running));
        threads.push(thread::spawn(move || {
            for i in 0..FSYNCS / THREADS {
                set(&pages, META + t, i as u8 + 1);
                inside.fetch_add(1, Ordering::SeqCst);
                let result = engine.commit(&*epochs);
                inside.fetch_sub(1, Ordering::SeqCst);
                result.unwrap();
            }
            running.fetch_sub(1, Ordering::SeqCst);
        }));
    }
    // A slow disk: a commit takes so long that all others come meanwhile.
    while running.load(Ordering::SeqCst) > 0 {
        if device.is_holding() && inside.load(Ordering::SeqCst) == running.load(Ordering::SeqCst) {
            device.let_these_go();
        }
        thread::yield_now();
    }
    for t in threads {
        t.join().unwrap();
    }
    let commits = device.commits();
    println!("{FSYNCS} fsyncs by {THREADS} threads took {commits} commits");
    assert!(commits <= FSYNCS / 2, "{commits} commits for {FSYNCS} fsyncs");
}

#[test]
fn what_was_acknowledged_is_there_after_a_failed_commit() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    let epochs = Arc::new(Epochs::default());
    let mut threads = Vec::new();
    for t in 0..4 {
        let (engine, epochs, pages) = (Arc::clone(&engine), Arc::clone(&epochs), pages.clone());
        threads.push(thread::spawn(move || {
            let mut acknowledged = 0;
            for i in 1u64.. {
                let Ok(op) = engine.begin(Cost::Pages(0)) else { break };
                let Ok(mut page) = pages.write(PageNo(META + t)) else { break };
                page[..8].copy_from_slice(&i.to_le_bytes());
                drop((page, op));
                if engine.commit(&*epochs).is_ok() {
                    acknowledged = i;
                }
            }
            assert!(engine.commit(&*epochs).is_err(), "every later fsync fails");
            acknowledged
        }));
    }
    wait_for("some commits", || device.commits() > 20);
    device.fail_writes(IoError::Io("bad backing".to_owned()));
    let acknowledged: Vec<u64> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert_eq!(engine.begin(Cost::Pages(0)).err(), Some(Error::ReadOnly));
    let crashed = device.after_crash();
    for (t, acknowledged) in acknowledged.into_iter().enumerate() {
        assert!(crashed.number(META + t as u64) >= acknowledged, "what thread {t} was told is lost");
    }
}

#[test]
fn a_free_waits_for_the_cleaner_too() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    write_data(&engine, DATA, &[1; PAGE]);
    engine.commit(&Epochs::default()).unwrap();
    let op = engine.begin(Cost::Freeing).unwrap();
    pages.discard(PageRange { first: PageNo(DATA), count: 1 }).unwrap();
    drop(op);
    device.no_space_for_commands(1);
    engine.commit(&Epochs::default()).unwrap();
    assert!(!device.is_mapped(DATA));
}

#[test]
fn a_read_waits_for_the_end_of_a_page_change() {
    let device = RamDevice::new(10_000);
    let (engine, pages) = engine(&device);
    write_data(&engine, DATA, &[1; 3 * PAGE]);
    engine.commit(&Epochs::default()).unwrap();
    let op = engine.begin(Cost::Pages(1)).unwrap();
    let mut page = pages.write(PageNo(DATA + 1)).unwrap();
    let reader = {
        let engine = Arc::clone(&engine);
        thread::spawn(move || engine.read_data(DATA * PAGE as u64, 3 * PAGE).map(|bytes| bytes[PAGE]))
    };
    thread::sleep(Duration::from_millis(20));
    page.fill(2);
    drop((page, op));
    assert_eq!(reader.join().unwrap(), Ok(2));
}
