//! Asking a daemon.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::protocol::{REPLY_BYTES_MAX, Reply, Request};

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

/// A connection to a daemon's control socket.
pub struct ControlClient {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl ControlClient {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(ControlClient { path: path.into(), stream: BufReader::new(stream) }),
            Err(source) => Err(ClientError::Connect { path: path.into(), source }),
        }
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
        let broken = |source| ClientError::Broken { path: self.path.clone(), source };
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
