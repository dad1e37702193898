//! The map with snapshots against a plain model, which clones the whole map for each snapshot.

use std::collections::{BTreeMap, HashMap, HashSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::change::{Change, SnapshotError};
use super::portion::Portion;
use super::{LeafId, NAME_BYTES_MAX, View, check_name};
use crate::device::VolumeKind;
use crate::store::format::checkpoint::{MapId, SegmentUsage};
use crate::store::format::leaf::{self, Runs};
use crate::store::format::record::{Entry, EntryList, FLAG_COMMIT, FLAG_ROLLBACK, Record, SessionState};
use crate::store::format::segment::Stream;
use crate::store::format::{Loc, Mapping, page_crc_as};
use crate::store::map::base::Frozen;
use crate::store::map::leaf::Entry as MapEntry;
use crate::store::map::segments::SegmentTable;
use crate::store::map::{Lookup, Maps};

const SEGMENT_PAGES: u32 = 500;
const SEGMENTS: u32 = 400;

type Plain = BTreeMap<u64, Mapping>;

/// The maps, a disk for their leaves, and the model.
struct World {
    rng: StdRng,
    maps: Maps,
    disk: HashMap<Loc, Runs>,
    next_leaf: u32,
    next: Loc,
    live: Plain,
    committed: Plain,
    snapshots: Vec<(String, Plain)>,
    names: u32,
    /// Several pages may stand at one place.
    clones: bool,
}

fn empty_maps(kind: VolumeKind) -> Maps {
    let usage =
        SegmentUsage { stream: Some(Stream::User), used_pages: SEGMENT_PAGES, live_pages: 0, use_seq: 1 };
    Maps::new(kind, SegmentTable::from_usage(&vec![usage; SEGMENTS as usize]))
}

impl World {
    fn new(kind: VolumeKind, seed: u64) -> Self {
        let mut maps = empty_maps(kind);
        maps.base.set_bytes_max(4096);
        maps.snapshots.set_bytes_max(4096);
        World {
            rng: StdRng::seed_from_u64(seed),
            maps,
            disk: HashMap::new(),
            next_leaf: 0,
            next: Loc { segment: 0, offset: 1 },
            live: Plain::new(),
            committed: Plain::new(),
            snapshots: Vec::new(),
            names: 0,
            clones: false,
        }
    }

    /// A dense part over two units, and a sparse one.
    fn page(&mut self) -> u64 {
        match self.rng.random_range(0..8) {
            0 => self.rng.random_range(0..12u64) << 44,
            1..4 => 32_000 + self.rng.random_range(0..1500),
            _ => 32_600 + self.rng.random_range(0..200),
        }
    }

    fn load(&mut self, leaf: LeafId) {
        let map = self.maps.map(leaf.map).expect("its map is there");
        let at = map.unloaded(leaf.key).expect("a leaf that is asked for is not loaded");
        let runs = self.disk.get(&at.loc).expect("it was written");
        self.maps.map_mut(leaf.map).expect("its map is there").load(leaf.key, at, runs);
    }

    fn record(&mut self, flags: u32, entries: Vec<Entry>) {
        let pages: u32 = entries.iter().map(Entry::pages).sum();
        if u32::from(self.next.offset) + 1 + pages > SEGMENT_PAGES {
            self.next = Loc { segment: self.next.segment + 1, offset: 1 };
        }
        let record = Record {
            uuid: [0; 16],
            at: self.next,
            use_seq: 1,
            seq: 1,
            epoch: self.maps.epoch,
            incarnation: 1,
            durable_seq: 0,
            written_seq: 0,
            flags,
            next: None,
            session: SessionState::default(),
            entries,
        };
        self.next.offset += 1 + pages as u16;
        self.apply(&record);
        self.model(&record);
    }

    fn apply(&mut self, record: &Record) {
        self.maps.hold(true);
        loop {
            let missing = self.maps.leaves_missing(record);
            if missing.is_empty() {
                break;
            }
            missing.into_iter().for_each(|leaf| self.load(leaf));
        }
        self.maps.apply(record);
        self.maps.hold(false);
    }

    fn model(&mut self, record: &Record) {
        if record.flags & FLAG_ROLLBACK != 0 {
            self.live = self.committed.clone();
        }
        let mut at = record.at;
        for entry in &record.entries {
            match entry {
                Entry::Write { first, crcs } => {
                    for (page, &crc) in (*first..).zip(crcs) {
                        at.offset += 1;
                        self.live.insert(page, Mapping { loc: at, crc });
                    }
                }
                Entry::Discard { first, count } => {
                    self.live.retain(|p, _| !(*first..*first + *count).contains(p))
                }
                Entry::Relocate { page, old, crc } => {
                    at.offset += 1;
                    let states = self.snapshots.iter_mut().map(|(_, plain)| plain);
                    for plain in states.chain([&mut self.live, &mut self.committed]) {
                        if let Some(m) = plain.get_mut(page)
                            && m.loc == *old
                        {
                            *m = Mapping { loc: at, crc: *crc };
                        }
                    }
                }
                Entry::Clone { first, at, crcs } => {
                    for ((page, i), &crc) in (*first..).zip(0..).zip(crcs) {
                        let loc = Loc { offset: at.offset + i, ..*at };
                        self.live.insert(page, Mapping { loc, crc });
                    }
                }
            }
        }
        if record.flags & FLAG_COMMIT != 0 || self.maps.kind == VolumeKind::Raw {
            self.committed = self.live.clone();
        }
    }

    fn change_pages(&mut self) {
        let mut entries = Vec::new();
        for _ in 0..self.rng.random_range(1..6) {
            let first = self.page();
            if self.rng.random_ratio(1, 4) {
                let count = self.rng.random_range(1..600);
                entries.push(Entry::Discard { first, count });
            } else {
                let crcs = (0..self.rng.random_range(1..40)).map(|_| self.rng.random()).collect();
                entries.push(Entry::Write { first, crcs });
            }
        }
        let raw = self.maps.kind == VolumeKind::Raw;
        let flags = match self.rng.random_range(0..12) {
            0 if !raw => FLAG_ROLLBACK,
            1..5 if !raw => FLAG_COMMIT,
            _ => 0,
        };
        self.record(flags, entries);
    }

    /// Some pages are as others are, these as of before.
    fn clone_pages(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let mut list = EntryList::default();
        for _ in 0..self.rng.random_range(1..5) {
            let from = self.rng.random_range(0..self.live.len());
            let pages: Vec<(u64, Mapping)> =
                self.live.iter().skip(from).take(20).map(|(&page, &m)| (page, m)).collect();
            let to = self.page();
            for ((from, m), to) in pages.into_iter().zip(to..) {
                let crc = page_crc_as(to, from, m.crc);
                assert!(list.push_clone(to, Mapping { crc, ..m }));
            }
        }
        self.clones = true;
        self.record(0, list.take());
    }

    /// Moves pages of any owner, some of which stand elsewhere by now.
    fn relocate(&mut self) {
        let mut entries = Vec::new();
        for _ in 0..self.rng.random_range(1..30) {
            let which = self.rng.random_range(0..self.snapshots.len() + 2);
            let plain = match self.snapshots.get(which) {
                Some((_, plain)) => plain,
                None if which == self.snapshots.len() => &self.live,
                None => &self.committed,
            };
            if plain.is_empty() {
                continue;
            }
            let n = self.rng.random_range(0..plain.len());
            let (&page, &m) = plain.iter().nth(n).expect("it has so many");
            let old = if self.rng.random_ratio(1, 8) { Loc { segment: 399, offset: 1 } } else { m.loc };
            entries.push(Entry::Relocate { page, old, crc: m.crc });
        }
        self.record(0, entries);
    }

    fn change(&mut self, change: &Change, durable: bool) -> Result<(), SnapshotError> {
        let id = self.maps.begin_change(change)?;
        // Records land between the freeze and the end of the checkpoint.
        if !matches!(change, Change::Rollback { .. }) {
            self.change_pages();
        }
        self.maps.end_change(change, id, durable);
        Ok(())
    }

    /// The same, with nothing in between.
    fn change_to(&mut self, change: &Change, durable: bool) {
        let id = self.maps.begin_change(change).expect("nothing is in the way");
        self.maps.end_change(change, id, durable);
    }

    fn create(&mut self) {
        self.names += 1;
        let name = format!("s{}", self.names);
        let durable = self.rng.random_ratio(9, 10);
        let state = self.committed.clone();
        // Relocations go on; the model has them only if the snapshot is in its list.
        self.snapshots.push((name.clone(), state));
        self.change(&Change::Create { name, time_ns: 1 }, durable).expect("a new name");
        if !durable {
            self.snapshots.pop();
        }
    }

    fn delete(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        let i = self.rng.random_range(0..self.snapshots.len());
        let name = self.snapshots[i].0.clone();
        let durable = self.rng.random_ratio(3, 4);
        self.change(&Change::Delete { name }, durable).expect("it is there");
        if durable {
            self.snapshots.remove(i);
        }
    }

    fn portion(&mut self) -> Portion {
        self.maps.hold(true);
        let mut portion = self.maps.portion();
        while let Portion::Load(leaves) = portion {
            leaves.into_iter().for_each(|leaf| self.load(leaf));
            portion = self.maps.portion();
        }
        self.maps.hold(false);
        portion
    }

    fn roll_back(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        self.record(FLAG_ROLLBACK, Vec::new());
        let i = self.rng.random_range(0..self.snapshots.len());
        let name = self.snapshots[i].0.clone();
        self.change(&Change::Rollback { name }, true).expect("it is there");
        let mut steps = 0;
        while self.maps.snapshots.rollback().is_some() {
            assert_ne!(self.portion(), Portion::Idle);
            if self.rng.random_ratio(1, 5) {
                // What is left of the newer ones can't be asked for; the older ones and this one can.
                self.snapshots.truncate(i + 1);
                self.check_snapshots();
            }
            steps += 1;
            assert!(steps < 10_000, "a rollback ends");
        }
        self.snapshots.truncate(i + 1);
        self.committed = self.snapshots[i].1.clone();
        self.live = self.committed.clone();
    }

    /// As a checkpoint does: leaves get a place, and may then be forgotten.
    fn checkpoint(&mut self) {
        let mut page = vec![0; 4096];
        for id in self.maps.ids() {
            let map = self.maps.map_mut(id).expect("it is named");
            map.freeze();
            for key in map.frozen_keys().collect::<Vec<_>>() {
                let count = match map.frozen_leaf(key) {
                    Frozen::Page(leaf) => {
                        assert!(leaf::encode_into([0; 16], key, leaf.runs(), &mut page));
                        Some(leaf.page_count() as u16)
                    }
                    Frozen::NoPage => None,
                };
                map.mark_writing(key);
                if let Some(count) = count {
                    self.next_leaf += 1;
                    let at = Mapping { loc: Loc { segment: 1_000_000 + self.next_leaf, offset: 0 }, crc: 0 };
                    self.disk.insert(at.loc, leaf::decode([0; 16], key, &page).expect("just encoded"));
                    map.written(key, at, count);
                }
            }
            map.thaw();
            map.hold(false);
        }
    }

    fn look(&mut self, view: View, page: u64) -> Option<Mapping> {
        loop {
            match self.maps.lookup_at(view, page) {
                Ok(found) => return found,
                Err(leaf) => self.load(leaf),
            }
        }
    }

    fn check_snapshots(&mut self) {
        for i in 0..self.snapshots.len() {
            let name = self.snapshots[i].0.clone();
            let view = View::Snapshot(self.maps.snapshots.find(&name).expect("it is there").id);
            let mut pages: Vec<u64> = self.snapshots[i].1.keys().copied().collect();
            pages.extend(self.live.keys());
            for page in pages {
                let expected = self.snapshots[i].1.get(&page).copied();
                assert_eq!(self.look(view, page), expected, "page {page:#x} of {name}");
            }
        }
    }

    fn check(&mut self) {
        self.check_snapshots();
        let pages: HashSet<u64> = self.live.keys().chain(self.committed.keys()).copied().collect();
        for page in pages {
            let expected = self.live.get(&page).copied();
            assert_eq!(self.look(View::Live, page), expected, "page {page:#x} of the live volume");
        }
        self.check_units();
        self.check_owners();
    }

    fn check_units(&mut self) {
        for i in 0..self.snapshots.len() {
            let name = self.snapshots[i].0.clone();
            let id = self.maps.snapshots.find(&name).expect("it is there").id;
            let mut seen = 0;
            let mut unit = 0;
            while let Some(next) = self.maps.next_unit_at(View::Snapshot(id), unit) {
                self.maps.hold(true);
                self.maps.unit_missing_at(id, next).into_iter().for_each(|leaf| self.load(leaf));
                let mut bits = [0; 512];
                self.maps.unit_bits_at(id, next, &mut bits);
                self.maps.hold(false);
                let plain = &self.snapshots[i].1;
                let expected = plain.range(next << 15..(next + 1) << 15).count();
                assert_eq!(bits.iter().map(|b| b.count_ones() as usize).sum::<usize>(), expected);
                seen += expected;
                unit = next + 1;
            }
            assert_eq!(seen, self.snapshots[i].1.len(), "every page is in a unit that is named");
        }
    }

    /// Each place has one owner, but for clones, and the segments count them.
    fn check_owners(&mut self) {
        let clones = self.clones;
        let mut owners: HashMap<Loc, MapId> = HashMap::new();
        let mut live = vec![0u32; SEGMENTS as usize];
        self.maps.hold(true);
        for map in self.maps.ids() {
            let all = self.maps.map(map).expect("it is named");
            let unloaded: Vec<u64> = all.keys().filter(|&key| all.unloaded(key).is_some()).collect();
            unloaded.into_iter().for_each(|key| self.load(LeafId { map, key }));
            if map == MapId::Open {
                continue;
            }
            let all = self.maps.map(map).expect("it is named");
            let (mut entries, mut mapped) = (0, 0);
            all.for_each_in(0, u64::MAX, |_, entry| {
                entries += 1;
                let MapEntry::At(m) = entry else { return };
                mapped += 1;
                live[m.loc.segment as usize] += 1;
                assert!(owners.insert(m.loc, map).is_none() || clones, "{} has two owners", m.loc);
            });
            assert_eq!(all.page_count(), entries);
            match self.maps.snapshots.all().iter().find(|s| s.map_id() == map) {
                Some(snapshot) => assert_eq!(snapshot.held_pages, mapped),
                None => assert_eq!(entries, mapped, "the committed map has places only"),
            }
        }
        self.maps.hold(false);
        for (i, s) in self.maps.segments.all().iter().enumerate() {
            assert_eq!(s.live_base, live[i], "live pages of segment {i}");
        }
        for (_, m) in self.maps.overlay.mappings() {
            let before = owners.insert(m.loc, MapId::Open);
            assert!(before.is_none() || clones, "{} has two owners", m.loc);
        }
        // Nothing is kept that no state shows.
        if !self.maps.snapshots.has_work() {
            let shown: HashSet<Loc> = self
                .snapshots
                .iter()
                .flat_map(|(_, plain)| plain.values())
                .chain(self.live.values())
                .chain(self.committed.values())
                .map(|m| m.loc)
                .collect();
            assert_eq!(owners.keys().copied().collect::<HashSet<_>>(), shown);
        }
    }
}

fn random_life(kind: VolumeKind, seed: u64, clones: bool) {
    let mut world = World::new(kind, seed);
    for step in 0..260 {
        if clones && world.rng.random_ratio(1, 4) {
            world.clone_pages();
        }
        match world.rng.random_range(0..40) {
            0..3 => world.create(),
            3..5 => world.delete(),
            5..12 => {
                world.portion();
            }
            12..14 => world.checkpoint(),
            14 if step > 60 => world.roll_back(),
            15..20 => world.relocate(),
            _ => world.change_pages(),
        }
        if step % 20 == 0 {
            world.check();
        }
        if world.next.segment + 20 > SEGMENTS {
            break;
        }
    }
    while world.maps.snapshots.has_work() {
        world.portion();
    }
    world.check();
}

#[test]
fn a_map_with_snapshots_agrees_with_one_that_is_cloned_for_each() {
    for seed in 0..40 {
        random_life(VolumeKind::Raw, seed, false);
        random_life(VolumeKind::VexFs, seed, false);
        random_life(VolumeKind::VexFs, seed, true);
    }
}

#[test]
fn names_and_states_are_checked() {
    let mut maps = empty_maps(VolumeKind::Raw);
    let create = |name: &str| Change::Create { name: name.into(), time_ns: 0 };
    let delete = |name: &str| Change::Delete { name: name.into() };
    for bad in ["", "a/b", "a@b", "a\nb", &"x".repeat(NAME_BYTES_MAX + 1)] {
        assert!(matches!(maps.begin_change(&create(bad)), Err(SnapshotError::BadName(_))), "{bad:?}");
    }
    assert_eq!(check_name(&"ü".repeat(127)), Ok(()));
    let a = maps.begin_change(&create("a")).expect("a good name");
    assert!(matches!(maps.begin_change(&create("a")), Err(SnapshotError::Exists(_))));
    assert!(matches!(maps.begin_change(&delete("b")), Err(SnapshotError::Unknown(_))));
    assert_eq!(maps.snapshots.open("a").ok(), Some(a));
    assert!(matches!(maps.begin_change(&delete("a")), Err(SnapshotError::Open(_))));
    maps.snapshots.close(a);
    maps.begin_change(&create("b")).expect("a good name");
    let b = maps.snapshots.open("b").expect("it is there");
    let back = Change::Rollback { name: "a".into() };
    assert!(matches!(maps.begin_change(&back), Err(SnapshotError::Open(_))), "a newer one is open");
    maps.snapshots.close(b);
    maps.session.set_session(9, [1; 16]);
    assert!(matches!(maps.begin_change(&back), Err(SnapshotError::Session(9))));
    maps.session.set_session(0, [0; 16]);
    maps.begin_change(&back).expect("nothing is in the way");
    assert!(matches!(maps.begin_change(&create("c")), Err(SnapshotError::RollingBack)));
    assert!(matches!(maps.snapshots.open("b"), Err(SnapshotError::RollingBack)));
    assert!(maps.snapshots.open("a").is_ok());
    // A name can be used again as soon as its snapshot is doomed.
    let mut maps = empty_maps(VolumeKind::Raw);
    let first = maps.begin_change(&create("a")).expect("a good name");
    maps.begin_change(&delete("a")).expect("it is there");
    let second = maps.begin_change(&create("a")).expect("the name is free");
    assert!(second > first);
}

#[test]
fn the_number_of_snapshots_is_limited() {
    let mut maps = empty_maps(VolumeKind::Raw);
    for i in 0..super::SNAPSHOTS_MAX {
        maps.begin_change(&Change::Create { name: i.to_string(), time_ns: 0 }).expect("there is room");
    }
    let one_more = Change::Create { name: "one more".into(), time_ns: 0 };
    assert!(matches!(maps.begin_change(&one_more), Err(SnapshotError::TooMany)));
}

#[test]
fn a_snapshot_holds_what_was_replaced_and_nothing_twice() {
    let mut world = World::new(VolumeKind::Raw, 1);
    let write = |world: &mut World, first, n: usize| {
        world.record(0, vec![Entry::Write { first, crcs: vec![7; n] }]);
    };
    write(&mut world, 100, 10);
    world.maps.begin_change(&Change::Create { name: "a".into(), time_ns: 5 }).expect("a good name");
    let held = |world: &World| world.maps.snapshots.find("a").map(|s| (s.held_pages, s.entries()));
    assert_eq!(held(&world), Some((0, 0)));
    for _ in 0..3 {
        write(&mut world, 100, 4);
    }
    write(&mut world, 200, 2);
    assert_eq!(held(&world), Some((4, 6)), "four old pages, two that were not mapped");
    world.record(0, vec![Entry::Discard { first: 0, count: 1 << 40 }]);
    assert_eq!(held(&world), Some((10, 12)));
    assert_eq!(world.maps.segments.data_live(), 10);
    assert_eq!(world.maps.base.lookup(100), Lookup::Unmapped);
}

/// The last checkpoint of a backup that is received has no room: the volume goes back to what it was, its size included.
#[test]
fn a_backup_whose_end_is_not_durable_leaves_the_size_as_it_was() {
    let size = |pages: u64| pages * 4096;
    for received_bytes in [size(500), size(2000)] {
        let mut world = World::new(VolumeKind::Raw, 2);
        world.maps.raw_bytes = size(1000);
        let write = |world: &mut World, first, n: usize| {
            world.record(0, vec![Entry::Write { first, crcs: vec![7; n] }]);
        };
        write(&mut world, 100, 10);
        write(&mut world, 900, 20);
        world.snapshots.push(("base".into(), world.committed.clone()));
        world.change_to(&Change::Create { name: "base".into(), time_ns: 1 }, true);
        let onto = world.maps.snapshots.find("base").map(|s| s.id);
        world.change_to(&Change::Receive { onto }, true);
        write(&mut world, 105, 10);
        world.record(0, vec![Entry::Discard { first: 500, count: 500 }]);
        let received = Change::Received { name: "new".into(), time_ns: 2, raw_bytes: received_bytes };
        world.change_to(&received, false);
        world.maps.snapshots.abandon_receive();
        while world.maps.snapshots.has_work() {
            assert_ne!(world.portion(), Portion::Idle);
        }
        assert_eq!(world.maps.raw_bytes, size(1000), "as before, and not the {received_bytes} received");
        world.committed = world.snapshots[0].1.clone();
        world.live = world.committed.clone();
        world.check();
        assert!(world.maps.snapshots.find("new").is_none());
    }
}
