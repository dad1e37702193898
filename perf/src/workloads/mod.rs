//! The workloads: what is compared with what.

mod files;
mod fio;
mod fuse;
mod nbd;
mod search;

use crate::contender::Prepared;
use crate::env::Env;

/// Name and cases of each workload.
pub const NAMES: &[(&str, &[&str])] = &[
    ("nbd", nbd::CASES),
    ("nbd-tmpfs", nbd::CASES),
    ("nbd-small-ram", nbd::SMALL_RAM_CASES),
    ("fuse", fuse::CASES),
    ("search", search::CASES),
];

/// Looks for what workload `name` of [`NAMES`] needs and puts it together; nothing is started yet.
pub fn prepare(name: &str, env: &Env) -> Prepared {
    match name {
        "nbd" => nbd::prepare(env),
        "nbd-tmpfs" => nbd::prepare_tmpfs(env),
        "nbd-small-ram" => nbd::prepare_small_ram(env),
        "fuse" => fuse::prepare(env),
        "search" => search::prepare(env),
        _ => Err(format!("there is no workload {name}")),
    }
}
