//! The VexFS store and the daemon that serves it.
//!
//! Order of dependency: frontends ([`nbd`]) -> [`device`] <- volume -> store -> storage.

pub mod buf;
pub mod completion;
pub mod control;
mod descriptor;
pub mod device;
pub mod embed;
pub mod handover;
pub mod nbd;
pub mod report;
pub mod session;
pub mod stats;
pub mod storage;
pub mod store;
pub mod volume;
