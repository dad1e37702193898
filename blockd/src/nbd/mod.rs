//! The Network Block Device protocol: how a [`crate::device::Device`] is served over a unix
//! socket, and how such a server is used as a `Device` again.
//!
//! - [`proto`]: constants and structures of the wire, nothing else;
//! - `wire`: buffered receiving and coalesced sending, shared by both sides;
//! - [`server`]: fixed newstyle handshake and transmission over an `Arc<dyn Device>`;
//! - [`client`]: [`client::NbdClient`], which reconnects and loses nothing.
//!
//! Source: "The NBD protocol", <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>;
//! section names in the comments below are that document's.

pub mod client;
pub mod proto;
pub mod server;
mod wire;
