//! Load whose effect can be checked after a crash.
//!
//! Each worker has a directory of its own and changes it step by step, noting each step outside of the file system
//! ([`history`]). After a crash, names and metadata of a worker's directory must equal the state after some
//! prefix of its steps, one that holds every step that had ended when the last acknowledged fsync, of whichever
//! worker, began; and each page of a file must be a version not older than the file's last fsync ([`check`]).
//! Pages describe themselves ([`page`]), so that a page of another file, place or time is told from the right one.

pub mod check;
pub mod history;
pub mod namespace;
pub mod page;
pub mod worker;

pub use check::{Promise, check};
pub use worker::Load;
