//! The FUSE mounter of VexFS.

pub mod search;
pub mod session;
