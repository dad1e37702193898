//! Where rows hang on the life of files: called from here, carried out by the rows part
//! (FORMAT.md section 6.3).

use super::Fs;
use crate::error::Result;
use crate::inode::{Inode, InodeFlags};
use crate::page_store::PageStore;

impl<P: PageStore> Fs<P> {
    /// The bytes of the file are about to change (write or truncate): its rows become stale.
    /// Changes only the decoded inode; the caller writes it.
    pub(super) fn content_changes(&self, inode: &mut Inode) {
        if inode.flags.contains(InodeFlags::ROWS_FRESH) {
            inode.flags.remove(InodeFlags::ROWS_FRESH);
            inode.data_version = inode.data_version.wrapping_add(1);
        }
    }

    /// Called before an inode is freed, as a change of its own: kills the file's rows, or frees the
    /// rows file of a collection. Gives the inode as it stands afterwards. It must do its own prepare
    /// step, leave a consistent volume (the free itself may still fail) and be harmless when repeated.
    pub(super) fn rows_before_free(&mut self, inode: Inode) -> Result<Inode> {
        self.rows_end(inode)
    }
}
