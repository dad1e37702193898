//! Serves a [`Device`] over a unix socket.
//!
//! One thread accepts; each connection has a thread that reads requests and one that writes
//! replies which nobody else could send at once. Life of a connection: *negotiating* (the
//! handshake, under a time limit) -> *transmitting* -> *draining* (no request is read any more,
//! those in flight finish and are answered) -> closed, and the client is disconnected from the
//! device. Everything a peer sends is hostile until checked; memory for a connection is bounded
//! by [`Limits`].

mod budget;
mod check;
mod connection;
mod handshake;
mod meta;
mod registry;
mod reply;
mod socket;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::device::{Device, DeviceInfo, VolumeKind};
use crate::nbd::proto::flags;
use crate::nbd::proto::info::BlockSizes;
use crate::nbd::proto::{PAYLOAD_BYTES_MAX, STRING_BYTES_MAX};

pub use socket::{BindError, Socket as PrivateSocket};

/// What one connection, and all of them, may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time; more are closed at once with a log line.
    pub connections: usize,
    /// Requests of one connection taken and not yet answered.
    pub requests: usize,
    /// Payload bytes of one connection held in memory (at least one request is always taken).
    pub payload_bytes: usize,
    /// Time for the handshake, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// Time for the draining of all connections at [`Stopper::stop`], in milliseconds; then they
    /// are cut.
    pub drain_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 64,
            requests: 256,
            payload_bytes: 64 << 20,
            handshake_timeout_ms: 20_000,
            drain_timeout_ms: 10_000,
        }
    }
}

/// A device under a name.
#[derive(Clone)]
pub struct Export {
    /// The export's name; the empty name means it too.
    pub name: String,
    /// What is served.
    pub device: Arc<dyn Device>,
}

impl Export {
    /// Whether a client means this export.
    fn is_named(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    /// The flags for a client that does, or does not, take structured replies.
    fn flags(&self, structured: bool) -> u16 {
        let info = self.device.info();
        let mut out = flags::EXPORT_HAS_FLAGS
            | flags::EXPORT_SEND_FLUSH
            | flags::EXPORT_SEND_FUA
            | flags::EXPORT_SEND_TRIM
            | flags::EXPORT_SEND_WRITE_ZEROES
            | flags::EXPORT_SEND_FAST_ZERO;
        if structured {
            out |= flags::EXPORT_SEND_DF;
        }
        if info.read_only {
            out |= flags::EXPORT_READ_ONLY;
        }
        // A flush covers what every client was acknowledged. But on a VexFS volume each connection
        // would have to attach to the session, which no generic client does.
        if info.kind == VolumeKind::Raw {
            out |= flags::EXPORT_CAN_MULTI_CONN;
        }
        out
    }

    fn block_sizes(&self) -> BlockSizes {
        let min = self.device.info().block_bytes_min;
        BlockSizes { min, preferred: min.max(4096), payload_max: PAYLOAD_BYTES_MAX }
    }

    fn description(&self) -> String {
        describe(&self.device.info())
    }
}

/// The sentence that the server says of a device, and from which [`super::client`] learns the uuid.
pub(super) fn describe(info: &DeviceInfo) -> String {
    let kind = match info.kind {
        VolumeKind::Raw => "raw",
        VolumeKind::VexFs => "vexfs",
    };
    format!("vexfs-blockd {kind} volume {}", info.uuid)
}

/// A bound socket with its export; [`Server::run`] serves it.
pub struct Server {
    socket: socket::Socket,
    shared: Arc<Shared>,
}

struct Shared {
    export: Export,
    limits: Limits,
    registry: registry::Registry,
    stopping: AtomicBool,
}

/// Stops a [`Server`] from another thread.
#[derive(Clone)]
pub struct Stopper {
    listener: Arc<std::os::unix::net::UnixListener>,
    shared: Arc<Shared>,
}

impl Server {
    /// Binds `path` (mode 0600). A socket file that nobody listens on is replaced.
    ///
    /// # Errors
    /// When someone listens there, something else stands there, or it cannot be made.
    pub fn bind(path: &Path, export: Export, limits: Limits) -> Result<Server, BindError> {
        assert!(export.name.len() <= STRING_BYTES_MAX, "an export name fits the protocol");
        let min = export.device.info().block_bytes_min;
        assert!(min.is_power_of_two() && min <= 65536, "a block size that NBD can say");
        let socket = socket::Socket::bind(path)?;
        let registry = registry::Registry::default();
        Ok(Server {
            socket,
            shared: Arc::new(Shared { export, limits, registry, stopping: AtomicBool::new(false) }),
        })
    }

    /// Where it listens.
    pub fn path(&self) -> PathBuf {
        self.socket.path().to_path_buf()
    }

    /// A handle that ends [`Server::run`].
    pub fn stopper(&self) -> Stopper {
        Stopper { listener: self.socket.listener(), shared: Arc::clone(&self.shared) }
    }

    /// Accepts and serves until [`Stopper::stop`]; returns when every connection is drained (or
    /// cut) and the socket file is removed. The device is left as it is: flush it afterwards.
    pub fn run(self) {
        let listener = self.socket.listener();
        let mut connections: u64 = 0;
        while !self.shared.stopping.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((stream, _)) => {
                    connections += 1;
                    connection::spawn(&self.shared, stream, connections);
                }
                Err(_) if self.shared.stopping.load(Ordering::SeqCst) => break,
                Err(error) => {
                    // EMFILE and the like: the backlog waits; do not spin.
                    tracing::warn!(%error, "cannot accept an NBD connection; trying again");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        drop(self.socket);
        let drain = Duration::from_millis(self.shared.limits.drain_timeout_ms);
        self.shared.registry.drain(drain);
    }
}

impl Stopper {
    /// Stops accepting and reading requests. May be called more than once; does not wait.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes accept(2), which then fails with EINVAL.
        if let Err(error) = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both) {
            tracing::debug!(%error, "the NBD listener was shut down already");
        }
        self.shared.registry.stop_reading();
    }
}
