//! How a client connects, and what its user may decide at a reconnect.

use super::raw::RawConnection;
pub use crate::nbd::proto::reply::Replies;

/// What a [`ReconnectHook`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HookOutcome {
    /// Go on: everything unacknowledged is sent again.
    Continue,
    /// Try again later, on another connection; the text says why.
    Retry(String),
    /// The session is lost for good: all pending and later I/O fails with
    /// [`crate::device::IoError::Fenced`] and this text.
    Lost(String),
}

/// Called on each fresh connection after the first one, before anything else is sent on it. It
/// may read and write there (a mounter sends its `CMD_ATTACH`). It must not use the `NbdClient`.
pub type ReconnectHook = Box<dyn Fn(&mut RawConnection) -> HookOutcome + Send + Sync>;

/// How to connect.
pub struct ConnectOptions {
    /// How long [`super::NbdClient::connect`] tries, in milliseconds; 0 tries once.
    pub connect_timeout_ms: u64,
    /// How long a server may take for its handshake and for each request of a hook, in
    /// milliseconds.
    pub handshake_timeout_ms: u64,
    /// Wait for the server whenever the connection is lost, as a mount does. Otherwise pending
    /// and later requests fail, as a tool wants it.
    pub reconnect: bool,
    /// The longest form of requests and replies to ask the server for.
    pub form: Replies,
    /// See [`ReconnectHook`].
    pub hook: Option<ReconnectHook>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            connect_timeout_ms: 5_000,
            handshake_timeout_ms: 10_000,
            reconnect: true,
            form: Replies::Extended,
            hook: None,
        }
    }
}

impl ConnectOptions {
    /// For tools: try once, and fail when the connection is lost.
    pub fn fail_fast() -> Self {
        ConnectOptions { connect_timeout_ms: 0, reconnect: false, ..ConnectOptions::default() }
    }
}
