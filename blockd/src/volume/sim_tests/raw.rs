//! Raw volumes: each page is a version not older than the last flush; nothing acknowledged is lost
//! when only the process dies.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::driver::{Driver, Ticket, new_image};
use super::{content, for_seeds, once_in, tag_of};
use crate::device::{ClientId, VolumeKind};
use crate::storage::sim::{Crash, SimStorage};

const CLIENT: ClientId = ClientId(1);
const IMAGE_BYTES: usize = 4 << 20;
const PAGES: u64 = 300;

/// What a page may hold.
#[derive(Clone, Debug, Default)]
struct PageModel {
    /// As of the last flush.
    durable: u64,
    /// Versions acknowledged since, in order.
    acked: Vec<u64>,
    /// Versions written, outcome unknown.
    unknown: Vec<u64>,
}

impl PageModel {
    fn current(&self) -> u64 {
        *self.acked.last().unwrap_or(&self.durable)
    }
    fn allowed(&self, crash: Crash, found: u64) -> bool {
        let sure = match crash {
            Crash::ProcessDeath => self.current() == found,
            Crash::PowerCut => self.durable == found || self.acked.contains(&found),
        };
        sure || self.unknown.contains(&found)
    }
}

struct Run {
    rng: StdRng,
    driver: Driver,
    model: Vec<PageModel>,
    next_tag: u64,
    boot: u8,
}

/// Requests in flight: ticket, pages, the version each gets.
type Batch = Vec<(Ticket, Vec<(u64, u64)>, bool)>;

impl Run {
    fn new(seed: u64) -> Self {
        let image = new_image(VolumeKind::Raw, IMAGE_BYTES, PAGES * 4096);
        let driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
        let rng = StdRng::seed_from_u64(seed ^ 0x7261_7700);
        Run { rng, driver, model: vec![PageModel::default(); PAGES as usize], next_tag: 1, boot: 1 }
    }

    fn batch(&mut self) -> Batch {
        let mut batch: Batch = Vec::new();
        let mut taken = std::collections::HashSet::new();
        for _ in 0..self.rng.random_range(1..12) {
            let first = self.rng.random_range(0..PAGES);
            let count = self.rng.random_range(1..=16u64).min(PAGES - first);
            // Requests in flight at once do not overlap: their order would be open.
            if (first..first + count).any(|p| !taken.insert(p)) {
                continue;
            }
            let fua = once_in(&mut self.rng, 6);
            let zero = once_in(&mut self.rng, 5);
            let pages: Vec<(u64, u64)> = (first..first + count)
                .map(|page| {
                    self.next_tag += 1;
                    (page, if zero { 0 } else { self.next_tag })
                })
                .collect();
            let bytes: Vec<u8> = pages.iter().flat_map(|&(page, tag)| content(page, tag)).collect();
            let ticket = if zero && once_in(&mut self.rng, 2) {
                self.driver.zero(CLIENT, first * 4096, count * 4096, fua)
            } else {
                self.driver.write(CLIENT, first * 4096, &bytes, fua)
            };
            batch.push((ticket, pages, fua));
        }
        batch
    }

    /// Notes outcomes in the model.
    fn account(&mut self, batch: Batch) {
        for (ticket, pages, fua) in batch {
            let acked = matches!(&*ticket.lock(), Some(Ok(())));
            for (page, tag) in pages {
                let m = &mut self.model[page as usize];
                if !acked {
                    m.unknown.push(tag);
                } else if fua {
                    *m = PageModel { durable: tag, ..PageModel::default() };
                } else {
                    m.acked.push(tag);
                }
            }
        }
    }

    fn flush(&mut self) {
        let ticket = self.driver.flush();
        self.driver.settle();
        if matches!(&*ticket.lock(), Some(Ok(()))) {
            for m in &mut self.model {
                m.durable = m.current();
                m.acked.clear();
            }
        }
    }

    fn check_all(&mut self) {
        for page in 0..PAGES {
            let bytes = self.driver.read(CLIENT, page * 4096, 4096).expect("a page can be read");
            let found = tag_of(page, &bytes);
            let m = &self.model[page as usize];
            assert_eq!(found, Some(m.current()), "page {page}");
        }
        self.driver.check_usage();
    }

    /// Ends the run's store and opens what is left of it.
    fn crash(&mut self, crash: Crash) {
        let image = self.driver.disk.image_after(crash);
        if crash == Crash::PowerCut {
            self.boot += 1;
        }
        let disk = SimStorage::new(image, self.rng.random());
        self.driver = Driver::open(disk, self.boot).expect("the store opens after a crash");
        for page in 0..PAGES {
            let bytes =
                self.driver.read(CLIENT, page * 4096, 4096).expect("a page can be read after a crash");
            let m = &mut self.model[page as usize];
            let found = tag_of(page, &bytes);
            assert!(
                found.is_some_and(|f| m.allowed(crash, f)),
                "page {page} after {crash:?}: found {found:?}, model {m:?}"
            );
            // What was found at a restart is in the checkpoint of that restart: durable.
            *m = PageModel { durable: found.unwrap_or(0), ..PageModel::default() };
        }
        self.driver.check_usage();
    }

    fn some_crash(&mut self) -> Crash {
        if once_in(&mut self.rng, 2) { Crash::PowerCut } else { Crash::ProcessDeath }
    }

    fn round(&mut self) {
        match self.rng.random_range(0..20) {
            0 => self.flush(),
            1 => {
                self.driver.checkpoint();
                self.driver.settle();
            }
            2 => {
                let segment = self.rng.random_range(0..(IMAGE_BYTES >> 16) as u32);
                let copies = self.driver.copies_of(segment);
                // Pages that are overwritten meanwhile must not come back.
                for _ in 0..self.rng.random_range(0..4) {
                    let batch = self.batch();
                    self.driver.settle();
                    self.account(batch);
                }
                self.driver.relocate(copies);
            }
            3 => self.check_all(),
            4 => self.unaligned(),
            5 => {
                // In the midst of things.
                let batch = self.batch();
                let steps = self.rng.random_range(0..12);
                self.driver.steps(steps);
                self.account(batch);
                let crash = self.some_crash();
                self.crash(crash);
            }
            6 => {
                let n = self.rng.random_range(1..60);
                self.driver.disk.crash_at(n);
                while !self.driver.disk.crashed() {
                    let batch = self.batch();
                    self.driver.settle();
                    self.account(batch);
                    if once_in(&mut self.rng, 3) && !self.driver.disk.crashed() {
                        self.driver.clean();
                    }
                }
                let crash = self.some_crash();
                self.crash(crash);
            }
            _ => {
                let batch = self.batch();
                self.driver.settle();
                for (ticket, pages, _) in &batch {
                    Driver::outcome(ticket).unwrap_or_else(|e| panic!("write of {pages:?}: {e}"));
                }
                self.account(batch);
            }
        }
    }

    /// Changes bytes in the midst of pages; the rest of the pages stays.
    fn unaligned(&mut self) {
        let page = self.rng.random_range(0..PAGES - 1);
        let mut expected = self.driver.read(CLIENT, page * 4096, 8192).expect("two pages");
        let from = self.rng.random_range(1..4096usize);
        let len = self.rng.random_range(1..=8192 - from);
        let zero = once_in(&mut self.rng, 3);
        let bytes: Vec<u8> = (0..len).map(|_| if zero { 0 } else { self.rng.random() }).collect();
        expected[from..from + len].copy_from_slice(&bytes);
        let offset = page * 4096 + from as u64;
        let ticket = if zero {
            self.driver.zero(CLIENT, offset, len as u64, false)
        } else {
            self.driver.write(CLIENT, offset, &bytes, false)
        };
        self.driver.settle();
        Driver::outcome(&ticket).expect("an unaligned write");
        let found = self.driver.read(CLIENT, offset - 1, len + 1).expect("an unaligned read");
        assert!(found == expected[from - 1..from + len]);
        assert!(self.driver.read(CLIENT, page * 4096, 8192).expect("two pages") == expected);
        // Back to versions the model knows.
        for page in [page, page + 1] {
            self.next_tag += 1;
            let tag = self.next_tag;
            let ticket = self.driver.write(CLIENT, page * 4096, &content(page, tag), true);
            self.driver.settle();
            Driver::outcome(&ticket).expect("a write");
            self.model[page as usize] = PageModel { durable: tag, ..PageModel::default() };
        }
    }
}

#[test]
fn raw_volumes_survive_random_lives() {
    for_seeds(25, |seed| {
        let mut run = Run::new(seed);
        for _ in 0..120 {
            run.round();
        }
        run.check_all();
    });
}

#[test]
fn raw_volumes_survive_a_crash_at_every_write() {
    for crash in [Crash::PowerCut, Crash::ProcessDeath] {
        for n in 1.. {
            let mut run = Run::new(n * 2 + u64::from(crash == Crash::PowerCut));
            run.driver.disk.crash_at(n);
            for round in 0..25 {
                if run.driver.disk.crashed() {
                    break;
                }
                let batch = run.batch();
                run.driver.settle();
                run.account(batch);
                if round % 5 == 4 {
                    run.flush();
                }
                if round == 12 {
                    run.driver.checkpoint();
                    run.driver.settle();
                }
            }
            if !run.driver.disk.crashed() {
                assert!(n > 100, "the script writes more than {n} times");
                break;
            }
            run.crash(crash);
        }
    }
}
