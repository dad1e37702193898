//! FUSE over io_uring (Linux 6.14, Documentation/filesystems/fuse/fuse-io-uring.rst): requests arrive in rings, one for each processor,
//! and are carried out on the processor where they were made.
//!
//! A ring has [`DEPTH`] [`entries`](entry). Life of an entry: registered with the kernel, which owns it -> a completion brings
//! a request, it is ours -> carried out by the ring's [`thread`], or by one of the [`workers`] if it may take long -> the reply is
//! committed, which registers it again. An entry that is ours takes no other request: what waits for other requests of the kernel
//! may never have all entries of a ring.
//!
//! Notifications and FORGET go by the device as before.

mod entry;
mod thread;
mod workers;

use std::io;
use std::sync::Arc;

use crossbeam_channel::{bounded, unbounded};

use self::thread::RingThread;
use self::workers::Jobs;
use super::channel::Channel;
use super::pool::{Crew, Pool, Threads};
use super::server::Handler;

pub use self::thread::is_possible;

/// Entries of a ring: requests that one processor can have at work at once. Their memory is taken as requests fill it.
const DEPTH: usize = 32;
/// Workers that wait for work.
const IDLE_WORKERS_MAX: usize = 4;

/// Starts a ring for each processor. Requests wait in the kernel until all are there.
///
/// # Errors
/// What io_uring or the kernel's FUSE say; the connection can't be used then.
pub(super) fn start(crew: &Arc<Crew>, device: &Arc<Channel>, handler: &Arc<dyn Handler>) -> io::Result<()> {
    let (jobs, waiting) = unbounded();
    let limits = Threads { idle_max: IDLE_WORKERS_MAX, max: usize::MAX };
    Pool::start(crew, "vexfs-worker", Jobs { waiting, handler: Arc::clone(handler) }, limits)?;
    for number in 0..possible_processors()? {
        let (started, result) = bounded(1);
        let (device, jobs, handler) = (Arc::clone(device), jobs.clone(), Arc::clone(handler));
        crew.spawn(&format!("vexfs-ring-{number}"), move || {
            stay_on(number);
            match RingThread::new(&device, number, jobs, handler) {
                Ok(mut ring) => {
                    let _ = started.send(Ok(()));
                    ring.serve();
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
        result.recv().map_err(io::Error::other)??;
    }
    Ok(())
}

/// Rings are needed for all processors that there may ever be (cpu_possible_mask).
fn possible_processors() -> io::Result<u16> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u16>().ok());
    last.map(|last| last + 1)
        .ok_or_else(|| io::Error::other("/sys/devices/system/cpu/possible can't be read"))
}

/// Runs this thread where the ring's requests are made. A processor that is not there has no requests either.
fn stay_on(processor: u16) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(usize::from(processor));
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::debug!("a ring's thread does not stay on processor {processor}: {error}");
    }
}
