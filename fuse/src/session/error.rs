//! A failure as a session file reports it: an errno for programs, a sentence for people.

use std::fmt;

use layout::error::Error;

/// What went wrong and what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionError {
    /// A positive Linux errno.
    pub errno: i32,
    /// Cause and remedy.
    pub message: String,
}

/// Result of a session file.
pub type SessionResult<T> = Result<T, SessionError>;

impl SessionError {
    /// A failure with an error of the file system logic and what it was about.
    pub(super) fn about(error: Error, what: impl fmt::Display) -> Self {
        SessionError { errno: error.errno(), message: format!("{what}: {error}") }
    }

    /// An invalid request (EINVAL).
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        SessionError { errno: libc::EINVAL, message: message.into() }
    }

    /// Not permitted by mode bits (EACCES).
    pub(super) fn denied(message: impl Into<String>) -> Self {
        SessionError { errno: libc::EACCES, message: message.into() }
    }
}

impl From<Error> for SessionError {
    fn from(error: Error) -> Self {
        SessionError { errno: error.errno(), message: error.to_string() }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for SessionError {}
