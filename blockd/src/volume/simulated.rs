//! A daemon on a simulated machine, as the [`Device`] of a mounter: the real volume over a [`SimStorage`], without threads.
//!
//! Requests are carried out by the thread that makes them, so that a seed decides everything. While they are
//! under way, [`SimDaemon`] calls a function of its user: what the mounter's other threads do meanwhile.
//!
//! The disk's crash (see [`SimStorage::crash_at`]) is either the death of the daemon alone, which comes back under
//! its mounter as it does behind an NBD connection: the connection is made anew, attached to the session, and what
//! was not acknowledged is sent again; or the end of everything, until [`SimDaemon::restart`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use layout::addr::{DEVICE_BYTES, INDEX_BASE, PAGE};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::allocation;
use super::inbox::Request;
use super::reads::{self, ReadJob};
use super::stepped::Stepped;
use crate::buf::AlignedBuf;
use crate::completion;
use crate::device::{
    ClientId, Commit, Device, DeviceInfo, Done, Extent, IoError, IoOp, IoResult, VolumeKind, awaited,
};
use crate::session::{BootId, CommandPort, GrantCell, attach};
use crate::storage::sim::timeline::Timeline;
use crate::storage::sim::{Crash, SimStorage};
use crate::store::clean::Tuning;
use crate::store::create::{NewStore, create};
use crate::store::recover::RecoverOptions;
use crate::store::snapshot::View;

const SEGMENT_BYTES: u64 = 64 << 10;

/// What the death of the disk's user means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Death {
    /// The daemon alone: it comes back under its mounter.
    Daemon,
    /// Everything ends until [`SimDaemon::restart`].
    Everything,
}

/// See the module's text.
pub struct SimDaemon {
    inner: Mutex<Inner>,
    clients: AtomicU64,
    grant: GrantCell,
    amid: fn(),
    uuid: [u8; 16],
}

struct Inner {
    disk: SimStorage,
    volume: Stepped,
    options: RecoverOptions,
    clean: bool,
    rng: StdRng,
    boots: u64,
    death: Death,
    /// The newest client, and its connection: another one after each death of the daemon.
    client: ClientId,
    connection: ClientId,
    /// How often the daemon came back.
    returns: u64,
    /// Requests that the mounter still sends before it dies.
    requests_left: Option<u64>,
}

/// A change as it may have to be sent again.
enum Kept {
    Write { offset: u64, buf: Arc<AlignedBuf>, fua: bool },
    Zero { offset: u64, len_bytes: u64, fua: bool },
    Commit(Commit),
    Flush,
}

type Outcome = Arc<Mutex<Option<IoResult>>>;

impl Kept {
    fn new(op: IoOp) -> Self {
        match op {
            IoOp::Write { offset, buf, fua } => Kept::Write { offset, buf: Arc::new(buf), fua },
            IoOp::Trim { offset, len_bytes, fua } | IoOp::WriteZeroes { offset, len_bytes, fua, .. } => {
                Kept::Zero { offset, len_bytes, fua }
            }
            IoOp::Read { .. } | IoOp::Flush => Kept::Flush,
        }
    }

    fn request(&self, client: ClientId, done: Done) -> Request {
        match self {
            Kept::Write { offset, buf, fua } => {
                let buf = Arc::clone(buf);
                Request::Write { client, offset: *offset, buf, fua: *fua, keep_zeros: false, done }
            }
            Kept::Zero { offset, len_bytes, fua } => {
                Request::Zero { client, offset: *offset, len_bytes: *len_bytes, fua: *fua, done }
            }
            Kept::Commit(commit) => Request::Commit { client, commit: commit.clone(), done },
            Kept::Flush => Request::Flush { done },
        }
    }
}

fn outcome() -> (Outcome, Done) {
    let outcome: Outcome = Arc::default();
    let mine = Arc::clone(&outcome);
    (outcome, Box::new(move |result| *mine.lock() = Some(result)))
}

impl SimDaemon {
    /// A daemon that serves a new, empty VexFS volume. `amid` is called while changes are under way.
    ///
    /// # Panics
    /// If the image is too small.
    pub fn new(image_bytes: usize, seed: u64, timeline: Timeline, grant: GrantCell, amid: fn()) -> Arc<Self> {
        let uuid = [7; 16];
        let blank = SimStorage::new(vec![0x5a; image_bytes], 0);
        let new = NewStore { kind: VolumeKind::VexFs, uuid, raw_bytes: 0, segment_bytes: SEGMENT_BYTES };
        create(Arc::new(blank.clone()), new).expect("the image is large enough");
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimStorage::with_timeline(blank.image(), rng.random(), timeline);
        disk.set_synchronous(rng.random_ratio(1, 4));
        let options = RecoverOptions {
            read_only: false,
            boot_id: [1; 16],
            tuning: Tuning {
                checkpoint_bytes: PAGE as u64 * [60, 400, 2000][rng.random_range(0..3)],
                ..Tuning::default()
            },
            map_bytes_max: [0, 4 << 10, 64 << 10][rng.random_range(0..3)],
            discard: rng.random(),
        };
        let clean = rng.random();
        let volume = Stepped::open_with(Arc::new(disk.clone()), &options, clean).expect("a new store opens");
        let inner = Inner {
            disk,
            volume,
            options,
            clean,
            rng,
            boots: 1,
            death: Death::Everything,
            client: ClientId(0),
            connection: ClientId(0),
            returns: 0,
            requests_left: None,
        };
        let daemon = SimDaemon { inner: Mutex::new(inner), clients: AtomicU64::new(1), grant, amid, uuid };
        daemon.inner.lock().volume.begin();
        Arc::new(daemon)
    }

    /// The disk below, for its faults.
    pub fn disk(&self) -> SimStorage {
        self.inner.lock().disk.clone()
    }

    /// The machine's boot, for [`crate::session::Session::open`].
    pub fn boot_id(&self) -> BootId {
        BootId(self.inner.lock().options.boot_id)
    }

    /// Says what the next crash of the disk means.
    pub fn set_death(&self, death: Death) {
        self.inner.lock().death = death;
    }

    /// Whether the daemon comes back by itself when the disk stops: its mounter then sees no error.
    pub fn comes_back(&self) -> bool {
        matches!(self.inner.lock().death, Death::Daemon)
    }

    /// The mounter dies after so many more requests: none of what it sends later comes here. `None` ends that.
    pub fn cut_mounter_after(&self, requests: Option<u64>) {
        self.inner.lock().requests_left = requests;
    }

    /// Whether the mounter was cut off.
    pub fn is_cut(&self) -> bool {
        self.inner.lock().requests_left == Some(0)
    }

    /// Everything dies now, if it has not, and the daemon starts again; after a power cut under a new boot.
    pub fn restart(&self, crash: Crash) {
        let mut inner = self.inner.lock();
        inner.restart(crash);
        inner.death = Death::Everything;
        inner.requests_left = None;
    }

    /// The daemon alone dies now, and comes back.
    pub fn kill_daemon(&self) {
        self.inner.lock().come_back(&self.grant);
    }

    /// A round of the cleaner, as if writers waited.
    pub fn clean(&self) {
        self.inner.lock().volume.clean();
    }

    /// The ranges below the index that hold data, as (first page, pages).
    ///
    /// # Errors
    /// As a read.
    pub fn mapped(&self) -> Result<Vec<(u64, u64)>, IoError> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < INDEX_BASE {
            for extent in self.allocation(ClientId(0), at, INDEX_BASE - at, 64)? {
                if extent.mapped {
                    found.push((at / PAGE as u64, extent.len_bytes / PAGE as u64));
                }
                at += extent.len_bytes;
            }
        }
        Ok(found)
    }

    fn change(&self, client: ClientId, mut left: Vec<(Kept, Done)>) {
        loop {
            let (returns, outcomes): (u64, Vec<Outcome>) = {
                let mut inner = self.inner.lock();
                let inner = &mut *inner;
                let sent = left.iter().map(|(kept, _)| inner.send(client, kept)).collect();
                if inner.rng.random() {
                    inner.volume.step();
                }
                (inner.returns, sent)
            };
            (self.amid)();
            let mut finished = Vec::new();
            {
                let mut inner = self.inner.lock();
                inner.volume.settle();
                // What the daemon said before it died was said. A read in between may have found it dead.
                let dead = inner.disk.crashed() && inner.death == Death::Daemon;
                let comes_back = dead || inner.returns > returns;
                let mut lost = Vec::new();
                for ((kept, done), outcome) in left.into_iter().zip(outcomes) {
                    match outcome.lock().take() {
                        Some(result) if result.is_ok() || !comes_back => finished.push((done, result)),
                        None if !comes_back => finished.push((done, Err(IoError::Shutdown))),
                        _ => lost.push((kept, done)),
                    }
                }
                left = lost;
                if dead {
                    inner.come_back(&self.grant);
                }
            }
            completion::scope(|| finished.into_iter().for_each(|(done, result)| done(result)));
            if left.is_empty() {
                return;
            }
        }
    }

    fn read(&self, client: ClientId, offset: u64, buf: AlignedBuf, done: Done) {
        let mut inner = self.inner.lock();
        let len = buf.len();
        let mut result = inner.read(client, offset, buf);
        while result.is_err() && inner.disk.crashed() && inner.death == Death::Daemon {
            inner.come_back(&self.grant);
            result = inner.read(client, offset, AlignedBuf::zeroed(len));
        }
        drop(inner);
        done(result);
    }
}

impl Inner {
    /// Counts a request of the mounter; whether it still gets out.
    fn gets_out(&mut self) -> bool {
        match &mut self.requests_left {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }

    fn connection_of(&self, client: ClientId) -> ClientId {
        if client == self.client { self.connection } else { client }
    }

    fn send(&mut self, client: ClientId, kept: &Kept) -> Outcome {
        let (outcome, done) = outcome();
        if !self.gets_out() {
            done(Err(IoError::Shutdown));
            return outcome;
        }
        let request = kept.request(self.connection_of(client), done);
        self.volume.submit(request);
        outcome
    }

    fn read(&mut self, client: ClientId, offset: u64, buf: AlignedBuf) -> IoResult {
        if !self.gets_out() {
            return Err(IoError::Shutdown);
        }
        let (outcome, done) = outcome();
        let client = self.connection_of(client);
        let job = ReadJob { client, view: View::Live, offset, buf, done };
        reads::run(&self.volume.core, vec![job]);
        outcome.lock().take().unwrap_or(Err(IoError::Shutdown))
    }

    /// Starts anew on what a crash left, maybe dying on the way up.
    fn restart(&mut self, mut crash: Crash) {
        loop {
            self.disk = self.disk.restart(crash);
            if crash == Crash::PowerCut {
                self.boots += 1;
                self.options.boot_id = [self.boots as u8; 16];
            }
            if self.rng.random_ratio(1, 6) {
                self.disk.crash_at(self.rng.random_range(1..14));
            }
            match Stepped::open_with(Arc::new(self.disk.clone()), &self.options, self.clean) {
                Ok(mut volume) if !self.disk.crashed() => {
                    volume.begin();
                    self.disk.disarm();
                    self.volume = volume;
                    return;
                }
                Ok(_) => {}
                Err(e) => {
                    assert!(self.disk.crashed(), "nothing is wrong, and the store refuses to open: {e}")
                }
            }
            // A daemon that is started under a live mounter does not bring a power cut along.
            crash = Crash::ProcessDeath;
        }
    }

    /// The daemon starts again under its mounter.
    fn come_back(&mut self, grant: &GrantCell) {
        loop {
            self.restart(Crash::ProcessDeath);
            self.returns += 1;
            self.connection = ClientId(self.connection.0 + (1 << 32));
            let Some(grant) = grant.get() else { return };
            match attach(&mut Port(self), grant) {
                Ok(()) => return,
                Err(e) => assert!(self.disk.crashed(), "the mounter cannot attach again: {e}"),
            }
        }
    }
}

/// The command page of a fresh connection.
struct Port<'a>(&'a mut Inner);

impl CommandPort for Port<'_> {
    fn read_page(&mut self, page: layout::addr::PageNo) -> Result<AlignedBuf, IoError> {
        let (outcome, done) = outcome();
        let (offset, buf) = (page.byte(), AlignedBuf::zeroed(PAGE));
        let job = ReadJob { client: self.0.connection, view: View::Live, offset, buf, done };
        reads::run(&self.0.volume.core, vec![job]);
        let result = outcome.lock().take().unwrap_or(Err(IoError::Shutdown));
        result?.ok_or(IoError::Shutdown)
    }

    fn write_page(&mut self, page: layout::addr::PageNo, bytes: &[u8]) -> Result<(), IoError> {
        let (outcome, done) = outcome();
        let kept =
            Kept::Write { offset: page.byte(), buf: Arc::new(AlignedBuf::from_slice(bytes)), fua: false };
        let request = kept.request(self.0.connection, done);
        self.0.volume.submit(request);
        self.0.volume.settle();
        let result = outcome.lock().take().unwrap_or(Err(IoError::Shutdown));
        result.map(|_| ())
    }
}

impl Device for SimDaemon {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: VolumeKind::VexFs,
            size_bytes: DEVICE_BYTES,
            block_bytes_min: PAGE as u32,
            read_only: false,
            uuid: uuid::Uuid::from_bytes(self.uuid),
        }
    }

    fn connect(&self) -> ClientId {
        let client = ClientId(self.clients.fetch_add(1, Ordering::Relaxed));
        let mut inner = self.inner.lock();
        (inner.client, inner.connection) = (client, client);
        client
    }

    fn disconnect(&self, _client: ClientId) {}

    fn submit(&self, client: ClientId, op: IoOp, done: Done) {
        match op {
            IoOp::Read { offset, buf } => self.read(client, offset, buf, done),
            change => self.change(client, vec![(Kept::new(change), done)]),
        }
    }

    fn submit_batch(&self, client: ClientId, batch: Vec<(IoOp, Done)>) {
        let mut changes = Vec::new();
        for (op, done) in batch {
            match op {
                IoOp::Read { offset, buf } => self.read(client, offset, buf, done),
                change => changes.push((Kept::new(change), done)),
            }
        }
        if !changes.is_empty() {
            self.change(client, changes);
        }
    }

    fn commit(&self, client: ClientId, commit: Commit) -> Result<(), IoError> {
        awaited(|done| self.change(client, vec![(Kept::Commit(commit), done)])).map(drop)
    }

    fn allocation(
        &self,
        _client: ClientId,
        offset: u64,
        len_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, IoError> {
        let inner = self.inner.lock();
        allocation::allocation(&inner.volume.core.store, View::Live, offset, len_bytes, extents_max)
    }
}
