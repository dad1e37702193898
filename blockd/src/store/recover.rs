//! Opening a store: newest superblock, its checkpoint, and the records after it.
//!
//! Time is bounded by the records since the last checkpoint. Replay stops at the first record that
//! is missing or torn. Whether that is the end of the log, or damage in its midst, is told by what the
//! records say of one another: each carries how far the log was durable, and written, before it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use layout::addr::PAGE;
use parking_lot::RwLock;

use super::checkpoint;
use super::checkpoint::load::{Source, load_map};
use super::clean::Tuning;
use super::format::checkpoint::{MapId, Payload, Position, Root};
use super::format::record::{FLAG_COMMIT, FLAG_LINK, FLAG_ROLLBACK, MAGIC, Record};
use super::format::segment::Stream;
use super::format::superblock::{SLOTS, Superblock};
use super::format::{Geometry, Loc, Malformed, Mapping, check, page_crc};
use super::log::{Head, Log, apply_record};
use super::map::Maps;
use super::map::base::BaseMap;
use super::map::overlay::Overlay;
use super::map::segments::SegmentTable;
use super::snapshot::Snapshots;
use super::{Shared, StoreError};
use crate::buf::AlignedBuf;
use crate::device::{IoError, VolumeKind};
use crate::stats::StoreCounters;
use crate::storage::Storage;

/// A link stands in one of so many pages at the end of a segment: what does not fit before is a record of a header and at most
/// two pages that must not be parted.
const LINK_PAGES: usize = 3;
/// Part of the map's memory that the deltas of snapshots may take beside it.
const DELTAS_SHARE: usize = 4;
/// Segments in which witnesses are looked for when damage may have taken a link.
const WITNESS_SEGMENTS_MAX: usize = 4096;
/// In so many of them behind their first record too, when that is damaged.
const WITNESS_SEGMENTS_DEEP: usize = 4;
/// So many, the newest, are read whole: what they hold last knows most of how far the log was.
const WITNESS_SEGMENTS_WHOLE: usize = 4;
/// And so far: a stretch of damage as long as a record, and the longest record behind it.
const WITNESS_PAGES_DEEP: u32 = 2 * 258;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct RecoverOptions {
    /// Nothing is written.
    pub read_only: bool,
    /// This machine's boot id (/proc/sys/kernel/random/boot_id).
    pub boot_id: [u8; 16],
    /// Until it is changed.
    pub tuning: Tuning,
    /// Bytes of memory for the committed map, dirty leaves apart; 0 = no limit.
    pub map_bytes_max: usize,
    /// Give the space of freed segments back to the backing.
    pub discard: bool,
}

/// Where the log goes on.
pub(super) struct LogStart {
    pub(super) heads: [Head; 2],
    pub(super) next_seq: u64,
    pub(super) next_use_seq: u64,
    /// Pages of the last checkpoint's payload, and its root.
    pub(super) own_pages: Vec<Loc>,
}

/// An open store.
pub struct Opened {
    /// For readers.
    pub shared: Arc<Shared>,
    /// The writer; `None` when read-only.
    pub log: Option<Log>,
    /// Starts so far, this one included.
    pub incarnation: u64,
    /// A session that was live, could have gone on, but whose head is lost to damage.
    pub lost_session: Option<u64>,
}

fn read(
    storage: &dyn Storage,
    action: &'static str,
    offset: u64,
    len: usize,
) -> Result<AlignedBuf, StoreError> {
    let mut buf = AlignedBuf::zeroed(len);
    storage.read_exact(offset, &mut buf).map_err(|source| StoreError::Io { action, offset, source })?;
    Ok(buf)
}

/// The newer of the two superblock slots that are intact.
///
/// # Errors
/// [`StoreError::NotAStore`] if neither is; `Io` if one cannot be read and the other is bad; `Unusable` if it is of an
/// unknown version or feature.
pub fn read_superblock(storage: &dyn Storage) -> Result<Superblock, StoreError> {
    let mut best: Option<Superblock> = None;
    let mut first_error = None;
    let mut unreadable = None;
    for slot in SLOTS {
        if slot + PAGE as u64 > storage.len_bytes() {
            continue;
        }
        let page = match read(storage, "reading the superblock", slot, PAGE) {
            Ok(page) => page,
            // As bad as one whose crc is wrong: the other slot may be good.
            Err(e) => {
                tracing::error!("the superblock's slot at image byte {slot} cannot be read: {e}");
                unreadable.get_or_insert(e);
                continue;
            }
        };
        match Superblock::decode(&page) {
            Ok(found) if best.as_ref().is_none_or(|b| b.generation < found.generation) => best = Some(found),
            Ok(_) => {}
            Err(e) if e.what.contains("magic") || e.what.contains("crc") => {
                first_error.get_or_insert(e);
            }
            Err(e) => return Err(StoreError::Unusable(e)),
        }
    }
    let empty = Malformed { what: "bytes of the image", expected: 2 << 20, found: storage.len_bytes() };
    match (best, unreadable) {
        (Some(found), _) => Ok(found),
        (None, Some(e)) => Err(e),
        (None, None) => Err(StoreError::NotAStore(first_error.unwrap_or(empty))),
    }
}

/// Opens the store in a backing.
///
/// # Errors
/// [`StoreError`]; nothing was changed then.
pub fn open(storage: Arc<dyn Storage>, options: &RecoverOptions) -> Result<Opened, StoreError> {
    open_with(storage, options, |_, _| Ok(()))
}

/// As [`open`] for writing; `adjust` may change the store before this start's checkpoint, which makes the change
/// durable together with everything else, or not at all.
pub(super) fn open_with(
    storage: Arc<dyn Storage>,
    options: &RecoverOptions,
    adjust: impl FnOnce(&mut Shared, &mut Superblock) -> Result<(), StoreError>,
) -> Result<Opened, StoreError> {
    let superblock = read_superblock(&*storage)?;
    if superblock.backing_bytes > storage.len_bytes() {
        let (expected, found) = (superblock.backing_bytes, storage.len_bytes());
        return Err(StoreError::Truncated { expected, found });
    }
    if !options.read_only && !superblock.writable() {
        let found = superblock.ro_compat;
        let what = "unknown features that allow reading only (open it read-only)";
        return Err(StoreError::Unusable(Malformed { what, expected: 0, found }));
    }
    let (mut shared, root, open_lost) = load_checkpoint(storage, &superblock, options.read_only)?;
    shared.tuning.set(options.tuning);
    {
        let mut maps = shared.maps.write();
        maps.base.set_bytes_max(options.map_bytes_max);
        maps.snapshots.set_bytes_max(options.map_bytes_max / DELTAS_SHARE);
    }
    let replayed = replay(&shared, &superblock, &root, options, open_lost)?;
    let unneeded = unneeded_segments(&shared, &root, &replayed);
    let lost_session = settle_session(&shared, options, replayed.head_lost);
    if options.read_only {
        let incarnation = superblock.incarnation;
        return Ok(Opened { shared, log: None, incarnation, lost_session });
    }
    // Both slots name this checkpoint before anything that only the older one needs is reused.
    checkpoint::write_slots(&shared, &superblock).map_err(start_error)?;
    {
        let mut maps = shared.maps.write();
        let empty: Vec<u32> = maps.segments.empty_meta().collect();
        maps.segments.release(&empty);
        // And whatever was replayed is durable since the slots are.
        maps.segments.release_durable(replayed.next_seq);
    }
    let mut superblock =
        Superblock { incarnation: superblock.incarnation + 1, boot_id: options.boot_id, ..superblock };
    let alone = Arc::get_mut(&mut shared);
    adjust(alone.expect("nobody else has a store that is being opened"), &mut superblock)?;
    let incarnation = superblock.incarnation;
    let none = Head { at: Loc { segment: 0, offset: 0 }, use_seq: 0, fresh: true };
    let start = LogStart {
        heads: [none; 2],
        // A gap: late writes of a dead predecessor can't be taken for records of this start.
        next_seq: replayed.next_seq + 1024,
        next_use_seq: replayed.next_use_seq + 1024,
        own_pages: own_pages(&root, superblock.root.loc),
    };
    let queue = shared.storage.queue().map_err(|source| StoreError::Io {
        action: "setting up the write queue",
        offset: 0,
        source,
    })?;
    let mut log = Log::new(Arc::clone(&shared), queue, superblock, start, options);
    // Fresh segments, named by a checkpoint of this incarnation, before any write is taken.
    let mut written = log.checkpoint_now();
    if matches!(written, Err(IoError::NoSpace)) {
        let mut maps = shared.maps.write();
        // Some are free by now, and maybe taken again.
        let empty: Vec<u32> = maps.segments.empty().filter(|segment| unneeded.contains(segment)).collect();
        maps.segments.release(&empty);
        drop(maps);
        written = log.checkpoint_now();
    }
    written.map_err(start_error)?;
    Ok(Opened { shared, log: Some(log), incarnation, lost_session })
}

/// Segments that a start without room may take before its checkpoint: nothing refers to them after the replay, and another
/// replay would not read them. All that was replayed is durable as soon as the slots are written. Those that the last start took
/// and died before it used are its own only as long as it may have writes under way, which the lock of the image
/// rules out.
fn unneeded_segments(shared: &Shared, root: &Root, replayed: &Replayed) -> Vec<u32> {
    let maps = shared.maps.read();
    let unneeded = |segment: &u32| {
        let Some(found) = maps.segments.get(*segment) else { return false };
        let mut positions = Stream::LOGGED.into_iter().zip(root.positions);
        let left_behind =
            positions.all(|(s, position)| found.stream != s || found.use_seq < position.use_seq);
        left_behind || replayed.unused_heads.contains(segment)
    };
    maps.segments.empty().filter(unneeded).collect()
}

fn start_error(e: IoError) -> StoreError {
    match e {
        IoError::NoSpace => StoreError::NoSpace("no free segment for the checkpoint of this start".into()),
        other => StoreError::Io {
            action: "writing the checkpoint of this start",
            offset: 0,
            source: std::io::Error::other(other.to_string()),
        },
    }
}

/// A session of another boot, or one whose head is lost, can't go on: back to the last commit.
fn settle_session(shared: &Shared, options: &RecoverOptions, head_lost: bool) -> Option<u64> {
    let mut maps = shared.maps.write();
    let session = maps.session.session();
    if options.read_only {
        // Nobody can go on with a session here: the last commit is what there is to read.
        maps.rollback();
        return None;
    }
    // Zeros are no boot id: nobody knows whether this is the same boot.
    let same_boot = maps.session.boot_id == options.boot_id && options.boot_id != [0; 16];
    if session == 0 || (same_boot && !head_lost) {
        if session == 0 && maps.kind == VolumeKind::VexFs {
            maps.rollback();
        }
        return None;
    }
    maps.rollback();
    maps.session.set_session(0, [0; 16]);
    tracing::info!(session, head_lost, "the session of the last run is over; rolled back to the last commit");
    head_lost.then_some(session)
}

fn corrupt(geometry: Geometry, at: Loc) -> impl FnOnce(Malformed) -> StoreError {
    let offset = geometry.byte(at);
    move |malformed| StoreError::Corrupt { offset, malformed }
}

/// The state of the last checkpoint. Of one that is only read the open epoch may be missing, with the reason: it is of use only if
/// it was committed later.
fn load_checkpoint(
    storage: Arc<dyn Storage>,
    sb: &Superblock,
    read_only: bool,
) -> Result<(Arc<Shared>, Root, Option<StoreError>), StoreError> {
    let geometry = sb.geometry;
    let at = sb.root.loc;
    let page = read(&*storage, "reading the checkpoint", geometry.byte(at), PAGE)?;
    check("crc32c of the checkpoint root", sb.root.crc, crc32c::crc32c(&page))
        .map_err(corrupt(geometry, at))?;
    let root = Root::decode(&page).map_err(corrupt(geometry, at))?;
    check("generation of the checkpoint", sb.generation, root.generation).map_err(corrupt(geometry, at))?;
    check("segments of the checkpoint", geometry.segments, root.segment_count)
        .map_err(corrupt(geometry, at))?;
    if root.uuid != sb.uuid {
        let malformed = Malformed { what: "uuid of the checkpoint", expected: 0, found: 1 };
        return Err(StoreError::Corrupt { offset: geometry.byte(at), malformed });
    }
    let pages: u64 = root.runs.iter().map(|run| u64::from(run.pages)).sum();
    check("pages of the checkpoint payload", root.payload_bytes.div_ceil(PAGE as u64), pages)
        .map_err(corrupt(geometry, at))?;
    let mut bytes = Vec::new();
    for run in &root.runs {
        let last =
            Loc { offset: run.at.offset.saturating_add((run.pages.max(1) - 1).min(65535) as u16), ..run.at };
        let end = u64::from(run.at.offset) + u64::from(run.pages);
        if !geometry.contains(last) || end > u64::from(geometry.segment_pages) {
            let found = u64::from(run.pages);
            let malformed = Malformed { what: "run of the checkpoint payload", expected: 1, found };
            return Err(StoreError::Corrupt { offset: geometry.byte(at), malformed });
        }
        let part =
            read(&*storage, "reading the checkpoint", geometry.byte(run.at), run.pages as usize * PAGE)?;
        check("crc32c of the checkpoint payload", run.crc, crc32c::crc32c(&part))
            .map_err(corrupt(geometry, run.at))?;
        bytes.extend_from_slice(&part);
    }
    bytes.truncate(root.payload_bytes as usize);
    let payload = Payload::decode(&root, &bytes).map_err(corrupt(geometry, at))?;
    if let Some(s) = payload.segments.iter().find(|s| s.used_pages > geometry.segment_pages) {
        let (expected, found) = (u64::from(geometry.segment_pages), u64::from(s.used_pages));
        let malformed = Malformed { what: "used pages of a segment", expected, found };
        return Err(StoreError::Corrupt { offset: geometry.byte(at), malformed });
    }
    let (shared, open_lost) = build_shared(storage, sb, &root, &payload, read_only)?;
    Ok((shared, root, open_lost))
}

/// Pages of a checkpoint's payload, and its root.
fn own_pages(root: &Root, root_at: Loc) -> Vec<Loc> {
    let runs = root
        .runs
        .iter()
        .flat_map(|r| (0..r.pages).map(|i| Loc { offset: r.at.offset.wrapping_add(i as u16), ..r.at }));
    runs.chain([root_at]).collect()
}

fn build_shared(
    storage: Arc<dyn Storage>,
    sb: &Superblock,
    root: &Root,
    payload: &Payload,
    read_only: bool,
) -> Result<(Arc<Shared>, Option<StoreError>), StoreError> {
    let source = Source { storage: &*storage, geometry: sb.geometry, uuid: sb.uuid };
    let mut maps = Maps::new(sb.kind, SegmentTable::from_usage(&payload.segments));
    maps.raw_bytes = sb.raw_bytes;
    (maps.epoch, maps.session) = (root.epoch, root.session.clone());
    for &(first, count) in &payload.discards {
        maps.overlay.discard(first, count, |_| {});
    }
    let mut deltas = BTreeMap::new();
    let mut open_lost = None;
    for map in &payload.maps {
        let loaded = load_map(&source, map)?;
        match map.id {
            MapId::Committed => maps.base = loaded,
            MapId::Open => {
                if let Err(e) = load_open_epoch(&source, &mut maps, loaded) {
                    if !read_only {
                        return Err(e);
                    }
                    tracing::error!("what was not committed is lost: {e}");
                    maps.overlay = Overlay::default();
                    open_lost = Some(e);
                }
            }
            MapId::Delta(number) => drop(deltas.insert(number, loaded)),
        }
    }
    maps.segments.checkpoint_is_durable(0, root.positions.map(|p| p.use_seq));
    if let Some(s) = payload.snapshots.iter().find(|s| (s.raw_bytes > 0) != (sb.kind == VolumeKind::Raw)) {
        let malformed = Malformed { what: "size of a snapshot", expected: sb.raw_bytes, found: s.raw_bytes };
        return Err(corrupt(sb.geometry, sb.root.loc)(malformed));
    }
    maps.snapshots = Snapshots::load(root, payload, deltas).map_err(corrupt(sb.geometry, sb.root.loc))?;
    for loc in own_pages(root, sb.root.loc) {
        maps.segments.add_meta(loc);
    }
    let Maps { base, overlay, snapshots, segments, .. } = &mut maps;
    let deltas = snapshots.all().iter().flat_map(|s| s.delta.disk_locs());
    base.disk_locs().chain(overlay.map.disk_locs()).chain(deltas).for_each(|loc| segments.add_meta(loc));
    segments.meta_is_durable();
    let shared = Arc::new(Shared {
        geometry: sb.geometry,
        uuid: sb.uuid,
        kind: sb.kind,
        maps: RwLock::new(maps),
        tuning: super::clean::LiveTuning::default(),
        counters: StoreCounters::default(),
        storage,
    });
    Ok((shared, open_lost))
}

/// Loads all leaves of the open epoch: they stay in memory.
fn load_open_epoch(source: &Source<'_>, maps: &mut Maps, loaded: BaseMap) -> Result<(), StoreError> {
    let keys: Vec<(u64, Mapping)> =
        loaded.keys().filter_map(|key| loaded.unloaded(key).map(|page| (key, page))).collect();
    let places: Vec<Mapping> = keys.iter().map(|(_, page)| *page).collect();
    maps.overlay.map = loaded;
    source.read_pages("reading the open epoch", &places, |i, bytes| {
        let (key, page) = keys[i];
        let runs =
            super::reader::decode_leaf(source.geometry, source.uuid, key, page, bytes).map_err(|why| {
                StoreError::Io {
                    action: "reading the open epoch",
                    offset: source.geometry.byte(page.loc),
                    source: std::io::Error::new(std::io::ErrorKind::InvalidData, why),
                }
            })?;
        maps.overlay.map.load(key, page, &runs);
        Ok(())
    })?;
    let Maps { overlay, segments, .. } = maps;
    overlay.mappings().for_each(|(_, mapping)| segments.add_open(mapping.loc));
    Ok(())
}

/// A record found in the log.
struct Found {
    record: Record,
    stream: Stream,
    /// A data page that is not what the record says.
    bad_page: Option<(u64, u32, u32)>,
}

/// What the scan of a stream tells.
#[derive(Default)]
struct Scan {
    records: Vec<Found>,
    /// Records that can't be reached in order, but say how far the log once was.
    stray: Vec<Record>,
    end: Option<Loc>,
}

struct Replayed {
    next_seq: u64,
    next_use_seq: u64,
    head_lost: bool,
    /// Segments at which the log was to go on, and in which nothing was ever written.
    unused_heads: Vec<u32>,
}

fn replay(
    shared: &Shared,
    sb: &Superblock,
    root: &Root,
    options: &RecoverOptions,
    mut open_lost: Option<StoreError>,
) -> Result<Replayed, StoreError> {
    let mut found = Vec::new();
    let mut stray = Vec::new();
    let mut ends = Vec::new();
    let mut unused_heads = Vec::new();
    for (stream, position) in Stream::LOGGED.into_iter().zip(root.positions) {
        let scan = scan_stream(shared, sb, stream, position, root.next_seq)?;
        let of_this_use = |r: &Record| (r.at.segment, r.use_seq) == (position.at.segment, position.use_seq);
        if position.at.offset == 1 && scan.records.is_empty() && !scan.stray.iter().any(of_this_use) {
            unused_heads.push(position.at.segment);
        }
        found.extend(scan.records);
        stray.extend(scan.stray);
        ends.extend(scan.end);
    }
    found.sort_by_key(|f| f.record.seq);
    let seen = || found.iter().map(|f| &f.record).chain(&stray);
    let durable = seen().map(|r| r.durable_seq).max().unwrap_or(0).max(root.next_seq - 1);
    let written = seen().map(|r| r.written_seq).max().unwrap_or(0);
    // Without a power cut, whatever was written is there: only damage can have taken it.
    let same_boot = sb.boot_id == options.boot_id && options.boot_id != [0; 16];
    let certain = if same_boot { durable.max(written) } else { durable };
    let highest = seen().map(|r| r.seq).max().unwrap_or(0);

    let mut next_seq = root.next_seq;
    let mut next_use_seq = root.next_use_seq;
    for f in &found {
        if f.record.seq != next_seq || (f.bad_page.is_some() && f.record.seq > certain) {
            break;
        }
        if let Some((page, expected, found)) = f.bad_page {
            tracing::error!(
                "record {next_seq}: device page {page:#x} is bad (crc32c expected {expected:#010x}, found {found:#010x}); reading it fails"
            );
        }
        if let Some((segment, use_seq)) = f.record.next {
            let mut maps = shared.maps.write();
            maps.segments.open(segment, f.stream, use_seq);
            maps.segments.close(segment);
            next_use_seq = next_use_seq.max(use_seq + 1);
        }
        if f.record.flags & FLAG_ROLLBACK != 0 {
            open_lost = None;
        }
        if f.record.flags & FLAG_COMMIT != 0
            && let Some(e) = open_lost.take()
        {
            return Err(e);
        }
        replay_record(shared, &f.record, options.read_only)?;
        next_seq += 1;
    }
    let head_lost = next_seq <= certain;
    if head_lost {
        let found = seen().map(|r| r.seq).filter(|&s| s > next_seq).min().unwrap_or(0);
        let place = ends
            .iter()
            .map(|at| format!("{at} (image byte {})", shared.geometry.byte(*at)))
            .collect::<Vec<_>>();
        let place = place.join(" or ");
        if next_seq <= durable {
            return Err(StoreError::LogBroken { place, expected: next_seq, durable, found });
        }
        tracing::error!(
            "record {next_seq} near {place} is damaged: acknowledged writes that were never flushed are lost"
        );
    }
    Ok(Replayed { next_seq: next_seq.max(highest + 1), next_use_seq, head_lost, unused_heads })
}

/// Applies a record. What cannot be read of the map keeps the volume from being written; for reading, all it maps is given up.
fn replay_record(shared: &Shared, record: &Record, read_only: bool) -> Result<(), StoreError> {
    while let Err((leaf, e)) = apply_record(shared, record) {
        let mut maps = shared.maps.write();
        let range = maps.map(leaf.map).map_or(0..1, |map| map.range_of(leaf.key));
        let (why, first_page, last_page) = (e.to_string(), range.start, range.end - 1);
        if !read_only {
            return Err(StoreError::MapDamaged { why, first_page, last_page });
        }
        tracing::error!("device pages {first_page:#x} to {last_page:#x} cannot be read: {why}");
        maps.give_up(leaf, why);
    }
    Ok(())
}

/// Reads a stream's records from a position on, following links.
fn scan_stream(
    shared: &Shared,
    sb: &Superblock,
    stream: Stream,
    position: Position,
    first_seq: u64,
) -> Result<Scan, StoreError> {
    let mut scan = Scan::default();
    let mut next = VecDeque::from([(position.at, position.use_seq)]);
    let mut seq_min = first_seq;
    let mut in_order = true;
    let mut looked_ahead = false;
    let mut segments_left = shared.geometry.segments;
    while let Some((start, use_seq)) = next.pop_front() {
        // A damaged (or hostile) chain must not lead round in circles.
        if !shared.geometry.contains(start) || segments_left == 0 {
            break;
        }
        segments_left -= 1;
        let pages = shared.geometry.segment_pages - u32::from(start.offset);
        let bytes =
            read(&*shared.storage, "reading the log", shared.geometry.byte(start), pages as usize * PAGE)?;
        let mut i = 0usize;
        let (mut linked, mut link_lost) = (false, false);
        while i < pages as usize && !linked {
            let at = Loc { offset: start.offset + i as u16, ..start };
            let Some(record) = parse(shared, sb, &bytes[i * PAGE..], at, use_seq, seq_min) else {
                // The end of the log, or damage: from here on records are only witnesses.
                if in_order {
                    scan.end = Some(at);
                    link_lost = u32::from(at.offset) + LINK_PAGES as u32 >= shared.geometry.segment_pages;
                }
                in_order = false;
                i += 1;
                continue;
            };
            if in_order {
                seq_min = record.seq + 1;
            }
            let bad_page = bad_data(&record, &bytes[(i + 1) * PAGE..]);
            i += 1 + record.page_count() as usize;
            linked = record.flags & FLAG_LINK != 0;
            if linked {
                next.extend(record.next.map(|(segment, use_seq)| (Loc { segment, offset: 1 }, use_seq)));
            }
            if in_order {
                scan.records.push(Found { record, stream, bad_page });
            } else {
                scan.stray.push(record);
            }
        }
        // If damage took the link, the witnesses are in segments that nothing names any more.
        let tail = &bytes[bytes.len().saturating_sub(LINK_PAGES * PAGE)..];
        link_lost |= !in_order && !linked && !tail_is_intact(shared, start.segment, tail);
        if link_lost && !linked && !looked_ahead {
            looked_ahead = true;
            let mut later = later_segments(shared, sb, use_seq)?;
            later.sort_unstable_by_key(|(_, record)| std::cmp::Reverse(record.use_seq));
            next.extend(
                later.iter().take(WITNESS_SEGMENTS_WHOLE).map(|(start, record)| (*start, record.use_seq)),
            );
            scan.stray.extend(later.into_iter().skip(WITNESS_SEGMENTS_WHOLE).map(|(_, record)| record));
        }
    }
    Ok(scan)
}

/// Whether damage may have taken the end of a segment whose log ends before it: a link stands in one of the last pages, of
/// this use, or still of the last one.
fn tail_is_intact(shared: &Shared, segment: u32, tail: &[u8]) -> bool {
    let first = shared.geometry.segment_pages - (tail.len() / PAGE) as u32;
    let untouched = tail.iter().all(|byte| *byte == tail[0]);
    untouched
        || (first..).zip(tail.chunks_exact(PAGE)).any(|(offset, page)| {
            page.starts_with(&MAGIC)
                && Record::decode(page).is_ok_and(|r| r.at == Loc { segment, offset: offset as u16 })
        })
}

/// Records in segments that this start of the store opened later than `use_seq`, one of each segment.
fn later_segments(shared: &Shared, sb: &Superblock, use_seq: u64) -> Result<Vec<(Loc, Record)>, StoreError> {
    let likely: Vec<u32> = {
        let maps = shared.maps.read();
        let unused: BTreeSet<u32> = maps.segments.free().chain(maps.segments.empty()).collect();
        // The log takes the lowest that is free.
        let used = (0..shared.geometry.segments).filter(|segment| !unused.contains(segment));
        unused.iter().copied().chain(used).take(WITNESS_SEGMENTS_MAX).collect()
    };
    let ours = |page: &[u8], at: Loc| {
        let record = page.starts_with(&MAGIC).then(|| Record::decode(page).ok())??;
        let later = record.incarnation == sb.incarnation && record.use_seq > use_seq;
        (record.uuid == shared.uuid && record.at == at && later).then_some(record)
    };
    let mut found = Vec::new();
    let mut deep_left = WITNESS_SEGMENTS_DEEP;
    for segment in likely {
        let start = Loc { segment, offset: 1 };
        let byte = shared.geometry.byte(start);
        let page = read(&*shared.storage, "reading the log", byte, PAGE)?;
        if let Some(record) = ours(&page, start) {
            found.push((start, record));
        } else if deep_left > 0 && Record::decode(&page).is_err() && page.iter().any(|b| *b != page[0]) {
            // The same damage may have taken the first records there.
            deep_left -= 1;
            let pages = WITNESS_PAGES_DEEP.min(shared.geometry.segment_pages - 1);
            let bytes = read(&*shared.storage, "reading the log", byte, pages as usize * PAGE)?;
            found.extend(bytes.chunks_exact(PAGE).zip(1..).find_map(|(page, offset)| {
                let at = Loc { segment, offset };
                ours(page, at).map(|record| (at, record))
            }));
        }
    }
    Ok(found)
}

/// The record that begins here, if it is one of this use of the segment.
fn parse(
    shared: &Shared,
    sb: &Superblock,
    bytes: &[u8],
    at: Loc,
    use_seq: u64,
    seq_min: u64,
) -> Option<Record> {
    let page = bytes.get(..PAGE)?;
    if !page.starts_with(&MAGIC) {
        return None;
    }
    let record = Record::decode(page).ok()?;
    let fits = (1 + record.page_count() as usize) * PAGE <= bytes.len();
    let ours = record.uuid == shared.uuid
        && record.at == at
        && record.use_seq == use_seq
        && record.incarnation == sb.incarnation
        && record.seq >= seq_min;
    (fits && ours).then_some(record)
}

/// The first data page whose crc is wrong: its device page, the crc expected and found.
fn bad_data(record: &Record, data: &[u8]) -> Option<(u64, u32, u32)> {
    use super::format::record::Entry;
    let mut pages = data.chunks_exact(PAGE);
    let mut test = |page: u64, expected: u32| {
        let found = pages.next().map(|bytes| page_crc(page, bytes));
        (found != Some(expected)).then_some((page, expected, found.unwrap_or(0)))
    };
    record.entries.iter().find_map(|entry| match entry {
        Entry::Write { first, crcs } => (*first..).zip(crcs).find_map(|(page, &crc)| test(page, crc)),
        Entry::Discard { .. } => None,
        Entry::Relocate { page, crc, .. } => test(*page, *crc),
    })
}
