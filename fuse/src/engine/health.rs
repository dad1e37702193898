//! Whether the mount can still change, or even read, its volume. It only ever gets worse.

use std::sync::atomic::{AtomicU8, Ordering};

use layout::error::{Error, Result};

/// The state of a mount.
#[derive(Default)]
pub struct Health(AtomicU8);

const READ_ONLY: u8 = 1;
const LOST: u8 = 2;

impl Health {
    /// A mount that may not change its volume from the start.
    pub fn read_only() -> Self {
        Health(AtomicU8::new(READ_ONLY))
    }

    /// Whether changes are refused.
    pub fn is_read_only(&self) -> bool {
        self.0.load(Ordering::Acquire) >= READ_ONLY
    }

    /// Whether everything is refused: the session ended.
    pub fn is_lost(&self) -> bool {
        self.0.load(Ordering::Acquire) >= LOST
    }

    /// # Errors
    /// [`Error::Fenced`] when the session is lost.
    pub fn check_read(&self) -> Result<()> {
        if self.is_lost() { Err(Error::Fenced) } else { Ok(()) }
    }

    /// # Errors
    /// [`Error::Fenced`] when the session is lost, [`Error::ReadOnly`] after a failed commit or on
    /// a read-only mount.
    pub fn check_write(&self) -> Result<()> {
        match self.0.load(Ordering::Acquire) {
            0 => Ok(()),
            READ_ONLY => Err(Error::ReadOnly),
            _ => Err(Error::Fenced),
        }
    }

    /// A write or commit failed: what was not committed can't become durable, so no more changes.
    pub fn stop_writes(&self, why: &str) {
        if self.0.fetch_max(READ_ONLY, Ordering::AcqRel) < READ_ONLY {
            tracing::error!(
                "the mount is read-only from now on: {why}. What was not yet committed is lost; \
                 unmount, repair the cause, and mount again"
            );
        }
    }

    /// The mount is over: what still comes is refused.
    pub fn end(&self) {
        self.0.fetch_max(LOST, Ordering::AcqRel);
    }

    /// The session ended: another mounter took the volume, or it was rolled back.
    pub fn lose_session(&self, why: &str) {
        if self.0.fetch_max(LOST, Ordering::AcqRel) < LOST {
            tracing::error!(
                "the session with the volume is lost: {why}. Every operation fails with EIO; \
                 unmount and mount again"
            );
        }
    }
}
