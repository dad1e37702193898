//! The readers' threads: each takes what waits, and reads it from the backing in one batch.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use layout::addr::{COMMAND_PAGE, MAP_BASE, PAGE, STATUS_PAGE};
use parking_lot::Mutex;

use super::{Core, channel, snapshot, synth};
use crate::buf::AlignedBuf;
use crate::device::{ClientId, Done, IoError, VolumeKind};
use crate::store::reader::PageRead;
use crate::store::snapshot::View;

/// Most requests of a batch.
const BATCH_MAX: usize = 32;

/// A batch of so many bytes is worth waking another thread for.
const SHARE_BYTES_MIN: usize = 256 << 10;

/// A read that waits.
pub(super) struct ReadJob {
    pub(super) client: ClientId,
    pub(super) view: View,
    pub(super) offset: u64,
    pub(super) buf: AlignedBuf,
    pub(super) done: Done,
}

/// The threads and their queue.
pub(super) struct ReadPool {
    queue: Mutex<Option<Sender<ReadJob>>>,
}

impl ReadPool {
    pub(super) fn start(core: &Arc<Core>, threads: usize, handles: &mut Vec<JoinHandle<()>>) -> Self {
        let (send, recv) = channel();
        for i in 0..threads {
            let (core, recv) = (Arc::clone(core), recv.clone());
            let spawned = std::thread::Builder::new()
                .name(format!("vexfs-read-{i}"))
                .spawn(move || while serve(&core, &recv, threads) {});
            match spawned {
                Ok(handle) => handles.push(handle),
                Err(e) => tracing::error!("cannot start a reader thread: {e}"),
            }
        }
        ReadPool { queue: Mutex::new(Some(send)) }
    }

    /// Takes out of a batch what the pool's threads had better do while the thread that brings it does the rest: half of
    /// it, if it is large.
    pub(super) fn share_of(&self, batch: &mut Vec<ReadJob>) -> Vec<ReadJob> {
        let bytes: usize = batch.iter().map(|job| job.buf.len()).sum();
        let large = batch.len() > 1 && bytes >= SHARE_BYTES_MIN;
        if large { batch.split_off(batch.len().div_ceil(2)) } else { Vec::new() }
    }

    pub(super) fn submit(&self, job: ReadJob) {
        let queue = self.queue.lock();
        let rejected = match &*queue {
            Some(send) => send.send(job).err().map(|e| e.0),
            None => Some(job),
        };
        drop(queue);
        if let Some(job) = rejected {
            (job.done)(Err(IoError::Shutdown));
        }
    }

    /// Lets the threads end once the queue is empty.
    pub(super) fn stop(&self) {
        self.queue.lock().take();
    }
}

/// One batch; false when the pool is stopped.
fn serve(core: &Core, recv: &Receiver<ReadJob>, threads: usize) -> bool {
    let Ok(first) = recv.recv() else { return false };
    let mut jobs = vec![first];
    let share = (recv.len() / threads).min(BATCH_MAX);
    while jobs.len() <= share
        && let Ok(job) = recv.try_recv()
    {
        jobs.push(job);
    }
    run(core, jobs);
    true
}

/// Carries out reads and calls their completions, each as soon as it is finished.
pub(super) fn run(core: &Core, jobs: Vec<ReadJob>) {
    let mut reads = Vec::with_capacity(jobs.len());
    let mut dones = Vec::with_capacity(jobs.len());
    for mut job in jobs {
        let (offset, len) = (job.offset, job.buf.len() as u64);
        let result = if len == 0 {
            Ok(())
        } else if let View::Snapshot(id) = job.view {
            snapshot::read(core, id, offset, &mut job.buf)
        } else if (offset | len) % PAGE as u64 != 0 {
            read_unaligned(core, offset, &mut job.buf)
        } else if core.store.kind == VolumeKind::VexFs && touches_synthesised(offset, len) {
            read_mixed(core, job.client, offset, &mut job.buf)
        } else {
            reads.push(PageRead { first: offset / PAGE as u64, buf: job.buf });
            dones.push(Some(job.done));
            continue;
        };
        (job.done)(result.map(|()| Some(job.buf)));
    }
    core.store.read_each(reads, &mut |i, result| {
        if let Some(done) = dones[i].take() {
            done(result.map(Some));
        }
    });
}

pub(super) fn touches_synthesised(offset: u64, len: u64) -> bool {
    let first = offset / PAGE as u64;
    first <= COMMAND_PAGE.0 && offset + len > STATUS_PAGE.byte() || offset + len > MAP_BASE
}

/// Page by page, since some pages are made up.
fn read_mixed(core: &Core, client: ClientId, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
    let first = offset / PAGE as u64;
    for (page, bytes) in (first..).zip(buf.chunks_exact_mut(PAGE)) {
        if page == STATUS_PAGE.0 {
            synth::status(core, bytes);
        } else if page == COMMAND_PAGE.0 {
            bytes.copy_from_slice(&core.sessions.lock().reply(client, &core.store.maps.read().session));
        } else if page * PAGE as u64 >= MAP_BASE {
            synth::allocation_map(&core.store, View::Live, page * PAGE as u64 - MAP_BASE, bytes)?;
        } else {
            core.store.read_run(page, bytes)?;
        }
    }
    Ok(())
}

/// Reads the pages around the range and copies it out.
fn read_unaligned(core: &Core, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
    let first = offset / PAGE as u64;
    let skip = (offset % PAGE as u64) as usize;
    let mut pages = AlignedBuf::zeroed((skip + buf.len()).next_multiple_of(PAGE));
    core.store.read_run(first, &mut pages)?;
    buf.copy_from_slice(&pages[skip..skip + buf.len()]);
    Ok(())
}
