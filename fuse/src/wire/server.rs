//! Serving a connection: the handshake, and threads that read requests, have them handled and reply.
//!
//! There are as many threads as requests are being carried out, and a few that wait: a request that takes long (an
//! fsync, a search) never keeps another one waiting.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use blockd::buf::AlignedBuf;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::abi::{self, InHeader, InitIn, InitOut, WriteIn, init, op};
use super::channel::Channel;
use super::reply::{Outcome, Reply};
use super::request::Request;
use super::ring;

/// Most bytes of one write request (FUSE_MAX_MAX_PAGES are 256 pages).
pub const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Bytes that the kernel may read ahead; more than its own setting does not count.
const READ_AHEAD_BYTES: u32 = 1 << 20;
/// Most requests that the kernel sends in the background (read-ahead, write-back, asynchronous direct I/O).
const BACKGROUND_MAX: u16 = 64;
/// A request that is no write fits into this much (FUSE_MIN_READ_BUFFER).
const HEADROOM: usize = 4096;

/// What a file system makes of requests.
pub trait Handler: Send + Sync + 'static {
    /// The INIT flags that it can honour ([`init`]).
    fn flags(&self) -> u64;

    /// The INIT flags that both sides use, told once before the first request.
    fn negotiated(&self, flags: u64);

    /// Whether a request may take long: wait for a commit, search, copy much.
    fn may_wait(&self, request: &Request<'_>) -> bool;

    /// Carries out a request.
    fn handle(&self, request: Request<'_>, reply: &mut Reply) -> Outcome;

    /// A panic ended a request half way; `why` is its text.
    fn broken(&self, why: &str);
}

/// How many threads serve a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Threads {
    /// Threads that may wait for requests.
    pub idle_max: usize,
    /// Threads in all, beside those whose requests may take long.
    pub max: usize,
}

/// A served connection.
pub struct Connection {
    shared: Arc<Shared>,
}

/// What the threads of a connection share.
pub(super) struct Shared {
    handler: Arc<dyn Handler>,
    channel: Channel,
    threads: Threads,
    idle: AtomicUsize,
    /// Threads with requests that may take long: others come in their place.
    waiting: AtomicUsize,
    ending: AtomicBool,
    alive: Mutex<usize>,
    ended: Condvar,
}

impl Connection {
    /// Answers the kernel's INIT and starts to serve.
    ///
    /// # Errors
    /// When the kernel's protocol is older than Linux 5.4's, or no thread can be started.
    pub fn start(device: OwnedFd, handler: Arc<dyn Handler>, threads: Threads) -> io::Result<Self> {
        let channel = Channel::new(device);
        let mut wanted = handler.flags();
        if wanted & init::OVER_IO_URING != 0 && !ring::is_possible() {
            wanted &= !init::OVER_IO_URING;
        }
        let negotiated = handshake(&channel, wanted)?;
        handler.negotiated(negotiated);
        let shared = Arc::new(Shared {
            handler,
            channel,
            threads,
            idle: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            ending: AtomicBool::new(false),
            alive: Mutex::new(0),
            ended: Condvar::new(),
        });
        start_thread(&shared)?;
        if negotiated & init::OVER_IO_URING != 0 {
            ring::start(&shared)?;
        }
        Ok(Connection { shared })
    }

    /// One more descriptor of the connection, for notifications.
    ///
    /// # Errors
    /// As [`Channel::another`].
    pub fn channel(&self) -> io::Result<Channel> {
        self.shared.channel.another()
    }

    /// Whether the kernel has ended the connection: unmounted, or aborted.
    pub fn has_ended(&self) -> bool {
        self.shared.ending.load(Ordering::Acquire) && *self.shared.alive.lock() == 0
    }

    /// Waits until [`Connection::has_ended`], at most so long; says whether it has.
    pub fn wait(&self, timeout: std::time::Duration) -> bool {
        let until = std::time::Instant::now() + timeout;
        let mut alive = self.shared.alive.lock();
        while *alive > 0 {
            if self.shared.ended.wait_until(&mut alive, until).timed_out() {
                break;
            }
        }
        *alive == 0
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

fn start_thread(shared: &Arc<Shared>) -> io::Result<()> {
    let channel = shared.channel.another()?;
    Shared::spawn(shared, "vexfs-fuse".to_owned(), move |shared| shared.serve(&channel))
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

impl Shared {
    pub(super) fn handler(&self) -> &Arc<dyn Handler> {
        &self.handler
    }

    /// The connection's first descriptor.
    pub(super) fn device(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Starts a thread that the connection's end waits for.
    pub(super) fn spawn(
        this: &Arc<Self>,
        name: String,
        run: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> io::Result<()> {
        let mut alive = this.alive.lock();
        let here = Arc::clone(this);
        std::thread::Builder::new().name(name).spawn(move || {
            run(&here);
            let mut alive = here.alive.lock();
            *alive -= 1;
            here.ended.notify_all();
        })?;
        *alive += 1;
        Ok(())
    }

    fn serve(self: &Arc<Self>, channel: &Channel) {
        // Zeroed by the kernel, page by page, as far as requests reach.
        let mut buf = AlignedBuf::zeroed(
            HEADROOM + size_of::<InHeader>() + size_of::<WriteIn>() + WRITE_BYTES_MAX as usize,
        );
        let mut reply = Reply::default();
        loop {
            let idle = self.idle.fetch_add(1, Ordering::AcqRel);
            if idle >= self.threads.idle_max || self.ending.load(Ordering::Acquire) {
                self.idle.fetch_sub(1, Ordering::AcqRel);
                return;
            }
            let received = channel.receive(&mut buf);
            let last_idle = self.idle.fetch_sub(1, Ordering::AcqRel) == 1;
            let len = match received {
                Ok(len) => len,
                Err(error) if is_passing(&error) => continue,
                Err(error) => {
                    if Errno::from_io_error(&error) != Some(Errno::NODEV) {
                        tracing::error!("the connection to the kernel broke: {error}");
                    }
                    self.ending.store(true, Ordering::Release);
                    return;
                }
            };
            if last_idle
                && *self.alive.lock() < self.threads.max + self.waiting.load(Ordering::Acquire)
                && let Err(error) = start_thread(self)
            {
                tracing::warn!("cannot start one more thread: {error}");
            }
            self.carry_out(channel, &buf[..len], &mut reply);
        }
    }

    fn carry_out(&self, channel: &Channel, bytes: &[u8], reply: &mut Reply) {
        reply.clear();
        let request = match Request::parse(bytes) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!("{error}");
                return;
            }
        };
        let unique = request.header.unique;
        let may_wait = self.handler.may_wait(&request);
        self.waiting.fetch_add(usize::from(may_wait), Ordering::AcqRel);
        let outcome = handle(&*self.handler, request, reply);
        self.waiting.fetch_sub(usize::from(may_wait), Ordering::AcqRel);
        let sent = match outcome {
            Outcome::Silent => return,
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
