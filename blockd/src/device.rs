//! The seam between whoever serves a volume and whoever uses it.
//!
//! A [`Device`] is implemented by the store's volume (in this process), by the NBD client, and by
//! a plain block device; it is used by the NBD server, by the FUSE mounter and by the tools.
//!
//! The primitive is asynchronous: [`Device::submit`] takes an owned request and calls its `done`
//! exactly once, from any thread. Blocking helpers stand beside it.

mod commit;

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::buf::AlignedBuf;
use crate::completion;
use crate::stats::RequestCounters;

pub use commit::{Commit, PageRun};

/// What kind of volume a store holds; fixed when it is created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VolumeKind {
    /// A plain virtual disk of a given size.
    Raw,
    /// The 2^62-byte sparse device of a VexFS file system.
    VexFs,
}

impl VolumeKind {
    /// Its name on the wire, in JSON and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            VolumeKind::Raw => "raw",
            VolumeKind::VexFs => "vexfs",
        }
    }
}

/// What a client must know of a device.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Kind of volume.
    pub kind: VolumeKind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Smallest request and alignment in bytes (4096 on VexFS volumes).
    pub block_bytes_min: u32,
    /// No writes are taken.
    pub read_only: bool,
    /// The volume's uuid.
    pub uuid: uuid::Uuid,
}

/// Who submits a request: a connection, a ublk device or an embedding process. Sessions are
/// granted to clients (FORMAT.md section 3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClientId(pub u64);

/// Longest [`IoOp::WriteZeroes`] that leaves no hole, in bytes.
pub const NO_HOLE_BYTES_MAX: u64 = 32 << 20;

/// One operation; offsets and lengths in bytes.
#[derive(Debug)]
pub enum IoOp {
    /// Fills `buf` from `offset`; the buffer comes back with the completion.
    Read { offset: u64, buf: AlignedBuf },
    /// Writes `buf` at `offset`; with `fua` it is durable when acknowledged.
    Write { offset: u64, buf: AlignedBuf, fua: bool },
    /// Everything acknowledged before is durable when this is.
    Flush,
    /// The range reads as zeros afterwards and its space is given back.
    Trim { offset: u64, len_bytes: u64, fua: bool },
    /// The range reads as zeros afterwards. With `no_hole` it is written as data is: it takes its space now, and later
    /// writes of it need no more; then it is at most [`NO_HOLE_BYTES_MAX`] long.
    WriteZeroes { offset: u64, len_bytes: u64, fua: bool, no_hole: bool },
}

/// Why a request failed; one errno each, see [`IoError::errno`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum IoError {
    /// The backing failed, or a checksum is wrong: never wrong data. The text has the address.
    #[error("I/O error: {0}")]
    Io(String),
    /// No space is left in the backing.
    #[error("no space left in the image")]
    NoSpace,
    /// The request is malformed (alignment, range).
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The client is not, or no longer, the mounter of this volume.
    #[error("fenced: {0}")]
    Fenced(String),
    /// The volume or device is read-only.
    #[error("read-only")]
    ReadOnly,
    /// The device is being shut down.
    #[error("shutting down")]
    Shutdown,
}

impl IoError {
    /// The errno a block interface answers with.
    pub fn errno(&self) -> i32 {
        match self {
            IoError::Io(_) => libc::EIO,
            IoError::NoSpace => libc::ENOSPC,
            IoError::Invalid(_) => libc::EINVAL,
            IoError::Fenced(_) => libc::ESHUTDOWN,
            IoError::ReadOnly => libc::EPERM,
            IoError::Shutdown => libc::ESHUTDOWN,
        }
    }
}

/// The outcome: for a read its buffer, else `None`.
pub type IoResult = Result<Option<AlignedBuf>, IoError>;

/// Called once when a request is finished, from any thread; must not block.
pub type Done = Box<dyn FnOnce(IoResult) + Send>;

/// A block device of 4 KiB pages.
pub trait Device: Send + Sync {
    /// Size, kind and limits; constant as long as a client is connected that came while the device was [ready](Device::ready).
    fn info(&self) -> DeviceInfo;
    /// Whether [`Device::info`] can be told to a client that is connected.
    ///
    /// # Errors
    /// Why not, just now: the device is about to become another one.
    fn ready(&self) -> Result<(), IoError> {
        Ok(())
    }
    /// Where those who serve this device count its requests; by default nowhere that anyone looks.
    fn counters(&self) -> Arc<RequestCounters> {
        Arc::default()
    }
    /// A new client of this device.
    fn connect(&self) -> ClientId;
    /// The client is gone: its session, if any, stays live (it may attach again).
    fn disconnect(&self, client: ClientId);
    /// What must be known of a client, other than that it is there, by whoever opens this device next: in a form of the
    /// device's own, for [`Device::restore_client`].
    fn client_state(&self, client: ClientId) -> Vec<u8> {
        let _ = client;
        Vec::new()
    }
    /// A fresh client is one that the predecessor knew so. What is not understood is as good as nothing.
    fn restore_client(&self, client: ClientId, state: &[u8]) {
        let _ = (client, state);
    }
    /// Starts a request; `done` is called exactly once. Two requests in flight at once may take
    /// effect in either order.
    fn submit(&self, client: ClientId, op: IoOp, done: Done);
    /// As [`Device::submit`], from a caller that would only wait for this request: the device may carry it out in the
    /// calling thread, which saves two hand-offs between threads. `done` may be called before this returns.
    fn submit_here(&self, client: ClientId, op: IoOp, done: Done) {
        self.submit(client, op, done);
    }
    /// As [`Device::submit`] for each request, from a caller that has nothing else to do before it needs them: the
    /// device may carry out in the calling thread what does not take long, and serve them together. Completions are
    /// told within a [`completion::scope`].
    fn submit_batch(&self, client: ClientId, batch: Vec<(IoOp, Done)>) {
        completion::scope(|| batch.into_iter().for_each(|(op, done)| self.submit(client, op, done)));
    }
    /// Writes what is left of a VexFS volume's open epoch, commits it, and waits until that is durable.
    ///
    /// # Errors
    /// It is not committed, as far as is known; some of its pages may be in the open epoch. The same commit may be sent again.
    fn commit(&self, client: ClientId, commit: Commit) -> Result<(), IoError> {
        commit.in_parts(self, client)
    }
    /// The client, which waits for each request before it sends another, is about to ask for a flush, going by what it
    /// did before: the device may begin with it. May block as long as a flush does.
    fn expect_flush(&self) {}
    /// Which parts of a range (not empty, within the device) hold data: at least one extent, at most `extents_max`
    /// (not 0), from `offset` on, neighbours unlike. They may cover less than the range, never more. May wait for reads
    /// of the backing, a bounded number at a call.
    ///
    /// # Errors
    /// As a read of the range.
    fn allocation(
        &self,
        client: ClientId,
        offset: u64,
        len_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, IoError> {
        let _ = (client, offset, extents_max);
        Ok(vec![Extent { len_bytes, mapped: true }])
    }
}

/// A part of a device, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Its length; the next one begins behind it.
    pub len_bytes: u64,
    /// It may hold data; if not, it reads as zeros and takes no space.
    pub mapped: bool,
}

/// Waits for one request.
pub fn blocking(device: &dyn Device, client: ClientId, op: IoOp) -> IoResult {
    batch(device, client, [op]).pop().unwrap_or(Err(IoError::Shutdown))
}

/// Waits until the `Done` that `start` is given was called, by itself or by another thread.
pub(crate) fn awaited(start: impl FnOnce(Done)) -> IoResult {
    let state: Arc<(Mutex<Option<IoResult>>, Condvar)> = Arc::default();
    let told = Arc::clone(&state);
    start(Box::new(move |result| {
        *told.0.lock() = Some(result);
        told.1.notify_one();
    }));
    let mut result = state.0.lock();
    loop {
        match result.take() {
            Some(result) => return result,
            None => state.1.wait(&mut result),
        }
    }
}

/// Submits all requests at once and waits for all; results stand in the order of the requests.
pub fn batch(device: &dyn Device, client: ClientId, ops: impl IntoIterator<Item = IoOp>) -> Vec<IoResult> {
    batch_of(device, client, ops)
}

/// As [`batch`].
fn batch_of<D: Device + ?Sized>(
    device: &D,
    client: ClientId,
    ops: impl IntoIterator<Item = IoOp>,
) -> Vec<IoResult> {
    struct State {
        results: Vec<Option<IoResult>>,
        pending: usize,
    }
    let state = Arc::new((Mutex::new(State { results: Vec::new(), pending: 0 }), Condvar::new()));
    let mut requests: Vec<(IoOp, Done)> = ops
        .into_iter()
        .enumerate()
        .map(|(i, op)| {
            let state = Arc::clone(&state);
            let done = Box::new(move |result| {
                let mut s = state.0.lock();
                s.results[i] = Some(result);
                s.pending -= 1;
                if s.pending == 0 {
                    state.1.notify_one();
                }
            });
            (op, done as Done)
        })
        .collect();
    {
        let mut s = state.0.lock();
        s.results.resize_with(requests.len(), || None);
        s.pending = requests.len();
    }
    match requests.len() {
        0 => {}
        1 => requests.drain(..).for_each(|(op, done)| device.submit_here(client, op, done)),
        _ => device.submit_batch(client, requests),
    }
    let mut s = state.0.lock();
    while s.pending > 0 {
        state.1.wait(&mut s);
    }
    s.results.drain(..).map(|r| r.unwrap_or(Err(IoError::Shutdown))).collect()
}
