//! One connection: requests in, replies out, in the order of completion.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use super::budget::{Budget, Permit};
use super::check::{Checked, check, payload_behind};
use super::handshake::{Admitted, Replies, Transmission};
use super::parked::{Parked, ParkedState, Told};
use super::pause::Source;
use super::provision::{PORTION_BYTES, Provision, Range};
use super::reply::{self, Answer, EXTENTS_MAX, Reply};
use super::{Limits, Shared};
use crate::buf::AlignedBuf;
use crate::completion;
use crate::device::{ClientId, Device, DeviceInfo, Done, Extent, IoError, IoOp, IoResult};
use crate::nbd::proto::errno;
use crate::nbd::proto::request::{EXTENDED_REQUEST_BYTES, REQUEST_BYTES, Request};
use crate::nbd::wire::outbox::{Outbox, Push};
use crate::nbd::wire::receiver::Receiver;
use crate::stats::RequestCounters;

/// Largest request that the connection's own thread carries out: others of the connection wait meanwhile.
const HERE_BYTES_MAX: usize = 128 << 10;
/// Requests are given to the device together up to so many, and so many bytes received with them: those are still in the
/// processor's cache when they are written.
const BATCH_REQUESTS_MAX: usize = 64;
const BATCH_RECEIVED_BYTES_MAX: usize = 512 << 10;
/// Requests given to the device's threads after the client was seen to send more than one at a time.
const REQUESTS_DEEP: u32 = 256;
/// After so many writes that were each followed by a flush, the next one is expected.
const FLUSHES_LIKELY: u32 = 4;

/// What a predecessor leaves of a connection.
#[derive(Default)]
pub struct Before {
    /// Bytes that were received and not used.
    pub unread: Vec<u8>,
    /// What the device knows of the client; empty for a new one.
    pub client: Vec<u8>,
}

/// Serves a connection after its negotiation, on a thread of its own.
pub fn start(shared: &Arc<Shared>, stream: UnixStream, admitted: Admitted, before: Before) {
    let stream = Arc::new(stream);
    // The server may be stopping; then nothing that the client sent is begun.
    if admitted.seat.begin(&stream).is_err() {
        return;
    }
    let for_thread = Arc::clone(shared);
    let name = format!("nbd-{}", admitted.seat.number());
    let thread = std::thread::Builder::new().name(name);
    let started = thread.spawn(move || serve(&for_thread, &stream, admitted, before));
    if let Err(error) = started {
        tracing::warn!(%error, "cannot start a thread for an NBD connection; closing it");
    }
}

fn serve(shared: &Shared, stream: &Arc<UnixStream>, admitted: Admitted, before: Before) {
    let Admitted { export, negotiated, seat, client: attached } = admitted;
    let number = seat.number();
    let Some((info, pause)) = seat.entry() else { return };
    let source = Source::new(stream, pause, Duration::from_millis(shared.limits.stalled_timeout_ms));
    let mut receiver = Receiver::resumed(source, &before.unread);
    let (outbox, writer) = match Outbox::start(Arc::clone(stream), &format!("nbd-{number}-out")) {
        Ok(started) => started,
        Err(error) => {
            tracing::warn!(%error, "cannot start a thread for an NBD connection; closing it");
            return;
        }
    };
    seat.wait_for_dead_ones(Duration::from_millis(shared.limits.left_timeout_ms));
    let device = export.device();
    let client = attached.id();
    if !before.client.is_empty() {
        device.restore_client(client, &before.client);
    }
    tracing::info!(number, client = client.0, export = export.name(), "NBD client connected");
    let connection = Connection {
        device,
        info: export.info(),
        client,
        outbox,
        budget: budget(&shared.limits, device.counters()),
        reader: std::thread::current().id(),
        negotiated,
        deep: Cell::new(0),
        batch: RefCell::default(),
        flushes: Flushes::default(),
        stop_at: Cell::new(None),
    };
    let end = connection.transmit(&mut receiver);
    connection.submit_batch();
    let paused = matches!(end, Err(End::Paused));
    match end {
        Ok(()) => {}
        Err(End::Paused) => {}
        Err(End::Broken(why)) => tracing::warn!(number, "closing an NBD connection: {why}"),
        Err(End::Socket(error)) => tracing::info!(number, %error, "an NBD connection broke"),
    }
    connection.outbox.flush();
    connection.budget.wait_executed();
    seat.executed();
    connection.budget.wait_idle();
    connection.outbox.finish();
    let _ = writer.join();
    if paused && !connection.outbox.is_closed() {
        match stream.as_fd().try_clone_to_owned() {
            Ok(socket) => {
                let state = ParkedState {
                    export: info.export,
                    told: Told::of(&export),
                    peer: info.peer,
                    since: info.since,
                    negotiated,
                    unread: receiver.into_unread(),
                    client: device.client_state(client),
                };
                tracing::debug!(number, unread = state.unread.len(), "an NBD connection is parked");
                shared.parked.lock().push(Parked { socket, state });
                return;
            }
            Err(error) => {
                tracing::warn!(number, %error, "an NBD connection cannot be handed over; closing it")
            }
        }
    }
    drop(attached);
    // The registry holds the stream too, so dropping ours does not close it.
    let _ = stream.shutdown(Shutdown::Both);
    tracing::info!(number, client = client.0, "NBD client gone");
}

fn budget(limits: &Limits, counters: Arc<RequestCounters>) -> Arc<Budget> {
    Budget::new(limits.requests, limits.payload_bytes, counters)
}

/// Why a connection ends other than by the client's wish.
enum End {
    Broken(String),
    Socket(io::Error),
    /// A successor goes on with it.
    Paused,
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        End::Socket(error)
    }
}

struct Connection<'a> {
    device: &'a Arc<dyn Device>,
    /// The device as the export shows it.
    info: DeviceInfo,
    client: ClientId,
    outbox: Arc<Outbox<Reply>>,
    budget: Arc<Budget>,
    reader: ThreadId,
    negotiated: Transmission,
    /// So many more requests are surely not the client's only one at a time.
    deep: Cell<u32>,
    /// Taken in, not yet given to the device.
    batch: RefCell<Batch>,
    flushes: Flushes,
    /// Once the server stops: where in the stream what has arrived till then ends.
    stop_at: Cell<Option<u64>>,
}

/// Whether the client flushes after each write. Then the flush is begun as soon as the write is answered, and goes on
/// while the client hears of it.
#[derive(Default)]
struct Flushes {
    wrote: Cell<bool>,
    /// Writes in a row that a flush followed.
    pairs: Cell<u32>,
}

impl Flushes {
    /// Takes note of a request that came alone; whether a flush is likely to come next.
    fn likely_after(&self, op: &IoOp) -> bool {
        match op {
            IoOp::Write { fua: false, .. } => {
                if self.wrote.replace(true) {
                    self.pairs.set(0);
                }
                self.pairs.get() >= FLUSHES_LIKELY
            }
            IoOp::Flush => {
                if self.wrote.replace(false) {
                    self.pairs.set(self.pairs.get().saturating_add(1));
                }
                false
            }
            _ => false,
        }
    }
}

#[derive(Default)]
struct Batch {
    requests: Vec<(IoOp, Done)>,
    received_bytes: usize,
}

impl Connection<'_> {
    /// Takes requests until the client disconnects or closes.
    fn transmit(&self, receiver: &mut Receiver<Source<'_>>) -> Result<(), End> {
        loop {
            let Some(request) = self.receive(receiver)? else { return Ok(()) };
            if self.outbox.is_closed() {
                // Nobody will hear of it, so nothing more is begun.
                return Err(End::Socket(io::ErrorKind::BrokenPipe.into()));
            }
            match check(&request, &self.info, self.negotiated) {
                Ok(Checked::Disconnect) => return Ok(()),
                Ok(checked) => self.begin(receiver, &request, checked)?,
                Err(number) => self.refuse(receiver, &request, number)?,
            }
        }
    }

    /// The next request; `None` at the end of the stream.
    fn receive(&self, receiver: &mut Receiver<Source<'_>>) -> Result<Option<Request>, End> {
        let extended = self.negotiated.replies == Replies::Extended;
        self.before_receiving(receiver, if extended { EXTENDED_REQUEST_BYTES } else { REQUEST_BYTES });
        if receiver.stream().is_called() {
            return Err(End::Paused);
        }
        if receiver.stream().is_stopping() && self.has_taken_all(receiver) {
            return Ok(None);
        }
        receiver.stream().may_pause(true);
        let request = if extended {
            receiver.head().map(|head| head.map(|head| Request::decode_extended(&head)))
        } else {
            receiver.head().map(|head| head.map(|head| Request::decode(&head)))
        };
        receiver.stream().may_pause(false);
        match request {
            Ok(None) => Ok(None),
            Ok(Some(Some(request))) => Ok(Some(request)),
            Ok(Some(None)) => {
                Err(End::Broken("a request has a wrong magic, so the stream is out of step".into()))
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut && receiver.stream().is_called() => {
                Err(End::Paused)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether everything was taken in that was there when this was first asked.
    fn has_taken_all(&self, receiver: &Receiver<Source<'_>>) -> bool {
        let end = self.stop_at.get().unwrap_or_else(|| {
            let waiting = rustix::io::ioctl_fionread(receiver.stream()).unwrap_or(0);
            receiver.taken() + receiver.buffered() as u64 + waiting
        });
        self.stop_at.set(Some(end));
        receiver.taken() >= end
    }

    fn begin(
        &self,
        receiver: &mut Receiver<Source<'_>>,
        request: &Request,
        checked: Checked,
    ) -> Result<(), End> {
        let offset = request.offset;
        let len_bytes = request.len_bytes;
        let (permit, op) = match checked {
            Checked::Read { len_bytes } => {
                (self.permit(len_bytes), IoOp::Read { offset, buf: AlignedBuf::recycled(len_bytes) })
            }
            Checked::Write { len_bytes, fua } => {
                let permit = self.permit(len_bytes);
                let mut buf = AlignedBuf::recycled(len_bytes);
                self.before_receiving(receiver, len_bytes);
                receiver.payload(&mut buf)?;
                (permit, IoOp::Write { offset, buf, fua })
            }
            Checked::Flush => (self.permit(0), IoOp::Flush),
            Checked::Trim { fua } => (self.permit(0), IoOp::Trim { offset, len_bytes, fua }),
            Checked::WriteZeroes { fua, no_hole: true } => {
                let permit = self.permit(len_bytes.min(PORTION_BYTES) as usize);
                if len_bytes > PORTION_BYTES {
                    let done = self.done(request, permit);
                    let range = Range { offset, len_bytes, fua };
                    let (device, outbox) = (Arc::clone(self.device), Arc::clone(&self.outbox));
                    Provision::start(device, self.client, outbox, &range, done);
                    return Ok(());
                }
                (permit, IoOp::WriteZeroes { offset, len_bytes, fua, no_hole: true })
            }
            Checked::WriteZeroes { fua, no_hole: false } => {
                (self.permit(0), IoOp::WriteZeroes { offset, len_bytes, fua, no_hole: false })
            }
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
        let here = self.only_request(receiver, &op, &permit);
        receiver.stream().polling().set_alone(here);
        let done = self.done(request, permit);
        if here {
            let flush_next = self.flushes.likely_after(&op);
            // Replies of requests before it are with the client, or it would not be the only one.
            self.device.submit_here(self.client, op, done);
            // Asked before the reply goes out: whatever is there was sent without waiting for it.
            if rustix::io::ioctl_fionread(receiver.stream()).is_ok_and(|bytes| bytes > 0) {
                self.deep.set(REQUESTS_DEEP);
            } else if flush_next {
                self.outbox.flush();
                self.device.expect_flush();
            }
            return Ok(());
        }
        let full = {
            let mut batch = self.batch.borrow_mut();
            if let IoOp::Write { buf, .. } = &op {
                batch.received_bytes += buf.len();
            }
            batch.requests.push((op, done));
            batch.received_bytes >= BATCH_RECEIVED_BYTES_MAX || batch.requests.len() >= BATCH_REQUESTS_MAX
        };
        if full {
            self.submit_batch();
            self.outbox.flush();
        }
        Ok(())
    }

    /// Answers a request when it is finished.
    fn done(&self, request: &Request, permit: Permit) -> Done {
        let outbox = Arc::clone(&self.outbox);
        let (request, reader, replies) = (*request, self.reader, self.negotiated.replies);
        Box::new(move |result| complete(&outbox, replies, &request, result, permit, reader))
    }

    /// Gives the device what was taken in.
    fn submit_batch(&self) {
        let Batch { requests, .. } = self.batch.take();
        if !requests.is_empty() {
            self.device.submit_batch(self.client, requests);
        }
    }

    /// Whether this is a small request of a client that sends one at a time: this thread would only wait for its end, so it
    /// may as well carry it out.
    fn only_request(&self, receiver: &Receiver<Source<'_>>, op: &IoOp, permit: &Permit) -> bool {
        if self.deep.get() > 0 {
            self.deep.set(self.deep.get() - 1);
            return false;
        }
        payload_bytes(op) <= HERE_BYTES_MAX && receiver.buffered() == 0 && permit.is_alone()
    }

    /// Answers a request that is not taken, and skips its payload.
    fn refuse(&self, receiver: &mut Receiver<Source<'_>>, request: &Request, number: u32) -> Result<(), End> {
        tracing::debug!(?request, errno = number, "refusing an NBD request");
        let permit = self.permit(0);
        let Some(payload) = payload_behind(request, self.negotiated) else {
            let len = request.len_bytes;
            return Err(End::Broken(format!("a request announces a payload of {len} bytes")));
        };
        self.before_receiving(receiver, payload as usize);
        receiver.skip(payload)?;
        let why = match number {
            errno::EPERM => "the export is read-only",
            errno::ENOTSUP => "zeros that leave no hole are written like data, so not fast",
            errno::ENOSPC => "the range ends behind the end of the export",
            _ => "the command, its flags or its range do not fit the export and what was negotiated",
        };
        self.answer(request, Answer::Error(number, why), permit);
        Ok(())
    }

    /// Queues the reply to a request that needed no more than this thread.
    fn answer(&self, request: &Request, answer: Answer<'_>, mut permit: Permit) {
        permit.executed();
        reply::send(&self.outbox, self.negotiated.replies, request, answer, permit, Push::Hold);
    }

    /// Asks the device, in this thread: what it may read for the answer is bounded.
    fn block_status(&self, request: &Request, extents_max: usize) {
        let permit = self.permit(EXTENTS_MAX * size_of::<Extent>());
        self.submit_batch();
        self.outbox.flush();
        let len_bytes = request.len_bytes;
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
            self.submit_batch();
            self.outbox.flush();
            self.budget.acquire(payload_bytes)
        })
    }

    /// Begins what was taken in and sends the replies held back, if reading `wanted` bytes may wait for the peer.
    fn before_receiving(&self, receiver: &Receiver<Source<'_>>, wanted: usize) {
        if receiver.buffered() < wanted {
            self.submit_batch();
            self.outbox.flush();
        }
    }
}

/// The request is finished; called from any thread, the reader's included.
fn complete(
    outbox: &Arc<Outbox<Reply>>,
    replies: Replies,
    request: &Request,
    result: IoResult,
    mut permit: Permit,
    reader: ThreadId,
) {
    let text;
    let answer = match result {
        Ok(Some(buf)) if payload_expected(request) && buf.len() as u64 == request.len_bytes => {
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
    let push = if std::thread::current().id() == reader || completion::defer(outbox) {
        Push::Hold
    } else if alone {
        Push::Now
    } else {
        Push::Thread
    };
    reply::send(outbox, replies, request, answer, permit, push);
}

fn payload_bytes(op: &IoOp) -> usize {
    match op {
        IoOp::Read { buf, .. } | IoOp::Write { buf, .. } => buf.len(),
        // At most a portion.
        IoOp::WriteZeroes { len_bytes, no_hole: true, .. } => *len_bytes as usize,
        IoOp::Flush | IoOp::Trim { .. } | IoOp::WriteZeroes { no_hole: false, .. } => 0,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_is_expected_only_of_a_client_that_flushes_after_each_write() {
        let flushes = Flushes::default();
        let write = |fua| IoOp::Write { offset: 0, buf: AlignedBuf::zeroed(512), fua };
        for _ in 0..FLUSHES_LIKELY {
            assert!(!flushes.likely_after(&write(false)), "not known yet");
            assert!(!flushes.likely_after(&IoOp::Flush));
        }
        assert!(flushes.likely_after(&write(false)));
        assert!(!flushes.likely_after(&IoOp::Flush), "nothing to begin behind a flush");
        assert!(!flushes.likely_after(&write(true)), "it is durable by itself");
        assert!(flushes.likely_after(&write(false)));
        assert!(!flushes.likely_after(&write(false)), "the flush did not come");
        assert!(!flushes.likely_after(&IoOp::Flush));
        assert!(!flushes.likely_after(&write(false)), "and has to be learned again");
    }
}
