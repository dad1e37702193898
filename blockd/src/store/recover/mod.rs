//! Opening a store: newest superblock, its checkpoint, and the records after it.
//!
//! Time is bounded by the records since the last checkpoint. Replay stops at the first record that
//! is missing or torn. Whether that is the end of the log, or damage in its midst, is told by what the
//! records say of one another: each carries how far the log was durable, and written, before it.

mod load;
mod replay;
mod scan;

use std::sync::Arc;

use layout::addr::PAGE;

use super::clean::Tuning;
use super::format::superblock::{SLOTS, Superblock};
use super::format::{Geometry, Loc, Malformed};
use super::log::{Head, Log};
use super::{Shared, StoreError, checkpoint};
use crate::buf::AlignedBuf;
use crate::device::{IoError, VolumeKind};
use crate::storage::Storage;
use load::{load_checkpoint, own_pages};
use replay::{replay, unneeded_segments};

/// Part of the map's memory that the deltas of snapshots may take beside it.
const DELTAS_SHARE: usize = 4;

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

fn start_error(e: IoError) -> StoreError {
    match e {
        IoError::NoSpace => StoreError::NoSpace(
            "no free segment for the checkpoint of this start: make the image larger (vexctl resize)".into(),
        ),
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
