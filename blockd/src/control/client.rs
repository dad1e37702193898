//! Asking a daemon.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::protocol::{AWAITING, DESCRIPTOR, REPLY_BYTES_MAX, Reply, Request};
use crate::descriptor;

/// Time for a daemon to accept a connection, to take a request, and to answer one that is no work
/// ([`ControlClient::ask_at_once`]).
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error(
        "no daemon answers at {path}: {source}; is vexfs-blockd running, and may you use its control socket?"
    )]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the daemon at {path} went away: {source}")]
    Broken {
        /// The control socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is there, but stopped or stuck.
    #[error(
        "the daemon at {path} does not answer within {PATIENCE:?}: is its process stopped, or the machine overloaded?"
    )]
    Silent {
        /// The control socket.
        path: PathBuf,
    },
    /// It answered, but not so.
    #[error(
        "the daemon at {path} gave an answer that this program does not understand ({why}); use one version of both"
    )]
    NotUnderstood {
        /// The control socket.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The daemon's own sentence.
    #[error("{0}")]
    Refused(String),
}

impl ClientError {
    /// Nobody listens: a daemon that was killed leaves its socket behind.
    pub fn is_nobody(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, ClientError::Connect { source, .. } if [ConnectionRefused, NotFound].contains(&source.kind()))
    }
}

/// A connection to a daemon's control socket.
pub struct ControlClient {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl ControlClient {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::Connect`]; [`ClientError::Silent`] if others wait to be accepted, and none is.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        match connect_within(path, PATIENCE) {
            Ok(stream) => Ok(ControlClient { path: path.into(), stream: BufReader::new(stream) }),
            Err(source) if source.kind() == io::ErrorKind::WouldBlock => {
                Err(ClientError::Silent { path: path.into() })
            }
            Err(source) => Err(ClientError::Connect { path: path.into(), source }),
        }
    }

    /// As [`ControlClient::ask`], for what a daemon that lives answers at once.
    ///
    /// # Errors
    /// [`ClientError`]; after [`ClientError::Silent`] nothing more can be asked.
    pub fn ask_at_once<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        let broken = |source| ClientError::Broken { path: self.path.clone(), source };
        self.stream.get_ref().set_read_timeout(Some(PATIENCE)).map_err(broken)?;
        let answer = self.ask(request);
        let broken = |source| ClientError::Broken { path: self.path.clone(), source };
        self.stream.get_ref().set_read_timeout(None).map_err(broken)?;
        answer
    }

    /// As [`ControlClient::ask_with_progress`], for a request whose outcome comes on a stream: `stream` is the daemon's end of it,
    /// a unix stream socket, and is closed here when the daemon has it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask_with_stream<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        stream: OwnedFd,
        mut progress: impl FnMut(Value),
    ) -> Result<T, ClientError> {
        let mut stream = Some(stream);
        let mut sent = Ok(());
        let socket = self.stream.get_ref().try_clone();
        let socket = socket.map_err(|source| ClientError::Broken { path: self.path.clone(), source })?;
        let answer = self.ask_with_progress(request, |value| {
            if value.get(AWAITING).is_none_or(|what| what != DESCRIPTOR) {
                progress(value);
            } else if let Some(stream) = stream.take() {
                sent = descriptor::send(&socket, stream);
                if sent.is_err() {
                    // Nothing can follow: the read ends too.
                    let _ = socket.shutdown(std::net::Shutdown::Both);
                }
            }
        });
        sent.map_err(|source| ClientError::Broken { path: self.path.clone(), source })?;
        answer
    }

    /// Asks, and waits for the result.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        self.ask_with_progress(request, |_| {})
    }

    /// As [`ControlClient::ask`], giving each progress to `progress`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask_with_progress<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        mut progress: impl FnMut(Value),
    ) -> Result<T, ClientError> {
        let broken = |source: io::Error| match source.kind() {
            io::ErrorKind::WouldBlock => ClientError::Silent { path: self.path.clone() },
            _ => ClientError::Broken { path: self.path.clone(), source },
        };
        let not_understood =
            |e: serde_json::Error| ClientError::NotUnderstood { path: self.path.clone(), why: e.to_string() };
        let mut line = serde_json::to_vec(request).map_err(not_understood)?;
        line.push(b'\n');
        self.stream.get_ref().write_all(&line).map_err(broken)?;
        loop {
            line.clear();
            let mut limited = (&mut self.stream).take(REPLY_BYTES_MAX as u64);
            if limited.read_until(b'\n', &mut line).map_err(broken)? == 0 {
                return Err(broken(io::ErrorKind::UnexpectedEof.into()));
            }
            match serde_json::from_slice(&line).map_err(not_understood)? {
                Reply::Progress(value) => progress(value),
                Reply::Result(value) => return serde_json::from_value(value).map_err(not_understood),
                Reply::Error(why) => return Err(ClientError::Refused(why)),
            }
        }
    }
}

/// As connect(2), but not for longer than a time (`WouldBlock` then), which writes have too.
fn connect_within(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket.into())
}
