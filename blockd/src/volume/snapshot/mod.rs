//! Snapshots of a volume: taken, listed, deleted, read beside the live volume, gone back to.
//!
//! On a raw volume a snapshot has every write that was acknowledged before it was asked for; on a VexFS volume it is the last
//! commit. What is acknowledged is durable. Space that a deletion gives back comes in the background ([`worker`]).

mod device;
mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use layout::addr::PAGE;
use serde::{Deserialize, Serialize};

use super::inbox::InternalSender;
use super::{Core, Volume};
use crate::device::IoError;
use crate::store::StoreError;
use crate::store::snapshot::change::Change;
pub use crate::store::snapshot::change::SnapshotError;
use crate::store::snapshot::{Snapshot, SnapshotId, State};
pub use device::SnapshotDevice;
pub(super) use device::read;
pub(super) use worker::Worker;
#[cfg(test)]
pub(super) use worker::{Round, round};

/// A snapshot in a list.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct SnapshotInfo {
    /// Its number; grows with time.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// When it was taken: nanoseconds since 1970.
    pub time_ns: u64,
    /// Commits before it (0 on raw volumes).
    pub epoch: u64,
    /// Size of a raw volume then, in bytes; 0 for VexFS.
    #[serde(default)]
    pub volume_bytes: u64,
    /// Bytes of data that the live volume and newer snapshots no longer have: kept for this snapshot, and
    /// older ones that share them.
    pub held_bytes: u64,
    /// Bytes of the volume that changed until the next newer snapshot, or until now.
    pub changed_bytes: u64,
    /// How many have it open.
    pub open_count: u32,
}

impl SnapshotInfo {
    pub(super) fn of(s: &Snapshot) -> Self {
        SnapshotInfo {
            id: s.id.0,
            name: s.name.clone(),
            time_ns: s.time_ns,
            epoch: s.epoch,
            volume_bytes: s.raw_bytes,
            held_bytes: s.held_pages * PAGE as u64,
            changed_bytes: s.entries() * PAGE as u64,
            open_count: s.open_count,
        }
    }
}

/// All snapshots of a volume.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct SnapshotList {
    /// Oldest first.
    pub snapshots: Vec<SnapshotInfo>,
    /// Snapshots that are deleted, their space not yet given back.
    pub deleting: u32,
    /// Bytes of data that are kept for snapshots, those being deleted included.
    pub held_bytes: u64,
    /// Why deletions cannot end for now: leaves of the map that cannot be read and that older snapshots may need.
    #[serde(default)]
    pub stuck: Vec<String>,
    /// Bytes in use that nothing refers to, since what deleted snapshots had could not be read. The cleaner gives them back when it
    /// has moved out what else is in their segments, which until then are as good as full.
    #[serde(default)]
    pub lost_bytes: u64,
}

impl Volume {
    /// Takes a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError`]; no snapshot was taken then.
    pub fn snapshot_create(&self, name: &str) -> Result<SnapshotInfo, SnapshotError> {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_ns = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
        let id = self.change_snapshots(Change::Create { name: name.to_owned(), time_ns })?;
        let maps = self.core.store.maps.read();
        match maps.snapshots.get(id) {
            Some(snapshot) => Ok(SnapshotInfo::of(snapshot)),
            None => Err(SnapshotError::Unknown(name.to_owned())),
        }
    }

    /// The snapshots and their space.
    pub fn snapshots(&self) -> SnapshotList {
        let maps = self.core.store.maps.read();
        let all = maps.snapshots.all();
        SnapshotList {
            snapshots: all.iter().filter(|s| s.state == State::Live).map(SnapshotInfo::of).collect(),
            deleting: all.iter().filter(|s| s.state != State::Live).count() as u32,
            held_bytes: all.iter().map(|s| s.held_pages).sum::<u64>() * PAGE as u64,
            stuck: all.iter().filter_map(|s| s.stuck().map(str::to_owned)).collect(),
            lost_bytes: maps.lost_pages() * PAGE as u64,
        }
    }

    /// Deletes a snapshot. It is gone when this returns; its space is given back in the background, see
    /// [`Volume::snapshot_work_left`].
    ///
    /// # Errors
    /// [`SnapshotError`]; it is still there then.
    pub fn snapshot_delete(&self, name: &str) -> Result<(), SnapshotError> {
        self.begin_delete(name).map(|_| ())
    }

    fn begin_delete(&self, name: &str) -> Result<SnapshotId, SnapshotError> {
        let id = self.change_snapshots(Change::Delete { name: name.to_owned() })?;
        self.snapshots.wake();
        Ok(id)
    }

    /// Deletes a snapshot and waits until its space is given back; `progress` is told of [`Volume::snapshot_work_left`] now and
    /// then.
    ///
    /// # Errors
    /// [`SnapshotError`]; it is deleted all the same if that is `Stuck`, or what keeps its space from being given back.
    pub fn snapshot_delete_and_settle(
        &self,
        name: &str,
        progress: impl FnMut(u64),
    ) -> Result<(), SnapshotError> {
        let id = self.begin_delete(name)?;
        self.snapshot_settle(progress)?;
        match self.core.store.maps.read().snapshots.get(id).and_then(Snapshot::stuck) {
            Some(why) => Err(SnapshotError::Stuck(why.to_owned())),
            None => Ok(()),
        }
    }

    /// Pages that deletions and a rollback still have to look at, about; 0 when nothing is left to do.
    pub fn snapshot_work_left(&self) -> u64 {
        let maps = self.core.store.maps.read();
        if maps.snapshots.has_work() { maps.snapshots.work_left().max(1) } else { 0 }
    }

    /// Waits until deleted snapshots have given their space back, or that fails; `progress` is told of
    /// [`Volume::snapshot_work_left`] now and then.
    ///
    /// # Errors
    /// What keeps it from going on.
    pub fn snapshot_settle(&self, mut progress: impl FnMut(u64)) -> Result<(), SnapshotError> {
        self.snapshots.wait_idle(|| progress(self.snapshot_work_left()))?;
        progress(0);
        Ok(())
    }

    /// Makes the volume what it was when a snapshot was taken, its size included; newer snapshots go. `progress` is told of
    /// [`Volume::snapshot_work_left`] now and then.
    ///
    /// # Errors
    /// [`SnapshotError`]; nothing was changed then, unless it is `Io` or `NoSpace` after the first progress: then the volume
    /// takes no requests until the rollback ends, which the next start sees to.
    pub fn snapshot_rollback(&self, name: &str, mut progress: impl FnMut(u64)) -> Result<(), SnapshotError> {
        let refuse = |e| {
            self.core.rolling_back.store(false, Ordering::SeqCst);
            Err(e)
        };
        if self.core.rolling_back.swap(true, Ordering::SeqCst) {
            return Err(SnapshotError::RollingBack);
        }
        // From here on requests are refused, so whoever connects now sees nothing change.
        match self.connected.load(Ordering::SeqCst) {
            0 => {}
            connected => return refuse(SnapshotError::Connected(connected)),
        }
        if let Err(e) = self.change_snapshots(Change::Rollback { name: name.to_owned() }) {
            return refuse(e);
        }
        self.finish_rollback(&mut progress)
    }

    /// A rollback that the last run did not end is ended before anybody sees the volume.
    pub(super) fn end_pending_rollback(&self) -> Result<(), StoreError> {
        if self.core.store.maps.read().snapshots.rollback().is_none() {
            return Ok(());
        }
        tracing::info!("ending the rollback to a snapshot that the last run began");
        self.core.rolling_back.store(true, Ordering::SeqCst);
        let result = if self.core.read_only {
            // In memory alone, as the replay of the log.
            match self.core.store.roll_back_in_memory() {
                Ok(()) => self.leave_rollback(),
                // The snapshots can be read all the same.
                Err(e) => tracing::error!(
                    "a rollback to a snapshot is not at its end, and cannot be ended: {e}; the volume itself is not served"
                ),
            }
            Ok(())
        } else {
            self.finish_rollback(&mut |_| {}).map_err(|e| IoError::Io(e.to_string()))
        };
        result.map_err(|e| StoreError::Io {
            action: "ending a rollback to a snapshot",
            offset: 0,
            source: std::io::Error::other(e.to_string()),
        })
    }

    /// Does what is left of a rollback; requests are refused meanwhile.
    pub(super) fn finish_rollback(&self, progress: &mut dyn FnMut(u64)) -> Result<(), SnapshotError> {
        self.snapshots.wake();
        self.snapshots.wait_idle(|| progress(self.snapshot_work_left()))?;
        self.checkpoint()?;
        self.leave_rollback();
        progress(0);
        Ok(())
    }

    /// The volume is one that may be looked at again, maybe of another size.
    pub(super) fn leave_rollback(&self) {
        self.update_size();
        self.core.rolling_back.store(false, Ordering::SeqCst);
    }

    /// A snapshot as a read-only device beside the live volume. It can't be deleted while the device exists.
    ///
    /// # Errors
    /// [`SnapshotError::Unknown`].
    pub fn open_snapshot(self: &Arc<Self>, name: &str) -> Result<Arc<SnapshotDevice>, SnapshotError> {
        SnapshotDevice::open(Arc::clone(self), name).map(Arc::new)
    }

    /// Has the log make a change and waits until it is durable.
    pub(super) fn change_snapshots(&self, change: Change) -> Result<SnapshotId, SnapshotError> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(SnapshotError::Shutdown);
        }
        let log = self.log_sender()?;
        let (send, recv) = crossbeam_channel::bounded(1);
        log.with_log(move |log| match log {
            Ok(log) => log.submit_change(
                change,
                Box::new(move |result| {
                    let _ = send.send(result);
                }),
            ),
            Err(e) => drop(send.send(Err(e.into()))),
        });
        recv.recv().unwrap_or(Err(SnapshotError::Shutdown))
    }

    pub(super) fn log_sender(&self) -> Result<InternalSender, IoError> {
        self.writer.as_ref().map(|writer| writer.sender()).ok_or(IoError::ReadOnly)
    }
}

impl Core {
    /// # Errors
    /// While the volume is between two states.
    pub(super) fn check_not_rolling_back(&self) -> Result<(), IoError> {
        if self.rolling_back.load(Ordering::SeqCst) {
            return Err(IoError::Io(
                "the volume is being rolled back to a snapshot: wait until it has ended".into(),
            ));
        }
        Ok(())
    }
}
