//! The simulator: the real volume over a simulated backing, against a model, by seeds.
//!
//! [`script`]: lives made of random steps, run, made shorter when they fail, and told. [`raw`], [`vexfs`]: both kinds of
//! volume, their models, what happens to them. [`machine`]: deaths and starts. [`damage`]: what rots, and backings
//! that lie. [`past`]: their snapshots. [`full`]: lives of volumes that are nearly full. [`bad_leaves`]: what is left when a page of the map is bad;
//! [`bad_leaves_served`]: what can still be written. [`long`]: lives of hours. [`corners`], [`commits`], [`faults`], [`restarts`]: cases by hand. [`driver`]: the volume without its threads.
//!
//! `VEXFS_SIM_SEED=n` runs that seed alone, `VEXFS_SIM_RUNS=n` so many (from there on, if both are given);
//! `VEXFS_SIM_TRACE=n` prints so many events of a failure. `make sim` sets them.

mod bad_leaves;
mod bad_leaves_served;
mod checkpoints;
mod commits;
mod corners;
mod damage;
mod directories;
mod driver;
mod faults;
mod full;
mod long;
mod machine;
mod part;
mod past;
mod raw;
mod resize;
mod restarts;
mod script;
mod scrub;
mod snapshots;
mod space;
mod stale;
mod vexfs;

use rand::Rng;
use rand::rngs::StdRng;

use crate::storage::sim::script::{for_seeds, number, seeds};

/// The content of a page that was written as version `tag`; 0 is never written.
fn content(page: u64, tag: u64) -> Vec<u8> {
    if tag == 0 {
        return vec![0; 4096];
    }
    let mut bytes = Vec::with_capacity(4096);
    let mut word = page.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ tag;
    while bytes.len() < 4096 {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The version of a page's content.
fn tag_of(page: u64, bytes: &[u8]) -> Option<u64> {
    let mut tag = [0; 8];
    tag.copy_from_slice(bytes.get(..8)?);
    let tag = u64::from_le_bytes(tag);
    (content(page, tag) == bytes).then_some(tag)
}

/// True once in `n`.
fn once_in(rng: &mut StdRng, n: u32) -> bool {
    rng.random_ratio(1, n)
}
