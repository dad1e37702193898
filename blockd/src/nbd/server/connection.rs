//! One connection: requests in, replies out, in the order of completion.

use std::cell::Cell;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use super::budget::{Budget, Permit};
use super::check::{Checked, check, payload_behind};
use super::handshake::{Outcome, negotiate};
use super::registry::Refused;
use super::{Limits, Shared};
use crate::buf::AlignedBuf;
use crate::device::{ClientId, Device, IoError, IoOp, IoResult};
use crate::nbd::proto::errno;
use crate::nbd::proto::reply::{SIMPLE_REPLY_BYTES, SimpleReply};
use crate::nbd::proto::request::{REQUEST_BYTES, Request};
use crate::nbd::wire::outbox::{Frame, Outbox, Push};
use crate::nbd::wire::receiver::Receiver;

/// Largest read that the connection's own thread carries out: others of the connection wait meanwhile.
const READ_HERE_BYTES_MAX: usize = 128 << 10;
/// Requests given to the device's threads after the client was seen to send more than one at a time.
const REQUESTS_DEEP: u32 = 256;

/// A reply on its way; its share of the budget goes back when it is written.
struct Reply {
    head: [u8; SIMPLE_REPLY_BYTES],
    payload: Option<AlignedBuf>,
    _permit: Permit,
}

impl Frame for Reply {
    fn head(&self) -> &[u8] {
        &self.head
    }
    fn payload(&self) -> &[u8] {
        self.payload.as_deref().unwrap_or_default()
    }
}

/// Serves an accepted connection on its own thread, or closes it with a log line.
pub fn spawn(shared: &Arc<Shared>, stream: UnixStream, number: u64) {
    let stream = Arc::new(stream);
    match shared.registry.enter(number, &stream, shared.limits.connections) {
        Ok(()) => {}
        Err(Refused::Stopping) => return,
        Err(Refused::Full) => {
            tracing::warn!(max = shared.limits.connections, "too many NBD connections; closing a new one");
            return;
        }
    }
    let for_thread = Arc::clone(shared);
    let started = std::thread::Builder::new().name(format!("nbd-{number}")).spawn(move || {
        let _leave = Leave { shared: &for_thread, number };
        serve(&for_thread, &stream, number);
    });
    if let Err(error) = started {
        shared.registry.leave(number);
        tracing::warn!(%error, "cannot start a thread for an NBD connection; closing it");
    }
}

/// Leaves the registry even if the thread panics.
struct Leave<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.shared.registry.leave(self.number);
    }
}

fn serve(shared: &Shared, stream: &Arc<UnixStream>, number: u64) {
    let mut receiver = Receiver::new(&**stream);
    match handshake(shared, stream, &mut receiver) {
        Ok(Outcome::Transmission) => {}
        Ok(Outcome::Ended) => {
            tracing::debug!(number, "NBD client ended the negotiation");
            return;
        }
        Ok(Outcome::Broken(why)) => {
            tracing::warn!(number, "closing an NBD connection in its negotiation: {why}");
            return;
        }
        Err(error) => {
            tracing::warn!(number, %error, "closing an NBD connection in its negotiation");
            return;
        }
    }
    let (outbox, writer) = match Outbox::start(Arc::clone(stream), &format!("nbd-{number}-out")) {
        Ok(started) => started,
        Err(error) => {
            tracing::warn!(%error, "cannot start a thread for an NBD connection; closing it");
            return;
        }
    };
    shared.registry.wait_for_dead_ones(number);
    let device = &*shared.export.device;
    let client = device.connect();
    tracing::info!(number, client = client.0, "NBD client connected");
    let connection = Connection {
        device,
        client,
        outbox,
        budget: budget(&shared.limits),
        reader: std::thread::current().id(),
        deep: Cell::new(0),
    };
    match connection.transmit(&mut receiver) {
        Ok(()) => {}
        Err(End::Broken(why)) => tracing::warn!(number, "closing an NBD connection: {why}"),
        Err(End::Socket(error)) => tracing::info!(number, %error, "an NBD connection broke"),
    }
    connection.outbox.flush();
    connection.budget.wait_executed();
    shared.registry.executed(number);
    connection.budget.wait_idle();
    connection.outbox.finish();
    let _ = writer.join();
    device.disconnect(client);
    // The registry holds the stream too, so dropping ours does not close it.
    let _ = stream.shutdown(Shutdown::Both);
    tracing::info!(number, client = client.0, "NBD client gone");
}

fn handshake(
    shared: &Shared,
    stream: &UnixStream,
    receiver: &mut Receiver<&UnixStream>,
) -> io::Result<Outcome> {
    let limit = Duration::from_millis(shared.limits.handshake_timeout_ms.max(1));
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let outcome = negotiate(stream, receiver, &shared.export)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(outcome)
}

fn budget(limits: &Limits) -> Arc<Budget> {
    Budget::new(limits.requests, limits.payload_bytes)
}

/// Why a connection ends other than by the client's wish.
enum End {
    Broken(String),
    Socket(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        End::Socket(error)
    }
}

struct Connection<'a> {
    device: &'a dyn Device,
    client: ClientId,
    outbox: Arc<Outbox<Reply>>,
    budget: Arc<Budget>,
    reader: ThreadId,
    /// So many more requests are surely not the client's only one at a time.
    deep: Cell<u32>,
}

impl Connection<'_> {
    /// Takes requests until the client disconnects or closes.
    fn transmit(&self, receiver: &mut Receiver<&UnixStream>) -> Result<(), End> {
        let info = self.device.info();
        loop {
            self.before_receiving(receiver, REQUEST_BYTES);
            let Some(head) = receiver.head::<REQUEST_BYTES>()? else { return Ok(()) };
            if self.outbox.is_closed() {
                // Nobody will hear of it, so nothing more is begun.
                return Err(End::Socket(io::ErrorKind::BrokenPipe.into()));
            }
            let Some(request) = Request::decode(&head) else {
                return Err(End::Broken("a request has a wrong magic, so the stream is out of step".into()));
            };
            match check(&request, &info) {
                Ok(Checked::Disconnect) => return Ok(()),
                Ok(checked) => self.begin(receiver, &request, checked)?,
                Err(number) => self.refuse(receiver, &request, number)?,
            }
        }
    }

    fn begin(
        &self,
        receiver: &mut Receiver<&UnixStream>,
        request: &Request,
        checked: Checked,
    ) -> Result<(), End> {
        let offset = request.offset;
        let len_bytes = u64::from(request.len_bytes);
        let (permit, op) = match checked {
            Checked::Read { len_bytes } => {
                (self.permit(len_bytes), IoOp::Read { offset, buf: AlignedBuf::zeroed(len_bytes) })
            }
            Checked::Write { len_bytes, fua } => {
                let permit = self.permit(len_bytes);
                let mut buf = AlignedBuf::zeroed(len_bytes);
                self.before_receiving(receiver, len_bytes);
                receiver.payload(&mut buf)?;
                (permit, IoOp::Write { offset, buf, fua })
            }
            Checked::Flush => (self.permit(0), IoOp::Flush),
            Checked::Trim { fua } => (self.permit(0), IoOp::Trim { offset, len_bytes, fua }),
            Checked::WriteZeroes { fua } => (self.permit(0), IoOp::WriteZeroes { offset, len_bytes, fua }),
            Checked::Disconnect => return Ok(()),
        };
        if matches!(op, IoOp::Flush) {
            // It may take long inside `submit`; finished replies do not wait for it.
            self.outbox.flush();
        }
        let here = self.only_request(receiver, &op, &permit);
        let outbox = Arc::clone(&self.outbox);
        let (request, reader) = (*request, self.reader);
        let done = Box::new(move |result| complete(&outbox, &request, result, permit, reader));
        if here {
            self.device.submit_here(self.client, op, done);
            // Asked before the reply goes out: whatever is there was sent without waiting for it.
            if rustix::io::ioctl_fionread(receiver.stream()).is_ok_and(|bytes| bytes > 0) {
                self.deep.set(REQUESTS_DEEP);
            }
        } else {
            self.device.submit(self.client, op, done);
        }
        Ok(())
    }

    /// Whether this is a small read of a client that sends one request at a time: this thread would only wait
    /// for its end, so it may as well carry it out.
    fn only_request(&self, receiver: &Receiver<&UnixStream>, op: &IoOp, permit: &Permit) -> bool {
        if self.deep.get() > 0 {
            self.deep.set(self.deep.get() - 1);
            return false;
        }
        let small = matches!(op, IoOp::Read { buf, .. } if buf.len() <= READ_HERE_BYTES_MAX);
        small && receiver.buffered() == 0 && permit.is_alone()
    }

    /// Answers a request that is not taken, and skips its payload.
    fn refuse(
        &self,
        receiver: &mut Receiver<&UnixStream>,
        request: &Request,
        number: u32,
    ) -> Result<(), End> {
        tracing::debug!(?request, errno = number, "refusing an NBD request");
        let permit = self.permit(0);
        let payload = payload_behind(request);
        self.before_receiving(receiver, payload as usize);
        receiver.skip(u64::from(payload))?;
        let head = SimpleReply { errno: number, cookie: request.cookie }.encode();
        self.outbox.push(Reply { head, payload: None, _permit: permit }, Push::Hold);
        Ok(())
    }

    /// A share of the budget; replies held back are sent before waiting for it.
    fn permit(&self, payload_bytes: usize) -> Permit {
        self.budget.try_acquire(payload_bytes).unwrap_or_else(|| {
            self.outbox.flush();
            self.budget.acquire(payload_bytes)
        })
    }

    /// Sends the replies held back if reading `wanted` bytes may wait for the peer.
    fn before_receiving(&self, receiver: &Receiver<&UnixStream>, wanted: usize) {
        if receiver.buffered() < wanted {
            self.outbox.flush();
        }
    }
}

/// The request is finished; called from any thread, the reader's included.
fn complete(
    outbox: &Outbox<Reply>,
    request: &Request,
    result: IoResult,
    mut permit: Permit,
    reader: ThreadId,
) {
    let (number, payload) = match result {
        Ok(payload) => (0, payload.filter(|_| payload_expected(request))),
        Err(error) => {
            log_failure(request, &error);
            if matches!(error, IoError::Shutdown) {
                // Not the client's fault: it comes back and asks again (see `errno::ESHUTDOWN`).
                outbox.close();
                return;
            }
            (errno::to_wire(&error), None)
        }
    };
    let (number, payload) = match payload {
        None if number == 0 && payload_expected(request) => {
            tracing::error!(?request, "the device finished a read without its buffer");
            (errno::EIO, None)
        }
        Some(buf) if buf.len() != request.len_bytes as usize => {
            tracing::error!(?request, got = buf.len(), "the device finished a read with another length");
            (errno::EIO, None)
        }
        payload => (number, payload),
    };
    let alone = permit.executed();
    let push = if std::thread::current().id() == reader {
        Push::Hold
    } else if alone {
        Push::Now
    } else {
        Push::Thread
    };
    let head = SimpleReply { errno: number, cookie: request.cookie }.encode();
    outbox.push(Reply { head, payload, _permit: permit }, push);
}

fn payload_expected(request: &Request) -> bool {
    request.command == crate::nbd::proto::request::CMD_READ
}

/// The wire has only a number, so the reason and the address go to the log.
fn log_failure(request: &Request, error: &IoError) {
    let command = Request::name(request.command);
    let (offset, len_bytes) = (request.offset, request.len_bytes);
    match error {
        IoError::Io(_) | IoError::NoSpace => {
            tracing::warn!(command, offset, len_bytes, %error, "an NBD request failed");
        }
        _ => tracing::debug!(command, offset, len_bytes, %error, "an NBD request failed"),
    }
}
