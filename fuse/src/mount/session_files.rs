//! The session directory `DIR/.vexfs/`: present in every directory, listed in none.

use layout::error::{Error, Result};
use layout::fs::Ino;

use super::node::SessionNode;

/// Who asks, for the permission rule of FORMAT.md 6.4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread id, to find the supplementary groups.
    pub pid: u32,
}

/// Open handles of session files.
#[derive(Default)]
pub struct SessionHandles;

impl SessionHandles {
    /// Looks a name up in a session directory.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn lookup(&self, _dir: Ino, _name: &[u8]) -> Result<SessionNode> {
        Err(Error::NotFound)
    }
}
