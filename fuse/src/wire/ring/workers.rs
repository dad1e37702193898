//! Requests of rings that may take long, carried out by a [pool](crate::wire::pool) of threads.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

use super::entry::Entry;
use crate::wire::pool::Work;
use crate::wire::reply::Reply;
use crate::wire::server::Handler;

/// What a ring's thread shares with workers.
pub struct Queue {
    /// The ring's entries.
    pub entries: Box<[Mutex<Entry>]>,
    /// Those that workers are done with.
    pub done: Mutex<Vec<usize>>,
    /// An eventfd that wakes the ring's thread.
    pub wake: OwnedFd,
}

/// An entry of a queue, ours and with a request.
pub type Job = (Arc<Queue>, usize);

/// What rings leave to workers.
pub struct Jobs {
    /// Its other side is the rings'.
    pub waiting: Receiver<Job>,
    /// Carries requests out.
    pub handler: Arc<dyn Handler>,
}

impl Work for Jobs {
    type Desk = Reply;
    type Job = Job;

    fn desk(&self) -> io::Result<Reply> {
        Ok(Reply::default())
    }

    fn next(&self, _: &mut Reply) -> Option<Job> {
        self.waiting.recv().ok()
    }

    fn may_wait(&self, _: &Reply, _: &Job) -> bool {
        true
    }

    fn carry_out(&self, reply: &mut Reply, (queue, index): Job) {
        queue.entries[index].lock().carry_out(&*self.handler, reply);
        queue.done.lock().push(index);
        if let Err(error) = rustix::io::write(&queue.wake, &1_u64.to_ne_bytes()) {
            tracing::error!("cannot wake a ring's thread: {error}");
        }
    }
}
