//! An in-memory page store with epochs and fault injection, for tests (needs std).
//!
//! [`MemStore`] keeps the last commit and the open epoch: [`MemStore::commit`] closes it,
//! [`MemStore::rollback`] throws it away, as a crash does. It panics when the rules of
//! [`PageStore`] are broken (two write guards of one page, a read during a write).

mod check;
pub mod model;

pub use check::check;

use core::ops::{Deref, DerefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use crate::addr::{Owner, PAGE, PageNo, PageRange, SUPERBLOCK_PAGE, owner};
use crate::error::{Error, Result};
use crate::fs::{FormatParams, Fs, MountOptions, format};
use crate::page_store::{PageBytes, PageStore, Timespec};

type Page = Arc<PageBytes>;

#[derive(Default)]
struct Inner {
    pages: BTreeMap<u64, Page>,
    /// What each page changed in the open epoch was at the last commit.
    undo: BTreeMap<u64, Option<Page>>,
    writing: BTreeSet<u64>,
    /// Calls that may still succeed before one fails; `None` = no fault.
    fault: Option<(u64, Error)>,
    /// Pages that may still become dirty; `None` = no limit.
    credits: Option<u64>,
    calls: u64,
}

impl Inner {
    /// Counts a call that may fail, and fails it when it is its turn.
    fn step(&mut self) -> Result<()> {
        self.calls += 1;
        match &mut self.fault {
            Some((0, error)) => Err(*error),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn remember(&mut self, page: u64) {
        if !self.undo.contains_key(&page) {
            let old = self.pages.get(&page).cloned();
            self.undo.insert(page, old);
        }
    }

    /// Takes a credit for a page that is not dirty yet.
    fn charge(&mut self, page: u64) -> Result<()> {
        match &mut self.credits {
            Some(_) if self.undo.contains_key(&page) => Ok(()),
            Some(0) => Err(Error::NoSpace),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Pages in memory; clones share them.
#[derive(Clone, Default)]
pub struct MemStore(Arc<Mutex<Inner>>);

/// A pinned page.
pub struct ReadGuard(Page);

impl Deref for ReadGuard {
    type Target = PageBytes;
    fn deref(&self) -> &PageBytes {
        &self.0
    }
}

/// A page being changed.
pub struct WriteGuard {
    store: MemStore,
    number: u64,
    page: Page,
}

impl Deref for WriteGuard {
    type Target = PageBytes;
    fn deref(&self) -> &PageBytes {
        &self.page
    }
}

impl DerefMut for WriteGuard {
    fn deref_mut(&mut self) -> &mut PageBytes {
        Arc::make_mut(&mut self.page)
    }
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        let mut inner = self.store.lock();
        inner.writing.remove(&self.number);
        inner.pages.insert(self.number, self.page.clone());
    }
}

impl MemStore {
    /// An empty device.
    pub fn new() -> MemStore {
        MemStore::default()
    }

    /// A device with an empty file system, committed.
    pub fn formatted(params: FormatParams) -> MemStore {
        let store = MemStore::new();
        format(params, &mut |number, page| store.put(number, page));
        store
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_guard(&self, page: PageNo, fresh: bool) -> Result<WriteGuard> {
        assert_eq!(owner(page), Owner::Mounter, "write of page {:#x}, which is not the mounter's", page.0);
        assert_ne!(page, SUPERBLOCK_PAGE, "the superblock is written by commits only");
        let mut inner = self.lock();
        inner.step()?;
        inner.charge(page.0)?;
        assert!(inner.writing.insert(page.0), "two write guards of page {:#x}", page.0);
        inner.remember(page.0);
        // Taken out, so that the guard has the only reference and need not copy.
        let old = inner.pages.remove(&page.0).filter(|_| !fresh);
        let page_bytes = old.unwrap_or_else(|| Arc::new([0; PAGE]));
        Ok(WriteGuard { store: self.clone(), number: page.0, page: page_bytes })
    }

    /// Commits the open epoch with the page-0 image that [`Fs::close_epoch`] gave.
    pub fn commit(&self, superblock: &PageBytes) {
        let mut inner = self.lock();
        inner.pages.insert(SUPERBLOCK_PAGE.0, Arc::new(*superblock));
        inner.undo.clear();
    }

    /// Throws the open epoch away.
    pub fn rollback(&self) {
        let mut inner = self.lock();
        for (number, old) in core::mem::take(&mut inner.undo) {
            match old {
                Some(page) => inner.pages.insert(number, page),
                None => inner.pages.remove(&number),
            };
        }
    }

    /// Puts a page there outside of any epoch (to make or to spoil an image).
    pub fn put(&self, number: PageNo, page: &PageBytes) {
        self.lock().pages.insert(number.0, Arc::new(*page));
    }

    /// The page as it is now, zeros if unmapped.
    pub fn get(&self, number: PageNo) -> PageBytes {
        self.lock().pages.get(&number.0).map_or([0; PAGE], |page| **page)
    }

    /// The numbers of the mapped pages.
    pub fn mapped(&self) -> Vec<PageNo> {
        self.lock().pages.keys().map(|n| PageNo(*n)).collect()
    }

    /// A copy of everything; later changes of one do not show in the other.
    pub fn fork(&self) -> MemStore {
        let inner = self.lock();
        MemStore(Arc::new(Mutex::new(Inner {
            pages: inner.pages.clone(),
            undo: inner.undo.clone(),
            ..Inner::default()
        })))
    }

    /// Lets the next `calls` reads, writes and discards succeed and fails all after them with `error`;
    /// `None` ends that.
    pub fn set_fault(&self, fault: Option<(u64, Error)>) {
        self.lock().fault = fault;
    }

    /// Lets `pages` more pages become dirty, then gives [`Error::NoSpace`] for each other one; `None` ends
    /// that. A page that is dirty in the open epoch can always be written.
    pub fn set_credits(&self, pages: Option<u64>) {
        self.lock().credits = pages;
    }

    /// Reads, writes and discards so far.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }
}

impl PageStore for MemStore {
    type Read = ReadGuard;
    type Write = WriteGuard;

    fn read(&self, page: PageNo) -> Result<ReadGuard> {
        let mut inner = self.lock();
        inner.step()?;
        assert!(!inner.writing.contains(&page.0), "read of page {:#x} during its change", page.0);
        let bytes = inner.pages.get(&page.0).cloned();
        Ok(ReadGuard(bytes.unwrap_or_else(|| Arc::new([0; PAGE]))))
    }

    fn write(&self, page: PageNo) -> Result<WriteGuard> {
        self.write_guard(page, false)
    }

    fn fresh(&self, page: PageNo) -> Result<WriteGuard> {
        self.write_guard(page, true)
    }

    fn discard(&self, range: PageRange) -> Result<()> {
        let mut inner = self.lock();
        inner.step()?;
        let end = range.first.0 + range.count;
        assert!(end <= crate::addr::DEVICE_PAGES, "discard past the device");
        let inside: Vec<u64> = inner.pages.range(range.first.0..end).map(|(n, _)| *n).collect();
        for number in inside {
            assert!(!inner.writing.contains(&number), "discard of page {number:#x} during its change");
            inner.remember(number);
            inner.pages.remove(&number);
        }
        Ok(())
    }
}

/// Parameters of a volume for tests: root 0755 of uid and gid 0.
pub fn format_params() -> FormatParams {
    FormatParams {
        uuid: *b"test volume uuid",
        label: *b"test\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        hash_key: *b"key of name hash",
        now: Timespec { secs: 1_700_000_000, nanos: 5 },
        root_uid: 0,
        root_gid: 0,
        root_perm: 0o755,
    }
}

/// Mounts an image for writing.
///
/// # Errors
/// As [`Fs::mount`].
pub fn mount(store: &MemStore) -> Result<Fs<MemStore>> {
    Fs::mount(store.clone(), MountOptions { read_only: false, session: 1, now: Timespec::default() })
}

/// Commits what a file system changed, as a mounter does.
pub fn commit(fs: &mut Fs<MemStore>, now: Timespec) {
    assert!(!fs.is_poisoned(), "a poisoned file system must not be committed");
    let superblock = fs.close_epoch(now, false);
    fs.store().commit(&superblock);
}
