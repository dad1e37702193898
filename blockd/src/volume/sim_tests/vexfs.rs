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

use super::damage::{self, Mortal};
use super::driver::{Driver, Ticket};
use super::machine::Machine;
use super::past::{self, Historic, Past, State};
use super::script::{self, Life, Op, Step, Weights};
use super::seeds;
use crate::device::{ClientId, IoError, VolumeKind};
use crate::storage::sim::Crash;
use crate::storage::sim::faults::ReadFault;
use crate::storage::sim::timeline::Timeline;

mod clones;

const IMAGE_BYTES: usize = 4 << 20;

/// Page -> version; absent = zeros.
type Pages = BTreeMap<u64, u64>;

/// The pages a life uses: a few of each region, some close together, some far apart.
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

/// The content of a page of this version, which no other page has, but for clones: these have it too.
fn content(tag: u64) -> Vec<u8> {
    super::content(0, tag)
}

/// The version of a content.
fn tag_of(bytes: &[u8]) -> Option<u64> {
    super::tag_of(0, bytes)
}

/// What the volume may hold.
#[derive(Clone)]
pub(super) struct Model {
    /// The pages that were ever written.
    places: Vec<u64>,
    /// Commits that the volume may be at after a power cut, the oldest first.
    commits: Vec<Pages>,
    /// Index of the oldest that it may be at: those before are history.
    durable: usize,
    open: Pages,
    /// Versions of unacknowledged writes.
    unknown: BTreeMap<u64, Vec<u64>>,
    session: u64,
    command_id: u64,
}

impl Model {
    /// Exactly this is committed, and nothing is open.
    fn settled_at(&mut self, pages: Pages) {
        self.open = pages.clone();
        self.commits = vec![pages];
        self.durable = 0;
        self.unknown.clear();
    }

    fn is_or_unknown(&self, page: u64, found: u64) -> bool {
        found == get(&self.open, page) || self.unknown.get(&page).is_some_and(|u| u.contains(&found))
    }
}

pub(super) struct VexFsLife {
    machine: Machine,
    model: Model,
    past: Past,
    client: ClientId,
    history: bool,
    /// Nobody has a session.
    closed: bool,
}

/// Requests in flight: ticket, page, version.
type Batch = Vec<(Ticket, u64, u64)>;

impl VexFsLife {
    fn send_command(&mut self, op: u32, session: u64, id: u64, ranges: &[(u64, u64)]) -> (Ticket, Command) {
        let mut command = Command::new_zeroed();
        command.magic = COMMAND_MAGIC;
        command.op = op.into();
        command.session = session.into();
        command.id = id.into();
        command.boot_id = self.machine.boot_id();
        command.range_count = (ranges.len() as u32).into();
        for (to, (first, count)) in command.ranges.iter_mut().zip(ranges) {
            to.first_page = (*first).into();
            to.page_count = (*count).into();
        }
        self.machine.timeline.note(format!("  command {op} of session {session:#x}, id {id}, {ranges:x?}"));
        (self.send(&command), command)
    }

    fn send(&mut self, command: &Command) -> Ticket {
        self.machine.driver.write(self.client, COMMAND_PAGE.byte(), command.as_bytes(), false)
    }

    /// Sends a command; false if the store stopped.
    fn command(&mut self, op: u32, session: u64, id: u64, ranges: &[(u64, u64)]) -> bool {
        let (ticket, _) = self.send_command(op, session, id, ranges);
        self.machine.driver.settle();
        let outcome = Driver::outcome(&ticket);
        if let Err(e) = &outcome {
            self.machine.assert_failure_explained(&format!("command {op}"), e);
        }
        outcome.is_ok()
    }

    fn reply(&self) -> CommandReply {
        let page = self.machine.driver.read(self.client, COMMAND_PAGE.byte(), 4096).expect("the reply");
        CommandReply::read_from_bytes(&page).expect("a reply is a page")
    }

    fn status(&self) -> Status {
        let page = self.machine.driver.read(self.client, STATUS_PAGE.byte(), 4096).expect("the status page");
        Status::read_from_bytes(&page).expect("the status is a page")
    }

    fn open_session(&mut self) -> bool {
        if !self.command(CMD_OPEN, 0, 1, &[]) {
            return false;
        }
        let reply = self.reply();
        assert_eq!(reply.errno.get(), 0);
        assert!(reply.session.get() > self.model.session, "sessions are never granted twice");
        self.model.session = reply.session.get();
        self.model.command_id = 1;
        true
    }

    /// The errno of the reply.
    fn attach(&mut self) -> u32 {
        let (ticket, _) = self.send_command(CMD_ATTACH, self.model.session, 0, &[]);
        self.machine.driver.settle();
        Driver::outcome(&ticket).expect("ATTACH is answered");
        self.reply().errno.get()
    }

    fn some_page(&mut self) -> u64 {
        let i = self.machine.rng.random_range(1..self.model.places.len());
        self.model.places[i]
    }

    fn send_batch(&mut self) -> Batch {
        let mut batch = Batch::new();
        for _ in 0..self.machine.rng.random_range(1..16) {
            let page = self.some_page();
            if batch.iter().any(|(_, p, _)| *p == page) {
                continue;
            }
            let m = &mut self.machine;
            let tag = if m.once_in(8) { 0 } else { m.new_tag() };
            let ticket = if tag == 0 && m.once_in(2) {
                m.driver.zero(self.client, page << 12, 4096, false)
            } else {
                let fua = m.once_in(10);
                m.driver.write(self.client, page << 12, &content(tag), fua)
            };
            m.timeline.note(format!("  page {page:#x} = {tag}"));
            batch.push((ticket, page, tag));
        }
        batch
    }

    fn account(&mut self, batch: Batch) {
        for (ticket, page, tag) in batch {
            let outcome = ticket.lock().clone();
            if let Some(Err(e)) = &outcome {
                self.machine.assert_failure_explained(&format!("write of page {page:#x}"), e);
            }
            if matches!(outcome, Some(Ok(()))) {
                set(&mut self.model.open, page, tag);
            } else if matches!(outcome, Some(Err(IoError::NoSpace))) {
                // One page: nothing of it was written.
                self.machine.timeline.note(format!("  no room for page {page:#x}"));
            } else {
                self.model.unknown.entry(page).or_default().push(tag);
            }
        }
    }

    fn batch(&mut self) {
        let batch = self.send_batch();
        self.machine.driver.settle();
        assert!(batch.iter().all(|(ticket, _, _)| ticket.lock().is_some()), "a request is never answered");
        self.account(batch);
    }

    /// Commits, with some pages in the same request or without; true if the commit is durable.
    fn commit(&mut self) -> bool {
        if self.machine.once_in(2) { self.commit_with_pages() } else { self.commit_amid(false) }
    }

    fn commit_with_pages(&mut self) -> bool {
        let count_max = if self.machine.once_in(4) { 40 } else { 6 };
        let count = self.machine.rng.random_range(0..count_max);
        let mut pages = Pages::new();
        for _ in 0..count {
            let page = self.some_page();
            let tag = if self.machine.once_in(8) { 0 } else { self.machine.new_tag() };
            pages.insert(page, tag);
        }
        let tag = self.machine.new_tag();
        self.machine.timeline.note(format!("  commit {tag} with {pages:x?}"));
        let mut next = self.model.open.clone();
        pages.iter().chain([(&0, &tag)]).for_each(|(&page, &tag)| set(&mut next, page, tag));
        let ticket = self.machine.driver.commit(self.client, &pages, tag, |_, tag| content(tag));
        self.machine.driver.settle();
        match Driver::outcome(&ticket) {
            Ok(()) => {
                self.model.commits.push(next.clone());
                self.model.open = next;
                self.now_durable();
                true
            }
            Err(e) => {
                self.machine.assert_failure_explained("commit with pages", &e);
                if matches!(e, IoError::NoSpace) {
                    // Each page was written or was not; the superblock was not.
                    for (page, tag) in pages {
                        match self.found_again(page) {
                            Ok(found) if found == tag => set(&mut self.model.open, page, tag),
                            Ok(_) => {}
                            Err(_) => self.model.unknown.entry(page).or_default().push(tag),
                        }
                    }
                } else {
                    self.model.commits.push(next);
                    pages.into_iter().chain([(0, tag)]).for_each(|(page, tag)| {
                        self.model.unknown.entry(page).or_default().push(tag);
                    });
                }
                false
            }
        }
    }

    /// What stands on a page; a read may fail once.
    fn found_again(&self, page: u64) -> Result<u64, IoError> {
        let read = || self.machine.driver.read(self.client, page << 12, 4096);
        let bytes = read().or_else(|_| read())?;
        Ok(tag_of(&bytes).unwrap_or_else(|| panic!("page {page:#x} holds a mixture")))
    }

    /// Writes the superblock, with FUA or followed by a flush. A snapshot may be asked for while it is under way: then that has
    /// this commit or the last one.
    fn commit_amid(&mut self, snapshot: bool) -> bool {
        let tag = self.machine.new_tag();
        let mut next = self.model.open.clone();
        set(&mut next, 0, tag);
        let fua = self.machine.once_in(2);
        self.machine.timeline.note(format!("  commit {tag}{}", if fua { " fua" } else { "" }));
        let mut states = self.states();
        let ticket = self.machine.driver.write(self.client, 0, &content(tag), fua);
        let change = snapshot.then(|| {
            states.push(state(&next));
            let steps = self.machine.rng.random_range(0..3);
            self.machine.driver.steps(steps);
            past::ask_for(self, states)
        });
        self.machine.driver.settle();
        self.model.commits.push(next.clone());
        if let Some(change) = change.flatten() {
            past::conclude(self, &change);
        }
        if let Err(e) = Driver::outcome(&ticket) {
            assert!(!matches!(e, IoError::NoSpace), "there is always room for a commit");
            self.machine.assert_failure_explained("commit", &e);
            self.model.unknown.entry(0).or_default().push(tag);
            return false;
        }
        self.model.open = next;
        if !fua {
            let ticket = self.machine.driver.flush();
            self.machine.driver.settle();
            if let Err(e) = Driver::outcome(&ticket) {
                self.machine.assert_failure_explained("flush", &e);
                return false;
            }
        }
        self.now_durable();
        true
    }

    /// The last commit was acknowledged as durable.
    fn now_durable(&mut self) {
        self.model.durable = self.model.commits.len() - 1;
        if !self.history {
            self.model.commits.drain(..self.model.durable);
            self.model.durable = 0;
        }
    }

    fn checkpoint(&mut self) {
        let ticket = self.machine.driver.checkpoint();
        self.machine.driver.settle();
        match Driver::outcome(&ticket) {
            Ok(()) | Err(IoError::NoSpace) => {}
            Err(e) => self.machine.assert_failure_explained("checkpoint", &e),
        }
    }

    fn free_ranges(&mut self) {
        let first = self.some_page();
        // A part of the class 3 window, or a few pages.
        let count = if self.machine.once_in(3) { 1 << 20 } else { self.machine.rng.random_range(1..2000) };
        let end = first + count;
        self.model.command_id += 1;
        let (ticket, command) =
            self.send_command(CMD_FREE_RANGES, self.model.session, self.model.command_id, &[(first, count)]);
        self.machine.driver.settle();
        match Driver::outcome(&ticket) {
            // What a snapshot keeps needs leaves.
            Err(e @ IoError::NoSpace) => return self.machine.assert_failure_explained("FREE_RANGES", &e),
            outcome => outcome.expect("FREE_RANGES is carried out"),
        }
        assert_eq!(self.reply().errno.get(), 0);
        self.model.open.retain(|page, _| *page < first || *page >= end);
        if self.machine.once_in(2) {
            return;
        }
        // Written again, then the command repeated: the kept reply, and nothing done.
        let page = self.model.places.iter().copied().find(|p| (first..end).contains(p)).unwrap_or(first);
        let tag = self.machine.new_tag();
        let write = self.machine.driver.write(self.client, page << 12, &content(tag), false);
        self.machine.driver.settle();
        match Driver::outcome(&write) {
            Err(e @ IoError::NoSpace) => return self.machine.assert_failure_explained("a write", &e),
            outcome => outcome.expect("a write"),
        }
        set(&mut self.model.open, page, tag);
        if !self.model.places.contains(&page) {
            self.model.places.push(page);
            self.model.places.sort_unstable();
        }
        if self.machine.once_in(2) && !self.crash(Crash::ProcessDeath, true, false) {
            return;
        }
        self.machine.timeline.note("  the same command again");
        let again = self.send(&command);
        self.machine.driver.settle();
        Driver::outcome(&again).expect("the repeated command is answered");
        let reply = self.reply();
        assert_eq!((reply.errno.get(), reply.id.get()), (0, self.model.command_id));
        self.compare();
    }

    /// What is there; pages that give a justified error are left out.
    fn find(&self) -> BTreeMap<u64, Result<u64, IoError>> {
        let read = |page: u64| {
            let bytes = self.machine.driver.read(self.client, page << 12, 4096)?;
            Ok(tag_of(&bytes).unwrap_or_else(|| panic!("page {page:#x} holds a mixture")))
        };
        self.model.places.iter().map(|&page| (page, read(page))).collect()
    }

    fn find_all(&self) -> Pages {
        let mut found = Pages::new();
        for (page, tag) in self.find() {
            set(&mut found, page, tag.unwrap_or_else(|e| panic!("page {page:#x}: {e}")));
        }
        found
    }

    fn compare(&mut self) {
        assert_eq!(self.find_all(), self.model.open);
        past::compare(self, false);
        self.machine.driver.check_usage();
        self.compare_map();
    }

    /// The allocation map against the model.
    fn compare_map(&self) {
        let mut pages = BTreeMap::<u64, Vec<u8>>::new();
        let mut read = |offset: u64| {
            let start = MAP_BASE + (offset & !4095);
            let page = || self.machine.driver.read(self.client, start, 4096).expect("the allocation map");
            pages.entry(start).or_insert_with(page).clone()
        };
        let mut units = BTreeMap::<u64, u32>::new();
        let mut uppers = BTreeMap::<u64, u64>::new();
        for page in self.model.open.keys() {
            *units.entry(page >> 15).or_default() += 1;
            *uppers.entry(page >> 25).or_default() += 1;
        }
        for &page in &self.model.places {
            let offset = page / 8;
            let bit = read(offset)[(offset & 4095) as usize] >> (page % 8) & 1;
            assert_eq!(bit == 1, self.model.open.contains_key(&page), "bit of page {page:#x}");
            let offset = MAP_SUMMARY + (page >> 15) * 4;
            let at = (offset & 4095) as usize;
            let count = u32::from_le_bytes(read(offset)[at..at + 4].try_into().expect("four bytes"));
            assert_eq!(count, units.get(&(page >> 15)).copied().unwrap_or(0), "unit of page {page:#x}");
            let offset = MAP_UPPER + (page >> 25) * 8;
            let at = (offset & 4095) as usize;
            let count = u64::from_le_bytes(read(offset)[at..at + 8].try_into().expect("eight bytes"));
            let expected = uppers.get(&(page >> 25)).copied().unwrap_or(0);
            assert_eq!(count, expected, "upper unit of page {page:#x}");
        }
    }

    /// A new connection, to which nothing is allowed yet.
    fn reconnect(&mut self) {
        self.client = ClientId(self.client.0 + 1);
        let page = self.model.places[1];
        let write = self.machine.driver.write(self.client, page << 12, &content(1), false);
        self.machine.driver.settle();
        assert!(
            matches!(Driver::outcome(&write), Err(IoError::Fenced(_))),
            "nobody is attached after a restart"
        );
    }

    /// Dies, comes back, and goes on as a mounter would; whether the session is still the same.
    fn crash(&mut self, crash: Crash, same_mounter: bool, deaths_on_the_way: bool) -> bool {
        let crash = self.machine.restart(crash, deaths_on_the_way);
        past::resolve(self);
        self.reconnect();
        // A rollback needs the session closed: then there is none to go on with.
        let goes_on = crash == Crash::ProcessDeath && same_mounter && !std::mem::take(&mut self.closed);
        self.closed = false;
        if goes_on {
            assert_eq!(self.attach(), 0, "the session goes on");
            let found = self.find_all();
            for &page in &self.model.places {
                let tag = get(&found, page);
                let acked = get(&self.model.open, page);
                assert!(
                    self.model.is_or_unknown(page, tag),
                    "page {page:#x} after the daemon's death: found {tag}, acknowledged {acked}"
                );
            }
            self.settle_commits(&found);
            self.model.open = found;
            self.model.unknown.clear();
        } else {
            if crash == Crash::PowerCut {
                assert_eq!(self.status().session.get(), 0, "a session of another boot is over");
                assert_eq!(self.attach(), libc::ESHUTDOWN as u32);
            } else {
                // What was acknowledged is there, so an older commit may not be.
                let acked = get(&self.model.open, 0);
                self.model.commits.retain(|c| get(c, 0) >= acked);
                self.model.durable = 0;
            }
            assert!(self.open_session(), "a volume that was just opened takes a session");
            let found = self.find_all();
            self.assert_a_commit(&found, self.model.durable, &format!("after {crash:?}"));
            self.model.settled_at(found);
        }
        self.compare();
        goes_on
    }

    /// A commit that was not acknowledged may have been carried out: then its version of the superblock is there.
    fn settle_commits(&mut self, found: &Pages) {
        let carried_out = self.model.commits.last().is_some_and(|c| get(c, 0) == get(found, 0));
        if !carried_out {
            self.model.commits.retain(|c| get(c, 0) <= get(found, 0));
            self.model.durable = self.model.durable.min(self.model.commits.len() - 1);
        }
    }

    fn assert_a_commit(&self, found: &Pages, from: usize, when: &str) {
        let commits = &self.model.commits[from..];
        if commits.contains(found) {
            return;
        }
        let differences = commits.iter().map(|commit| {
            let pages = self.model.places.iter().filter(|&&p| get(commit, p) != get(found, p));
            let pages = pages.map(|&p| format!("page {p:#x}: {} not {}", get(found, p), get(commit, p)));
            format!("commit {}: {}", get(commit, 0), pages.collect::<Vec<_>>().join(", "))
        });
        panic!("{when} the volume equals no commit:\n{}", differences.collect::<Vec<_>>().join("\n"));
    }

    fn some_crash(&mut self, deaths_on_the_way: bool) {
        let crash = self.machine.some_crash();
        let same_mounter = !self.machine.once_in(3);
        self.crash(crash, same_mounter, deaths_on_the_way);
    }

    fn work_until_trouble(&mut self) {
        for _ in 0..60 {
            if self.machine.stopped || self.machine.driver.disk.crashed() {
                return;
            }
            self.work();
        }
    }

    fn late_copies(&mut self) {
        let segment = self.machine.rng.random_range(0..(IMAGE_BYTES >> 16) as u32);
        let copies = self.machine.driver.copies_of(segment);
        // Pages that are overwritten meanwhile must not come back.
        for _ in 0..self.machine.rng.random_range(0..4) {
            self.batch();
        }
        if self.machine.once_in(2) {
            self.commit();
        }
        self.machine.driver.relocate(copies);
    }

    /// Each page that a read finds was the newest at some time while it was under way.
    fn slow_read(&mut self) {
        let first = self.some_page();
        let read = self.machine.slow_read(self.client, first << 12, 4 * 4096);
        let pages: Vec<u64> = (first..first + 4).collect();
        let mut versions: Vec<Vec<u64>> = pages.iter().map(|&p| vec![get(&self.model.open, p)]).collect();
        if read.held {
            for _ in 0..self.machine.rng.random_range(1..12) {
                self.work();
                for (versions, &page) in versions.iter_mut().zip(&pages) {
                    versions.push(get(&self.model.open, page));
                }
            }
        }
        let bytes = read.finish().unwrap_or_else(|e| panic!("a slow read of page {first:#x}: {e}"));
        for ((page, versions), bytes) in pages.iter().zip(versions).zip(bytes.chunks(4096)) {
            let found = tag_of(bytes);
            assert!(
                found.is_some_and(|f| versions.contains(&f)),
                "a slow read of page {page:#x}: found {found:?}, it was one of {versions:?}"
            );
        }
    }

    /// OPEN by another client: the first one is fenced, what it did not commit is gone.
    fn another_mounter(&mut self) {
        let old = self.client;
        self.client = ClientId(old.0 + 1);
        // A write of the old mounter is still in the queue when OPEN comes.
        let page = self.some_page();
        self.machine.driver.write(old, page << 12, &content(1), false);
        let committed = self.model.commits.last().cloned().unwrap_or_default();
        assert!(self.open_session());
        self.model.settled_at(committed);
        let late = self.machine.driver.write(old, page << 12, &content(2), false);
        self.machine.driver.settle();
        assert!(matches!(Driver::outcome(&late), Err(IoError::Fenced(_))));
        self.compare();
    }

    fn close(&mut self) {
        self.close_session();
        assert_eq!(self.status().session.get(), 0);
        let late = self.machine.driver.write(self.client, 0, &content(1), false);
        self.machine.driver.settle();
        assert!(matches!(Driver::outcome(&late), Err(IoError::Fenced(_))));
        self.come_back();
        self.compare();
    }

    /// The image grows by a half, or gets its first size again.
    fn resize(&mut self) {
        let backing_bytes = IMAGE_BYTES as u64 * self.machine.rng.random_range(2..=3) / 2;
        let crash = self.machine.resize(backing_bytes, 0);
        let same_mounter = !self.machine.once_in(3);
        self.crash(crash, same_mounter, false);
    }

    fn close_session(&mut self) {
        self.model.command_id += 1;
        assert!(self.command(CMD_CLOSE, self.model.session, self.model.command_id, &[]));
        assert_eq!(self.reply().errno.get(), 0);
        // What was open is gone.
        let committed = self.model.commits.last().cloned().unwrap_or_default();
        self.model.settled_at(committed);
    }

    fn read_error(&mut self) {
        let disk = self.machine.disk();
        let fault = if self.machine.rng.random() { ReadFault::Eio } else { ReadFault::Flip };
        disk.read_fault_at(self.machine.rng.random_range(1..20), fault);
        for _ in 0..4 {
            self.compare_damaged();
            if !self.machine.stopped {
                self.work();
            }
        }
        disk.disarm();
        if !self.machine.stopped {
            // It was the wire, not the disk: all is there.
            assert_eq!(self.find_all(), self.model.open, "read once more");
        }
    }
}

impl Historic for VexFsLife {
    fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    fn past(&mut self) -> &mut Past {
        &mut self.past
    }

    fn states(&self) -> Vec<State> {
        self.model.commits.last().map(state).into_iter().collect()
    }

    fn places(&self) -> Vec<u64> {
        self.model.places.clone()
    }

    fn version(&self, _: u64, bytes: &[u8]) -> Option<u64> {
        tag_of(bytes)
    }

    fn leave(&mut self) -> bool {
        self.close_session();
        self.closed = true;
        true
    }

    fn come_back(&mut self) {
        assert!(self.open_session(), "a volume without a session takes one");
        self.closed = false;
    }

    fn gone_back(&mut self, pages: BTreeMap<u64, u64>) {
        self.model.settled_at(pages);
    }
}

impl Mortal for VexFsLife {
    type Model = (Model, Past);

    fn model(&self) -> Self::Model {
        (self.model.clone(), self.past.clone())
    }

    fn set_model(&mut self, (model, past): Self::Model) {
        (self.model, self.past) = (model, past);
    }

    fn witness(&mut self) -> bool {
        // Each knows of the one before; nothing knows of the last one.
        let good = (0..3).all(|_| self.commit_amid(false));
        let last_but_one = self.model.commits.iter().rev().nth(1).map_or(0, |c| get(c, 0));
        self.model.unknown.entry(0).or_default().push(last_but_one);
        good
    }

    fn work(&mut self) {
        match self.machine.rng.random_range(0..12) {
            0..=2 => {
                self.commit();
            }
            3 => self.checkpoint(),
            4 => {
                self.machine.driver.clean();
            }
            5 => self.late_copies(),
            7 => self.clone_pages(),
            6 => past::something_small(self),
            _ => self.batch(),
        }
    }

    fn compare_damaged(&mut self) {
        for (page, found) in self.find() {
            match found {
                Ok(tag) => assert!(
                    self.model.is_or_unknown(page, tag),
                    "wrong data in page {page:#x}: found {tag}, it should be {}",
                    get(&self.model.open, page)
                ),
                Err(e) => self.machine.assert_read_error_explained(&format!("page {page:#x}"), &e),
            }
        }
        if !self.machine.stopped {
            past::compare(self, true);
        }
    }

    fn compare_restarted(&mut self, crash: Crash, witnessed: bool) {
        past::resolve(self);
        self.reconnect();
        if crash == Crash::ProcessDeath {
            let errno = self.attach();
            if errno == 0 {
                if !witnessed {
                    // It may have lost its last records unknowingly: any version since may be there.
                    let readable = self.find().into_iter().filter_map(|(page, tag)| Some((page, tag.ok()?)));
                    readable.for_each(|(page, tag)| set(&mut self.model.open, page, tag));
                }
                self.compare_damaged();
                return;
            }
            // Its head is lost, and it is told so.
            let lost = libc::EIO as u32;
            assert!(errno == lost || (errno == libc::ESHUTDOWN as u32 && !witnessed), "ATTACH gives {errno}");
        }
        if !self.open_session() {
            return;
        }
        // The commit that agrees with all that can be read.
        let mut readable = self.find();
        readable.retain(|page, found| match found {
            Ok(_) => true,
            Err(e) => {
                self.machine.assert_read_error_explained(&format!("page {page:#x} after {crash:?}"), e);
                false
            }
        });
        let from = if witnessed { self.model.durable.saturating_sub(1) } else { 0 };
        let agrees = |commit: &&Pages| {
            readable.iter().all(|(page, tag)| matches!(tag, Ok(t) if *t == get(commit, *page)))
        };
        let commit = self.model.commits[from..].iter().find(agrees).cloned();
        let Some(commit) = commit else {
            let found = readable.into_iter().filter_map(|(p, tag)| Some((p, tag.ok()?))).collect();
            self.assert_a_commit(&found, from, &format!("after {crash:?} with damage, errors left out,"));
            return;
        };
        self.model.settled_at(commit);
    }

    fn keep_history(&mut self) {
        self.history = true;
    }

    fn take_up(&mut self) {
        self.history = false;
        self.client = ClientId(self.client.0 + 1);
        let committed = self.model.commits.last().cloned().unwrap_or_default();
        assert!(self.open_session());
        self.model.settled_at(committed);
        self.compare();
    }
}

impl Life for VexFsLife {
    type Op = Op;
    const NAME: &'static str = "vexfs";
    const WEIGHTS: &'static Weights = script::WEIGHTS;

    fn begin(seed: u64, timeline: Timeline) -> Self {
        let machine = Machine::new(VolumeKind::VexFs, IMAGE_BYTES, 0, seed ^ 0x7665_7800, timeline);
        let model = Model {
            places: places(),
            commits: vec![Pages::new()],
            durable: 0,
            open: Pages::new(),
            unknown: BTreeMap::new(),
            session: 0,
            command_id: 0,
        };
        let past = Past::default();
        let mut life = VexFsLife { machine, model, past, client: ClientId(1), history: false, closed: false };
        assert!(life.open_session(), "a new volume takes a session");
        life
    }

    fn step(&mut self, step: Step) {
        self.machine.rng = StdRng::seed_from_u64(step.seed);
        let disk = self.machine.disk();
        match step.op {
            Op::Batch => self.batch(),
            Op::Commit => {
                self.commit();
            }
            Op::Checkpoint => self.checkpoint(),
            Op::Clean => {
                self.machine.driver.clean();
            }
            Op::LateCopies => self.late_copies(),
            Op::SlowRead => self.slow_read(),
            Op::Check => {
                self.compare();
                self.machine.scrub();
            }
            Op::Special if self.machine.once_in(4) => self.free_ranges(),
            Op::Special => self.clone_pages(),
            Op::Session if self.machine.rng.random() => self.another_mounter(),
            Op::Session => self.close(),
            Op::Snapshot if self.machine.once_in(4) => {
                self.commit_amid(true);
            }
            Op::Snapshot => past::something(self),
            Op::Resize => self.resize(),
            Op::Crash | Op::CrashAtStart => {
                let clone = if self.machine.once_in(3) { self.send_clone() } else { None };
                let batch = self.send_batch();
                let steps = self.machine.rng.random_range(0..10);
                self.machine.driver.steps(steps);
                self.account_clone(clone);
                self.account(batch);
                self.some_crash(step.op == Op::CrashAtStart);
            }
            Op::CrashAtWrite => {
                disk.crash_at(self.machine.rng.random_range(1..40));
                self.work_until_trouble();
                self.some_crash(false);
            }
            Op::WriteError => {
                let errno = if self.machine.rng.random() { libc::EIO } else { libc::ENOSPC };
                let n = self.machine.rng.random_range(1..40);
                disk.errors_at(n, self.machine.rng.random_range(1..4), errno);
                self.work_until_trouble();
                self.compare_damaged();
            }
            Op::SyncError => {
                disk.sync_error_at(self.machine.rng.random_range(1..6));
                self.work_until_trouble();
                self.compare_damaged();
            }
            Op::ReadError => self.read_error(),
            Op::Damage => damage::episode(self),
        }
        if self.machine.stopped {
            self.some_crash(false);
        }
        self.machine.driver.disk.disarm();
    }

    fn end(&mut self) {
        past::finish_portions(self);
        self.compare();
        damage::witness_in_room(self);
    }
}

fn set(pages: &mut Pages, page: u64, tag: u64) {
    if tag == 0 {
        pages.remove(&page);
    } else {
        pages.insert(page, tag);
    }
}

/// As the state of a snapshot.
fn state(pages: &Pages) -> State {
    pages.iter().map(|(&page, &tag)| (page, vec![tag])).collect()
}

fn get(pages: &Pages, page: u64) -> u64 {
    pages.get(&page).copied().unwrap_or(0)
}

#[test]
fn vexfs_lives() {
    script::live::<VexFsLife>(&seeds(40), 120);
}

#[test]
fn a_vexfs_seed_does_the_same_each_time() {
    for seed in seeds(3).into_iter().take(3) {
        assert!(script::is_reproducible::<VexFsLife>(seed, 60), "seed {seed} differs from run to run");
    }
}

#[test]
fn vexfs_volumes_survive_a_crash_at_every_write() {
    for (crash, same_mounter) in
        [(Crash::PowerCut, false), (Crash::ProcessDeath, true), (Crash::ProcessDeath, false)]
    {
        for n in 1.. {
            let mut life = VexFsLife::begin(n * 3 + u64::from(same_mounter), Timeline::default());
            life.machine.driver.disk.crash_at(n);
            for round in 0..25 {
                if life.machine.driver.disk.crashed() {
                    break;
                }
                life.batch();
                if round % 4 == 3 && !life.machine.driver.disk.crashed() {
                    life.commit();
                }
                if round % 9 == 6 && !life.machine.driver.disk.crashed() {
                    life.checkpoint();
                }
            }
            if !life.machine.driver.disk.crashed() {
                assert!(n > 60, "the script writes more than {n} times");
                break;
            }
            life.crash(crash, same_mounter, false);
        }
    }
}
