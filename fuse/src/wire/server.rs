//! Serving a connection: the handshake, and threads that read requests, have them handled and reply.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use blockd::buf::AlignedBuf;
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::abi::{self, InHeader, InitIn, InitOut, WriteIn, init, op};
use super::channel::Channel;
use super::pool::{Crew, Pool, Work};
use super::reply::{Outcome, Reply};
use super::request::Request;
use super::ring;

pub use super::pool::Threads;

/// Most bytes of one write request (FUSE_MAX_MAX_PAGES are 256 pages).
pub const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Bytes that the kernel may read ahead; more than its own setting does not count.
const READ_AHEAD_BYTES: u32 = 1 << 20;
/// Most requests that the kernel sends in the background (read-ahead, write-back, asynchronous direct I/O).
const BACKGROUND_MAX: u16 = 64;
/// A request that is no write fits into this much (FUSE_MIN_READ_BUFFER).
const HEADROOM: usize = 4096;
/// How long FORGETs are left to gather where nothing else comes by the device. Who sends one need not wake a thread for it so, on
/// another processor mostly, which takes longer than the request that it follows.
const FORGET_PAUSE: Duration = Duration::from_millis(2);

/// What the end of a request may wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitsFor {
    /// For nothing that takes long.
    Nothing,
    /// For a commit, a search, a long copy.
    Volume,
    /// For other requests: it asks the kernel for something.
    Kernel,
}

/// What a file system makes of requests.
pub trait Handler: Send + Sync + 'static {
    /// The INIT flags that it can honour ([`init`]).
    fn flags(&self) -> u64;

    /// The INIT flags that both sides use, told once before the first request.
    fn negotiated(&self, flags: u64);

    /// What the end of a request may wait for.
    fn waits_for(&self, request: &Request<'_>) -> WaitsFor;

    /// Carries out a request.
    fn handle(&self, request: Request<'_>, reply: &mut Reply) -> Outcome;

    /// A panic ended a request half way; `why` is its text.
    fn broken(&self, why: &str);
}

/// A served connection.
pub struct Connection {
    crew: Arc<Crew>,
}

impl Connection {
    /// Answers the kernel's INIT and starts to serve.
    ///
    /// # Errors
    /// When the kernel's protocol is older than Linux 5.4's, or no thread can be started.
    pub fn start(channel: Channel, handler: Arc<dyn Handler>, threads: Threads) -> io::Result<Self> {
        let channel = Arc::new(channel);
        let mut wanted = handler.flags();
        if wanted & init::OVER_IO_URING != 0 && !ring::is_possible() {
            wanted &= !init::OVER_IO_URING;
        }
        let negotiated = handshake(&channel, wanted)?;
        handler.negotiated(negotiated);
        let crew = Arc::new(Crew::default());
        let rings = negotiated & init::OVER_IO_URING != 0;
        // What comes by the device beside rings (FORGET, INTERRUPT) keeps nobody waiting.
        let threads = if rings { Threads { idle_max: 1, max: 1 } } else { threads };
        let requests =
            Requests { first: Arc::clone(&channel), handler: Arc::clone(&handler), beside_rings: rings };
        Pool::start(&crew, "vexfs-fuse", requests, threads)?;
        if rings {
            ring::start(&crew, &channel, &handler)?;
        }
        Ok(Connection { crew })
    }

    /// Whether the kernel has ended the connection: unmounted, or aborted.
    pub fn has_ended(&self) -> bool {
        self.crew.has_ended()
    }

    /// Waits until [`Connection::has_ended`], at most so long; says whether it has.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.crew.wait(timeout)
    }
}

fn handshake(channel: &Channel, wanted: u64) -> io::Result<u64> {
    let mut buf = AlignedBuf::zeroed(HEADROOM * 2 + WRITE_BYTES_MAX as usize);
    loop {
        let len = match channel.receive(&mut buf) {
            Ok(len) => len,
            Err(error) if is_passing(&error) => continue,
            Err(error) => return Err(error),
        };
        let mut request = Request::parse(&buf[..len]).map_err(io::Error::other)?;
        let unique = request.header.unique;
        if request.header.opcode != op::INIT {
            return Err(io::Error::other("the kernel's first request is not FUSE_INIT"));
        }
        let asked = request.take::<InitIn>().map_err(io::Error::other)?;
        let more = request.take::<u32>().unwrap_or(0);
        if asked.major > abi::MAJOR {
            // It will ask again in our version.
            let version = InitOut { major: abi::MAJOR, minor: abi::MINOR, ..InitOut::new_zeroed() };
            channel.reply(unique, 0, [version.as_bytes(), &[]])?;
            continue;
        }
        if asked.major < abi::MAJOR || asked.minor < abi::MINOR_MIN {
            channel.reply(unique, libc::EPROTO, [&[], &[]])?;
            return Err(io::Error::other(format!(
                "the kernel speaks FUSE {}.{}; Linux 5.4 or newer is needed (7.{})",
                asked.major,
                asked.minor,
                abi::MINOR_MIN
            )));
        }
        let mut known = u64::from(asked.flags);
        if known & init::INIT_EXT != 0 {
            known |= u64::from(more) << 32;
        }
        let flags = known & (wanted | init::INIT_EXT | init::MAX_PAGES | init::BIG_WRITES);
        let answer = InitOut {
            major: abi::MAJOR,
            minor: asked.minor.min(abi::MINOR),
            max_readahead: READ_AHEAD_BYTES,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            max_background: BACKGROUND_MAX,
            congestion_threshold: BACKGROUND_MAX * 3 / 4,
            max_write: WRITE_BYTES_MAX,
            time_gran: 1,
            max_pages: (WRITE_BYTES_MAX / 4096) as u16,
            ..InitOut::new_zeroed()
        };
        channel.reply(unique, 0, [answer.as_bytes(), &[]])?;
        return Ok(flags);
    }
}

/// The next read may succeed.
fn is_passing(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::INTR | Errno::NOENT | Errno::AGAIN))
}

/// Has a request handled; a panic becomes EIO.
pub(super) fn handle(handler: &dyn Handler, request: Request<'_>, reply: &mut Reply) -> Outcome {
    let handled = catch_unwind(AssertUnwindSafe(|| handler.handle(request, reply)));
    handled.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        handler.broken(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic"));
        Outcome::Failed(libc::EIO)
    })
}

/// What comes by the device.
struct Requests {
    first: Arc<Channel>,
    handler: Arc<dyn Handler>,
    /// Most requests come by rings.
    beside_rings: bool,
}

/// A thread's own descriptor of the device, and memory for a request and its reply.
struct Desk {
    channel: Channel,
    request: AlignedBuf,
    reply: Reply,
}

impl Work for Requests {
    type Desk = Desk;
    /// Bytes of the request.
    type Job = usize;

    fn desk(&self) -> io::Result<Desk> {
        // Zeroed by the kernel, page by page, as far as requests reach.
        let request = AlignedBuf::zeroed(
            HEADROOM + size_of::<InHeader>() + size_of::<WriteIn>() + WRITE_BYTES_MAX as usize,
        );
        Ok(Desk { channel: self.first.another()?, request, reply: Reply::default() })
    }

    fn next(&self, desk: &mut Desk) -> Option<usize> {
        loop {
            match desk.channel.receive(&mut desk.request) {
                Ok(len) => return Some(len),
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    if Errno::from_io_error(&error) != Some(Errno::NODEV) {
                        tracing::error!("the connection to the kernel broke: {error}");
                    }
                    return None;
                }
            }
        }
    }

    fn may_wait(&self, desk: &Desk, len: &usize) -> bool {
        let request = Request::parse(&desk.request[..*len]);
        request.is_ok_and(|request| self.handler.waits_for(&request) != WaitsFor::Nothing)
    }

    fn carry_out(&self, desk: &mut Desk, len: usize) {
        let Desk { channel, request, reply } = desk;
        reply.clear();
        let request = match Request::parse(&request[..len]) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!("{error}");
                return;
            }
        };
        let unique = request.header.unique;
        let sent = match handle(&*self.handler, request, reply) {
            Outcome::Silent => {
                if self.beside_rings {
                    std::thread::sleep(FORGET_PAUSE);
                }
                return;
            }
            Outcome::Done => channel.reply(unique, 0, reply.parts()),
            Outcome::Failed(errno) => channel.reply(unique, errno, [&[], &[]]),
        };
        // ENOENT: the caller was killed and waits no more.
        if let Err(error) = sent
            && !matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NODEV))
        {
            tracing::error!("a reply of {} bytes was refused by the kernel: {error}", reply.len());
        }
    }
}
