//! Writing a stream: the pages of a snapshot, or those that differ from an older one, in the order of the device.

use std::io::Write;
use std::sync::Arc;

use layout::addr::{MAP_UNIT_PAGES, PAGE};

use super::frame::{DATA_PAGES_MAX, FrameWriter, HOLES_MAX, Header, Point};
use super::{BackupError, Progress};
use crate::buf::AlignedBuf;
use crate::store::snapshot::lookup::UnitBits;
use crate::store::snapshot::{SnapshotId, View};
use crate::volume::Volume;
use crate::volume::snapshot::{SnapshotDevice, SnapshotError};

impl Volume {
    /// Writes what leads from the older snapshot (without one: from nothing) to the newer. Both are held
    /// open meanwhile; the live volume goes on.
    ///
    /// # Errors
    /// [`BackupError`]; a stream that was begun has no trailer then, and is refused by who receives it.
    pub fn send(
        self: &Arc<Self>,
        from: Option<&str>,
        to: &str,
        out: &mut dyn Write,
        mut progress: impl FnMut(Progress),
    ) -> Result<(), BackupError> {
        let to = self.open_snapshot(to)?;
        let from = from.map(|name| self.open_snapshot(name)).transpose()?;
        if let Some(from) = &from
            && from.id() >= to.id()
        {
            let (from, to) = (from.name(), to.name());
            return Err(BackupError::Refused(format!("snapshot {from:?} is not older than {to:?}")));
        }
        let from_id = from.as_ref().map(|s| s.id());
        let header = self.stream_header(from.as_deref(), &to)?;
        let total_bytes = header.pages_max * PAGE as u64;
        let pipe = |source| BackupError::Pipe { action: "writing", source };
        let mut frames = FrameWriter::new(out);
        frames.header(&header).map_err(pipe)?;
        let mut done_bytes = 0;
        let store = &self.core.store;
        let mut next = 0;
        let mut buf = AlignedBuf::zeroed(DATA_PAGES_MAX * PAGE);
        loop {
            let unit = store.maps.read().next_unit_changed(from_id, to.id(), next);
            let Some(unit) = unit else { break };
            next = unit + 1;
            let diff = store.unit_diff(from_id, to.id(), unit)?;
            let start = unit * MAP_UNIT_PAGES;
            let holes: Vec<(u64, u64)> = runs(&diff.holes).map(|(rel, count)| (start + rel, count)).collect();
            holes.chunks(HOLES_MAX).try_for_each(|ranges| frames.holes(ranges)).map_err(pipe)?;
            for (rel, count) in runs(&diff.data) {
                for at in (rel..rel + count).step_by(DATA_PAGES_MAX) {
                    let pages = (rel + count - at).min(DATA_PAGES_MAX as u64);
                    let buf = &mut buf[..pages as usize * PAGE];
                    store.read_run_at(View::Snapshot(to.id()), start + at, buf)?;
                    frames.data(start + at, buf).map_err(pipe)?;
                    done_bytes += buf.len() as u64;
                    progress(Progress { done_bytes, total_bytes: total_bytes.max(done_bytes) });
                }
            }
        }
        frames.trailer().map_err(pipe)
    }

    fn stream_header(
        &self,
        from: Option<&SnapshotDevice>,
        to: &SnapshotDevice,
    ) -> Result<Header, BackupError> {
        let store = &self.core.store;
        let pages_max = match from {
            Some(from) => store.maps.read().changed_pages_max(from.id(), to.id()),
            None => store.count_units(to.id(), 0, u64::MAX / MAP_UNIT_PAGES)?,
        };
        let maps = store.maps.read();
        let point = |id: SnapshotId, name: &str| match maps.snapshots.get(id) {
            Some(s) => Ok((Point { name: s.name.clone(), time_ns: s.time_ns }, s.raw_bytes)),
            None => Err(SnapshotError::Unknown(name.to_owned())),
        };
        let (to, raw_bytes) = point(to.id(), to.name())?;
        Ok(Header {
            kind: store.kind,
            uuid: store.uuid,
            raw_bytes,
            image_bytes: store.storage.len_bytes(),
            pages_max,
            from: from.map(|s| point(s.id(), s.name()).map(|(point, _)| point)).transpose()?,
            to,
        })
    }
}

/// Runs of set bits: first, count.
fn runs(bits: &UnitBits) -> impl Iterator<Item = (u64, u64)> {
    let is_set = |i: u64| bits[(i / 64) as usize] & (1 << (i % 64)) != 0;
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < MAP_UNIT_PAGES && !is_set(at) {
            // Whole empty words at once.
            at = if at % 64 == 0 && bits[(at / 64) as usize] == 0 { at + 64 } else { at + 1 };
        }
        let first = at;
        while at < MAP_UNIT_PAGES && is_set(at) {
            at += 1;
        }
        (at > first).then_some((first, at - first))
    })
}
