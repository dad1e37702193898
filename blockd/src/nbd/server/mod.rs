//! Serves [`Device`]s over unix sockets and TCP.
//!
//! An event loop ([`accept`]) accepts connections and negotiates with all of them at once, in few threads and
//! bounded memory ([`lobby`]). A connection that asked for one of the [`Exports`] gets a thread that
//! reads requests and one that writes replies which nobody else could send at once. With TLS the event loop
//! stays between the client and these threads ([`bridge`]). Life of a connection: *negotiating* (under a time limit)
//! -> *transmitting* -> *draining* (no request is read any more, those in flight finish and are answered) ->
//! closed, and the client is disconnected from the device. Everything a peer sends is hostile until
//! checked; memory for a connection is bounded by [`Limits`].
//!
//! Several connections may use one export. The rule of multi-conn ("Transmission phase", flush): a write that any of
//! them was acknowledged is durable once a flush, sent by any of them after the acknowledgement, is acknowledged.

mod accept;
mod attached;
mod bridge;
mod budget;
mod check;
mod connection;
mod export;
mod exports;
mod handshake;
mod listen;
mod lobby;
mod meta;
mod parked;
mod pause;
mod polling;
mod provision;
mod registry;
mod reply;
mod socket;
mod tls;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

#[cfg(test)]
pub(in crate::nbd) use export::describe;
pub use export::{Export, ExportError};
pub use exports::{ExportSource, Exports, NameTaken, NotFound, SnapshotExports};
pub use listen::{Address, AddressError, Listener, MODE, NBD_PORT, Security};
pub use parked::{Parked, ParkedState};
pub use registry::ConnectionInfo;
pub use socket::{BindError, SocketFile};
pub use tls::{TlsConfig, TlsError, TlsFiles};

#[cfg(doc)]
use crate::device::Device;

/// Time for what a stopped event loop still does, such as opening a snapshot for a client that is gone.
const LAST_TASKS: Duration = Duration::from_secs(1);

/// Time for the end of negotiations when connections are handed over.
const NEGOTIATIONS_AT_HAND_OVER: Duration = Duration::from_millis(500);

/// What one connection, and all of them, may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections that transmit at a time; more are refused in their negotiation.
    pub connections: usize,
    /// Connections in their negotiation at a time; when one more comes, a silent one is closed.
    pub negotiations: usize,
    /// Requests of one connection taken and not yet answered.
    pub requests: usize,
    /// Payload bytes of one connection held in memory (at least one request is always taken).
    pub payload_bytes: usize,
    /// Time for the handshake, TLS included, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// Time for a connection whose client has left it, but does not take its replies, before it is cut in favour
    /// of a newer one, in milliseconds.
    pub left_timeout_ms: u64,
    /// At a hand-over: time for the next bytes of a request that is there in part, in milliseconds; then its
    /// connection is cut.
    pub stalled_timeout_ms: u64,
    /// Time for the draining of all connections at [`Stopper::stop`], in milliseconds; then they
    /// are cut.
    pub drain_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 128,
            negotiations: 256,
            requests: 256,
            payload_bytes: 64 << 20,
            handshake_timeout_ms: 20_000,
            left_timeout_ms: 1_000,
            stalled_timeout_ms: 2_000,
            drain_timeout_ms: 10_000,
        }
    }
}

/// Bound listeners with their exports; [`Server::run`] serves them.
pub struct Server {
    bound: Vec<listen::Bound>,
    shared: Arc<Shared>,
    bridges_ended: mpsc::Receiver<()>,
    runtime: Runtime,
}

struct Shared {
    exports: Arc<Exports>,
    limits: Limits,
    registry: Arc<registry::Registry>,
    lobby: Arc<lobby::Lobby>,
    arrivals: AtomicU64,
    stopping: watch::Sender<bool>,
    keep_sockets: AtomicBool,
    /// Connections are parked, not closed.
    handing_over: AtomicBool,
    parked: Mutex<Vec<Parked>>,
    /// A copy of it is held by every TLS bridge, so that its receiver sees the end of the last one; `None` at
    /// the end of the server.
    bridges: Mutex<Option<mpsc::Sender<()>>>,
}

/// Stops a [`Server`] from another thread, and tells what it does.
#[derive(Clone)]
pub struct Stopper {
    shared: Arc<Shared>,
}

impl Server {
    /// Binds all listeners. A socket file that nobody listens on is replaced.
    ///
    /// # Errors
    /// When there is no listener, or one of them cannot be bound or is not protected.
    pub fn bind(
        listeners: Vec<Listener>,
        exports: Arc<Exports>,
        limits: Limits,
    ) -> Result<Server, BindError> {
        let mut bound = Vec::new();
        for listener in listeners {
            bound.extend(listen::bind(listener)?);
        }
        if bound.is_empty() {
            return Err(BindError::Nowhere);
        }
        // Negotiations need one thread; the encryption of busy connections may use more.
        let encrypted = bound.iter().any(|bound| matches!(bound.security, Security::Tls(_)));
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(if encrypted { cores.clamp(2, 4) } else { 1 })
            .max_blocking_threads(4)
            .thread_name("nbd-net")
            .enable_io()
            .enable_time()
            .build()
            .map_err(BindError::Runtime)?;
        let (bridges, bridges_ended) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            exports,
            registry: Arc::default(),
            lobby: lobby::Lobby::new(limits.negotiations),
            limits,
            arrivals: AtomicU64::new(1),
            stopping: watch::Sender::new(false),
            keep_sockets: AtomicBool::new(false),
            handing_over: AtomicBool::new(false),
            parked: Mutex::default(),
            bridges: Mutex::new(Some(bridges)),
        });
        Ok(Server { bound, shared, bridges_ended, runtime })
    }

    /// Where it listens, in the form of [`Address`]; ports that the system chose are said.
    pub fn addresses(&self) -> Vec<String> {
        self.bound.iter().map(listen::Bound::address).collect()
    }

    /// Copies of the listening sockets, with their addresses, to hand them over to a successor. See
    /// [`Stopper::keep_sockets`].
    ///
    /// # Errors
    /// When no more descriptors can be had.
    pub fn sockets(&self) -> std::io::Result<Vec<(String, OwnedFd)>> {
        self.bound.iter().map(|bound| Ok((bound.address(), bound.as_fd().try_clone_to_owned()?))).collect()
    }

    /// A handle that ends [`Server::run`].
    pub fn stopper(&self) -> Stopper {
        Stopper { shared: Arc::clone(&self.shared) }
    }

    /// Goes on with connections that another server has parked, and which that will not touch any more. From now on the
    /// files of listeners that it handed over are this server's. To be called before [`Server::run`].
    pub fn resume(&mut self, parked: Vec<Parked>) {
        self.bound.iter_mut().for_each(listen::Bound::own);
        parked.into_iter().for_each(|parked| parked.resume(&self.shared));
    }

    /// Accepts and serves until [`Stopper::stop`]; returns when every connection is drained (or
    /// cut) and the socket files are removed. The devices are left as they are: flush them afterwards.
    /// After [`Stopper::hand_over`] it returns the connections for a successor.
    ///
    /// # Panics
    /// If it is called within an asynchronous task.
    pub fn run(self) -> Vec<Parked> {
        let Server { bound, shared, mut bridges_ended, runtime } = self;
        runtime.block_on(accept_all(bound, &shared));
        let until = Instant::now() + Duration::from_millis(shared.limits.drain_timeout_ms);
        if shared.handing_over.load(Ordering::SeqCst) {
            // Nobody accepts now. Who is in his negotiation still gets to its end, if he does not dally.
            let last = Instant::now() + NEGOTIATIONS_AT_HAND_OVER;
            while shared.lobby.present() > 0 && Instant::now() < last {
                std::thread::sleep(Duration::from_millis(1));
            }
            shared.registry.pause();
        }
        shared.lobby.clear();
        shared.registry.drain(until.saturating_duration_since(Instant::now()));
        // What the connections said last is still being encrypted.
        drop(shared.bridges.lock().take());
        runtime.block_on(async {
            let left = until.saturating_duration_since(Instant::now());
            if tokio::time::timeout(left, bridges_ended.recv()).await.is_err() {
                tracing::warn!("TLS clients do not take their last replies; cutting them");
            }
        });
        runtime.shutdown_timeout(LAST_TASKS);
        std::mem::take(&mut *shared.parked.lock())
    }
}

/// Runs the listeners until all have stopped.
async fn accept_all(bound: Vec<listen::Bound>, shared: &Arc<Shared>) {
    let mut running = tokio::task::JoinSet::new();
    for bound in bound {
        let address = bound.address();
        match accept::Accepting::new(bound) {
            Ok(accepting) => {
                running.spawn(accepting.run(Arc::clone(shared)));
            }
            Err(error) => tracing::error!(address, %error, "cannot accept connections"),
        }
    }
    while running.join_next().await.is_some() {}
}

impl Stopper {
    /// Stops accepting and reading requests. May be called more than once; does not wait.
    pub fn stop(&self) {
        self.shared.stopping.send_replace(true);
        self.shared.registry.stop_reading();
    }

    /// Stops accepting, and ends [`Server::run`] with every connection parked: its requests are answered and no more are
    /// read, but it stays open. Connections over TLS, whose keys cannot be handed over, are closed. May be called more
    /// than once; does not wait.
    pub fn hand_over(&self) {
        self.keep_sockets();
        self.shared.handing_over.store(true, Ordering::SeqCst);
        self.shared.stopping.send_replace(true);
    }

    /// At the end the files of unix sockets stay: a successor listens on the same sockets.
    pub fn keep_sockets(&self) {
        self.shared.keep_sockets.store(true, Ordering::SeqCst);
    }

    /// The exports, which may be changed.
    pub fn exports(&self) -> &Arc<Exports> {
        &self.shared.exports
    }

    /// The connections that transmit, oldest first.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.shared.registry.connections()
    }

    /// How many connections are in their negotiation.
    pub fn negotiations(&self) -> usize {
        self.shared.lobby.present()
    }

    /// Cuts the connections of an export (whose clients may come again, unless it was removed before). Gives how
    /// many there were.
    pub fn cut(&self, export: &str) -> usize {
        self.shared.registry.cut(export)
    }
}
