//! The mounted volume: state, locks, and the life of open files.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use layout::error::{Error, Result};
use layout::fs::{FreshRows, Fs, Ino, Inode, InodeFlags, MountOptions};
use layout::page_store::{PageBytes, Timespec};
use parking_lot::{RwLock, RwLockReadGuard};

use super::file_locks::FileLocks;
use super::filling::Filling;
use super::known::Known;
use super::open_files::OpenFiles;
use super::row_sets::RowSets;
use crate::engine::{Cost, Engine, EpochSource, Operation, Pages, Reservation};
use crate::session::{FsAccess, Published};

/// A volume with its file system logic; every operation of a mount is a method of it.
pub struct Mounted {
    pub(super) engine: Arc<Engine>,
    pub(super) fs: RwLock<Fs<Pages>>,
    pub(super) files: OpenFiles,
    pub(super) known: Known,
    pub(super) locks: FileLocks,
    pub(super) filling: Filling,
    pub(super) row_sets: RowSets,
    /// Tells the kernel that a put renamed a file; set once the kernel is connected.
    pub(super) on_published: OnceLock<OnPublished>,
    /// Tells the kernel that a file's mode is not what it was; set as `on_published`.
    pub(super) on_mode_changed: OnceLock<OnModeChanged>,
    read_only: bool,
    /// See [`Mounted::kernel_has_times`].
    kernel_has_times: AtomicBool,
}

/// Orphans freed in one epoch at mount: about what [`Cost::Freeing`] may change.
const ORPHANS_AT_ONCE: u64 = 32;

/// How long a full volume waits for the kernel to forget what was just removed: it tells so soon after, but not at once.
const FORGET_WAIT: Duration = Duration::from_millis(5);

/// Tells the kernel what a put renamed.
pub(super) type OnPublished = Box<dyn Fn(&Published<'_>) + Send + Sync>;

/// Tells the kernel whose mode changed without it.
pub(super) type OnModeChanged = Box<dyn Fn(Ino) + Send + Sync>;

/// The present, as stored in inodes.
pub fn now() -> Timespec {
    #[cfg(test)]
    if let Some(now) = crate::sim_tests::clock::now() {
        return now;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timespec { secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
}

impl Mounted {
    /// Mounts the file system in an opened volume and frees what an earlier mount left unlinked.
    ///
    /// # Errors
    /// As [`Fs::mount`].
    pub fn new(engine: Arc<Engine>, session: u64, read_only: bool) -> Result<Arc<Self>> {
        let fs = Fs::mount(Pages(Arc::clone(&engine)), MountOptions { read_only, session, now: now() })?;
        let mounted = Mounted {
            engine,
            fs: RwLock::new(fs),
            files: OpenFiles::default(),
            known: Known::default(),
            locks: FileLocks::default(),
            filling: Filling::default(),
            row_sets: RowSets::default(),
            on_published: OnceLock::new(),
            on_mode_changed: OnceLock::new(),
            read_only,
            kernel_has_times: AtomicBool::new(false),
        };
        if !read_only {
            match mounted.reap_orphans() {
                Ok(0) => {}
                Ok(freed) => {
                    tracing::info!(
                        freed,
                        "freed files that were open but unlinked at the last unmount or crash"
                    );
                }
                Err(Error::NoSpace) => {
                    tracing::warn!(
                        "files that nobody can open any more keep their space until a later mount: the volume is full"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Arc::new(mounted))
    }

    /// Frees all orphans, some in an epoch: what that changes stays in RAM until its commit.
    fn reap_orphans(&self) -> Result<u64> {
        let mut freed = 0;
        loop {
            let some = self.change(Cost::Freeing, |fs| fs.reap_orphans(ORPHANS_AT_ONCE))?;
            freed += some;
            if some < ORPHANS_AT_ONCE {
                return Ok(freed);
            }
            self.engine.commit(self)?;
        }
    }

    /// The engine below.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Mounted without the right to change anything.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// With a write-back cache the kernel sets the times of files when bytes change, and tells them by itself: maybe before it
    /// hands over the bytes.
    pub(super) fn kernel_has_times(&self) -> bool {
        self.kernel_has_times.load(Ordering::Acquire)
    }

    /// See [`Mounted::kernel_has_times`].
    pub(super) fn leave_times_to_kernel(&self) {
        self.kernel_has_times.store(true, Ordering::Release);
    }

    /// After a change of bytes: if it took suid or sgid, the kernel must not go by the mode that it knows. Called before the
    /// answer, so that whoever made the change finds it so.
    pub(super) fn tell_mode(&self, before: &Inode, after: &Inode) {
        if before.perm != after.perm
            && let Some(tell) = self.on_mode_changed.get()
        {
            tell(after.ino);
        }
    }

    /// The file system logic for an operation that changes nothing.
    pub(super) fn reading(&self) -> Result<RwLockReadGuard<'_, Fs<Pages>>> {
        self.engine.health().check_read()?;
        Ok(self.fs.read())
    }

    /// Carries out a change of metadata.
    pub(super) fn change<T>(&self, cost: Cost, f: impl FnOnce(&mut Fs<Pages>) -> Result<T>) -> Result<T> {
        let _op = self.begin(cost)?;
        f(&mut self.fs.write())
    }

    /// Begins an operation.
    pub(super) fn begin(&self, cost: Cost) -> Result<Operation<'_>> {
        self.with_room(|| self.engine.begin(cost))
    }

    /// Promises space to a change that comes later.
    pub(super) fn reserve(&self, cost: Cost) -> Result<Reservation<'_>> {
        self.with_room(|| self.engine.reserve(cost))
    }

    /// Asks for space; a full volume gets one commit, which may give space back, before it is refused.
    fn with_room<T>(&self, ask: impl Fn() -> Result<T>) -> Result<T> {
        match ask() {
            Err(Error::NoSpace) => {
                if self.known.has_unlinked() {
                    std::thread::sleep(FORGET_WAIT);
                }
                self.engine.commit(self)?;
                ask()
            }
            other => other,
        }
    }

    /// Attributes of an inode.
    ///
    /// # Errors
    /// As [`Fs::inode`].
    pub fn inode(&self, ino: Ino) -> Result<Inode> {
        self.reading()?.inode(ino)
    }

    /// The volume's label: up to 32 bytes, UTF-8.
    ///
    /// # Errors
    /// As [`Mounted::inode`].
    pub fn label(&self) -> Result<Vec<u8>> {
        let label = self.reading()?.superblock().label;
        Ok(label.into_iter().take_while(|byte| *byte != 0).collect())
    }

    /// Makes everything done so far durable.
    ///
    /// # Errors
    /// As [`Engine::commit`].
    pub fn sync(&self) -> Result<()> {
        if self.read_only { Ok(()) } else { self.engine.commit(self) }
    }

    /// A handle of the inode was opened.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the inode is gone.
    pub fn open(&self, ino: Ino) -> Result<Inode> {
        let fs = self.reading()?;
        let inode = fs.inode(ino)?;
        self.files.opened(ino);
        Ok(inode)
    }

    /// A handle was closed: rows that waited for the file's bytes hold for them now; frees the inode if it has no link
    /// left and this was the last.
    pub fn release(&self, ino: Ino) {
        if let Some(rows) = self.filling.end(ino) {
            let done = self.change(Cost::Pages(0), |fs| fs.rows_fresh_again(&rows));
            if let Err(error) = done {
                tracing::warn!(
                    ino = ino.0,
                    "the vectors of a copied file count as stale, though they are not: {error}"
                );
            }
        }
        if self.files.closed(ino) && !self.known.has(ino) {
            self.reap_orphan(ino);
        }
    }

    /// The kernel forgets `count` of the times that an inode was given to it.
    pub fn forget(&self, ino: Ino, count: u64) {
        if self.known.forgotten(ino, count) {
            self.reap_orphan(ino);
        }
    }

    /// The kernel has forgotten everything, as the mount has ended: FORGETs that it did not get to send are not needed.
    pub fn forget_all(&self) {
        if self.engine.health().is_read_only() {
            return;
        }
        if let Err(error) = self.reap_orphans() {
            tracing::warn!("unlinked files could not be freed; the next mount does it: {error}");
        }
    }

    /// Frees an inode that may have lost its last use, if it has no link left.
    fn reap_orphan(&self, ino: Ino) {
        if self.engine.health().is_read_only() {
            return;
        }
        let orphan = match self.reading().and_then(|fs| fs.inode(ino)) {
            Ok(inode) => inode.flags.contains(InodeFlags::ORPHAN),
            Err(_) => false,
        };
        if orphan && let Err(error) = self.change(Cost::Freeing, |fs| self.reap_if_unused(fs, ino)) {
            tracing::warn!(
                ino = ino.0,
                "an unlinked file could not be freed; the next mount does it: {error}"
            );
        }
    }

    /// Frees an inode without links, unless a handle is open or the kernel knows it. Called with the file system lock held
    /// for change.
    pub(super) fn reap_if_unused(&self, fs: &mut Fs<Pages>, ino: Ino) -> Result<()> {
        if self.known.unlinked(ino) || self.files.is_open(ino) { Ok(()) } else { fs.reap(ino) }
    }
}

impl EpochSource for Mounted {
    fn close_epoch(&self, clean: bool) -> Result<Box<PageBytes>> {
        let mut fs = self.fs.write();
        if fs.is_poisoned() {
            return Err(Error::Aborted);
        }
        Ok(Box::new(fs.close_epoch(now(), clean)))
    }
}

/// For session files: their space is reserved by the caller (see [`super::session_files`]).
impl FsAccess for Mounted {
    type Store = Pages;

    fn read<R>(&self, look: impl FnOnce(&Fs<Pages>) -> R) -> R {
        look(&self.fs.read())
    }

    fn write<R>(&self, change: impl FnOnce(&mut Fs<Pages>) -> R) -> R {
        let _op = self.engine.begin_reserved();
        change(&mut self.fs.write())
    }

    fn rows_put(&self, file: &Inode) {
        if file.size == 0
            && let Some(rows) = FreshRows::of(file)
        {
            self.filling.begin(rows);
        }
    }

    fn published(&self, change: &Published<'_>) {
        if let Some(inode) = change.replaced.filter(|inode| inode.nlink == 0) {
            let reaped = self.change(Cost::Freeing, |fs| self.reap_if_unused(fs, inode.ino));
            if let Err(error) = reaped {
                tracing::warn!(
                    ino = inode.ino.0,
                    "a replaced file could not be freed; the next mount does it: {error}"
                );
            }
        }
        if let Some(tell) = self.on_published.get() {
            tell(change);
        }
    }
}
