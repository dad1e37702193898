//! The FUSE mounter of VexFS.

pub mod engine;
