//! The daemon's side work: what is asked and told about it while it serves.
//!
//! - [`protocol`]: requests and replies, one JSON object a line, over a unix socket that only its owner may open;
//! - [`side`]: the one thread that all of this runs in, on tokio-uring, or on epoll where io_uring is not permitted;
//!   `stream`: its sockets; `server`: its control connections; [`metrics`]: its HTTP for Prometheus;
//! - [`host`]: the daemon as the commands see it; `commands`: what each does, in a thread of its own;
//! - `descriptor`: one that a client sends along; [`client`]: how `vexctl` asks; [`paths`]: where sockets are; [`listen`]: how they are bound.
//!
//! Whatever comes in is hostile until checked: lines are bounded, connections are counted and have time limits.

pub mod client;
mod commands;
pub mod host;
pub mod listen;
pub mod metrics;
pub mod paths;
pub mod protocol;
mod server;
pub mod side;
mod stream;

pub use server::{Gone, Handler, Replies};
