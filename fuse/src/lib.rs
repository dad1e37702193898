//! The FUSE mounter of VexFS.
//!
//! Order of dependency: [`engine`] (page cache, epochs, commits over a device) -> [`search`] ->
//! [`session`] (session files) -> [`mount`] (operations); beside them [`wire`] (the FUSE protocol).

pub mod engine;
pub mod mount;
pub mod search;
pub mod session;
pub mod wire;
