//! Taking, deleting and rolling back: the short part, done at the moment a checkpoint freezes its state.

use super::{Phase, Rollback, SNAPSHOTS_MAX, Snapshot, SnapshotId, Snapshots, State, check_name};
use crate::device::IoError;
use crate::store::map::Maps;

/// Why a snapshot can't be taken, deleted, read or gone back to.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not a name.
    #[error("{0}")]
    BadName(String),
    /// The name is taken.
    #[error("there is a snapshot {0:?} already: choose another name, or delete it first")]
    Exists(String),
    /// No such snapshot.
    #[error("there is no snapshot {0:?} (vexctl snapshot list shows them)")]
    Unknown(String),
    /// The limit is reached.
    #[error("the volume has {SNAPSHOTS_MAX} snapshots, the most it may have: delete some first")]
    TooMany,
    /// Somebody reads it.
    #[error("snapshot {0:?} is open: end what reads it (an export, a mount, a send) first")]
    Open(String),
    /// A mounter would lose its ground.
    #[error("session {0} is live: unmount the volume first, then roll it back")]
    Session(u64),
    /// Clients would see the volume change under them.
    #[error("{0} clients are connected to the volume: disconnect them first, then roll it back")]
    Connected(u64),
    /// A rollback has not ended.
    #[error("a rollback is under way; wait until it has ended")]
    RollingBack,
    /// No room for what has to be written.
    #[error(
        "no space left in the image: delete a snapshot, or data, or make the image larger, and try again"
    )]
    NoSpace,
    /// A leaf cannot be read that older ones may need.
    #[error(
        "the snapshot is deleted, but not all of its space is given back: {0}; what that leaf says may concern older snapshots: delete \
         these too, the oldest first, and it is"
    )]
    Stuck(String),
    /// The volume takes no changes.
    #[error("the volume is open read-only: open it for writing")]
    ReadOnly,
    /// The volume is being closed.
    #[error("the volume is being shut down")]
    Shutdown,
    /// The backing failed.
    #[error("{0}")]
    Io(String),
}

impl From<IoError> for SnapshotError {
    fn from(e: IoError) -> Self {
        match e {
            IoError::NoSpace => SnapshotError::NoSpace,
            IoError::ReadOnly => SnapshotError::ReadOnly,
            IoError::Shutdown => SnapshotError::Shutdown,
            other => SnapshotError::Io(other.to_string()),
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum Change {
    /// Take a snapshot of the committed state.
    Create {
        /// Its name.
        name: String,
        /// Nanoseconds since 1970.
        time_ns: u64,
    },
    /// Delete one.
    Delete {
        /// Its name.
        name: String,
    },
    /// Go back to one; newer ones go.
    Rollback {
        /// Its name.
        name: String,
    },
    /// From now on the map takes in a backup; if that is abandoned it goes back to this snapshot, or to nothing.
    Receive {
        /// The newest snapshot, from which the map differs in nothing; `None`: there is none, and nothing is mapped.
        onto: Option<SnapshotId>,
    },
    /// The backup is whole: take a snapshot of it.
    Received {
        /// Its name.
        name: String,
        /// When it was taken where the backup was made.
        time_ns: u64,
        /// Size of a raw volume then, in bytes, which is the volume's from now on; 0 for VexFS. Nothing is mapped beyond.
        raw_bytes: u64,
    },
}

impl Maps {
    /// Carries out the part of a change that the next checkpoint makes durable; gives the snapshot concerned.
    ///
    /// # Errors
    /// [`SnapshotError`]; nothing was changed then.
    pub fn begin_change(&mut self, change: &Change) -> Result<SnapshotId, SnapshotError> {
        let received = matches!(change, Change::Received { .. });
        let receiving = self.snapshots.rollback.is_some_and(|r| r.phase == Phase::Receiving);
        if self.snapshots.rollback.is_some() && !(received && receiving) {
            return Err(SnapshotError::RollingBack);
        }
        match change {
            Change::Create { name, time_ns } => self.take_snapshot(name, *time_ns),
            Change::Delete { name } => self.snapshots.doom(name),
            Change::Rollback { name } => match self.session.session() {
                0 => self.snapshots.begin_rollback(name),
                session => Err(SnapshotError::Session(session)),
            },
            Change::Receive { onto } => match self.session.session() {
                0 => {
                    self.snapshots.rollback =
                        Some(Rollback { to: *onto, phase: Phase::Begins, keeps_size: true });
                    Ok(onto.unwrap_or(SnapshotId(0)))
                }
                session => Err(SnapshotError::Session(session)),
            },
            Change::Received { name, time_ns, raw_bytes } => {
                let before = std::mem::replace(&mut self.raw_bytes, *raw_bytes);
                let id = self.take_snapshot(name, *time_ns).inspect_err(|_| self.raw_bytes = before)?;
                // On disk the snapshot appears and the way back goes in one.
                self.snapshots.set_phase(Phase::Ends { raw_bytes_before: before });
                Ok(id)
            }
        }
    }

    fn take_snapshot(&mut self, name: &str, time_ns: u64) -> Result<SnapshotId, SnapshotError> {
        let id = self.snapshots.create(name, time_ns, self.epoch)?;
        if let Some(snapshot) = self.snapshots.get_mut(id) {
            snapshot.raw_bytes = self.raw_bytes;
        }
        Ok(id)
    }

    /// The checkpoint that was to make a change durable is, or could not be written.
    pub fn end_change(&mut self, change: &Change, id: SnapshotId, durable: bool) {
        let snapshots = &mut self.snapshots;
        match change {
            Change::Create { .. } if durable => {}
            Change::Received { .. } if durable => snapshots.rollback = None,
            // It keeps nothing from now on, and what it has kept is given back.
            Change::Create { .. } | Change::Received { .. } => {
                snapshots.set_state(id, State::Deleting);
                if let Some(Phase::Ends { raw_bytes_before }) = snapshots.rollback.map(|r| r.phase) {
                    self.raw_bytes = raw_bytes_before;
                    snapshots.set_phase(Phase::Receiving);
                }
            }
            Change::Delete { .. } => {
                snapshots.set_state(id, if durable { State::Deleting } else { State::Live });
                snapshots.try_again();
            }
            Change::Rollback { .. } => {
                let (to, phase, keeps_size) = (Some(id), Phase::Rolling, false);
                snapshots.rollback = durable.then_some(Rollback { to, phase, keeps_size });
            }
            Change::Receive { onto } => {
                let (to, phase, keeps_size) = (*onto, Phase::Receiving, true);
                snapshots.rollback = durable.then_some(Rollback { to, phase, keeps_size });
            }
        }
    }
}

impl Snapshots {
    fn create(&mut self, name: &str, time_ns: u64, epoch: u64) -> Result<SnapshotId, SnapshotError> {
        check_name(name).map_err(SnapshotError::BadName)?;
        if self.find(name).is_some() {
            return Err(SnapshotError::Exists(name.to_owned()));
        }
        // Those being deleted count too: each is a table entry and a delta.
        if self.list.len() >= SNAPSHOTS_MAX {
            return Err(SnapshotError::TooMany);
        }
        self.last_id += 1;
        let id = SnapshotId(self.last_id);
        let mut snapshot = Snapshot::new(id, name.to_owned(), time_ns, epoch);
        snapshot.delta.hold(self.held);
        self.list.push(snapshot);
        self.share_memory();
        Ok(id)
    }

    fn doom(&mut self, name: &str) -> Result<SnapshotId, SnapshotError> {
        let found = self.find(name).map(|s| (s.id, s.open_count));
        match found {
            None => Err(SnapshotError::Unknown(name.to_owned())),
            Some((_, 1..)) => Err(SnapshotError::Open(name.to_owned())),
            Some((id, 0)) => {
                self.set_state(id, State::Doomed);
                Ok(id)
            }
        }
    }

    fn begin_rollback(&mut self, name: &str) -> Result<SnapshotId, SnapshotError> {
        let Some(to) = self.find(name).map(|s| s.id) else {
            return Err(SnapshotError::Unknown(name.to_owned()));
        };
        if let Some(open) = self.list.iter().find(|s| s.id > to && s.open_count > 0) {
            return Err(SnapshotError::Open(open.name.clone()));
        }
        self.rollback = Some(Rollback { to: Some(to), phase: Phase::Begins, keeps_size: false });
        Ok(to)
    }

    /// A backup that was being received is abandoned: the map goes back.
    pub fn abandon_receive(&mut self) {
        self.set_phase(Phase::Rolling);
    }

    fn set_phase(&mut self, phase: Phase) {
        if let Some(rollback) = &mut self.rollback {
            rollback.phase = phase;
        }
    }

    fn set_state(&mut self, id: SnapshotId, state: State) {
        if let Some(snapshot) = self.get_mut(id) {
            snapshot.state = state;
        }
    }

    /// Holds a snapshot open.
    ///
    /// # Errors
    /// [`SnapshotError::Unknown`]; [`SnapshotError::RollingBack`] if it is about to go.
    pub fn open(&mut self, name: &str) -> Result<SnapshotId, SnapshotError> {
        let Some(id) = self.find(name).map(|s| s.id) else {
            return Err(SnapshotError::Unknown(name.to_owned()));
        };
        if self.rollback.is_some_and(|r| r.to < Some(id)) {
            return Err(SnapshotError::RollingBack);
        }
        if let Some(snapshot) = self.get_mut(id) {
            snapshot.open_count += 1;
        }
        Ok(id)
    }

    /// Releases what [`Snapshots::open`] gave.
    pub fn close(&mut self, id: SnapshotId) {
        if let Some(snapshot) = self.get_mut(id) {
            snapshot.open_count = snapshot.open_count.saturating_sub(1);
        }
    }
}
