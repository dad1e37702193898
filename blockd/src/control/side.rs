//! The side thread: everything that is not the data path, in one thread on one ring.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

use super::metrics::{self, Metrics};
use super::server::{self, Handler};
pub use super::stream::Engine;

/// What the thread does.
#[derive(Default)]
pub struct Work {
    /// A listening socket for control connections, and who answers them.
    pub control: Option<(Arc<OwnedFd>, Arc<dyn Handler>)>,
    /// Listening sockets for metrics, and who gives them.
    pub metrics: Vec<(Arc<OwnedFd>, Arc<dyn Metrics>)>,
    /// Something to do every so often.
    pub timer: Option<(Duration, Box<dyn FnMut() + Send>)>,
    /// Do not use io_uring.
    pub plain: bool,
}

/// The running thread; ends with [`Side::stop`] or when dropped.
pub struct Side {
    stop: watch::Sender<bool>,
    engine: Engine,
    thread: Option<JoinHandle<()>>,
}

impl Side {
    /// Starts the thread.
    ///
    /// # Errors
    /// When neither kind of runtime, or no thread, can be had.
    pub fn start(work: Work) -> io::Result<Side> {
        let (stop, stopped) = watch::channel(false);
        let (tell, told) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new().name("vexfs-side".into()).spawn(move || {
            let runtime = Runtime::new(work.plain);
            let _ = tell.send(runtime.as_ref().map(Runtime::engine).map_err(io::Error::to_string));
            if let Ok(runtime) = runtime {
                let engine = runtime.engine();
                runtime.block_on(run(work, engine, stopped));
            }
        })?;
        match told.recv() {
            Ok(Ok(engine)) => Ok(Side { stop, engine, thread: Some(thread) }),
            Ok(Err(why)) => Err(io::Error::other(why)),
            Err(_) => Err(io::Error::other("the side thread ended at once")),
        }
    }

    /// What it runs on.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Accepts nothing any more, gives the answers under way a moment, and ends. The listening sockets are left open.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Fails only if the thread has ended already.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the side thread panicked");
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.end();
    }
}

enum Runtime {
    Uring(tokio_uring::Runtime),
    Plain(tokio::runtime::Runtime),
}

impl Runtime {
    fn new(plain: bool) -> io::Result<Runtime> {
        if !plain {
            match tokio_uring::Runtime::new(&tokio_uring::builder()) {
                Ok(runtime) => return Ok(Runtime::Uring(runtime)),
                Err(error) => {
                    tracing::warn!("io_uring is not permitted here ({error}); the side work runs on epoll");
                }
            }
        }
        Ok(Runtime::Plain(tokio::runtime::Builder::new_current_thread().enable_all().build()?))
    }

    fn engine(&self) -> Engine {
        match self {
            Runtime::Uring(_) => Engine::Uring,
            Runtime::Plain(_) => Engine::Epoll,
        }
    }

    fn block_on(&self, work: impl Future<Output = ()>) {
        match self {
            Runtime::Uring(runtime) => runtime.block_on(work),
            Runtime::Plain(runtime) => runtime.block_on(LocalSet::new().run_until(work)),
        }
    }
}

async fn run(work: Work, engine: Engine, mut stop: watch::Receiver<bool>) {
    let mut tasks = JoinSet::new();
    if let Some((listener, handler)) = work.control {
        let serving = server::serve(listener, engine, handler, stop.clone());
        tasks.spawn_local(async move { log("the control socket", serving.await) });
    }
    for (listener, source) in work.metrics {
        let serving = metrics::serve(listener, engine, source, stop.clone());
        tasks.spawn_local(async move { log("the metrics socket", serving.await) });
    }
    if let Some((period, mut action)) = work.timer {
        let mut stop = stop.clone();
        tasks.spawn_local(async move {
            while tokio::time::timeout(period, stop.wait_for(|stop| *stop)).await.is_err() {
                action();
            }
        });
    }
    // An error is that the sender is gone, which means the same.
    let _ = stop.wait_for(|stop| *stop).await;
    while tasks.join_next().await.is_some() {}
}

fn log(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::error!(%error, "{what} cannot be served");
    }
}
