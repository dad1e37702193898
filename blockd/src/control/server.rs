//! Control connections: a request at a time, carried out by a thread of its own, its answer streamed back.
//!
//! Memory for a connection is bounded by one request line and the few replies that wait; a client that sends or takes
//! nothing for a while is cut.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::protocol::{AWAITING, DESCRIPTOR, REQUEST_BYTES_MAX, Reply, Request};
use super::stream::{Acceptor, Engine, Stream};
use crate::descriptor;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 32;
/// Requests carried out at a time.
const JOBS_MAX: usize = 16;
/// Reply lines of one request that wait to be sent; then the job waits.
const REPLIES_MAX: usize = 16;
/// Time for a request to come, and for a reply to be taken.
const PATIENCE: Duration = Duration::from_secs(30);
/// At the end of the daemon: time for the answers under way.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Read at a time.
const READ_BYTES: usize = 4096;

/// Carries requests out.
pub trait Handler: Send + Sync {
    /// Carries one out, in a thread that may wait. What it gives is the result.
    ///
    /// # Errors
    /// A sentence with cause and remedy.
    fn handle(&self, request: Request, replies: &Replies) -> Result<serde_json::Value, String>;
}

/// The client took no more: nobody waits for the job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gone;

/// The way back to the client of a request.
pub struct Replies {
    lines: mpsc::Sender<Vec<u8>>,
    socket: OwnedFd,
    taken: Arc<AtomicBool>,
}

impl Replies {
    /// Says how far the job is. Waits while many replies are not taken yet.
    ///
    /// # Errors
    /// [`Gone`]: the job should end if it was for this client only.
    pub fn progress(&self, value: serde_json::Value) -> Result<(), Gone> {
        self.send(&Reply::Progress(value))
    }

    fn send(&self, reply: &Reply) -> Result<(), Gone> {
        self.lines.blocking_send(line(reply)).map_err(|_| Gone)
    }

    /// Asks the client for one end of a unix stream socket, to send it what is not JSON.
    ///
    /// # Errors
    /// It has gone, sends nothing for half a minute, or sends something else.
    pub fn client_stream(&self) -> io::Result<UnixStream> {
        let asked = self.progress(serde_json::json!({ AWAITING: DESCRIPTOR }));
        asked.map_err(|Gone| io::Error::from(io::ErrorKind::BrokenPipe))?;
        let socket = descriptor::receive_within(&self.socket, PATIENCE)?;
        if (socket_domain(&socket)?, socket_type(&socket)?) != (AddressFamily::UNIX, SocketType::STREAM) {
            return Err(io::Error::other("the descriptor that the client sent is no unix stream socket"));
        }
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// The client's socket, to ask who it is.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The client's socket itself, for what is not JSON: nothing more is sent or read by the side thread.
    ///
    /// # Errors
    /// No more descriptors are to be had.
    pub fn take_socket(&self) -> io::Result<OwnedFd> {
        let socket = self.socket.try_clone()?;
        self.taken.store(true, Ordering::SeqCst);
        Ok(socket)
    }
}

fn line(reply: &Reply) -> Vec<u8> {
    let mut line = serde_json::to_vec(reply).unwrap_or_else(|error| {
        // Maps with keys that are no strings, which no reply has.
        format!(r#"{{"error":"the answer cannot be written as JSON: {error:?}"}}"#).into_bytes()
    });
    line.push(b'\n');
    line
}

/// Accepts and serves until `stop`; then answers under way have a moment to end.
pub(super) async fn serve(
    listener: Arc<OwnedFd>,
    engine: Engine,
    handler: Arc<dyn Handler>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let acceptor = Acceptor::new(listener)?;
    let jobs = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = acceptor.accept(SocketFlags::empty()) => accepted,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let stream = match accepted.and_then(|fd| Stream::new(fd, engine)) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let full = connections.len() >= CONNECTIONS_MAX;
        let connection = Connection {
            stream,
            handler: Arc::clone(&handler),
            jobs: Arc::clone(&jobs),
            stop: stop.clone(),
            taken: Arc::default(),
        };
        connections.spawn_local(async move {
            if full {
                let refusal = Reply::Error("too many control connections; try again later".into());
                let _ = connection.stream.write_within(line(&refusal), Duration::from_secs(1)).await;
                return;
            }
            if let Err(error) = connection.run().await {
                tracing::debug!(%error, "a control connection ended");
            }
        });
    }
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_WORDS, all).await.is_err() {
        tracing::debug!("control clients are left without an answer");
    }
    Ok(())
}

struct Connection {
    stream: Stream,
    handler: Arc<dyn Handler>,
    jobs: Arc<AtomicUsize>,
    stop: watch::Receiver<bool>,
    /// Somebody else has the socket.
    taken: Arc<AtomicBool>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.taken.load(Ordering::SeqCst) {
            self.stream.shut_down();
        }
    }
}

enum Taken {
    Line(Vec<u8>),
    TooLong,
    End,
}

impl Connection {
    async fn run(mut self) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut stop = self.stop.clone();
        loop {
            let taken = tokio::select! {
                taken = take_line(&self.stream, &mut buffer) => taken?,
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            };
            match taken {
                Taken::End => return Ok(()),
                Taken::TooLong => {
                    let text = format!("a request has at most {REQUEST_BYTES_MAX} bytes in one line");
                    return self.reply(&Reply::Error(text)).await;
                }
                Taken::Line(request) if request.trim_ascii().is_empty() => {}
                Taken::Line(request) => self.answer(&request).await?,
            }
        }
    }

    async fn reply(&self, reply: &Reply) -> io::Result<()> {
        self.stream.write_within(line(reply), PATIENCE).await
    }

    async fn answer(&mut self, request: &[u8]) -> io::Result<()> {
        let request = match serde_json::from_slice::<Request>(request) {
            Ok(request) => request,
            Err(error) => return self.reply(&Reply::Error(format!("not a request: {error}"))).await,
        };
        let (lines, mut waiting) = mpsc::channel(REPLIES_MAX);
        let replies = Replies {
            lines,
            socket: self.stream.as_fd().try_clone_to_owned()?,
            taken: Arc::clone(&self.taken),
        };
        let Some(share) = Share::take(&self.jobs) else {
            let text = "too many requests are being carried out; try again later";
            return self.reply(&Reply::Error(text.into())).await;
        };
        let handler = Arc::clone(&self.handler);
        let started = std::thread::Builder::new().name("control".into()).spawn(move || {
            let _share = share;
            let reply = match handler.handle(request, &replies) {
                Ok(result) => Reply::Result(result),
                Err(why) => Reply::Error(why),
            };
            if !replies.taken.load(Ordering::SeqCst) {
                // A client that has gone does not want to know.
                let _ = replies.send(&reply);
            }
        });
        if let Err(error) = started {
            return self.reply(&Reply::Error(format!("no thread can be started for it: {error}"))).await;
        }
        let mut any = false;
        while let Some(line) = waiting.recv().await {
            any = true;
            self.stream.write_within(line, PATIENCE).await?;
        }
        if self.taken.load(Ordering::SeqCst) {
            return Err(io::Error::other("its socket was taken"));
        }
        if !any {
            return self.reply(&Reply::Error("the command broke off; see the daemon's log".into())).await;
        }
        Ok(())
    }
}

/// One of the requests being carried out.
struct Share(Arc<AtomicUsize>);

impl Share {
    fn take(jobs: &Arc<AtomicUsize>) -> Option<Share> {
        let more = |now| (now < JOBS_MAX).then_some(now + 1);
        jobs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Share(Arc::clone(jobs)))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The next line, or what stands behind the last newline when the client has sent all.
async fn take_line(stream: &Stream, buffer: &mut Vec<u8>) -> io::Result<Taken> {
    let mut searched = 0;
    loop {
        if let Some(at) = buffer[searched..].iter().position(|&byte| byte == b'\n') {
            let rest = buffer.split_off(searched + at + 1);
            return Ok(Taken::Line(std::mem::replace(buffer, rest)));
        }
        searched = buffer.len();
        let room = READ_BYTES.min(REQUEST_BYTES_MAX.saturating_sub(searched));
        if room == 0 {
            return Ok(Taken::TooLong);
        }
        if stream.read_within(buffer, room, PATIENCE).await? == 0 {
            return Ok(if buffer.is_empty() { Taken::End } else { Taken::Line(std::mem::take(buffer)) });
        }
    }
}
