//! The event loop: listeners and connections that are not served yet. A connection leaves it, with a thread of its
//! own, when it begins to send requests.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_nodelay, set_tcp_user_timeout,
};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

use super::connection::Before;
use super::handshake::{Admitted, Host, Outcome, Tls, greet, negotiate};
use super::listen::{Bound, Security, Socket};
use super::lobby::Place;
use super::socket::SocketFile;
use super::{Shared, bridge, connection};

/// A silent TCP client is asked whether it is there after this long, and then again and again.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// A TCP client that answers nothing, or takes nothing of what was sent, for so long has vanished, in milliseconds.
const TCP_USER_TIMEOUT_MS: u32 = 60_000;
/// Wait before the next try after accept(2) failed.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

enum Sockets {
    Unix(UnixListener, Option<SocketFile>),
    Tcp(TcpListener),
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A listener in the event loop.
pub struct Accepting {
    sockets: Sockets,
    security: Security,
}

impl Accepting {
    /// To be called within the runtime.
    ///
    /// # Errors
    /// Those of making the socket non-blocking and registering it.
    pub fn new(bound: Bound) -> io::Result<Accepting> {
        let sockets = match bound.socket {
            Socket::Unix(socket, file) => {
                socket.set_nonblocking(true)?;
                Sockets::Unix(UnixListener::from_std(socket)?, file)
            }
            Socket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                Sockets::Tcp(TcpListener::from_std(socket)?)
            }
        };
        Ok(Accepting { sockets, security: bound.security })
    }

    /// Accepts until the server stops.
    pub async fn run(self, shared: Arc<Shared>) {
        let mut stopping = shared.stopping.subscribe();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stopping.wait_for(|&stopping| stopping) => break,
                accepted = self.accept() => accepted,
            };
            match accepted {
                Ok((stream, who)) => self.welcome(&shared, stream, who),
                Err(error) => {
                    // EMFILE and the like: whoever is silent gives up a descriptor; the backlog waits.
                    tracing::warn!(%error, "cannot accept an NBD connection; trying again");
                    shared.lobby.make_room();
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
        if let Sockets::Unix(_, Some(file)) = self.sockets
            && shared.keep_sockets.load(Ordering::SeqCst)
        {
            file.keep();
        }
    }

    async fn accept(&self) -> io::Result<(Stream, String)> {
        match &self.sockets {
            Sockets::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let who = stream.peer_cred().map_or_else(
                    |_| "unix".into(),
                    |peer| match peer.pid() {
                        Some(pid) => format!("process {pid} of user {}", peer.uid()),
                        None => format!("user {}", peer.uid()),
                    },
                );
                Ok((Stream::Unix(stream), who))
            }
            Sockets::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Stream::Tcp(stream), address.to_string()))
            }
        }
    }

    /// Starts the negotiation with a client.
    fn welcome(&self, shared: &Arc<Shared>, stream: Stream, who: String) {
        let place = shared.lobby.enter(shared.arrivals.fetch_add(1, Ordering::Relaxed));
        let security = self.security.clone();
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let limit = Duration::from_millis(shared.limits.handshake_timeout_ms.max(1));
            let talk = async {
                match stream {
                    Stream::Unix(stream) => receive(&shared, &place, &who, stream, &security).await,
                    Stream::Tcp(stream) => {
                        prepare(stream.as_fd())?;
                        receive(&shared, &place, &who, stream, &security).await
                    }
                }
            };
            tokio::select! {
                biased;
                () = place.sent_away() => tracing::debug!(who, "an NBD connection in its negotiation was sent away"),
                ended = tokio::time::timeout(limit, talk) => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::info!(who, %error, "an NBD connection broke in its negotiation"),
                    Err(_) => tracing::info!(who, "closing an NBD connection that did not finish its negotiation"),
                },
            }
        });
    }
}

/// TCP as NBD needs it: no waiting for more bytes, and a peer that vanished is noticed.
fn prepare(stream: impl AsFd + Copy) -> io::Result<()> {
    set_tcp_nodelay(stream, true)?;
    set_socket_keepalive(stream, true)?;
    set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    Ok(set_tcp_user_timeout(stream, TCP_USER_TIMEOUT_MS)?)
}

/// A stream that can leave the event loop.
trait Leave: tokio::io::AsyncRead + tokio::io::AsyncWrite + AsFd + Send + Unpin + 'static {
    /// The socket, blocking again.
    fn leave(self) -> io::Result<OwnedFd>;
}

impl Leave for UnixStream {
    fn leave(self) -> io::Result<OwnedFd> {
        let stream = self.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream.into())
    }
}

impl Leave for TcpStream {
    fn leave(self) -> io::Result<OwnedFd> {
        let stream = self.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream.into())
    }
}

/// Negotiates with a client, and starts to serve it.
async fn receive<S: Leave>(
    shared: &Arc<Shared>,
    place: &Place,
    who: &str,
    mut stream: S,
    security: &Security,
) -> io::Result<()> {
    let socket = stream.as_fd().try_clone_to_owned()?;
    let host = Host { shared, place, who, socket: &socket };
    let no_zeroes = match greet(&mut stream, &host).await? {
        Ok(no_zeroes) => no_zeroes,
        Err(outcome) => return end(who, outcome),
    };
    let tls = if matches!(security, Security::Tls(_)) { Tls::Required } else { Tls::Off };
    match (negotiate(&mut stream, &host, tls, no_zeroes).await?, security) {
        (Outcome::Transmission(admitted), _) => {
            // A std UnixStream is a descriptor with read, write and shutdown, which are the same for TCP.
            let stream = std::os::unix::net::UnixStream::from(stream.leave()?);
            connection::start(shared, stream, admitted, Before::default());
            Ok(())
        }
        (Outcome::StartTls, Security::Tls(config)) => {
            let mut stream = TlsAcceptor::from(config.current()).accept(stream).await?;
            place.spoke();
            match negotiate(&mut stream, &host, Tls::Active, no_zeroes).await? {
                Outcome::Transmission(admitted) => serve_encrypted(shared, stream, admitted),
                outcome => end(who, outcome),
            }
        }
        (outcome, _) => end(who, outcome),
    }
}

/// Serves the clear side of a TLS stream as any connection.
fn serve_encrypted<S>(shared: &Arc<Shared>, stream: S, admitted: Admitted) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    let (served, clear) = std::os::unix::net::UnixStream::pair()?;
    clear.set_nonblocking(true)?;
    let clear = UnixStream::from_std(clear)?;
    let Some(bridges) = shared.bridges.lock().clone() else { return Ok(()) };
    tokio::spawn(async move {
        bridge::run(stream, clear).await;
        drop(bridges);
    });
    connection::start(shared, served, admitted, Before::default());
    Ok(())
}

/// A negotiation that led to nothing.
fn end(who: &str, outcome: Outcome) -> io::Result<()> {
    match outcome {
        Outcome::Broken(why) => tracing::warn!(who, "closing an NBD connection in its negotiation: {why}"),
        _ => tracing::debug!(who, "an NBD client ended the negotiation"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt::{socket_keepalive, tcp_keepidle, tcp_keepintvl, tcp_user_timeout};

    use super::*;

    #[test]
    fn a_tcp_client_that_vanished_is_noticed_within_a_minute_or_so() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        prepare(stream.as_fd()).unwrap();
        assert_eq!(tcp_user_timeout(&stream).unwrap(), TCP_USER_TIMEOUT_MS);
        assert!(socket_keepalive(&stream).unwrap());
        let asked = tcp_keepidle(&stream).unwrap() + tcp_keepintvl(&stream).unwrap();
        assert!(asked < Duration::from_millis(TCP_USER_TIMEOUT_MS.into()), "asked before it is given up");
    }
}
