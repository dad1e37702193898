//! What the environment can change: how long and with which seed the tests run.

/// Rounds of each kill test (`VEXFS_TEST_ROUNDS`).
pub fn rounds(default: u64) -> u64 {
    number("VEXFS_TEST_ROUNDS").unwrap_or(default)
}

/// MiB of the big file test (`VEXFS_TEST_BIG_MIB`).
pub fn big_file_mib(default: u64) -> u64 {
    number("VEXFS_TEST_BIG_MIB").unwrap_or(default)
}

/// Entries of the large directory (`VEXFS_TEST_ENTRIES`).
pub fn entries(default: usize) -> usize {
    number("VEXFS_TEST_ENTRIES").map_or(default, |entries| entries as usize)
}

/// The seed of a random test: `VEXFS_TEST_SEED`, else one from the system. Printed, to reproduce a failure.
pub fn seed() -> u64 {
    let seed = number("VEXFS_TEST_SEED").unwrap_or_else(rand::random);
    println!("VEXFS_TEST_SEED={seed}");
    seed
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")))
}
