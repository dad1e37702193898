//! The page cache, epochs and commits of one mount, over any [`blockd::device::Device`].
//!
//! All metadata pages and all changed data pages of the mount live here. The file system logic
//! sees it as a [`layout::page_store::PageStore`] ([`Pages`]); the mount moves file bytes through
//! [`Engine::read_data`] and [`Engine::write_data`].
//!
//! Life of a page: *absent* -> clean (bounded, second chance) -> dirty in the open epoch -> in
//! flight (frozen by a commit, or written out early) -> clean. A page that is changed while it is
//! in flight becomes dirty again with a copy; the old bytes go on to the device untouched.
//!
//! Invariants, FORMAT.md 5.8:
//! - one batch is in flight at a time ([`Engine`]'s write-back lock), so a page is never written
//!   twice at once, and nothing reaches the device between a freeze and the commit's ack;
//! - discards of a batch are sent, and acknowledged, before its pages;
//! - a page that is dirty or in flight is never dropped, so a miss reads what the device holds,
//!   or zeros if the page lies in a discard that is not acknowledged yet.

mod cache;
mod clone;
mod commit;
mod credits;
mod data;
mod flusher;
mod health;
mod occupancy;
mod page;
mod pager;
#[cfg(test)]
pub(crate) mod ram;
mod ranges;
#[cfg(test)]
mod tests;
mod transfer;

pub use clone::{ClonedPages, Cloning};
pub use commit::EpochSource;
pub use credits::Cost;
pub use data::DataBuf;
pub use flusher::Flusher;
pub use health::Health;
pub use page::{PageArc, PageBuf};
pub use pager::{Engine, EngineOptions, Operation, PageMut, Pages, Reservation};
pub(crate) use ranges::RangeSet;
