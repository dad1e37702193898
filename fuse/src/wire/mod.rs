//! The FUSE protocol: this process's side of /dev/fuse.
//!
//! [`abi`] has the structures, [`mount`](mod@mount) makes the mount, [`server`] reads requests from a [`channel`] and gives each, as a
//! [`request`], to a [`server::Handler`], which fills a [`reply`]; or they come by a [`ring`]. A [`pool`] has the threads. Nothing here knows VexFS.

pub mod abi;
pub mod channel;
pub mod mount;
pub mod pool;
pub mod reply;
pub mod request;
pub mod ring;
pub mod server;
