//! A served volume as a [`Device`].
//!
//! Requests are pipelined; one thread reads the replies and finishes requests by their cookies.
//! Every request is kept, with its bytes, until it is acknowledged. When the connection breaks,
//! the client waits for the daemon for ever (unless told otherwise), lets its user's hook speak
//! first on the fresh connection, and sends everything unacknowledged again in the order of
//! submission. Since the daemon acknowledges a write only when it survives the daemon's death,
//! and all requests in flight at once may take effect in any order, the user of the device sees a
//! delay and nothing else. How many requests queue meanwhile is bounded by the caller alone.
//!
//! All [`ClientId`]s of one `NbdClient` are one client to the daemon: its connection.

mod link;
mod negotiation;
mod options;
mod pending;
mod raw;
mod reply;
mod target;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::device::{ClientId, Device, DeviceInfo, Done, IoError, IoOp};
use crate::nbd::proto::flags;
use crate::nbd::proto::request::{
    CMD_DISC, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, Request,
};
use crate::nbd::wire::outbox::Push;
use pending::{Payload, Pending, RequestFrame, State};
use reply::Progress;

pub use negotiation::ConnectError;
pub use options::{ConnectOptions, HookOutcome, ReconnectHook, Replies};
pub use raw::RawConnection;
pub use target::{Target, TargetError};

/// Longest trim or write-zeroes in one compact NBD request; longer ones are split.
const RANGE_BYTES_MAX: u64 = 1 << 31;
/// Most NBD requests for one trim or write-zeroes.
const RANGE_PARTS_MAX: u64 = 4096;

/// See the module. Dropping it fails what is pending with [`IoError::Shutdown`].
pub struct NbdClient {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
    clients: AtomicU64,
}

struct Inner {
    target: Target,
    options: ConnectOptions,
    info: DeviceInfo,
    flags: u16,
    /// The form of the first connection; a later one is not less.
    form: Replies,
    payload_max: u32,
    state: Mutex<State>,
    ended: Condvar,
}

impl NbdClient {
    /// Connects, trying again for the options' time while nobody answers. The hook is not called.
    ///
    /// # Errors
    /// [`ConnectError`], naming the socket and what to do.
    pub fn connect(target: &Target, options: ConnectOptions) -> Result<NbdClient, ConnectError> {
        let until = Instant::now() + Duration::from_millis(options.connect_timeout_ms);
        let mut backoff = link::Backoff::new();
        let (connection, info) = loop {
            let attempt = RawConnection::connect(target, &options).and_then(|mut connection| {
                let info = connection.identify(target)?;
                connection.unlimit().map_err(|e| ConnectError::handshake(target, e))?;
                Ok((connection, info))
            });
            match attempt {
                Ok(connected) => break connected,
                Err(e) if !e.is_transient() => return Err(e),
                Err(e) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(e);
                    }
                    std::thread::sleep(backoff.next().min(left));
                }
            }
        };
        let inner = Arc::new(Inner {
            target: target.clone(),
            options,
            info,
            flags: connection.negotiated.flags,
            form: connection.negotiated.form,
            payload_max: connection.negotiated.blocks.payload_max,
            state: Mutex::new(State::new()),
            ended: Condvar::new(),
        });
        let for_thread = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name("nbd-client".into())
            .spawn(move || link::run(&for_thread, connection))
            .map_err(ConnectError::Thread)?;
        Ok(NbdClient { inner, thread: Some(thread), clients: AtomicU64::new(1) })
    }

    /// Most payload bytes of one read or write.
    pub fn payload_bytes_max(&self) -> usize {
        self.inner.payload_max as usize
    }

    /// Gives up: everything pending and to come fails with [`IoError::Shutdown`], and nothing is
    /// waited for any more.
    pub fn close(&self) {
        self.inner.end(&IoError::Shutdown);
        // After the end, so that no connection can be made behind our back.
        let (outbox, form) = {
            let state = self.inner.state.lock();
            (state.outbox.clone(), state.form)
        };
        if let Some(outbox) = outbox {
            let bye = Request { flags: 0, command: CMD_DISC, cookie: 0, offset: 0, len_bytes: 0 };
            outbox.push(RequestFrame::bare(&bye, form), Push::Now);
            outbox.close();
        }
    }

    /// Requests submitted and not yet finished.
    pub fn pending(&self) -> usize {
        self.inner.state.lock().pending.len()
    }
}

impl Device for NbdClient {
    fn info(&self) -> DeviceInfo {
        self.inner.info.clone()
    }

    fn connect(&self) -> ClientId {
        ClientId(self.clients.fetch_add(1, Ordering::Relaxed))
    }

    fn disconnect(&self, _client: ClientId) {}

    fn submit(&self, _client: ClientId, op: IoOp, done: Done) {
        let inner = &*self.inner;
        match op {
            IoOp::Read { offset, buf } => match inner.payload_len(buf.len()) {
                Ok(len) => inner.send((CMD_READ, 0, offset, len), Payload::Read(buf), done),
                Err(e) => done(Err(e)),
            },
            IoOp::Write { offset, buf, fua } => match inner.payload_len(buf.len()) {
                Ok(len) => {
                    inner.send((CMD_WRITE, fua_flag(fua), offset, len), Payload::Write(Arc::new(buf)), done)
                }
                Err(e) => done(Err(e)),
            },
            // Nothing was written, and such a server may not know the command.
            IoOp::Flush if inner.info.read_only => done(Ok(None)),
            IoOp::Flush => inner.send((CMD_FLUSH, 0, 0, 0), Payload::None, done),
            IoOp::Trim { offset, len_bytes, fua } => {
                // A trim that our own daemon takes reads as zeros afterwards, as `Device` promises.
                inner.range([CMD_TRIM, CMD_WRITE_ZEROES], offset, len_bytes, fua_flag(fua), done);
            }
            IoOp::WriteZeroes { offset, len_bytes, fua, no_hole } => {
                let flags = fua_flag(fua) | if no_hole { flags::COMMAND_NO_HOLE } else { 0 };
                inner.range([CMD_WRITE_ZEROES, CMD_WRITE_ZEROES], offset, len_bytes, flags, done);
            }
        }
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        self.close();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn fua_flag(fua: bool) -> u16 {
    if fua { flags::COMMAND_FUA } else { 0 }
}

impl Inner {
    fn payload_len(&self, len: usize) -> Result<u64, IoError> {
        u64::try_from(len).ok().filter(|&n| n <= self.payload_max.into()).ok_or_else(|| {
            IoError::Invalid(format!(
                "a request of {len} bytes; the server takes at most {} in one",
                self.payload_max
            ))
        })
    }

    /// Keeps a request, and sends it if there is a connection.
    fn send(&self, (command, flags, offset, len_bytes): (u16, u16, u64, u64), payload: Payload, done: Done) {
        let (out, alone) = {
            let mut state = self.state.lock();
            if let Some(error) = state.ended.clone() {
                drop(state);
                done(Err(error));
                return;
            }
            let cookie = state.next_cookie;
            state.next_cookie += 1;
            let request = Request { flags, command, cookie, offset, len_bytes };
            let pending = Pending { request, payload, progress: Progress::default(), done };
            let out = state.outbox.clone().map(|outbox| (outbox, pending.frame(state.form)));
            state.pending.insert(cookie, pending);
            (out, state.pending.len() == 1)
        };
        // If the connection breaks before this push, the outbox is closed and drops the frame,
        // and the next connection sends the request from `pending`.
        if let Some((outbox, frame)) = out {
            outbox.push(frame, if alone { Push::Now } else { Push::Thread });
        }
    }

    /// Sends a trim or write-zeroes by the first command that the server knows, in parts.
    fn range(&self, commands: [u16; 2], offset: u64, len_bytes: u64, flags: u16, done: Done) {
        let known = commands.into_iter().find(|&command| {
            let flag =
                if command == CMD_TRIM { flags::EXPORT_SEND_TRIM } else { flags::EXPORT_SEND_WRITE_ZEROES };
            self.flags & flag != 0
        });
        let Some(command) = known else {
            done(Err(IoError::Invalid("the server supports neither trim nor write-zeroes".into())));
            return;
        };
        // With extended headers one request covers any range.
        let part_bytes = if self.form == Replies::Extended { len_bytes.max(1) } else { RANGE_BYTES_MAX };
        let parts = len_bytes.div_ceil(part_bytes).max(1);
        if parts > RANGE_PARTS_MAX || offset.checked_add(len_bytes).is_none() {
            done(Err(IoError::Invalid(format!(
                "a range of {len_bytes} bytes at {offset:#x}; at most {} at a time",
                RANGE_PARTS_MAX * RANGE_BYTES_MAX
            ))));
            return;
        }
        let mut dones = split(parts as usize, done);
        for part in 0..parts {
            let begin = part * part_bytes;
            let len = (len_bytes - begin).min(part_bytes);
            if let Some(done) = dones.pop() {
                self.send((command, flags, offset + begin, len), Payload::None, done);
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.state.lock().ended.is_some()
    }

    /// Fails everything pending and everything to come; the first reason stays.
    fn end(&self, error: &IoError) {
        let (pending, error) = {
            let mut state = self.state.lock();
            let error = state.ended.get_or_insert_with(|| error.clone()).clone();
            (std::mem::take(&mut state.pending), error)
        };
        self.ended.notify_all();
        for pending in pending.into_values() {
            (pending.done)(Err(error.clone()));
        }
    }

    /// Waits; `false` if the client has ended.
    fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.state.lock();
        while state.ended.is_none() {
            if self.ended.wait_until(&mut state, until).timed_out() {
                return state.ended.is_none();
            }
        }
        false
    }
}

/// Callbacks for the parts of one request; the last one to finish calls `done`, with the first
/// error if there was one.
fn split(parts: usize, done: Done) -> Vec<Done> {
    if parts == 1 {
        return vec![done];
    }
    struct Join {
        left: usize,
        error: Option<IoError>,
        done: Option<Done>,
    }
    let join = Arc::new(Mutex::new(Join { left: parts, error: None, done: Some(done) }));
    (0..parts)
        .map(|_| {
            let join = Arc::clone(&join);
            let one: Done = Box::new(move |result| {
                let last = {
                    let mut join = join.lock();
                    join.left -= 1;
                    if let Err(e) = result {
                        join.error.get_or_insert(e);
                    }
                    if join.left > 0 { None } else { Some((join.done.take(), join.error.take())) }
                };
                if let Some((Some(done), error)) = last {
                    done(error.map_or(Ok(None), Err));
                }
            });
            one
        })
        .collect()
}
