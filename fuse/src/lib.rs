//! The FUSE mounter of VexFS.
//!
//! Order of dependency: [`engine`] (page cache, epochs, commits over a device) -> [`search`] ->
//! [`session`] (session files) -> [`mount`] (operations); beside them [`wire`] (the FUSE protocol). [`check`] is fsck.vexfs: it
//! works on the device alone, and takes from the others only how a source is opened. [`dump`] is vexfs-dump.

pub mod check;
pub mod dump;
pub mod engine;
pub mod mount;
mod printable;
pub mod search;
pub mod session;
#[cfg(test)]
mod sim_tests;
pub mod wire;
