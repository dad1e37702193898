//! Space back: moves what is alive out of segments that are mostly dead.
//!
//! [`policy`] chooses, [`worker`] carries out. Pages are copied through the log as relocations, which
//! count only if the page still stands where it was found; a segment is free after the next checkpoint.

pub mod policy;
pub mod tuning;
pub mod worker;

pub use tuning::{LiveTuning, Tuning};
pub use worker::{Cleaner, CleanerLink};
