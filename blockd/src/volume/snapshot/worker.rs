//! The thread that gives back the space of deleted snapshots and carries rollbacks through: it loads what a portion
//! needs, and has the log's thread do the portion.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::device::IoError;
use crate::store::Shared;
use crate::store::map::Maps;
use crate::store::snapshot::change::SnapshotError;
use crate::store::snapshot::log::Progress;
use crate::store::snapshot::portion::Portion;
use crate::volume::inbox::{Internal, InternalSender};

/// How long the thread waits after something kept it from going on.
const RETRY: Duration = Duration::from_secs(1);
/// How often who waits for the end is told of the progress.
const TELL: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Signal {
    /// There may be work.
    wake: bool,
    /// The thread is at it.
    busy: bool,
    stop: bool,
    /// What kept the last try from going on.
    failure: Option<IoError>,
}

/// The thread's handle; without one (a read-only volume) nothing ever needs doing.
#[derive(Clone, Default)]
pub(in crate::volume) struct Worker {
    state: Arc<(Mutex<Signal>, Condvar)>,
}

impl Worker {
    /// Starts the thread.
    pub(in crate::volume) fn start(
        shared: Arc<Shared>,
        log: InternalSender,
        threads: &mut Vec<JoinHandle<()>>,
    ) -> Self {
        let worker = Worker::default();
        let mine = worker.clone();
        let spawned =
            std::thread::Builder::new().name("vexfs-snap".into()).spawn(move || mine.run(&shared, &log));
        match spawned {
            Ok(handle) => threads.push(handle),
            Err(e) => tracing::error!("cannot start the snapshots' thread: {e}"),
        }
        worker.wake();
        worker
    }

    /// There may be work.
    pub(in crate::volume) fn wake(&self) {
        let mut signal = self.state.0.lock();
        signal.wake = true;
        signal.failure = None;
        self.state.1.notify_all();
    }

    /// Ends the thread after what it is doing.
    pub(in crate::volume) fn stop(&self) {
        self.state.0.lock().stop = true;
        self.state.1.notify_all();
    }

    /// Waits until all work is done, or something keeps it from being done.
    pub(in crate::volume) fn wait_idle(&self, mut tell: impl FnMut()) -> Result<(), IoError> {
        loop {
            {
                let mut signal = self.state.0.lock();
                if let Some(e) = &signal.failure {
                    return Err(e.clone());
                }
                if signal.stop {
                    return Err(IoError::Shutdown);
                }
                if !signal.busy && !signal.wake {
                    return Ok(());
                }
                self.state.1.wait_for(&mut signal, TELL);
            }
            tell();
        }
    }

    fn run(&self, shared: &Shared, log: &InternalSender) {
        loop {
            {
                let mut signal = self.state.0.lock();
                signal.busy = false;
                self.state.1.notify_all();
                while !signal.wake && !signal.stop {
                    if signal.failure.is_some() {
                        // What was in the way may be gone by itself: space, for one.
                        signal.wake |= self.state.1.wait_for(&mut signal, RETRY).timed_out();
                    } else {
                        self.state.1.wait(&mut signal);
                    }
                }
                if signal.stop {
                    return;
                }
                signal.wake = false;
                signal.busy = true;
            }
            if let Err(e) = self.work(shared, log) {
                tracing::warn!("snapshots: {e}; tried again later");
                self.state.0.lock().failure = Some(e);
            } else {
                self.state.0.lock().failure = None;
            }
        }
    }

    fn work(&self, shared: &Shared, log: &InternalSender) -> Result<(), IoError> {
        let mut finished = false;
        while !self.state.0.lock().stop {
            if !shared.maps.read().snapshots.has_work() {
                break;
            }
            match round(shared, |f| ask(log, f))? {
                Round::Again => {}
                Round::Finished => finished = true,
                Round::Checkpoint => checkpoint(log)?,
                Round::Idle => break,
            }
        }
        // What died with the deltas is free after a checkpoint.
        if finished { checkpoint(log) } else { Ok(()) }
    }
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::volume) enum Round {
    Again,
    Finished,
    Checkpoint,
    Idle,
}

/// One portion, its leaves loaded; `portion` has the log do it.
pub(in crate::volume) fn round(
    shared: &Shared,
    portion: impl FnOnce(fn(&mut crate::store::log::Log) -> Progress) -> Result<Progress, IoError>,
) -> Result<Round, IoError> {
    match portion(|log| log.portion())? {
        Progress::Checkpoint => Ok(Round::Checkpoint),
        Progress::Map(Portion::Done) => Ok(Round::Again),
        Progress::Map(Portion::Finished) => Ok(Round::Finished),
        Progress::Map(Portion::Idle) => Ok(Round::Idle),
        Progress::Map(Portion::Load(leaves)) => {
            for leaf in leaves {
                // Twice: what could not be read once is not given up for that.
                if let Err(e) = shared.load(leaf).or_else(|_| shared.load(leaf))
                    && !shared.maps.write().snapshots.cannot_read(leaf, e.to_string())
                {
                    return Err(e);
                }
            }
            Ok(Round::Again)
        }
        Progress::Map(Portion::Stuck(id)) => {
            let stuck = |maps: &Maps| {
                Some((maps.snapshots.get(id)?.name.clone(), maps.snapshots.get(id)?.stuck()?.to_owned()))
            };
            if let Some((name, why)) = stuck(&shared.maps.read()) {
                tracing::error!("snapshot {name:?}: {}", SnapshotError::Stuck(why));
            }
            // Records from before it was deleted may need what a start cannot read either.
            Ok(Round::Checkpoint)
        }
    }
}

fn ask<T: Send + 'static>(
    log: &InternalSender,
    f: impl FnOnce(&mut crate::store::log::Log) -> T + Send + 'static,
) -> Result<T, IoError> {
    let (send, recv) = crossbeam_channel::bounded(1);
    log.with_log(move |log| {
        let _ = send.send(log.map(f));
    });
    recv.recv().unwrap_or(Err(IoError::Shutdown))
}

fn checkpoint(log: &InternalSender) -> Result<(), IoError> {
    let (send, recv) = crossbeam_channel::bounded(1);
    log.send(Internal::Checkpoint(Box::new(move |result| {
        let _ = send.send(result);
    })));
    recv.recv().unwrap_or(Err(IoError::Shutdown))
}
