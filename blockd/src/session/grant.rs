//! The live session as a reconnecting client must know it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::BootId;

/// What `CMD_OPEN` granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The session; never 0.
    pub session: u64,
    /// The boot it belongs to.
    pub boot_id: BootId,
}

/// A place for the grant, shared by the session and the client's reconnect hook. Empty before the
/// open and after the close.
#[derive(Clone, Default, Debug)]
pub struct GrantCell(Arc<Mutex<Option<Grant>>>);

impl GrantCell {
    /// The grant, if a session is live.
    pub fn get(&self) -> Option<Grant> {
        *self.0.lock()
    }

    /// Sets or clears it.
    pub fn set(&self, grant: Option<Grant>) {
        *self.0.lock() = grant;
    }
}
