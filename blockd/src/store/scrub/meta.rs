//! What the next start depends on: superblock slots, the checkpoint, the leaves of the map.

use std::ops::ControlFlow;
use std::time::Duration;

use layout::addr::PAGE;

use super::report::BadPage;
use super::{CHUNK_PAGES, Damaged, Finding, Scrub, read_again};
use crate::buf::AlignedBuf;
use crate::store::format::checkpoint::{MapId, Root};
use crate::store::format::superblock::{SLOTS, Superblock};
use crate::store::format::{Loc, Mapping};
use crate::store::recover::read_superblock;
use crate::store::snapshot::{Snapshot, SnapshotId};

/// How often something that a checkpoint may be changing just now is looked at before it counts as bad.
const TRIES: u32 = 8;
/// Time between two looks.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// Names of the slots.
const SLOT_NAMES: [char; 2] = ['A', 'B'];
/// Leaves checked at a time.
const LEAVES: usize = 4096;

impl Scrub<'_, '_> {
    /// Both slots are intact and say the same, but for the moment in which a checkpoint writes them.
    pub(super) fn superblocks(&mut self) -> ControlFlow<()> {
        for tries in 0.. {
            let slots = SLOTS.map(|slot| self.slot(slot));
            let newest = slots.iter().flatten().map(|s| s.generation).max();
            let findings = slots.map(|slot| match slot {
                Err(why) => Some(why),
                Ok(s) if Some(s.generation) != newest => {
                    Some(format!("generation {} is behind its twin's {}", s.generation, newest.unwrap_or(0)))
                }
                Ok(_) => None,
            });
            if tries < TRIES && findings.iter().any(Option::is_some) {
                std::thread::sleep(TRY_AGAIN);
                continue;
            }
            for ((image_byte, slot), why) in SLOTS.into_iter().zip(SLOT_NAMES).zip(findings) {
                self.report.meta_pages += 1;
                if let Some(why) = why {
                    let damaged = Damaged::SuperblockSlot { slot };
                    self.report.add(BadPage::new(damaged, None, image_byte, Finding::Other(why)));
                }
            }
            break;
        }
        self.advance(SLOTS.len())
    }

    fn slot(&mut self, image_byte: u64) -> Result<Superblock, String> {
        let mut page = AlignedBuf::zeroed(PAGE);
        self.report.bytes_read += PAGE as u64;
        self.shared.storage.read_exact(image_byte, &mut page).map_err(|e| e.to_string())?;
        Superblock::decode(&page).map_err(|m| m.to_string())
    }

    /// The root page and its payload.
    pub(super) fn checkpoint(&mut self) -> ControlFlow<()> {
        for tries in 0.. {
            // The slots were looked at before; without a good one there is nothing to follow.
            let Ok(superblock) = read_superblock(&*self.shared.storage) else { break };
            let findings = self.check_root(&superblock);
            let newer =
                read_superblock(&*self.shared.storage).is_ok_and(|s| s.generation != superblock.generation);
            if newer && tries < TRIES && !findings.is_empty() {
                continue;
            }
            for (at, finding) in findings {
                self.bad(Damaged::Checkpoint, at, finding);
            }
            break;
        }
        self.advance(1)
    }

    fn check_root(&mut self, superblock: &Superblock) -> Vec<(Loc, Finding)> {
        let mut findings = Vec::new();
        let at = superblock.root.loc;
        let mut page = AlignedBuf::zeroed(PAGE);
        self.report.meta_pages += 1;
        self.report.bytes_read += PAGE as u64;
        if let Err(e) = self.shared.storage.read_exact(self.shared.geometry.byte(at), &mut page) {
            return vec![(at, Finding::Other(e.to_string()))];
        }
        let found = crc32c::crc32c(&page);
        if found != superblock.root.crc {
            return vec![(at, Finding::Crc { expected: superblock.root.crc, found })];
        }
        let root = match Root::decode(&page) {
            Ok(root) => root,
            Err(m) => return vec![(at, Finding::Other(m.to_string()))],
        };
        for run in &root.runs {
            let (mut crc, mut done) = (0, 0);
            while done < run.pages as usize {
                let pages = CHUNK_PAGES.min(run.pages as usize - done);
                let at = Loc { offset: run.at.offset.saturating_add(done as u16), ..run.at };
                for (i, e) in self.fill(at, pages) {
                    let at = Loc { offset: at.offset.saturating_add(i as u16), ..at };
                    findings.push((at, Finding::Other(e.to_string())));
                }
                crc = crc32c::crc32c_append(crc, &self.buf[..pages * PAGE]);
                done += pages;
            }
            self.report.meta_pages += u64::from(run.pages);
            if crc != run.crc && findings.is_empty() {
                findings.push((run.at, Finding::Crc { expected: run.crc, found: crc }));
            }
        }
        findings
    }

    /// The leaves of the committed map and of what snapshots keep, as the last checkpoint has them.
    pub(super) fn leaves(&mut self) -> ControlFlow<()> {
        let deltas: Vec<MapId> =
            self.shared.maps.read().snapshots.all().iter().map(Snapshot::map_id).collect();
        std::iter::once(MapId::Committed).chain(deltas).try_for_each(|id| self.leaves_of(id))
    }

    fn leaves_of(&mut self, id: MapId) -> ControlFlow<()> {
        let mut from = 0;
        loop {
            let (mut leaves, next): (Vec<(u64, Mapping)>, _) = {
                let maps = self.shared.maps.read();
                let Some(map) = maps.map(id) else { return ControlFlow::Continue(()) };
                let mut all = map.leaves_from(from);
                let some =
                    all.by_ref().take(LEAVES).filter_map(|(key, _, disk)| Some((key, disk?))).collect();
                (some, all.next().map(|(key, _, _)| key))
            };
            leaves.sort_unstable_by_key(|(_, at)| at.loc);
            let mut rest = &leaves[..];
            while !rest.is_empty() {
                let first = rest[0].1.loc;
                let follows = |(i, (_, at)): &(usize, &(u64, Mapping))| {
                    at.loc.segment == first.segment
                        && usize::from(at.loc.offset) == usize::from(first.offset) + i
                };
                let count = rest.iter().take(CHUNK_PAGES).enumerate().take_while(follows).count();
                let (run, later) = rest.split_at(count);
                self.leaf_run(id, run)?;
                rest = later;
            }
            match next {
                Some(key) => from = key,
                None => return ControlFlow::Continue(()),
            }
        }
    }

    /// The pages of the maps' directories, without which no start finds the leaves.
    pub(super) fn directories(&mut self) -> ControlFlow<()> {
        let shared = self.shared;
        let ids = shared.maps.read().ids();
        for id in ids {
            let pages: Vec<_> = {
                let maps = shared.maps.read();
                maps.map(id).map(|map| map.directory_pages().collect()).unwrap_or_default()
            };
            for (level, key, at) in pages {
                self.report.meta_pages += 1;
                let unread = !self.fill(at.loc, 1).is_empty();
                let right = !unread && crc32c::crc32c(&self.buf[..PAGE]) == at.crc;
                // A checkpoint under way may have moved it, or not have written it yet.
                let stays = || {
                    let maps = shared.maps.read();
                    maps.map(id).is_some_and(|map| !map.is_frozen() && map.directory.has(level, key, at.loc))
                };
                if !right
                    && stays()
                    && let Err(finding) = read_again(shared, at.loc, at.crc, crc32c::crc32c)
                    && stays()
                {
                    self.bad(Damaged::Checkpoint, at.loc, finding);
                }
                self.advance(1)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Leaves that stand one after another.
    fn leaf_run(&mut self, id: MapId, run: &[(u64, Mapping)]) -> ControlFlow<()> {
        let Some((_, first)) = run.first() else { return ControlFlow::Continue(()) };
        let failed = self.fill(first.loc, run.len());
        for (i, (key, at)) in run.iter().enumerate() {
            let page = &self.buf[i * PAGE..(i + 1) * PAGE];
            self.report.meta_pages += 1;
            let failed = failed.iter().any(|(bad, _)| *bad == i);
            if !failed && self.shared.decode_leaf(*key, *at, page).is_ok() {
                continue;
            }
            let finding = read_again(self.shared, at.loc, at.crc, crc32c::crc32c).err();
            // A checkpoint may have moved it, and its place may have been used again.
            let maps = self.shared.maps.read();
            let found = maps.map(id).and_then(|map| map.leaves_from(*key).next());
            let stays = found.is_some_and(|(k, _, disk)| k == *key && disk == Some(*at));
            drop(maps);
            if stays && let Some(finding) = finding.or_else(|| self.undecodable(*key, *at)) {
                let snapshot = match id {
                    MapId::Delta(number) => self.snapshot_name(SnapshotId(number)),
                    MapId::Committed | MapId::Open => None,
                };
                self.bad_of(snapshot, Damaged::MapLeaf { device_page: *key }, at.loc, finding);
            }
        }
        self.advance(run.len())
    }

    fn snapshot_name(&self, id: SnapshotId) -> Option<String> {
        self.shared.maps.read().snapshots.get(id).map(|s| s.name.clone())
    }

    /// What is wrong with a leaf whose crc is right.
    fn undecodable(&self, key: u64, at: Mapping) -> Option<Finding> {
        let mut page = AlignedBuf::zeroed(PAGE);
        match self.shared.storage.read_exact(self.shared.geometry.byte(at.loc), &mut page) {
            Ok(()) => self.shared.decode_leaf(key, at, &page).err().map(Finding::Other),
            Err(e) => Some(Finding::Other(e.to_string())),
        }
    }
}
