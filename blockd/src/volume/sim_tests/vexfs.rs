//! VexFS volumes: after a crash the whole volume equals one commit, not older than the last one
//! acknowledged; a mounter that lives through the daemon's death loses nothing at all.

use std::collections::BTreeMap;

use layout::addr::{
    CLASS0_BASE, CLASS3_BASE, COMMAND_PAGE, INODE_BASE, MAP_BASE, MAP_SUMMARY, MAP_UPPER, STATUS_PAGE,
};
use layout::command::{
    CMD_ATTACH, CMD_CLOSE, CMD_FREE_RANGES, CMD_OPEN, COMMAND_MAGIC, Command, CommandReply, Status,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::driver::{Driver, Ticket, new_image};
use super::{content, for_seeds, once_in, tag_of};
use crate::device::{ClientId, IoError, VolumeKind};
use crate::storage::sim::{Crash, SimStorage};

const IMAGE_BYTES: usize = 4 << 20;

/// Page -> version; absent = zeros.
type Pages = BTreeMap<u64, u64>;

/// The pages a run uses: a few of each region, some close together, some far apart.
fn places() -> Vec<u64> {
    let mut pages = vec![0];
    let page = |byte: u64| byte >> 12;
    for i in 0..40 {
        pages.push(page(INODE_BASE) + i);
        pages.push(page(CLASS0_BASE) + 2 * 256 + i);
        pages.push(page(CLASS0_BASE) + (100 + i) * 256);
        pages.push(page(CLASS3_BASE) + (1 << 36) + i * 1000);
    }
    pages.sort_unstable();
    pages
}

struct Run {
    rng: StdRng,
    driver: Driver,
    places: Vec<u64>,
    /// Commits that the volume may be at after a power cut, the oldest sure one first.
    commits: Vec<Pages>,
    open: Pages,
    /// Versions of unacknowledged writes.
    unknown: BTreeMap<u64, Vec<u64>>,
    next_tag: u64,
    boot: u8,
    client: ClientId,
    session: u64,
    command_id: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let image = new_image(VolumeKind::VexFs, IMAGE_BYTES, 0);
        let driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
        let mut run = Run {
            rng: StdRng::seed_from_u64(seed ^ 0x7665_7800),
            driver,
            places: places(),
            commits: vec![Pages::new()],
            open: Pages::new(),
            unknown: BTreeMap::new(),
            next_tag: 1,
            boot: 1,
            client: ClientId(1),
            session: 0,
            command_id: 0,
        };
        run.open_session();
        run
    }

    fn command(&mut self, op: u32, session: u64, id: u64, ranges: &[(u64, u64)]) -> (Ticket, Command) {
        let mut command = Command::new_zeroed();
        command.magic = COMMAND_MAGIC;
        command.op = op.into();
        command.session = session.into();
        command.id = id.into();
        command.boot_id = [self.boot; 16];
        command.range_count = (ranges.len() as u32).into();
        for (to, (first, count)) in command.ranges.iter_mut().zip(ranges) {
            to.first_page = (*first).into();
            to.page_count = (*count).into();
        }
        (self.driver.write(self.client, COMMAND_PAGE.byte(), command.as_bytes(), false), command)
    }

    fn reply(&self) -> CommandReply {
        let page = self.driver.read(self.client, COMMAND_PAGE.byte(), 4096).expect("the reply");
        CommandReply::read_from_bytes(&page).expect("a reply is a page")
    }

    fn open_session(&mut self) {
        let (ticket, _) = self.command(CMD_OPEN, 0, 1, &[]);
        self.driver.settle();
        Driver::outcome(&ticket).expect("OPEN is carried out");
        let reply = self.reply();
        assert_eq!(reply.errno.get(), 0);
        assert!(reply.session.get() > self.session, "sessions are never granted twice");
        self.session = reply.session.get();
        self.command_id = 1;
        self.open = self.commits.last().cloned().unwrap_or_default();
    }

    fn attach(&mut self) {
        let (ticket, _) = self.command(CMD_ATTACH, self.session, 0, &[]);
        self.driver.settle();
        Driver::outcome(&ticket).expect("ATTACH is carried out");
        assert_eq!(self.reply().errno.get(), 0, "the session goes on");
    }

    fn some_page(&mut self) -> u64 {
        let i = self.rng.random_range(1..self.places.len());
        self.places[i]
    }

    /// Writes in flight at once.
    fn batch(&mut self) -> Vec<(Ticket, u64, u64)> {
        let mut batch: Vec<(Ticket, u64, u64)> = Vec::new();
        for _ in 0..self.rng.random_range(1..16) {
            let page = self.some_page();
            if batch.iter().any(|(_, p, _)| *p == page) {
                continue;
            }
            self.next_tag += 1;
            let tag = if once_in(&mut self.rng, 8) { 0 } else { self.next_tag };
            let ticket = if tag == 0 && once_in(&mut self.rng, 2) {
                self.driver.zero(self.client, page << 12, 4096, false)
            } else {
                self.driver.write(self.client, page << 12, &content(page, tag), once_in(&mut self.rng, 10))
            };
            batch.push((ticket, page, tag));
        }
        batch
    }

    fn account(&mut self, batch: Vec<(Ticket, u64, u64)>) {
        for (ticket, page, tag) in batch {
            if matches!(&*ticket.lock(), Some(Ok(()))) {
                set(&mut self.open, page, tag);
            } else {
                self.unknown.entry(page).or_default().push(tag);
            }
        }
    }

    /// Writes the superblock, with FUA or followed by a flush. The crash may come at any step.
    fn commit(&mut self) {
        self.next_tag += 1;
        let tag = self.next_tag;
        let mut next = self.open.clone();
        set(&mut next, 0, tag);
        let fua = once_in(&mut self.rng, 2);
        let ticket = self.driver.write(self.client, 0, &content(0, tag), fua);
        self.driver.settle();
        let acked = matches!(&*ticket.lock(), Some(Ok(())));
        self.commits.push(next.clone());
        if !acked {
            self.unknown.entry(0).or_default().push(tag);
            return;
        }
        self.open = next;
        let durable = fua || {
            let ticket = self.driver.flush();
            self.driver.settle();
            let outcome = ticket.lock().clone();
            matches!(outcome, Some(Ok(())))
        };
        if durable {
            self.commits = vec![self.open.clone()];
        }
    }

    fn free_ranges(&mut self) {
        let a = self.some_page();
        // A part of the class 3 window, or a few pages.
        let count = if once_in(&mut self.rng, 3) { 1 << 20 } else { self.rng.random_range(1..2000) };
        let (first, count) = (a, count);
        self.command_id += 1;
        let (ticket, command) =
            self.command(CMD_FREE_RANGES, self.session, self.command_id, &[(first, count)]);
        self.driver.settle();
        Driver::outcome(&ticket).expect("FREE_RANGES is carried out");
        assert_eq!(self.reply().errno.get(), 0);
        let end = first + count;
        self.open.retain(|page, _| *page < first || *page >= end);
        if once_in(&mut self.rng, 2) {
            // Written again, then the command repeated: the kept reply, and nothing done.
            let page = self.places.iter().copied().find(|p| (first..end).contains(p)).unwrap_or(first);
            self.next_tag += 1;
            let tag = self.next_tag;
            let write = self.driver.write(self.client, page << 12, &content(page, tag), false);
            self.driver.settle();
            Driver::outcome(&write).expect("a write");
            set(&mut self.open, page, tag);
            if !self.places.contains(&page) {
                self.places.push(page);
                self.places.sort_unstable();
            }
            if once_in(&mut self.rng, 2) {
                self.crash_and_go_on(Crash::ProcessDeath, true);
            }
            let again = self.driver.write(self.client, COMMAND_PAGE.byte(), command.as_bytes(), false);
            self.driver.settle();
            Driver::outcome(&again).expect("the repeated command is answered");
            let reply = self.reply();
            assert_eq!((reply.errno.get(), reply.id.get()), (0, self.command_id));
            self.check_all();
        }
    }

    fn found(&self) -> Pages {
        let mut found = Pages::new();
        for &page in &self.places {
            let bytes = self.driver.read(self.client, page << 12, 4096).expect("a page can be read");
            let tag = tag_of(page, &bytes).unwrap_or_else(|| panic!("page {page:#x} holds a mixture"));
            set(&mut found, page, tag);
        }
        found
    }

    fn check_all(&mut self) {
        assert_eq!(self.found(), self.open);
        self.driver.check_usage();
        self.check_map();
    }

    /// The allocation map against the model.
    fn check_map(&self) {
        let mut pages = BTreeMap::<u64, Vec<u8>>::new();
        let mut read = |offset: u64| {
            let start = MAP_BASE + (offset & !4095);
            let page = || self.driver.read(self.client, start, 4096).expect("the allocation map");
            pages.entry(start).or_insert_with(page).clone()
        };
        let mut units = BTreeMap::<u64, u32>::new();
        let mut uppers = BTreeMap::<u64, u64>::new();
        for page in self.open.keys() {
            *units.entry(page >> 15).or_default() += 1;
            *uppers.entry(page >> 25).or_default() += 1;
        }
        for &page in &self.places {
            let offset = page / 8;
            let bit = read(offset)[(offset & 4095) as usize] >> (page % 8) & 1;
            assert_eq!(bit == 1, self.open.contains_key(&page), "bit of page {page:#x}");
            let offset = MAP_SUMMARY + (page >> 15) * 4;
            let at = (offset & 4095) as usize;
            let count = u32::from_le_bytes(read(offset)[at..at + 4].try_into().expect("four bytes"));
            assert_eq!(count, units.get(&(page >> 15)).copied().unwrap_or(0), "unit of page {page:#x}");
            let offset = MAP_UPPER + (page >> 25) * 8;
            let at = (offset & 4095) as usize;
            let count = u64::from_le_bytes(read(offset)[at..at + 8].try_into().expect("eight bytes"));
            assert_eq!(
                count,
                uppers.get(&(page >> 25)).copied().unwrap_or(0),
                "upper unit of page {page:#x}"
            );
        }
    }

    fn status(&self) -> Status {
        let page = self.driver.read(self.client, STATUS_PAGE.byte(), 4096).expect("the status page");
        Status::read_from_bytes(&page).expect("the status is a page")
    }

    /// Crashes, opens again, and goes on as a mounter would.
    fn crash_and_go_on(&mut self, crash: Crash, same_mounter: bool) {
        let image = self.driver.disk.image_after(crash);
        if crash == Crash::PowerCut {
            self.boot += 1;
        }
        let disk = SimStorage::new(image, self.rng.random());
        self.driver = Driver::open(disk, self.boot).expect("the store opens after a crash");
        self.client = ClientId(self.client.0 + 1);
        let write = self.driver.write(self.client, self.places[1] << 12, &content(1, 1), false);
        self.driver.settle();
        assert!(
            matches!(Driver::outcome(&write), Err(IoError::Fenced(_))),
            "nobody is attached after a restart"
        );
        if crash == Crash::ProcessDeath && same_mounter {
            self.attach();
            let found = self.found();
            for &page in &self.places {
                let (f, m) = (get(&found, page), get(&self.open, page));
                let allowed = f == m || self.unknown.get(&page).is_some_and(|u| u.contains(&f));
                assert!(allowed, "page {page:#x} after the daemon's death: found {f}, acknowledged {m}");
            }
            // A commit that was not acknowledged may have been carried out: then its version of
            // the superblock is there.
            let newest = self.commits.last().is_some_and(|c| get(c, 0) == get(&found, 0));
            if !newest {
                self.commits.retain(|c| get(c, 0) <= get(&found, 0));
            }
            self.open = found;
        } else {
            if crash == Crash::PowerCut {
                assert_eq!(self.status().session.get(), 0, "a session of another boot is over");
                let (ticket, _) = self.command(CMD_ATTACH, self.session, 0, &[]);
                self.driver.settle();
                Driver::outcome(&ticket).expect("ATTACH is answered");
                assert_eq!(self.reply().errno.get(), libc::ESHUTDOWN as u32);
            } else {
                let acked = get(&self.open, 0);
                self.commits.retain(|c| get(c, 0) >= acked);
            }
            self.open_session();
            let found = self.found();
            let matching = self.commits.contains(&found);
            assert!(
                matching,
                "after {crash:?} the volume equals no commit: {found:?}\nnot one of {:?}",
                self.commits
            );
            self.open = found;
            self.commits = vec![self.open.clone()];
        }
        self.unknown.clear();
        self.check_all();
    }

    fn round(&mut self) {
        match self.rng.random_range(0..24) {
            0..=4 => self.commit(),
            5 | 6 => self.free_ranges(),
            7 => {
                self.driver.checkpoint();
                self.driver.settle();
            }
            8 => {
                let segment = self.rng.random_range(0..(IMAGE_BYTES >> 16) as u32);
                let copies = self.driver.copies_of(segment);
                // Pages that are overwritten meanwhile must not come back.
                for _ in 0..self.rng.random_range(0..4) {
                    let batch = self.batch();
                    self.driver.settle();
                    self.account(batch);
                }
                if once_in(&mut self.rng, 2) {
                    self.commit();
                }
                self.driver.relocate(copies);
            }
            9 => self.check_all(),
            10 => {
                let batch = self.batch();
                let steps = self.rng.random_range(0..10);
                self.driver.steps(steps);
                self.account(batch);
                self.some_crash();
            }
            11 => {
                let n = self.rng.random_range(1..40);
                self.driver.disk.crash_at(n);
                while !self.driver.disk.crashed() {
                    let batch = self.batch();
                    self.driver.settle();
                    self.account(batch);
                    if !self.driver.disk.crashed() && once_in(&mut self.rng, 3) {
                        self.commit();
                    }
                    if !self.driver.disk.crashed() && once_in(&mut self.rng, 4) {
                        self.driver.clean();
                    }
                }
                self.some_crash();
            }
            12 => self.another_mounter(),
            13 => self.close(),
            _ => {
                let batch = self.batch();
                self.driver.settle();
                for (ticket, page, _) in &batch {
                    Driver::outcome(ticket).unwrap_or_else(|e| panic!("write of page {page:#x}: {e}"));
                }
                self.account(batch);
            }
        }
    }

    fn some_crash(&mut self) {
        let crash = if once_in(&mut self.rng, 2) { Crash::PowerCut } else { Crash::ProcessDeath };
        let same_mounter = !once_in(&mut self.rng, 3);
        self.crash_and_go_on(crash, same_mounter);
    }

    /// OPEN by another client: the first one is fenced, what it did not commit is gone.
    fn another_mounter(&mut self) {
        let old = self.client;
        self.client = ClientId(old.0 + 1);
        // A write of the old mounter is still in the queue when OPEN comes.
        let page = self.some_page();
        self.driver.write(old, page << 12, &content(page, 1), false);
        self.open_session();
        self.commits = vec![self.open.clone()];
        let late = self.driver.write(old, page << 12, &content(page, 2), false);
        self.driver.settle();
        assert!(matches!(Driver::outcome(&late), Err(IoError::Fenced(_))));
        self.check_all();
    }

    fn close(&mut self) {
        self.command_id += 1;
        let (ticket, _) = self.command(CMD_CLOSE, self.session, self.command_id, &[]);
        self.driver.settle();
        Driver::outcome(&ticket).expect("CLOSE is carried out");
        assert_eq!(self.reply().errno.get(), 0);
        assert_eq!(self.status().session.get(), 0);
        let late = self.driver.write(self.client, 0, &content(0, 1), false);
        self.driver.settle();
        assert!(matches!(Driver::outcome(&late), Err(IoError::Fenced(_))));
        self.open_session();
        self.commits = vec![self.open.clone()];
        self.check_all();
    }
}

fn set(pages: &mut Pages, page: u64, tag: u64) {
    if tag == 0 {
        pages.remove(&page);
    } else {
        pages.insert(page, tag);
    }
}

fn get(pages: &Pages, page: u64) -> u64 {
    pages.get(&page).copied().unwrap_or(0)
}

#[test]
fn vexfs_volumes_survive_random_lives() {
    for_seeds(25, |seed| {
        let mut run = Run::new(seed);
        for _ in 0..120 {
            run.round();
        }
        run.check_all();
    });
}

#[test]
fn vexfs_volumes_survive_a_crash_at_every_write() {
    for (crash, same_mounter) in
        [(Crash::PowerCut, false), (Crash::ProcessDeath, true), (Crash::ProcessDeath, false)]
    {
        for n in 1.. {
            let mut run = Run::new(n * 3 + u64::from(same_mounter));
            run.driver.disk.crash_at(n);
            for round in 0..25 {
                if run.driver.disk.crashed() {
                    break;
                }
                let batch = run.batch();
                run.driver.settle();
                run.account(batch);
                if round % 4 == 3 && !run.driver.disk.crashed() {
                    run.commit();
                }
                if round % 9 == 6 && !run.driver.disk.crashed() {
                    run.driver.checkpoint();
                    run.driver.settle();
                }
            }
            if !run.driver.disk.crashed() {
                assert!(n > 60, "the script writes more than {n} times");
                break;
            }
            run.crash_and_go_on(crash, same_mounter);
        }
    }
}
