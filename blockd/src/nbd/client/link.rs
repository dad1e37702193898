//! The client's thread: it keeps a connection, reads the replies, and after a loss connects
//! again and sends what was not acknowledged.
//!
//! States: *connected* -> (the connection breaks) -> *waiting* (requests queue) -> fresh
//! connection: the volume is recognised, the user's hook runs -> everything unacknowledged is
//! sent in the order of its submission -> *connected*. *Ended* is final: fenced, closed, or lost
//! by a client that does not reconnect.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use super::negotiation::ConnectError;
use super::options::HookOutcome;
use super::pending::{Payload, Pending};
use super::raw::RawConnection;
use super::reply::{Head, Progress};
use crate::device::{DeviceInfo, IoError};
use crate::nbd::proto::reply::Replies;
use crate::nbd::proto::request::Request;
use crate::nbd::wire::outbox::{Outbox, Push};
use crate::nbd::wire::receiver::Receiver;
use crate::nbd::wire::stream::SharedStream;

const DELAY_MS_MIN: u64 = 20;
const DELAY_MS_MAX: u64 = 2_000;

/// Doubling waits between attempts.
pub struct Backoff {
    delay_ms: u64,
}

impl Backoff {
    pub fn new() -> Self {
        Backoff { delay_ms: DELAY_MS_MIN }
    }

    /// The next wait.
    pub fn next(&mut self) -> Duration {
        let delay = Duration::from_millis(self.delay_ms);
        self.delay_ms = (self.delay_ms * 2).min(DELAY_MS_MAX);
        delay
    }
}

/// The thread's work: until the client has ended.
pub fn run(inner: &Inner, first: RawConnection) {
    let mut connection = first;
    let mut backoff = Backoff::new();
    let mut reissued = None;
    loop {
        let (why, replies) = serve(inner, connection, reissued);
        if inner.has_ended() {
            return;
        }
        if !inner.options.reconnect {
            inner.end(&IoError::Io(format!(
                "the connection to the daemon at {} is lost ({why}); start the daemon again and repeat",
                inner.target.socket.display()
            )));
            return;
        }
        if replies > 0 {
            backoff = Backoff::new();
        }
        let kept = inner.state.lock().pending.len();
        tracing::warn!(
            "the connection broke ({why}); waiting for the daemon at {} ({kept} requests kept)",
            inner.target.socket.display()
        );
        let Some(fresh) = wait_for_server(inner, &mut backoff) else { return };
        connection = fresh;
        reissued = Some(());
    }
}

/// Serves one connection until it breaks; gives the reason, and how many replies came.
fn serve(inner: &Inner, connection: RawConnection, again: Option<()>) -> (io::Error, u64) {
    let RawConnection { stream, mut receiver, negotiated, .. } = connection;
    let form = negotiated.form;
    let (outbox, writer) = match Outbox::start(stream, "nbd-client-out") {
        Ok(started) => started,
        Err(error) => return (error, 0),
    };
    let count = {
        let mut state = inner.state.lock();
        if state.ended.is_some() {
            outbox.close();
        }
        for pending in state.pending.values_mut() {
            pending.progress = Progress::default();
            outbox.push(pending.frame(form), Push::Hold);
        }
        state.form = form;
        state.outbox = Some(Arc::clone(&outbox));
        state.pending.len()
    };
    outbox.flush();
    if again.is_some() {
        tracing::info!(
            "reconnected to the daemon at {}; {count} requests sent again",
            inner.target.socket.display()
        );
    }
    let mut replies = 0;
    let why = loop {
        match receive(inner, &mut receiver, form) {
            Ok(()) => replies += 1,
            Err(error) => break error,
        }
    };
    inner.state.lock().outbox = None;
    outbox.close();
    let _ = writer.join();
    (why, replies)
}

/// Takes one reply, or a chunk of one, and finishes its request with the last.
fn receive(inner: &Inner, receiver: &mut Receiver<SharedStream>, form: Replies) -> io::Result<()> {
    let closed = || io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon closed it");
    let head = Head::receive(receiver, form)?.ok_or_else(closed)?;
    let cookie = head.cookie();
    let taken = inner.state.lock().pending.remove(&cookie);
    let Some(mut pending) = taken else {
        if inner.has_ended() {
            return Err(closed());
        }
        return Err(io::Error::new(io::ErrorKind::InvalidData, "protocol error: a reply to no request"));
    };
    let Pending { request, payload, progress, .. } = &mut pending;
    let out = match payload {
        Payload::Read(buf) => Some(&mut **buf),
        Payload::None | Payload::Write(_) => None,
    };
    let complete = progress.take(receiver, head, request, form, out);
    if !matches!(complete, Ok(true)) {
        keep(inner, cookie, pending);
        return complete.map(|_| ());
    }
    let Pending { request, payload, progress, done } = pending;
    done(progress.finish(|| name(&request)).map(|()| match payload {
        Payload::Read(buf) => Some(buf),
        Payload::None | Payload::Write(_) => None,
    }));
    Ok(())
}

/// Puts a request back whose reply is not complete: more is to come, or it is to be sent again.
fn keep(inner: &Inner, cookie: u64, pending: Pending) {
    let ended = {
        let mut state = inner.state.lock();
        match &state.ended {
            None => {
                state.pending.insert(cookie, pending);
                return;
            }
            Some(error) => error.clone(),
        }
    };
    (pending.done)(Err(ended));
}

fn name(request: &Request) -> String {
    format!("a {} of {} bytes at {:#x}", Request::name(request.command), request.len_bytes, request.offset)
}

/// Tries until there is a usable connection; `None` if the client has ended.
fn wait_for_server(inner: &Inner, backoff: &mut Backoff) -> Option<RawConnection> {
    let mut said = String::new();
    loop {
        if !inner.sleep(backoff.next()) {
            return None;
        }
        let reason = match try_again(inner) {
            Ok(connection) => return Some(connection),
            Err(Trouble::Absent) => continue,
            Err(Trouble::Lost(text)) => {
                tracing::error!("the session at {} is lost: {text}", inner.target.socket.display());
                inner.end(&IoError::Fenced(text));
                return None;
            }
            Err(Trouble::Other(text)) => text,
        };
        if reason != said {
            tracing::warn!("still waiting for the daemon at {}: {reason}", inner.target.socket.display());
            said = reason;
        }
    }
}

enum Trouble {
    /// Nobody listens: what we wait for.
    Absent,
    /// Worth a line in the log.
    Other(String),
    /// The hook says that there is no use in waiting.
    Lost(String),
}

fn try_again(inner: &Inner) -> Result<RawConnection, Trouble> {
    let failed = |e: ConnectError| match e {
        ConnectError::NoServer { .. } => Trouble::Absent,
        other => Trouble::Other(other.to_string()),
    };
    let mut connection = RawConnection::connect(&inner.target, &inner.options).map_err(failed)?;
    let found = connection.identify(&inner.target).map_err(failed)?;
    if let Some(difference) = difference(&inner.info, &found) {
        return Err(Trouble::Other(format!("{difference}; serve the volume there that it served before")));
    }
    if inner.form == Replies::Extended && connection.negotiated.form != Replies::Extended {
        return Err(Trouble::Other("the server does not know extended headers, unlike before".into()));
    }
    if connection.negotiated.blocks.payload_max < inner.payload_max {
        return Err(Trouble::Other("the server takes only smaller requests than before".into()));
    }
    if let Some(hook) = &inner.options.hook {
        match hook(&mut connection) {
            HookOutcome::Continue => {}
            HookOutcome::Retry(text) => return Err(Trouble::Other(text)),
            HookOutcome::Lost(text) => return Err(Trouble::Lost(text)),
        }
    }
    connection.unlimit().map_err(|e| Trouble::Other(e.to_string()))?;
    Ok(connection)
}

/// Why what is served now cannot be what was served before.
fn difference(before: &DeviceInfo, now: &DeviceInfo) -> Option<String> {
    if before.kind != now.kind || before.uuid != now.uuid {
        return Some(format!("another volume is served (uuid {}, expected {})", now.uuid, before.uuid));
    }
    if before.size_bytes != now.size_bytes {
        return Some(format!("the volume has {} bytes now, {} before", now.size_bytes, before.size_bytes));
    }
    if before.block_bytes_min != now.block_bytes_min {
        return Some(format!(
            "the block size is {} now, {} before",
            now.block_bytes_min, before.block_bytes_min
        ));
    }
    if now.read_only && !before.read_only {
        return Some("the volume is served read-only now".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::VolumeKind;

    #[test]
    fn waits_double_up_to_a_bound() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..12).map(|_| backoff.next()).collect();
        assert!(waits.windows(2).all(|w| w[1] == w[0] * 2 || w[1] == Duration::from_millis(DELAY_MS_MAX)));
        assert_eq!(waits[11], Duration::from_millis(DELAY_MS_MAX));
    }

    #[test]
    fn another_volume_is_noticed() {
        let before = DeviceInfo {
            kind: VolumeKind::Raw,
            size_bytes: 4096,
            block_bytes_min: 512,
            read_only: false,
            uuid: uuid::Uuid::from_u128(1),
        };
        assert_eq!(difference(&before, &before), None);
        let changed = |change: fn(&mut DeviceInfo)| {
            let mut now = before.clone();
            change(&mut now);
            difference(&before, &now)
        };
        assert!(changed(|i| i.uuid = uuid::Uuid::from_u128(2)).is_some());
        assert!(changed(|i| i.kind = VolumeKind::VexFs).is_some());
        assert!(changed(|i| i.size_bytes = 8192).is_some());
        assert!(changed(|i| i.block_bytes_min = 4096).is_some());
        assert!(changed(|i| i.read_only = true).is_some());
    }
}
