//! Exact search (FORMAT.md sections 6.3 and 6.4): the core that every mounter shares.
//!
//! It allocates nothing: results, verdicts and vectors stand in the caller's memory. How vectors
//! are measured comes in through [`Scorer`]; [`Reference`] is the definition.
//!
//! Order: [`scan`] -> [`Scorer`] (distance) -> [`TopK`] (k nearest) -> [`Gate`] (alive, permitted).

mod gate;
mod links;
mod scan;
#[cfg(test)]
mod tests;
mod top;

pub use crate::access::{Access, Credentials};
pub use gate::{Freshness, Gate, Verdict};
pub use scan::{Bounds, Filter, Reference, Scorer, scan};
pub use top::{Hit, Limit, TopK, order};
