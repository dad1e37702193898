//! Clones in a life: what is cloned has the source's version from then on, whatever becomes of the source.

use layout::addr::{CLASS0_BASE, INODE_BASE, PAGE_SHIFT};
use layout::command::{CMD_CLONE_RANGE, CMD_FREE_RANGES, COMMAND_MAGIC, Command, CommandClone};
use rand::Rng;
use zerocopy::FromZeros;

use super::{Driver, Pages, Ticket, VexFsLife, get, set};
use crate::device::IoError;
use crate::storage::sim::Crash;

/// Pages of a range at most.
const PAGES_MAX: u64 = 24;

/// A command under way, and the versions that its pages get.
pub(super) struct Sent {
    ticket: Ticket,
    command: Command,
    versions: Vec<(u64, u64)>,
}

impl VexFsLife {
    /// A page of data, most often of one of three files whose pages stand side by side.
    fn some_data_page(&mut self) -> u64 {
        if self.machine.once_in(4) {
            let data = |page: &&u64| **page >= CLASS0_BASE >> PAGE_SHIFT;
            let count = self.model.places.iter().filter(data).count();
            let n = self.machine.rng.random_range(0..count);
            return self.model.places.iter().filter(data).nth(n).copied().expect("there are some");
        }
        let file = self.machine.rng.random_range(2..5);
        (CLASS0_BASE >> PAGE_SHIFT) + file * 256 + self.machine.rng.random_range(0..40)
    }

    /// Ranges that do not overlap.
    fn some_clones(&mut self) -> Vec<(u64, u64, u64)> {
        let mut clones: Vec<(u64, u64, u64)> = Vec::new();
        for _ in 0..self.machine.rng.random_range(1..5) {
            let (from, to) = (self.some_data_page(), self.some_data_page());
            let count = self.machine.rng.random_range(1..=PAGES_MAX);
            let apart = |a: u64, b: u64, pages: u64| a + count <= b || b + pages <= a;
            let fits = apart(from, to, count)
                && clones.iter().all(|c| apart(to, c.0, c.2) && apart(to, c.1, c.2) && apart(from, c.1, c.2));
            if fits {
                clones.push((from, to, count));
            }
        }
        clones
    }

    /// The next command of the session.
    fn clone_command(&mut self, clones: &[(u64, u64, u64)]) -> Command {
        self.model.command_id += 1;
        let mut command = Command::new_zeroed();
        command.magic = COMMAND_MAGIC;
        command.op = CMD_CLONE_RANGE.into();
        command.session = self.model.session.into();
        command.id = self.model.command_id.into();
        let clone = |c: &(u64, u64, u64)| CommandClone {
            from_page: c.0.into(),
            to_page: c.1.into(),
            page_count: c.2.into(),
        };
        command.set_clones(&clones.iter().map(clone).collect::<Vec<_>>());
        command
    }

    /// Sends a command, and does not wait for it.
    pub(super) fn send_clone(&mut self) -> Option<Sent> {
        let clones = self.some_clones();
        if clones.is_empty() {
            return None;
        }
        let command = self.clone_command(&clones);
        self.machine.timeline.note(format!("  clone {clones:x?}"));
        let mut versions = Vec::new();
        for (from, to, count) in clones {
            versions.extend((0..count).map(|i| (to + i, get(&self.model.open, from + i))));
        }
        for &(page, _) in &versions {
            if let Err(i) = self.model.places.binary_search(&page) {
                self.model.places.insert(i, page);
            }
        }
        Some(Sent { ticket: self.send(&command), command, versions })
    }

    /// Takes the outcome over, if there is one.
    pub(super) fn account_clone(&mut self, sent: Option<Sent>) {
        let Some(Sent { ticket, versions, .. }) = sent else { return };
        let outcome = ticket.lock().clone();
        if let Some(Ok(())) = outcome {
            versions.iter().for_each(|&(page, tag)| set(&mut self.model.open, page, tag));
            return;
        }
        if let Some(Err(e)) = &outcome
            && !self.is_refused_for_cause(e)
        {
            self.machine.assert_failure_explained("CLONE_RANGE", e);
        }
        for (page, tag) in versions {
            self.model.unknown.entry(page).or_default().push(tag);
        }
    }

    /// So many places are shared that there is no more room to note them.
    fn is_refused_for_cause(&self, e: &IoError) -> bool {
        let maps = self.machine.driver.store().maps.read();
        matches!(e, IoError::Invalid(_)) && maps.segments.referrers.len() > 100
    }

    pub(super) fn clone_pages(&mut self) {
        let Some(sent) = self.send_clone() else { return };
        self.machine.driver.settle();
        let outcome = Driver::outcome(&sent.ticket);
        let (command, versions) = (sent.command.clone(), sent.versions.clone());
        self.account_clone(Some(sent));
        if outcome.is_err() {
            return self.look_at(&versions);
        }
        assert_eq!((self.reply().errno.get(), self.reply().id.get()), (0, self.model.command_id));
        if self.machine.once_in(2) {
            return;
        }
        // One of them is written, then the command repeated: the kept reply, and nothing done.
        let page = versions[self.machine.rng.random_range(0..versions.len())].0;
        let tag = self.machine.new_tag();
        let write = self.machine.driver.write(self.client, page << 12, &super::content(tag), false);
        self.machine.driver.settle();
        match Driver::outcome(&write) {
            Ok(()) => set(&mut self.model.open, page, tag),
            Err(IoError::NoSpace) => return,
            Err(e) => {
                self.machine.assert_failure_explained("a write", &e);
                return self.model.unknown.entry(page).or_default().push(tag);
            }
        }
        let again = self.send(&command);
        self.machine.driver.settle();
        match Driver::outcome(&again) {
            Ok(()) => assert_eq!(self.reply().errno.get(), 0),
            Err(e) => self.machine.assert_failure_explained("the repeated command", &e),
        }
    }

    /// The command failed: each page is as it was, or as it was to be. Unless the store stopped, it is known which.
    fn look_at(&mut self, versions: &[(u64, u64)]) {
        if self.machine.stopped || self.machine.driver.disk.crashed() {
            return;
        }
        let mut found = Pages::new();
        for &(page, tag) in versions {
            let Ok(bytes) = self.machine.driver.read(self.client, page << 12, 4096) else { return };
            let there = super::tag_of(&bytes).expect("a version");
            assert!(there == tag || there == get(&self.model.open, page), "page {page:#x}: {there}");
            found.insert(page, there);
        }
        for (page, tag) in found {
            set(&mut self.model.open, page, tag);
            self.model.unknown.remove(&page);
        }
    }

    /// Commands that are no clones of data.
    pub(super) fn refused_clones(&mut self) {
        let data = CLASS0_BASE >> PAGE_SHIFT;
        let bad = [
            vec![(data, data + 3, 4)],
            vec![(data + 3, data, 4)],
            vec![(data, data + 10, 4), (data + 12, data + 20, 1)],
            vec![(data, data + 10, 4), (data + 5, data + 13, 1)],
            vec![(data, data + 10, 0)],
            vec![(data, data + (1 << 17), (1 << 16) + 1)],
            vec![(INODE_BASE >> PAGE_SHIFT, data, 1)],
            vec![(data, INODE_BASE >> PAGE_SHIFT, 1)],
            vec![(data, (1 << 49) - 1, 2)],
            vec![(data, u64::MAX, 2)],
        ];
        for clones in bad {
            let command = self.clone_command(&clones);
            let ticket = self.send(&command);
            self.machine.driver.settle();
            Driver::outcome(&ticket).expect("it is answered");
            assert_eq!(self.reply().errno.get(), libc::EINVAL as u32, "{clones:x?}");
        }
    }
}

#[test]
fn ranges_that_overlap_or_are_no_data_are_not_cloned() {
    use super::super::script::Life;
    let mut life = VexFsLife::begin(1, crate::storage::sim::timeline::Timeline::default());
    life.batch();
    life.refused_clones();
    life.compare();
}

#[test]
fn the_cleaner_moves_a_clone_whose_source_is_gone() {
    use super::super::script::Life;
    use crate::store::map::Lookup;
    use crate::store::map::segments::State;
    let mut life = VexFsLife::begin(2, crate::storage::sim::timeline::Timeline::default());
    let data = CLASS0_BASE >> PAGE_SHIFT;
    let (from, to, count) = (data + 2 * 256, data + 3 * 256, 4);
    for page in from..from + count {
        life.machine.driver.write(life.client, page << 12, &super::content(page), false);
    }
    let clone = life.clone_command(&[(from, to, count)]);
    life.machine.driver.settle();
    life.send(&clone);
    life.machine.driver.settle();
    life.model.command_id += 1;
    assert!(life.command(CMD_FREE_RANGES, life.model.session, life.model.command_id, &[(from, count)]));
    assert!(life.commit());
    let place = |life: &VexFsLife| match life.machine.driver.store().maps.read().lookup(to) {
        Lookup::Mapped(mapping) => mapping.loc,
        other => panic!("the clone is {other:?}"),
    };
    let before = place(&life);
    let is_head = |life: &VexFsLife| {
        let maps = life.machine.driver.store().maps.read();
        maps.segments.get(before.segment).is_some_and(|s| s.state == State::Open)
    };
    while is_head(&life) {
        life.batch();
    }
    let copies = life.machine.driver.copies_of(before.segment);
    life.machine.driver.relocate(copies);
    assert_ne!(place(&life).segment, before.segment, "it was copied");
    for (i, page) in (to..to + count).enumerate() {
        let bytes = life.machine.driver.read(life.client, page << 12, 4096).expect("it is there");
        assert_eq!(super::tag_of(&bytes), Some(from + i as u64));
    }
    life.machine.driver.check_usage();
}

#[test]
fn pages_that_two_maps_have_at_one_place_are_moved_for_both_and_the_store_starts_again() {
    use super::super::script::Life;
    use crate::store::map::Lookup;
    use crate::store::map::segments::State;
    use crate::store::snapshot::change::Change;
    let mut life = VexFsLife::begin(3, crate::storage::sim::timeline::Timeline::default());
    let data = CLASS0_BASE >> PAGE_SHIFT;
    let (file, copy, count) = (data + 2 * 256, data + 3 * 256, 8);
    for page in file..file + count {
        life.machine.driver.write(life.client, page << 12, &super::content(page), false);
    }
    life.machine.driver.settle();
    let clone = |life: &mut VexFsLife, from, to| {
        let command = life.clone_command(&[(from, to, count)]);
        let ticket = life.send(&command);
        life.machine.driver.settle();
        Driver::outcome(&ticket).expect("it is cloned");
        life.model.command_id += 1;
        assert!(life.commit_amid(false));
    };
    clone(&mut life, file, copy);
    let snapshot = life.machine.driver.change(Change::Create { name: "before".to_owned(), time_ns: 1 });
    life.machine.driver.settle();
    assert!(matches!(&*snapshot.lock(), Some(Ok(_))));
    // The file gets back what it has: for the snapshot too it stands there.
    clone(&mut life, copy, file);
    assert!(life.command(CMD_FREE_RANGES, life.model.session, life.model.command_id, &[(copy, count)]));
    assert!(life.commit_amid(false));
    let before = match life.machine.driver.store().maps.read().lookup(file) {
        Lookup::Mapped(mapping) => mapping.loc.segment,
        other => panic!("the file is {other:?}"),
    };
    while life.machine.driver.store().maps.read().segments.get(before).is_some_and(|s| s.state == State::Open)
    {
        life.batch();
    }
    let copies = life.machine.driver.copies_of(before);
    life.machine.driver.relocate(copies);
    life.machine.driver.check_usage();
    let checkpoint = life.machine.driver.checkpoint();
    life.machine.driver.settle();
    Driver::outcome(&checkpoint).expect("a checkpoint");
    let again = life.machine.driver.disk.restart(Crash::ProcessDeath);
    let driver = Driver::open(again, 1).expect("the store starts");
    for page in file..file + count {
        let now = driver.read(life.client, page << 12, 4096).expect("it is there");
        let then = driver.read_snapshot("before", page).expect("it is there");
        assert_eq!([&now, &then].map(|bytes| super::tag_of(bytes)), [Some(page); 2]);
    }
}
