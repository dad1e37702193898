//! The seam between the file system logic and whoever keeps its metadata pages.
//!
//! The kernel half implements it with a private page cache, the FUSE half with its own cache over
//! the embedded store, an NBD connection or a block device. All methods block the caller.
//!
//! Life of a page: *absent* -> `read` -> clean, shared -> `write` -> dirty in the open epoch ->
//! frozen by a commit (a `write` then gives a copy that belongs to the next epoch) -> written ->
//! clean. The logic above never sees the difference between these states.

use core::ops::{Deref, DerefMut};

use crate::addr::{PAGE, PageNo, PageRange};
use crate::error::Result;

/// The bytes of a page.
pub type PageBytes = [u8; PAGE];

/// Seconds and nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Timespec {
    /// Whole seconds; negative before 1970.
    pub secs: i64,
    /// Nanoseconds, 0..1_000_000_000.
    pub nanos: u32,
}

/// Gives, pins and dirties metadata pages.
///
/// Callers serialise changes: no two [`PageStore::write`] guards of one page live at once, and no
/// `read` guard of a page is held while a `write` guard of it is taken by the same caller.
pub trait PageStore {
    /// A pinned, unchanging page.
    type Read: Deref<Target = PageBytes>;
    /// A pinned page of the open epoch; dropping it leaves it dirty.
    type Write: DerefMut<Target = PageBytes>;

    /// Pins a page for reading. A page never written (or discarded) reads as zeros.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] with the page when the device fails or its checksum is wrong;
    /// [`crate::error::Error::Fenced`] when the session ended.
    fn read(&self, page: PageNo) -> Result<Self::Read>;

    /// Copies device bytes from `address` on, across pages, as [`PageStore::read`] would show them. A
    /// store that can read several pages at once, or that should not keep them, does it better.
    ///
    /// # Errors
    /// As [`PageStore::read`].
    fn read_bytes(&self, address: u64, out: &mut [u8]) -> Result<()> {
        let mut address = address;
        let mut out = out;
        while !out.is_empty() {
            let page_no = PageNo::containing(address);
            let in_page = (address - page_no.byte()) as usize;
            let len = usize::min(PAGE - in_page, out.len());
            let (now, later) = core::mem::take(&mut out).split_at_mut(len);
            let page = self.read(page_no)?;
            if let Some(from) = page.get(in_page..in_page + len) {
                now.copy_from_slice(from);
            }
            address += now.len() as u64;
            out = later;
        }
        Ok(())
    }

    /// Pins a page for change and marks it dirty in the open epoch.
    ///
    /// # Errors
    /// As [`PageStore::read`]; [`crate::error::Error::NoSpace`] when no credit is left.
    fn write(&self, page: PageNo) -> Result<Self::Write>;

    /// As [`PageStore::write`] for a page whose old content does not matter: it comes zeroed, unread.
    ///
    /// # Errors
    /// [`crate::error::Error::NoSpace`] when no credit is left.
    fn fresh(&self, page: PageNo) -> Result<Self::Write>;

    /// Unmaps a run of pages in the open epoch: they read as zeros from now on, and their space
    /// comes back after the commit. Later writes to them in the same epoch stay.
    ///
    /// # Errors
    /// [`crate::error::Error::Fenced`] when the session ended.
    fn discard(&self, range: PageRange) -> Result<()>;
}
