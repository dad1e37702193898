//! Threads for work that comes at any time and may take long: as many as there is work under way, and a few that wait, so that
//! a job that takes long (an fsync, a search) never keeps another one waiting.
//!
//! Life of a thread: started for a place that became free -> waits for a job -> has one started in its place if it was the last
//! that waited -> carries the job out -> waits again, or ends if enough others wait.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Where the threads of a pool get their work.
pub trait Work: Send + Sync + 'static {
    /// What each thread has for itself: a descriptor, memory.
    type Desk: Send;
    /// A piece of work that was taken.
    type Job;

    /// Makes a thread's own things.
    ///
    /// # Errors
    /// When they can't be had: there will be one thread less.
    fn desk(&self) -> io::Result<Self::Desk>;

    /// Waits for a job; none ends the thread, as there will be no more.
    fn next(&self, desk: &mut Self::Desk) -> Option<Self::Job>;

    /// Whether a job may take long, so that its thread does not count.
    fn may_wait(&self, desk: &Self::Desk, job: &Self::Job) -> bool;

    /// Does it.
    fn carry_out(&self, desk: &mut Self::Desk, job: Self::Job);
}

/// How many threads there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Threads {
    /// Threads that may wait for jobs.
    pub idle_max: usize,
    /// Threads in all, beside those whose jobs may take long.
    pub max: usize,
}

/// Threads whose end can be waited for.
#[derive(Default)]
pub struct Crew {
    alive: Mutex<usize>,
    ended: Condvar,
}

impl Crew {
    /// Starts a thread.
    ///
    /// # Errors
    /// When the system has none.
    pub fn spawn(self: &Arc<Self>, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut alive = self.alive.lock();
        let here = Arc::clone(self);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            run();
            *here.alive.lock() -= 1;
            here.ended.notify_all();
        })?;
        *alive += 1;
        Ok(())
    }

    /// Whether all have ended.
    pub fn has_ended(&self) -> bool {
        *self.alive.lock() == 0
    }

    /// Waits until [`Crew::has_ended`], at most so long; says whether it has.
    pub fn wait(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut alive = self.alive.lock();
        while *alive > 0 {
            if self.ended.wait_until(&mut alive, until).timed_out() {
                break;
            }
        }
        *alive == 0
    }
}

/// A pool of threads of a crew.
pub struct Pool<W> {
    work: W,
    crew: Arc<Crew>,
    name: &'static str,
    limits: Threads,
    threads: AtomicUsize,
    idle: AtomicUsize,
    /// Threads whose jobs may take long: others come in their place.
    waiting: AtomicUsize,
}

impl<W: Work> Pool<W> {
    /// Starts the first thread; the pool lives as long as its threads.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(crew: &Arc<Crew>, name: &'static str, work: W, limits: Threads) -> io::Result<()> {
        let pool = Pool {
            work,
            crew: Arc::clone(crew),
            name,
            limits,
            threads: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        };
        Arc::new(pool).start_thread()
    }

    fn start_thread(self: &Arc<Self>) -> io::Result<()> {
        let desk = self.work.desk()?;
        let here = Arc::clone(self);
        self.threads.fetch_add(1, Ordering::AcqRel);
        let run = move || {
            here.run(desk);
            here.threads.fetch_sub(1, Ordering::AcqRel);
        };
        self.crew.spawn(self.name, run).inspect_err(|_| {
            self.threads.fetch_sub(1, Ordering::AcqRel);
        })
    }

    fn run(self: &Arc<Self>, mut desk: W::Desk) {
        loop {
            if self.idle.fetch_add(1, Ordering::AcqRel) >= self.limits.idle_max {
                self.idle.fetch_sub(1, Ordering::AcqRel);
                return;
            }
            let job = self.work.next(&mut desk);
            let was_last = self.idle.fetch_sub(1, Ordering::AcqRel) == 1;
            let Some(job) = job else { return };
            let may_wait = usize::from(self.work.may_wait(&desk, &job));
            let waiting = self.waiting.fetch_add(may_wait, Ordering::AcqRel) + may_wait;
            let threads_max = self.limits.max.saturating_add(waiting);
            if was_last
                && self.threads.load(Ordering::Acquire) < threads_max
                && let Err(error) = self.start_thread()
            {
                tracing::warn!("cannot start one more thread: {error}");
            }
            self.work.carry_out(&mut desk, job);
            self.waiting.fetch_sub(may_wait, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, Sender, unbounded};

    use super::*;

    /// A job says that it began, and ends when it is told to.
    struct Jobs {
        jobs: Receiver<(bool, Sender<()>, Receiver<()>)>,
    }

    impl Work for Jobs {
        type Desk = ();
        type Job = (bool, Sender<()>, Receiver<()>);

        fn desk(&self) -> io::Result<()> {
            Ok(())
        }

        fn next(&self, (): &mut ()) -> Option<Self::Job> {
            self.jobs.recv().ok()
        }

        fn may_wait(&self, (): &(), job: &Self::Job) -> bool {
            job.0
        }

        fn carry_out(&self, (): &mut (), (_, begun, end): Self::Job) {
            begun.send(()).unwrap();
            let _ = end.recv();
        }
    }

    #[test]
    fn jobs_that_take_long_do_not_keep_others_waiting_and_short_ones_are_bounded() {
        let crew = Arc::new(Crew::default());
        let (send, jobs) = unbounded();
        Pool::start(&crew, "test", Jobs { jobs }, Threads { idle_max: 2, max: 2 }).unwrap();
        let (begun, begins) = unbounded();
        let (end, ends) = unbounded();
        let give = |may_wait| send.send((may_wait, begun.clone(), ends.clone())).unwrap();
        for _ in 0..20 {
            give(true);
            begins.recv().unwrap();
        }
        for _ in 0..2 {
            give(false);
            begins.recv().unwrap();
        }
        give(false);
        assert!(begins.recv_timeout(Duration::from_millis(50)).is_err(), "a third short one at once");
        end.send(()).unwrap();
        begins.recv().unwrap();
        assert!(!crew.wait(Duration::from_millis(1)) && !crew.has_ended());
        drop((send, end));
        assert!(crew.wait(Duration::from_secs(60)) && crew.has_ended(), "no more work, no threads");
    }
}
