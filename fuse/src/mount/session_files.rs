//! The session directory `DIR/.vexfs/` as files of the mount: present in every directory, listed in
//! none. What is read and written there is the session part's ([`crate::session`]).

use std::sync::Arc;

use layout::addr::PAGE;
use layout::fs::Ino;

use super::volume::Mounted;
use crate::engine::{Cost, Reservation};
use crate::session::{Caller, SessionFiles, SessionKind, SessionResult, SessionSettings};

/// Open session files of a mount, with the space that each request may take.
pub struct Sessions {
    mounted: Arc<Mounted>,
    files: SessionFiles<Arc<Mounted>>,
}

impl Sessions {
    /// The session files of a mount.
    pub fn new(mounted: Arc<Mounted>, settings: SessionSettings) -> Self {
        let files = SessionFiles::new(Arc::clone(&mounted), settings);
        Sessions { mounted, files }
    }

    /// The session part, for `user.vexfs.vector`.
    pub fn files(&self) -> &SessionFiles<Arc<Mounted>> {
        &self.files
    }

    /// Opens a session file; gives its handle.
    ///
    /// # Errors
    /// As [`SessionFiles::open`].
    pub fn open(&self, kind: SessionKind, dir: Ino, caller: &Caller) -> SessionResult<u64> {
        self.files.open(kind, dir, caller)
    }

    /// Takes a part of a request.
    ///
    /// # Errors
    /// As [`SessionFiles::write`]; ENOSPC.
    pub fn write(&self, kind: SessionKind, handle: u64, offset: u64, bytes: &[u8]) -> SessionResult<usize> {
        // Only a schema is carried out by a write.
        let _space = match kind {
            SessionKind::Schema => Some(self.mounted.reserve(Cost::Pages(16))?),
            _ => None,
        };
        self.files.write(handle, offset, bytes)
    }

    /// Gives a part of the reply; a put takes place at the first read.
    ///
    /// # Errors
    /// As [`SessionFiles::read`]; ENOSPC.
    pub fn read(&self, kind: SessionKind, handle: u64, offset: u64, len: usize) -> SessionResult<Vec<u8>> {
        let _space = match kind {
            SessionKind::Put => self.reserve_put(handle, offset)?,
            _ => None,
        };
        self.files.read(handle, offset, len)
    }

    /// Closes a handle.
    pub fn release(&self, handle: u64) {
        self.files.release(handle);
    }

    /// Room for the rows of the put that a read carries out, if it does: vectors are smaller than their request (JSON) or
    /// about as large (binary); one row touches at most two pages of its own beside them.
    fn reserve_put(&self, handle: u64, offset: u64) -> SessionResult<Option<Reservation<'_>>> {
        let bytes = self.files.pending_bytes(handle, offset)? as u64;
        if bytes == 0 {
            return Ok(None);
        }
        Ok(Some(self.mounted.reserve(Cost::Pages(bytes.div_ceil(PAGE as u64) * 2 + 8))?))
    }
}
