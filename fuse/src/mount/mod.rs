//! A mounted volume: FUSE requests on one side, the file system logic and the engine on the other.
//!
//! [`Mounted`] has every operation in terms of the file system logic; only [`adapter`] knows the
//! FUSE crate. Lock order: the engine's gate ([`crate::engine::Operation`]), then the file's own
//! lock ([`file_locks`]), then the [`layout::fs::Fs`] lock, then the tables (open
//! files, rows that wait for bytes or for their missing parts).

mod adapter;
mod attributes;
#[cfg(test)]
mod bench;
mod copy;
mod data;
mod file_locks;
mod filling;
mod holes;
mod known;
mod lifecycle;
mod names;
mod node;
mod open_files;
mod options;
mod row_sets;
mod session_files;
mod source;
#[cfg(test)]
mod tests;
mod volume;
mod xattrs;

#[cfg(test)]
pub(crate) use holes::Seek;
pub use lifecycle::{MountError, Running, mount};
pub use options::{MountSettings, OptionError};
pub use source::{Opened, Source};
pub use volume::Mounted;
pub(crate) use volume::now;
