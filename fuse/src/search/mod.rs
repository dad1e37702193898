//! Exact search with SIMD and both cores, over the core in [`layout::search`].
//!
//! A scan reads each chunk's header page and its vectors. Vectors of full chunks never change, so
//! they are kept contiguous in RAM ([`ChunkCache`]) and a repeated scan runs at memory speed; SIMD
//! kernels give each row a lower bound of its distance ([`Kernel`]), and the few rows that could enter
//! the top k are measured by definition ([`layout::distance`]). So answers are the same on every machine.

mod cache;
mod chunk;
mod kernel;
mod parallel;

pub use cache::ChunkCache;
pub use chunk::Chunk;
pub use kernel::Kernel;
pub use parallel::{Answer, Query, Searcher};

#[cfg(target_endian = "big")]
compile_error!("vectors are scanned in place as little-endian numbers: this needs a little-endian host");
