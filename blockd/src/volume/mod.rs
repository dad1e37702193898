//! A volume: the [`Device`] over a store.
//!
//! [`options`]: how it is made and opened ([`used`]: unless something is there already). [`inbox`]: what waits for the log. [`writer`]: which thread drives it.
//! [`worker`]: what it does, giving every change its place in the order. [`session`]: who may change it (FORMAT.md section 3.2). [`reads`]: the
//! readers' threads. [`synth`]: the status page and the allocation map. [`allocation`]: which parts hold data.
//! [`scrub`]: all of it read and checked; [`page_name`]: what a bad page is. [`part`]: writes of parts of
//! pages. [`compact`]: dead space given back at once. [`resize`]: images made larger or smaller. [`snapshot`]: states of before; [`backup`]: what changed between two of
//! them, as a stream. [`stepped`]: a volume without threads.

mod allocation;
pub mod backup;
pub mod compact;
mod inbox;
pub mod options;
mod page_name;
mod part;
mod reads;
pub mod resize;
mod scrub;
pub mod session;
#[cfg(test)]
mod sim_tests;
#[cfg(any(test, feature = "sim"))]
pub mod simulated;
pub mod snapshot;
pub mod status;
pub mod stepped;
mod synth;
mod tuning;
mod used;
pub(crate) mod worker;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, unbounded};
use layout::addr::{COMMAND_PAGE, DEVICE_BYTES, Owner, PAGE, PageNo, STATUS_PAGE, SUPERBLOCK_PAGE, owner};
use parking_lot::{Condvar, Mutex};

use crate::buf::AlignedBuf;
use crate::completion;
use crate::device::{
    ClientId, Commit, Device, DeviceInfo, Done, Extent, IoError, IoOp, IoResult, NO_HOLE_BYTES_MAX,
    VolumeKind, awaited,
};
use crate::stats::RequestCounters;
use crate::storage::Storage;
use crate::storage::file::FileStorage;
use crate::store::clean::Tuning;
use crate::store::create::holds_raw;
use crate::store::recover::{self, RecoverOptions};
use crate::store::snapshot::View;
use crate::store::{Shared, StoreError};
use inbox::Request;
pub use options::{CreateOptions, OpenOptions, boot_id};
use reads::{ReadJob, ReadPool};
use session::Sessions;
use writer::Writer;

/// Threads that read; each keeps many reads in flight.
const READ_THREADS: usize = 2;

/// Memory for the map in any case: what one read of the allocation map may need at once, and some.
const MAP_BYTES_MIN: u64 = 16 << 20;

/// What requests, readers and the worker share.
pub(crate) struct Core {
    pub(crate) store: Arc<Shared>,
    pub(crate) sessions: Mutex<Sessions>,
    pub(crate) incarnation: u64,
    pub(crate) read_only: bool,
    /// Pages of jobs under way, as the worker last said.
    pub(crate) pending_pages: AtomicU64,
    /// The volume is between two states: it takes no requests.
    pub(crate) rolling_back: AtomicBool,
}

/// An open volume; raw or VexFS.
pub struct Volume {
    core: Arc<Core>,
    info: DeviceInfo,
    /// Of the device; a rollback may change it.
    size_bytes: AtomicU64,
    clients: AtomicU64,
    /// Clients that have not gone.
    connected: AtomicU64,
    snapshots: snapshot::Worker,
    closing: AtomicBool,
    reads: ReadPool,
    requests: Arc<RequestCounters>,
    writer: Option<Arc<Writer>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Volume {
    /// Makes a new, empty volume in `path`, which exists already with its final size or is a regular
    /// file to be made with [`CreateOptions::size_bytes`].
    ///
    /// # Errors
    /// [`StoreError`]; `InUse` when something is there already and `force` is not set.
    pub fn create(path: &Path, options: &CreateOptions) -> Result<(), StoreError> {
        options::create(path, options)
    }

    /// Writes every part of an image file once, so that its space is there, and syncs need not write the file system's
    /// metadata when a place is used for the first time. The image's content stays.
    ///
    /// # Errors
    /// [`StoreError`]; `InUse` while it is open.
    pub fn preallocate(path: &Path) -> Result<(), StoreError> {
        options::preallocate(path)
    }

    /// Opens the volume in an image or block device: replays its log, and starts its threads.
    ///
    /// # Errors
    /// [`StoreError`] with cause and remedy.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<Self>, StoreError> {
        let storage = FileStorage::open_cached(path, options.read_only, options.io, options.cache)?;
        Self::open_storage(Arc::new(storage), options)
    }

    /// As [`Volume::open`], over any storage.
    ///
    /// # Errors
    /// As [`Volume::open`].
    pub fn open_storage(storage: Arc<dyn Storage>, options: &OpenOptions) -> Result<Arc<Self>, StoreError> {
        let opened = recover::open(storage, &recover_options(options))?;
        let store = opened.shared;
        let info = DeviceInfo {
            kind: store.kind,
            size_bytes: device_bytes(store.kind, store.raw_bytes()),
            block_bytes_min: if store.kind == VolumeKind::Raw { 1 } else { PAGE as u32 },
            read_only: options.read_only,
            uuid: uuid::Uuid::from_bytes(store.uuid),
        };
        let core = Arc::new(Core {
            store,
            sessions: Mutex::new(Sessions::new(opened.incarnation, opened.lost_session)),
            incarnation: opened.incarnation,
            read_only: options.read_only,
            pending_pages: AtomicU64::new(0),
            rolling_back: AtomicBool::new(false),
        });
        let mut threads = Vec::new();
        let reads = ReadPool::start(&core, READ_THREADS, &mut threads);
        let writer = opened.log.map(|log| Writer::start(Arc::clone(&core), log, options, &mut threads));
        let snapshots = match &writer {
            Some(writer) => snapshot::Worker::start(Arc::clone(&core.store), writer.sender(), &mut threads),
            None => snapshot::Worker::default(),
        };
        let volume = Arc::new(Volume {
            core,
            size_bytes: AtomicU64::new(info.size_bytes),
            info,
            clients: AtomicU64::new(1),
            connected: AtomicU64::new(0),
            snapshots,
            closing: AtomicBool::new(false),
            reads,
            requests: Arc::default(),
            writer,
            threads: Mutex::new(threads),
        });
        volume.end_pending_rollback()?;
        Ok(volume)
    }

    /// Finishes what was submitted, makes it durable, writes a checkpoint and ends the threads.
    /// An open epoch stays open: the same session can go on at the next start of the same boot.
    ///
    /// # Errors
    /// What kept the last state from being durable. The volume is closed all the same.
    pub fn shutdown(&self) -> Result<(), IoError> {
        if self.closing.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.snapshots.stop();
        let result = match &self.writer {
            Some(writer) => {
                let state = Arc::new((Mutex::new(None), Condvar::new()));
                let signal = Arc::clone(&state);
                writer.shutdown(Box::new(move |result| {
                    *signal.0.lock() = Some(result);
                    signal.1.notify_one();
                }));
                let mut result = state.0.lock();
                while result.is_none() {
                    state.1.wait(&mut result);
                }
                result.take().unwrap_or(Ok(()))
            }
            None => Ok(()),
        };
        self.reads.stop();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread of the volume panicked");
            }
        }
        // All who could write have ended.
        self.core.store.storage.release();
        result
    }

    /// Writes a checkpoint now.
    ///
    /// # Errors
    /// What kept it from being durable.
    pub fn checkpoint(&self) -> Result<(), IoError> {
        let Some(writer) = &self.writer else { return Err(IoError::ReadOnly) };
        let (send, recv) = crossbeam_channel::bounded(1);
        writer.checkpoint(Box::new(move |result| {
            let _ = send.send(result);
        }));
        recv.recv().unwrap_or(Err(IoError::Shutdown))
    }

    fn wake_worker(&self) {
        if let Some(writer) = &self.writer {
            writer.call();
        }
    }

    /// Takes over the size that a rollback or a backup has given the volume; it takes no requests just now.
    fn update_size(&self) {
        let store = &self.core.store;
        let raw_bytes = store.raw_bytes();
        let size = device_bytes(store.kind, raw_bytes);
        let before = self.size_bytes.swap(size, Ordering::SeqCst);
        if before < size && !holds_raw(store.geometry, raw_bytes) {
            tracing::warn!(
                "the volume has {size} bytes again, more than its image holds: writes fail when that is full; make the image larger \
                 (vexctl resize)"
            );
        }
        if before != size {
            tracing::info!("the volume had {before} bytes and has {size} now");
        }
    }

    /// Range and alignment.
    fn check_range(&self, offset: u64, len_bytes: u64) -> Result<(), IoError> {
        self.check_range_of(self.size_bytes.load(Ordering::Relaxed), offset, len_bytes)
    }

    /// As [`Volume::check_range`], in a state of this size.
    fn check_range_of(&self, size: u64, offset: u64, len_bytes: u64) -> Result<(), IoError> {
        let end = offset.checked_add(len_bytes);
        if end.is_none_or(|end| end > size) {
            return Err(IoError::Invalid(format!("{len_bytes} bytes at {offset} are past the end ({size})")));
        }
        if self.info.kind == VolumeKind::VexFs && !(offset | len_bytes).is_multiple_of(PAGE as u64) {
            return Err(IoError::Invalid(format!(
                "{len_bytes} bytes at {offset} are not whole pages of {PAGE} bytes"
            )));
        }
        Ok(())
    }

    /// Whether an attached client may change these pages of a VexFS volume.
    fn check_owner(&self, offset: u64, len_bytes: u64) -> Result<(), IoError> {
        if self.info.kind == VolumeKind::Raw || len_bytes == 0 {
            return Ok(());
        }
        let (first, last) = (PageNo::containing(offset), PageNo::containing(offset + len_bytes - 1));
        let refuse =
            |what: &str| Err(IoError::Invalid(format!("pages {:#x} to {:#x}: {what}", first.0, last.0)));
        match (owner(first), owner(last)) {
            (Owner::Mounter, Owner::Mounter) if first == SUPERBLOCK_PAGE && last != SUPERBLOCK_PAGE => {
                refuse("the superblock is written alone, as the commit")
            }
            (Owner::Mounter, Owner::Mounter) => Ok(()),
            (Owner::Command, Owner::Command) => Ok(()),
            (Owner::Daemon, _) | (_, Owner::Daemon) => {
                refuse("owned by the daemon, never written by a client")
            }
            _ => refuse("outside every region"),
        }
    }

    /// Checks a request, and says who carries it out.
    fn accept(&self, client: ClientId, op: IoOp, done: Done) -> Accepted {
        macro_rules! attempt {
            ($result:expr) => {
                match $result {
                    Ok(value) => value,
                    Err(e) => return Accepted::finished(done, Err(e)),
                }
            };
        }
        if self.closing.load(Ordering::SeqCst) {
            return Accepted::finished(done, Err(IoError::Shutdown));
        }
        attempt!(self.core.check_not_rolling_back());
        if let IoOp::Read { offset, buf } = op {
            attempt!(self.check_range(offset, buf.len() as u64));
            return Accepted::Read(ReadJob { client, view: View::Live, offset, buf, done });
        }
        if self.writer.is_none() {
            // Nothing to make durable on a read-only volume.
            let result = if matches!(op, IoOp::Flush) { Ok(None) } else { Err(IoError::ReadOnly) };
            return Accepted::finished(done, result);
        }
        let no_hole = matches!(op, IoOp::WriteZeroes { no_hole: true, .. });
        Accepted::Change(match op {
            IoOp::Read { .. } | IoOp::Flush => Request::Flush { done },
            IoOp::Write { offset, buf, fua } => {
                attempt!(self.check_range(offset, buf.len() as u64));
                attempt!(self.check_owner(offset, buf.len() as u64));
                Request::Write { client, offset, buf: Arc::new(buf), fua, keep_zeros: false, done }
            }
            IoOp::Trim { offset, len_bytes, fua } | IoOp::WriteZeroes { offset, len_bytes, fua, .. } => {
                attempt!(self.check_range(offset, len_bytes));
                attempt!(self.check_owner(offset, len_bytes));
                let first = PageNo::containing(offset);
                if self.info.kind == VolumeKind::VexFs
                    && len_bytes > 0
                    && [SUPERBLOCK_PAGE, STATUS_PAGE, COMMAND_PAGE].contains(&first)
                {
                    let why = IoError::Invalid("control pages cannot be discarded".into());
                    return Accepted::finished(done, Err(why));
                }
                if !no_hole || len_bytes == 0 {
                    return Accepted::Change(Request::Zero { client, offset, len_bytes, fua, done });
                }
                if len_bytes > NO_HOLE_BYTES_MAX {
                    let why = format!(
                        "{len_bytes} bytes of zeros without a hole; {NO_HOLE_BYTES_MAX} at most at a time"
                    );
                    return Accepted::finished(done, Err(IoError::Invalid(why)));
                }
                // Checked above: at most 32 MiB.
                let buf = Arc::new(AlignedBuf::zeroed(len_bytes as usize));
                Request::Write { client, offset, buf, fua, keep_zeros: true, done }
            }
        })
    }

    /// Whether a mounter may write this.
    fn check_commit(&self, commit: &Commit) -> Result<(), IoError> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(IoError::Shutdown);
        }
        if self.info.kind == VolumeKind::Raw {
            return Err(IoError::Invalid("a raw volume has no commits".into()));
        }
        for run in commit.pages() {
            let (offset, len_bytes) = (run.first.saturating_mul(PAGE as u64), (run.pages * PAGE) as u64);
            self.check_range(offset, len_bytes)?;
            self.check_owner(offset, len_bytes)?;
            if [SUPERBLOCK_PAGE.0, COMMAND_PAGE.0].contains(&run.first) {
                return Err(IoError::Invalid("a commit writes pages, and the superblock last".into()));
            }
        }
        Ok(())
    }

    fn change(&self, requests: impl IntoIterator<Item = Request>) {
        if let Some(writer) = &self.writer {
            writer.submit(requests);
        }
    }
}

/// What becomes of a request.
enum Accepted {
    /// It is finished.
    Finished,
    Read(ReadJob),
    Change(Request),
}

impl Accepted {
    fn finished(done: Done, result: IoResult) -> Self {
        done(result);
        Accepted::Finished
    }
}

impl Device for Volume {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { size_bytes: self.size_bytes.load(Ordering::Relaxed), ..self.info.clone() }
    }

    /// A rollback begins only while nobody is connected, so whoever is and finds that none is under way is told what stays.
    fn ready(&self) -> Result<(), IoError> {
        self.core.check_not_rolling_back()
    }

    fn counters(&self) -> Arc<RequestCounters> {
        Arc::clone(&self.requests)
    }

    fn connect(&self) -> ClientId {
        self.connected.fetch_add(1, Ordering::SeqCst);
        ClientId(self.clients.fetch_add(1, Ordering::Relaxed))
    }

    fn disconnect(&self, client: ClientId) {
        self.connected.fetch_sub(1, Ordering::SeqCst);
        match &self.writer {
            Some(writer) => writer.submit([Request::Disconnect { client }]),
            None => self.core.sessions.lock().disconnect(client),
        }
    }

    fn client_state(&self, client: ClientId) -> Vec<u8> {
        self.core.sessions.lock().client_state(client)
    }

    fn restore_client(&self, client: ClientId, state: &[u8]) {
        self.core.sessions.lock().restore_client(client, state);
    }

    fn submit(&self, client: ClientId, op: IoOp, done: Done) {
        match self.accept(client, op, done) {
            Accepted::Finished => {}
            Accepted::Read(job) => self.reads.submit(job),
            Accepted::Change(request) => self.change([request]),
        }
    }

    fn allocation(
        &self,
        _client: ClientId,
        offset: u64,
        len_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, IoError> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(IoError::Shutdown);
        }
        self.check_range(offset, len_bytes)?;
        allocation::allocation(&self.core.store, View::Live, offset, len_bytes, extents_max)
    }

    fn submit_here(&self, client: ClientId, op: IoOp, done: Done) {
        match self.accept(client, op, done) {
            Accepted::Finished => {}
            Accepted::Read(job) => reads::run(&self.core, vec![job]),
            Accepted::Change(request) => {
                if let Some(writer) = &self.writer {
                    writer.submit_alone(request);
                }
            }
        }
    }

    fn submit_batch(&self, client: ClientId, batch: Vec<(IoOp, Done)>) {
        completion::scope(|| {
            let mut reads = Vec::new();
            let mut changes = Vec::new();
            for (op, done) in batch {
                match self.accept(client, op, done) {
                    Accepted::Finished => {}
                    Accepted::Read(job) => reads.push(job),
                    Accepted::Change(request) => changes.push(request),
                }
            }
            if !changes.is_empty() {
                self.change(changes);
            }
            for read in self.reads.share_of(&mut reads) {
                self.reads.submit(read);
            }
            if !reads.is_empty() {
                reads::run(&self.core, reads);
            }
        });
    }

    fn commit(&self, client: ClientId, commit: Commit) -> Result<(), IoError> {
        self.core.check_not_rolling_back()?;
        self.check_commit(&commit)?;
        let writer = self.writer.as_ref().ok_or(IoError::ReadOnly)?;
        awaited(|done| writer.submit_alone(Request::Commit { client, commit, done })).map(drop)
    }

    fn expect_flush(&self) {
        if let Some(writer) = &self.writer
            && !self.closing.load(Ordering::SeqCst)
        {
            writer.expect_flush();
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(e) = self.shutdown() {
            tracing::error!("closing the volume: {e}");
        }
    }
}

/// Size of the device in bytes.
fn device_bytes(kind: VolumeKind, raw_bytes: u64) -> u64 {
    match kind {
        VolumeKind::Raw => raw_bytes,
        VolumeKind::VexFs => DEVICE_BYTES,
    }
}

/// What of the options concerns the store.
fn recover_options(options: &OpenOptions) -> RecoverOptions {
    RecoverOptions {
        read_only: options.read_only,
        boot_id: options.boot_id,
        tuning: Tuning {
            cleaner_bytes_per_s: options.cleaner_bytes_per_s,
            checkpoint_bytes: options.checkpoint_bytes,
            ..Tuning::default()
        },
        map_bytes_max: usize::try_from(options.map_bytes_max.max(MAP_BYTES_MIN)).unwrap_or(usize::MAX),
        discard: options.discard,
    }
}

/// A channel whose receiver sleeps elsewhere.
pub(crate) fn channel<T>() -> (Sender<T>, crossbeam_channel::Receiver<T>) {
    unbounded()
}
