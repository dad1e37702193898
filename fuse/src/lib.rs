//! The FUSE mounter of VexFS.
//!
//! Order of dependency: [`engine`] (page cache, epochs, commits over a device) -> [`search`] ->
//! [`session`] (session files) -> [`mount`] (operations, FUSE).

pub mod engine;
pub mod mount;
pub mod search;
pub mod session;
#[cfg(test)]
mod sim_tests;
