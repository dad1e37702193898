//! The records after the checkpoint: which of them count, and what they change.

use super::RecoverOptions;
use super::scan::scan_stream;
use crate::store::format::checkpoint::Root;
use crate::store::format::record::{FLAG_COMMIT, FLAG_ROLLBACK, Record};
use crate::store::format::segment::Stream;
use crate::store::format::superblock::Superblock;
use crate::store::log::{Unread, apply_record};
use crate::store::{Shared, StoreError};

/// Where the log ended.
pub(super) struct Replayed {
    pub(super) next_seq: u64,
    pub(super) next_use_seq: u64,
    pub(super) head_lost: bool,
    /// Segments at which the log was to go on, and in which nothing was ever written.
    pub(super) unused_heads: Vec<u32>,
}

pub(super) fn replay(
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
    while let Err((leaf, e)) = apply_record(shared, record, Unread::Refuse) {
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

/// Segments that a start without room may take before its checkpoint: nothing refers to them after the replay, and another
/// replay would not read them. All that was replayed is durable as soon as the slots are written. Those that the last start took
/// and died before it used are its own only as long as it may have writes under way, which the lock of the image
/// rules out.
pub(super) fn unneeded_segments(shared: &Shared, root: &Root, replayed: &Replayed) -> Vec<u32> {
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
