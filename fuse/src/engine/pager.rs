//! The engine itself, and the page store that the file system logic works on.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use blockd::device::{ClientId, Device, IoError};
use blockd::session::{DevicePort, Session, SessionError};
use layout::addr::{PAGE, PageNo, PageRange};
use layout::command::{CommandClone, Status};
use layout::error::{Error, Result};
use layout::page_store::{PageBytes, PageStore};
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};

use super::cache::{Cache, Lookup, Taken};
use super::commit::Tickets;
use super::credits::{Cost, Credits};
use super::flusher::Signal;
use super::health::Health;
use super::page::{PageArc, PageBuf};
use super::transfer::read_page;

/// Settings of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Bound on clean pages kept, in bytes.
    pub cache_bytes: u64,
    /// Dirty data above this is written out before the commit, in bytes. Writers wait at four times this.
    pub dirty_bytes: u64,
    /// Nothing is ever written.
    pub read_only: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { cache_bytes: 256 << 20, dirty_bytes: 32 << 20, read_only: false }
    }
}

/// Page cache, epochs and commits of one mount; see the module's text.
///
/// Lock order: gate, then the file system's own locks, then `cache`. The write-back lock is taken
/// before the gate and never inside an operation.
pub struct Engine {
    pub(super) device: Arc<dyn Device>,
    pub(super) client: ClientId,
    /// `None` once closed.
    session: Mutex<Option<Session>>,
    pub(super) cache: Mutex<Cache>,
    /// A write guard was given back.
    pub(super) returned: Condvar,
    /// A batch landed, or the engine stopped.
    pub(super) room: Condvar,
    pub(super) credits: Credits,
    capacity_pages: u64,
    pub(super) health: Health,
    /// Shared by operations, exclusive to the freeze of a commit.
    pub(super) gate: RwLock<()>,
    /// Held while a batch is in flight.
    pub(super) write_back: Mutex<()>,
    pub(super) tickets: Tickets,
    pub(super) signal: Signal,
    pub(super) dirty_pages_soft: usize,
    pub(super) dirty_pages_hard: usize,
    /// The device does not know how to clone.
    pub(super) no_clones: AtomicBool,
}

impl Engine {
    /// An engine over a volume taken for `client` by `session`; `None` where the device itself is read-only.
    ///
    /// # Errors
    /// When the status page can't be read.
    pub fn new(
        device: Arc<dyn Device>,
        client: ClientId,
        session: Option<Session>,
        options: EngineOptions,
    ) -> std::result::Result<Arc<Self>, SessionError> {
        let status = blockd::session::status(&mut DevicePort { device: &*device, client })?;
        let credits = Credits::new(status.available_pages.get(), status.capacity_pages.get());
        let pages = |bytes: u64| usize::try_from(bytes / PAGE as u64).unwrap_or(usize::MAX).max(16);
        let dirty_pages_soft = pages(options.dirty_bytes);
        Ok(Arc::new(Engine {
            device,
            client,
            session: Mutex::new(session),
            cache: Mutex::new(Cache::new(pages(options.cache_bytes))),
            returned: Condvar::new(),
            room: Condvar::new(),
            credits,
            capacity_pages: status.capacity_pages.get(),
            health: if options.read_only { Health::read_only() } else { Health::default() },
            gate: RwLock::new(()),
            write_back: Mutex::new(()),
            tickets: Tickets::default(),
            signal: Signal::default(),
            dirty_pages_soft,
            dirty_pages_hard: dirty_pages_soft.saturating_mul(4),
            no_clones: AtomicBool::new(false),
        }))
    }

    /// Whether the mount can still read and write.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The daemon's view of the volume, fresh.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn status(&self) -> std::result::Result<Status, SessionError> {
        blockd::session::status(&mut DevicePort { device: &*self.device, client: self.client })
    }

    /// Ends the session: after the last commit.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn close_session(&self) -> std::result::Result<(), SessionError> {
        self.session.lock().take().map_or(Ok(()), Session::close)
    }

    /// Unmaps ranges in the open epoch.
    pub(super) fn free_ranges(&self, ranges: &[PageRange]) -> std::result::Result<(), SessionError> {
        match &*self.session.lock() {
            Some(session) => session.free_ranges(ranges),
            None => Err(SessionError::Device(IoError::Shutdown)),
        }
    }

    /// Clones ranges in the open epoch.
    pub(super) fn clone_ranges(&self, clones: &[CommandClone]) -> std::result::Result<(), SessionError> {
        match &*self.session.lock() {
            Some(session) => session.clone_ranges(clones),
            None => Err(SessionError::Device(IoError::Shutdown)),
        }
    }

    /// Pages free now, and pages that an ordinary operation may still take.
    pub fn free_and_usable_pages(&self) -> (u64, u64) {
        self.credits.free_and_usable()
    }

    /// Pages charged to the open epoch, and dirty ones.
    #[cfg(test)]
    pub(crate) fn charged_and_dirty(&self) -> (u64, u64) {
        let cache = self.cache.lock();
        let (metadata, data) = cache.dirty_pages();
        (self.credits.charged(), (metadata + data) as u64)
    }

    /// A batch is on its way.
    #[cfg(test)]
    pub(crate) fn is_sending(&self) -> bool {
        self.write_back.is_locked()
    }

    /// Pages of the volume when it was mounted.
    pub fn capacity_pages(&self) -> u64 {
        self.capacity_pages
    }

    /// Begins an operation: holds the epoch open until the result is dropped. Waits while too much
    /// is dirty. Never begin one inside another.
    ///
    /// # Errors
    /// [`Error::NoSpace`] without credit for `cost`; [`Error::ReadOnly`] or [`Error::Fenced`] by health.
    pub fn begin(&self, cost: Cost) -> Result<Operation<'_>> {
        if cost == Cost::Nothing {
            self.health.check_read()?;
            return Ok(Operation { engine: self, promised: 0, _gate: self.gate.read() });
        }
        self.wait_for_room();
        self.health.check_write()?;
        let promised = self.credits.promise(cost)?;
        Ok(Operation { engine: self, promised, _gate: self.gate.read() })
    }

    /// Promises space to an operation that comes later, without holding the epoch open.
    ///
    /// # Errors
    /// As [`Engine::begin`].
    pub fn reserve(&self, cost: Cost) -> Result<Reservation<'_>> {
        self.health.check_write()?;
        Ok(Reservation { engine: self, promised: self.credits.promise(cost)? })
    }

    /// Begins an operation whose space was reserved. Where the mount can't change any more, its
    /// first page says so.
    pub fn begin_reserved(&self) -> Operation<'_> {
        self.wait_for_room();
        Operation { engine: self, promised: 0, _gate: self.gate.read() }
    }

    /// Whether changes wait until some of what is dirty was written.
    pub fn is_crowded(&self) -> bool {
        self.cache.lock().unlanded_pages() >= self.dirty_pages_hard
    }

    pub(super) fn wait_for_room(&self) {
        let mut cache = self.cache.lock();
        while cache.unlanded_pages() >= self.dirty_pages_hard && !self.health.is_read_only() {
            self.signal.wake();
            self.room.wait(&mut cache);
        }
    }

    /// A page's bytes: from the cache, or from the device into the cache.
    pub(super) fn page(&self, page: PageNo) -> Result<PageArc> {
        self.health.check_read()?;
        {
            let mut cache = self.cache.lock();
            loop {
                match cache.lookup(page.0) {
                    Lookup::Hit(bytes) => return Ok(bytes),
                    Lookup::Zeros => return Ok(Cache::zeros()),
                    Lookup::Busy => self.returned.wait(&mut cache),
                    Lookup::Miss => break,
                }
            }
        }
        let bytes = read_page(&*self.device, self.client, page.0).map_err(|e| self.read_failed(page, &e))?;
        Ok(self.cache.lock().insert_clean(page.0, bytes))
    }

    /// Turns a failed read into the error of the operation, and notes a lost session.
    pub(super) fn read_failed(&self, page: PageNo, error: &IoError) -> Error {
        match error {
            IoError::Fenced(why) => {
                self.health.lose_session(why);
                // Under the cache lock, so that no writer misses it between its check and its wait.
                let _cache = self.cache.lock();
                self.room.notify_all();
                Error::Fenced
            }
            other => {
                tracing::error!(page = format_args!("{:#x}", page.0), "cannot read the volume: {other}");
                Error::Io(page)
            }
        }
    }

    /// Charges newly dirty pages and wakes the flusher when there are many.
    pub(super) fn charge(&self, newly_dirty: u64, cache: &Cache) {
        if newly_dirty > 0 {
            self.credits.charge(newly_dirty);
            let (metadata, data) = cache.dirty_pages();
            if metadata + data >= self.dirty_pages_soft {
                self.signal.wake();
            }
        }
    }
}

/// A running operation; see [`Engine::begin`].
pub struct Operation<'a> {
    engine: &'a Engine,
    promised: u64,
    _gate: RwLockReadGuard<'a, ()>,
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.engine.credits.release(self.promised);
    }
}

/// Space promised to an operation; see [`Engine::reserve`].
pub struct Reservation<'a> {
    engine: &'a Engine,
    promised: u64,
}

impl<'a> Reservation<'a> {
    /// The operation begins, and takes the promise over.
    pub(super) fn begin_now(mut self) -> Operation<'a> {
        let promised = std::mem::take(&mut self.promised);
        Operation { engine: self.engine, promised, _gate: self.engine.gate.read() }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.engine.credits.release(self.promised);
    }
}

/// The engine as the file system logic sees it.
#[derive(Clone)]
pub struct Pages(pub Arc<Engine>);

/// A pinned page for reading.
pub struct PageRef(PageArc);

impl Deref for PageRef {
    type Target = PageBytes;
    fn deref(&self) -> &PageBytes {
        &self.0
    }
}

/// A pinned page for change. It is out of the cache until it is dropped.
pub struct PageMut {
    engine: Arc<Engine>,
    page: u64,
    bytes: PageArc,
}

impl Deref for PageMut {
    type Target = PageBytes;
    fn deref(&self) -> &PageBytes {
        &self.bytes
    }
}

impl DerefMut for PageMut {
    fn deref_mut(&mut self) -> &mut PageBytes {
        // Copies if a commit or a reader holds the same bytes.
        let buf: &mut PageBuf = Arc::make_mut(&mut self.bytes);
        buf
    }
}

impl Drop for PageMut {
    fn drop(&mut self) {
        let mut cache = self.engine.cache.lock();
        cache.give_back(self.page, Arc::clone(&self.bytes));
        drop(cache);
        self.engine.returned.notify_all();
    }
}

impl PageStore for Pages {
    type Read = PageRef;
    type Write = PageMut;

    fn read(&self, page: PageNo) -> Result<PageRef> {
        self.0.page(page).map(PageRef)
    }

    fn read_bytes(&self, address: u64, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.0.read_data(address, out.len())?);
        Ok(())
    }

    fn write(&self, page: PageNo) -> Result<PageMut> {
        self.0.health.check_write()?;
        loop {
            let mut cache = self.0.cache.lock();
            loop {
                match cache.take(page.0) {
                    Taken::Page(bytes, newly) => {
                        self.0.charge(u64::from(newly), &cache);
                        return Ok(PageMut { engine: Arc::clone(&self.0), page: page.0, bytes });
                    }
                    Taken::Busy => self.0.returned.wait(&mut cache),
                    Taken::Absent => break,
                }
            }
            if cache.is_discarded(page.0) {
                let newly = cache.take_fresh(page.0);
                self.0.charge(u64::from(newly), &cache);
                return Ok(PageMut { engine: Arc::clone(&self.0), page: page.0, bytes: Cache::zeros() });
            }
            drop(cache);
            // Brings the page in; an eviction between the two steps only costs another round.
            self.0.page(page)?;
        }
    }

    fn fresh(&self, page: PageNo) -> Result<PageMut> {
        self.0.health.check_write()?;
        let mut cache = self.0.cache.lock();
        while let Lookup::Busy = cache.lookup(page.0) {
            self.0.returned.wait(&mut cache);
        }
        let newly = cache.take_fresh(page.0);
        self.0.charge(u64::from(newly), &cache);
        Ok(PageMut { engine: Arc::clone(&self.0), page: page.0, bytes: PageBuf::zeroed() })
    }

    fn discard(&self, range: PageRange) -> Result<()> {
        self.0.health.check_write()?;
        let end = range.first.0.saturating_add(range.count);
        let dropped = self.0.cache.lock().discard(range.first.0, end);
        self.0.credits.refund(dropped);
        Ok(())
    }
}
