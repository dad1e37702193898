//! A snapshot as a device: read-only, beside the live volume.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use layout::addr::{COMMAND_PAGE, MAP_BASE, PAGE, STATUS_PAGE};
use layout::command::{STATUS_MAGIC, Status};
use zerocopy::IntoBytes;

use super::SnapshotError;
use crate::buf::AlignedBuf;
use crate::device::{ClientId, Device, DeviceInfo, Done, Extent, IoError, IoOp, VolumeKind};
use crate::stats::RequestCounters;
use crate::store::snapshot::{SnapshotId, View};
use crate::store::space::volume_capacity_pages;
use crate::volume::reads::{self, ReadJob, touches_synthesised};
use crate::volume::{Core, Volume, allocation, device_bytes, synth};

/// An open snapshot. Its reads share the live volume's readers.
pub struct SnapshotDevice {
    volume: Arc<Volume>,
    id: SnapshotId,
    name: String,
    size_bytes: u64,
}

impl SnapshotDevice {
    pub(super) fn open(volume: Arc<Volume>, name: &str) -> Result<Self, SnapshotError> {
        let (id, raw_bytes) = {
            let mut maps = volume.core.store.maps.write();
            let id = maps.snapshots.open(name)?;
            (id, maps.snapshots.get(id).map_or(0, |s| s.raw_bytes))
        };
        let size_bytes = device_bytes(volume.core.store.kind, raw_bytes);
        Ok(SnapshotDevice { volume, id, name: name.to_owned(), size_bytes })
    }

    /// The snapshot's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The snapshot's number.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    fn job(
        &self,
        client: ClientId,
        offset: u64,
        buf: AlignedBuf,
        done: Done,
    ) -> Result<ReadJob, (Done, IoError)> {
        let checked = match self.volume.closing.load(Ordering::SeqCst) {
            true => Err(IoError::Shutdown),
            false => self.volume.check_range_of(self.size_bytes, offset, buf.len() as u64),
        };
        match checked {
            Ok(()) => Ok(ReadJob { client, view: View::Snapshot(self.id), offset, buf, done }),
            Err(e) => Err((done, e)),
        }
    }
}

impl Device for SnapshotDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { read_only: true, size_bytes: self.size_bytes, ..self.volume.info() }
    }

    /// The volume's.
    fn counters(&self) -> Arc<RequestCounters> {
        self.volume.counters()
    }

    fn connect(&self) -> ClientId {
        ClientId(self.volume.clients.fetch_add(1, Ordering::Relaxed))
    }

    fn disconnect(&self, _client: ClientId) {}

    fn submit(&self, client: ClientId, op: IoOp, done: Done) {
        match op {
            IoOp::Read { offset, buf } => match self.job(client, offset, buf, done) {
                Ok(job) => self.volume.reads.submit(job),
                Err((done, e)) => done(Err(e)),
            },
            // Nothing to make durable.
            IoOp::Flush => done(Ok(None)),
            IoOp::Write { .. } | IoOp::Trim { .. } | IoOp::WriteZeroes { .. } => done(Err(IoError::ReadOnly)),
        }
    }

    fn submit_here(&self, client: ClientId, op: IoOp, done: Done) {
        match op {
            IoOp::Read { offset, buf } => match self.job(client, offset, buf, done) {
                Ok(job) => reads::run(&self.volume.core, vec![job]),
                Err((done, e)) => done(Err(e)),
            },
            op => self.submit(client, op, done),
        }
    }

    fn allocation(
        &self,
        _client: ClientId,
        offset: u64,
        len_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, IoError> {
        if self.volume.closing.load(Ordering::SeqCst) {
            return Err(IoError::Shutdown);
        }
        self.volume.check_range_of(self.size_bytes, offset, len_bytes)?;
        let view = View::Snapshot(self.id);
        allocation::allocation(&self.volume.core.store, view, offset, len_bytes, extents_max)
    }
}

impl Drop for SnapshotDevice {
    fn drop(&mut self) {
        self.volume.core.store.maps.write().snapshots.close(self.id);
    }
}

/// Fills `buf` with bytes of a snapshot; any range within the device.
pub(in crate::volume) fn read(
    core: &Core,
    id: SnapshotId,
    offset: u64,
    buf: &mut [u8],
) -> Result<(), IoError> {
    let view = View::Snapshot(id);
    let first = offset / PAGE as u64;
    if !(offset | buf.len() as u64).is_multiple_of(PAGE as u64) {
        let skip = (offset % PAGE as u64) as usize;
        let mut pages = AlignedBuf::zeroed((skip + buf.len()).next_multiple_of(PAGE));
        core.store.read_run_at(view, first, &mut pages)?;
        buf.copy_from_slice(&pages[skip..skip + buf.len()]);
        return Ok(());
    }
    if core.store.kind == VolumeKind::Raw || !touches_synthesised(offset, buf.len() as u64) {
        return core.store.read_run_at(view, first, buf);
    }
    for (page, bytes) in (first..).zip(buf.chunks_exact_mut(PAGE)) {
        if page == STATUS_PAGE.0 {
            status(core, id, bytes)?;
        } else if page == COMMAND_PAGE.0 {
            // No command was ever sent.
            bytes.fill(0);
        } else if page * PAGE as u64 >= MAP_BASE {
            synth::allocation_map(&core.store, view, page * PAGE as u64 - MAP_BASE, bytes)?;
        } else {
            core.store.read_run_at(view, page, bytes)?;
        }
    }
    Ok(())
}

/// The status page of a snapshot: read-only, no session, nothing available.
fn status(core: &Core, id: SnapshotId, page: &mut [u8]) -> Result<(), IoError> {
    let maps = core.store.maps.read();
    let Some(snapshot) = maps.snapshots.get(id) else {
        return Err(IoError::Io("the snapshot is gone".into()));
    };
    let status = Status {
        magic: STATUS_MAGIC,
        version: 1.into(),
        flags: synth::STATUS_READ_ONLY.into(),
        uuid: core.store.uuid,
        session: 0.into(),
        epoch: snapshot.epoch.into(),
        incarnation: core.incarnation.into(),
        capacity_pages: volume_capacity_pages(core.store.kind, core.store.geometry).into(),
        used_pages: maps.segments.data_live().into(),
        available_pages: 0.into(),
        reserved: [0; 4016],
    };
    page.copy_from_slice(status.as_bytes());
    Ok(())
}
