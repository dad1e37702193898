//! Incremental backup: what changed between two snapshots as a stream of bytes (FORMAT.md section 4.8), and a volume that
//! takes such streams in.
//!
//! A stream is verified as a whole before its snapshot appears: the volume that receives it is between two states
//! until then, which is noted in its checkpoint, and goes back to the state before if the stream breaks off, is
//! damaged, or the machine stops.

pub mod frame;
mod receive;
mod send;
#[cfg(test)]
mod tests;

use std::io;

use super::snapshot::SnapshotError;
use crate::device::IoError;
use crate::store::StoreError;
pub use frame::Header;
pub use receive::{Receiver, create_target};

/// Why a backup can't be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The stream is not one, or not whole.
    #[error("the stream is no good: {0}; nothing of it was taken over")]
    Stream(String),
    /// The stream does not fit the volume.
    #[error("{0}")]
    Refused(String),
    /// The other end of the stream.
    #[error("{action} the stream failed: {source}")]
    Pipe {
        /// Reading or writing.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The image.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The volume.
    #[error(transparent)]
    Volume(#[from] IoError),
}

/// How far a stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Bytes of data so far.
    pub done_bytes: u64,
    /// Bytes of data in all, at most.
    pub total_bytes: u64,
}
