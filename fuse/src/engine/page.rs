//! A cached page: shared, immutable while shared, copied on change.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use layout::addr::PAGE;
use layout::page_store::PageBytes;

/// The bytes of one page. Not aligned: what goes to the device is gathered into aligned buffers.
#[derive(Clone)]
pub struct PageBuf(PageBytes);

/// A pinned page. Whoever holds it sees bytes that never change.
pub type PageArc = Arc<PageBuf>;

impl PageBuf {
    /// A page of zeros.
    pub fn zeroed() -> PageArc {
        Arc::new(PageBuf([0; PAGE]))
    }

    /// A page with these bytes; `bytes` must be one page long.
    ///
    /// # Panics
    /// When `bytes` is not exactly one page.
    pub fn copy_of(bytes: &[u8]) -> PageArc {
        Arc::new(PageBuf(*bytes.first_chunk().expect("one page")))
    }
}

impl Deref for PageBuf {
    type Target = PageBytes;
    fn deref(&self) -> &PageBytes {
        &self.0
    }
}

impl DerefMut for PageBuf {
    fn deref_mut(&mut self) -> &mut PageBytes {
        &mut self.0
    }
}
