//! Space back: moves what is alive out of segments that are mostly dead.
//!
//! [`policy`] chooses, [`machine`] carries out, step by step; [`thread`] is who steps it. [`view`]: the store as the policy sees it.
//! [`rounds`]: whether it gains anything. [`copy`]: the live pages of a segment, [`cloned`]: those that its records do not name;
//! [`ahead`]: those of the next one. [`tuning`]: what can be
//! changed meanwhile. Pages are copied through the log as relocations, which count only if the page still stands where it was found.

mod ahead;
pub(crate) mod cloned;
pub(crate) mod copy;
pub(crate) mod machine;
pub(crate) mod meta;
pub mod policy;
mod rounds;
pub mod thread;
pub mod tuning;
mod view;
pub(crate) mod watch;

pub use thread::CleanerLink;
pub use tuning::{LiveTuning, Tuning};
