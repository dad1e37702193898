//! From errors to the errno that the kernel gets: the place where corruption and I/O errors reach the log.

use layout::error::Error;

use crate::session::SessionError;
use crate::wire::request::Malformed;

/// An errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure(pub i32);

/// What an operation comes to; its answer is in the reply.
pub type Done = Result<(), Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Corrupt(_) => tracing::error!("{error}"),
            // Seen from an application, a mount that lost its volume is an I/O error.
            Error::Fenced => return Failure(libc::EIO),
            _ => {}
        }
        Failure(error.errno())
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        tracing::debug!("session file: {error}");
        Failure(if error.errno == libc::ESHUTDOWN { libc::EIO } else { error.errno })
    }
}

impl From<Malformed> for Failure {
    fn from(error: Malformed) -> Self {
        tracing::error!("{error}");
        Failure(libc::EINVAL)
    }
}

/// Where a request names a node, not a name: an inode that is gone means that the kernel's knowledge is out of date.
pub fn stale(error: Error) -> Failure {
    if error == Error::NotFound { Failure(libc::ESTALE) } else { error.into() }
}
