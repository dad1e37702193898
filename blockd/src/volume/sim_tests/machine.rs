//! A volume on its backing, how it dies and how it comes back; what both kinds of lives have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::JoinHandle;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::driver::{Driver, new_image, options};
use super::once_in;
use crate::device::{ClientId, IoError, VolumeKind};
use crate::storage::Storage;
use crate::storage::sim::faults::ReadFault;
use crate::storage::sim::timeline::Timeline;
use crate::storage::sim::{Crash, Gate, SimStorage};
use crate::store::StoreError;
use crate::store::clean::Tuning;
use crate::store::recover::RecoverOptions;
use crate::store::resize::{Sizes, resize};
use crate::store::scrub::Control;
use crate::store::space::volume_capacity_pages;

/// Bytes of a segment of [`new_image`]: a refusal to open names a place that near to the damage.
pub(super) const SEGMENT_BYTES: u64 = 64 << 10;

/// The store may say that it is full when so much of its capacity is used.
const FULL_PERCENT: u64 = 70;

pub(super) struct Machine {
    /// Of the current step.
    pub(super) rng: StdRng,
    pub(super) driver: Driver,
    pub(super) timeline: Timeline,
    boots: u64,
    options: RecoverOptions,
    /// The cleaner works without being asked.
    clean: bool,
    next_tag: u64,
    /// The store stopped writing: it has to be started anew.
    pub(super) stopped: bool,
    /// The last records may be lost to damage, with none behind them that knew of them: a page that they moved is looked for
    /// where it stood before, and another may stand there by now.
    pub(super) unwitnessed: bool,
}

impl Machine {
    pub(super) fn new(
        kind: VolumeKind,
        image_bytes: usize,
        raw_bytes: u64,
        seed: u64,
        timeline: Timeline,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimStorage::with_timeline(new_image(kind, image_bytes, raw_bytes), seed, timeline.clone());
        disk.set_synchronous(once_in(&mut rng, 4));
        let options = RecoverOptions {
            tuning: Tuning { checkpoint_bytes: 4096 * pick(&mut rng, &[30, 200, 1000]), ..Tuning::default() },
            map_bytes_max: *pick(&mut rng, &[0, 2 << 10, 16 << 10]),
            discard: rng.random(),
            ..options([0; 16])
        };
        let options = RecoverOptions { boot_id: boot_id(1), ..options };
        let clean = rng.random();
        Self::open(rng, disk, options, clean)
    }

    /// A new store on this disk, with these settings.
    pub(super) fn open(rng: StdRng, disk: SimStorage, options: RecoverOptions, clean: bool) -> Self {
        let timeline = disk.timeline();
        let driver = Driver::open_with(disk, &options, clean).expect("a new store opens");
        Machine {
            rng,
            driver,
            timeline,
            boots: 1,
            options,
            clean,
            next_tag: 1,
            stopped: false,
            unwitnessed: false,
        }
    }

    pub(super) fn disk(&self) -> SimStorage {
        self.driver.disk.clone()
    }

    /// A version that was never written before.
    pub(super) fn new_tag(&mut self) -> u64 {
        self.next_tag += 1;
        self.next_tag
    }

    pub(super) fn boot_id(&self) -> [u8; 16] {
        self.options.boot_id
    }

    pub(super) fn once_in(&mut self, n: u32) -> bool {
        once_in(&mut self.rng, n)
    }

    pub(super) fn some_crash(&mut self) -> Crash {
        if self.rng.random() { Crash::PowerCut } else { Crash::ProcessDeath }
    }

    fn reboot(&mut self, crash: Crash) {
        if crash == Crash::PowerCut {
            self.boots += 1;
            self.options.boot_id = boot_id(self.boots);
        }
    }

    /// The store dies and is opened again, maybe dying on the way up, or meeting errors; gives the worst of its deaths.
    pub(super) fn restart(&mut self, mut crash: Crash, deaths_on_the_way: bool) -> Crash {
        let mut worst = crash;
        let mut disk = self.driver.disk.restart(crash);
        self.stopped = false;
        loop {
            self.reboot(crash);
            if crash == Crash::PowerCut {
                worst = crash;
            }
            if deaths_on_the_way && self.rng.random() {
                disk.crash_at(self.rng.random_range(1..14));
            } else if self.once_in(12) {
                disk.read_fault_at(self.rng.random_range(1..30), ReadFault::Eio);
            }
            self.timeline.note(format!("start, boot {}", self.boots));
            match Driver::open_with(disk.clone(), &self.options, self.clean) {
                Ok(mut driver) => {
                    // Nobody is served before that.
                    let ended = driver.end_rollback();
                    if ended && !disk.crashed() {
                        disk.disarm();
                        self.driver = driver;
                        return worst;
                    }
                    assert!(disk.crashed() || disk.fault_fired(), "a rollback comes to no end");
                    crash = if disk.crashed() { self.some_crash() } else { Crash::ProcessDeath };
                }
                Err(_) if disk.crashed() => crash = self.some_crash(),
                Err(e) => {
                    self.assert_refusal_explained(&disk, &e);
                    crash = Crash::ProcessDeath;
                }
            }
            disk = disk.restart(crash);
        }
    }

    /// Opens what a damaged backing holds, or is refused for a reason.
    pub(super) fn open_damaged(&mut self, disk: SimStorage, crash: Crash) -> bool {
        self.reboot(crash);
        self.stopped = false;
        self.timeline.note(format!("start on the damaged backing, boot {}", self.boots));
        match Driver::open_with(disk.clone(), &self.options, self.clean) {
            Ok(driver) => {
                self.driver = driver;
                true
            }
            Err(e) => {
                self.assert_refusal_explained(&disk, &e);
                self.timeline.note(format!("refused: {}", chain(&e)));
                false
            }
        }
    }

    /// Opens an image that is good, under a new boot.
    pub(super) fn open_good(&mut self, image: Vec<u8>) {
        let disk = SimStorage::with_timeline(image, self.rng.random(), self.timeline.clone());
        self.reboot(Crash::PowerCut);
        (self.stopped, self.unwitnessed) = (false, false);
        self.timeline.note(format!("start from the copy, boot {}", self.boots));
        let opened = Driver::open_with(disk, &self.options, self.clean);
        self.driver = opened.unwrap_or_else(|e| panic!("a good image is refused: {e}"));
    }

    /// Gives the closed store other sizes, maybe dying in the midst; gives the worst of its deaths. A size that does
    /// not fit is refused.
    pub(super) fn resize(&mut self, backing_bytes: u64, raw_bytes: u64) -> Crash {
        let mut worst = Crash::ProcessDeath;
        let mut disk = self.driver.disk.restart(worst);
        disk.set_len_bytes(backing_bytes.max(disk.len_bytes()));
        loop {
            if self.once_in(2) {
                disk.crash_at(self.rng.random_range(1..60));
            }
            self.timeline.note(format!("  resize to {backing_bytes}, {raw_bytes}"));
            let storage: Arc<dyn Storage> = Arc::new(disk.clone());
            let sizes = Sizes { backing_bytes, raw_bytes };
            let result = resize(&storage, &self.options, sizes, &mut |_| {});
            drop(storage);
            match result {
                Err(_) if disk.crashed() => {
                    let crash = self.some_crash();
                    if crash == Crash::PowerCut {
                        worst = crash;
                    }
                    self.reboot(crash);
                    disk = disk.restart(crash);
                }
                Ok(()) => {
                    disk = disk.restart(Crash::ProcessDeath);
                    disk.set_len_bytes(backing_bytes);
                    break;
                }
                Err(StoreError::BadSize(why) | StoreError::NoSpace(why)) => {
                    self.timeline.note(format!("  refused: {why}"));
                    break;
                }
                Err(e) => panic!("a resize: {}", chain(&e)),
            }
        }
        // The next start is a restart of this one.
        self.driver.disk = disk;
        worst
    }

    fn assert_refusal_explained(&self, disk: &SimStorage, e: &StoreError) {
        let text = chain(e);
        let places = bytes_named(&text);
        assert!(disk.fault_fired(), "nothing is wrong, and the store refuses to open: {text}");
        assert!(
            places.iter().any(|&byte| disk.explains(byte, SEGMENT_BYTES)),
            "a refusal that names nothing that is wrong: {text}"
        );
    }

    /// A read's error must name a block that is bad.
    pub(super) fn assert_read_error_explained(&self, what: &str, e: &IoError) {
        let IoError::Io(text) = e else { panic!("{what}: {e}") };
        let places = bytes_named(text);
        let disk = &self.driver.disk;
        assert!(
            self.unwitnessed || places.iter().any(|&byte| disk.explains(byte, 0)),
            "{what}: an error that names nothing that is wrong: {text}"
        );
    }

    /// A request failed: a fault or crash must have come to pass, and then the store may have to be started anew; or the image
    /// must be full.
    pub(super) fn assert_failure_explained(&mut self, what: &str, e: &IoError) {
        let disk = &self.driver.disk;
        if matches!(e, IoError::NoSpace) {
            let store = self.driver.store();
            let maps = store.maps.read();
            let used = store.used_pages(&maps);
            let capacity = volume_capacity_pages(store.kind, store.geometry);
            // What a leaf maps that cannot be read cannot be moved.
            let stuck = disk.fault_fired() && maps.segments.all().iter().any(|s| s.damaged);
            assert!(
                stuck || used * 100 >= capacity * FULL_PERCENT,
                "{what}: {e}, with {used} of {capacity} pages used"
            );
            return;
        }
        assert!(disk.crashed() || disk.fault_fired(), "{what}: {e}");
        // A page or a leaf that cannot be read is the trouble of those who need it.
        self.stopped |= self.driver.store().counters.failure().is_some();
    }

    /// A scrub finds nothing that is not wrong; nothing at all in a sound store.
    pub(super) fn scrub(&self) {
        let (rate, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let report =
            self.driver.store().scrub(Control { bytes_per_s: &rate, stop: &stop, progress: &mut |_| {} });
        let disk = &self.driver.disk;
        for bad in &report.bad {
            assert!(disk.explains(bad.image_byte, 0), "a scrub accuses a page that is sound: {bad:?}");
        }
    }

    /// Begins a read that is held up between the lookup and the bytes.
    pub(super) fn slow_read(&mut self, client: ClientId, offset: u64, len: usize) -> SlowRead {
        let disk = self.disk();
        let gate = disk.hold_next_read();
        let core = Arc::clone(&self.driver.core);
        let reader = std::thread::spawn(move || {
            let result = Driver::read_of(&core, client, offset, len);
            disk.hold_no_read();
            result
        });
        let held = gate.wait();
        SlowRead { gate, reader, held }
    }
}

/// A read under way.
pub(super) struct SlowRead {
    gate: Gate,
    reader: JoinHandle<Result<Vec<u8>, IoError>>,
    /// Else it needed no bytes of the backing, and is done.
    pub(super) held: bool,
}

impl SlowRead {
    /// Lets it end.
    pub(super) fn finish(self) -> Result<Vec<u8>, IoError> {
        self.gate.open();
        self.reader.join().expect("the reader does not panic")
    }
}

/// An error with its causes, as the programs print it.
fn chain(e: &StoreError) -> String {
    let mut text = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(e) = cause {
        text.push_str(&format!(": {e}"));
        cause = e.source();
    }
    text
}

pub(super) fn boot_id(boots: u64) -> [u8; 16] {
    let mut id = [0xb0; 16];
    id[..8].copy_from_slice(&boots.to_le_bytes());
    id
}

pub(super) fn pick<'a, T>(rng: &mut StdRng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}

/// The bytes of the image that an error names.
fn bytes_named(text: &str) -> Vec<u64> {
    let after = text.split("byte ").skip(1);
    let digits = after.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
    digits.filter_map(|number| number.parse().ok()).collect()
}
