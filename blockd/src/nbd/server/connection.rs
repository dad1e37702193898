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
use super::handshake::{Outcome, Transmission, negotiate};
use super::registry::Refused;
use super::reply::{self, Answer, EXTENTS_MAX, Reply};
use super::{Limits, Shared};
use crate::buf::AlignedBuf;
use crate::device::{ClientId, Device, Extent, IoError, IoOp, IoResult};
use crate::nbd::proto::errno;
use crate::nbd::proto::request::{REQUEST_BYTES, Request};
use crate::nbd::wire::outbox::{Outbox, Push};
use crate::nbd::wire::receiver::Receiver;
use crate::stats::RequestCounters;

/// Largest read that the connection's own thread carries out: others of the connection wait meanwhile.
const READ_HERE_BYTES_MAX: usize = 128 << 10;
/// Requests given to the device's threads after the client was seen to send more than one at a time.
const REQUESTS_DEEP: u32 = 256;

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
    let negotiated = match handshake(shared, stream, &mut receiver) {
        Ok(Outcome::Transmission(negotiated)) => negotiated,
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
    };
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
        budget: budget(&shared.limits, device.counters()),
        reader: std::thread::current().id(),
        negotiated,
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

fn budget(limits: &Limits, counters: Arc<RequestCounters>) -> Arc<Budget> {
    Budget::new(limits.requests, limits.payload_bytes, counters)
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
    negotiated: Transmission,
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
            match check(&request, &info, self.negotiated) {
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
            Checked::Cache => {
                self.answer(request, Answer::Done, self.permit(0));
                return Ok(());
            }
            Checked::BlockStatus { extents_max } => {
                self.block_status(request, extents_max);
                return Ok(());
            }
            Checked::Disconnect => return Ok(()),
        };
        if matches!(op, IoOp::Flush) {
            // It may take long inside `submit`; finished replies do not wait for it.
            self.outbox.flush();
        }
        let here = self.only_request(receiver, &op, &permit);
        let outbox = Arc::clone(&self.outbox);
        let (request, reader, structured) = (*request, self.reader, self.negotiated.structured);
        let done = Box::new(move |result| complete(&outbox, structured, &request, result, permit, reader));
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
        let why = match number {
            errno::EPERM => "the export is read-only",
            errno::ENOSPC => "the range ends behind the end of the export",
            _ => "the command, its flags or its range do not fit the export and what was negotiated",
        };
        self.answer(request, Answer::Error(number, why), permit);
        Ok(())
    }

    /// Queues the reply to a request that needed no more than this thread.
    fn answer(&self, request: &Request, answer: Answer<'_>, mut permit: Permit) {
        permit.executed();
        reply::send(&self.outbox, self.negotiated.structured, request, answer, permit, Push::Hold);
    }

    /// Asks the device, in this thread: what it may read for the answer is bounded.
    fn block_status(&self, request: &Request, extents_max: usize) {
        let permit = self.permit(EXTENTS_MAX * size_of::<Extent>());
        self.outbox.flush();
        let len_bytes = u64::from(request.len_bytes);
        match self.device.allocation(self.client, request.offset, len_bytes, extents_max) {
            Ok(extents) => match cut(extents, len_bytes, extents_max) {
                extents if extents.is_empty() => {
                    tracing::error!(?request, "the device said nothing of its allocation");
                    self.answer(request, Answer::Error(errno::EIO, ""), permit);
                }
                extents => self.answer(request, Answer::Extents(&extents), permit),
            },
            Err(error) => {
                log_failure(request, &error);
                if matches!(error, IoError::Shutdown) {
                    self.outbox.close();
                    return;
                }
                self.answer(request, Answer::Error(errno::to_wire(&error), &error.to_string()), permit);
            }
        }
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
    structured: bool,
    request: &Request,
    result: IoResult,
    mut permit: Permit,
    reader: ThreadId,
) {
    let text;
    let answer = match result {
        Ok(Some(buf)) if payload_expected(request) && buf.len() == request.len_bytes as usize => {
            Answer::Data(buf)
        }
        Ok(_) if !payload_expected(request) => Answer::Done,
        Ok(_) => {
            tracing::error!(?request, "the device finished a read without its buffer, or with another one");
            Answer::Error(errno::EIO, "")
        }
        Err(error) => {
            log_failure(request, &error);
            if matches!(error, IoError::Shutdown) {
                // Not the client's fault: it comes back and asks again (see `errno::ESHUTDOWN`).
                outbox.close();
                return;
            }
            text = error.to_string();
            Answer::Error(errno::to_wire(&error), &text)
        }
    };
    let alone = permit.executed();
    let push = if std::thread::current().id() == reader {
        Push::Hold
    } else if alone {
        Push::Now
    } else {
        Push::Thread
    };
    reply::send(outbox, structured, request, answer, permit, push);
}

/// What of a device's answer fits a request and the wire.
fn cut(mut extents: Vec<Extent>, len_bytes: u64, extents_max: usize) -> Vec<Extent> {
    let mut left = len_bytes;
    for extent in &mut extents {
        extent.len_bytes = extent.len_bytes.min(left);
        left -= extent.len_bytes;
    }
    extents.retain(|extent| extent.len_bytes > 0);
    extents.truncate(extents_max);
    extents
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
