//! Fuzzing that runs on every compiler: targets that make streams from a seed, many nearly right, and ask that
//! nothing panics, nothing hangs, memory stays bounded and the stream stays in step.
//!
//! `VEXFS_FUZZ_RUNS` is the budget of each target (default 200 streams), `VEXFS_TEST_SEED` the seed (default 1).
//! A failure prints the shrunken stream; it becomes a test with a name.

mod client;
mod daemon;
mod decoders;
mod pieces;
mod server;
mod steps;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")),
        Err(_) => default,
    }
}

/// A runner of `share` times the budget.
fn runner(share: u32) -> TestRunner {
    let runs = u32::try_from(number("VEXFS_FUZZ_RUNS", 200)).expect("a budget");
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number("VEXFS_TEST_SEED", 1).to_le_bytes());
    let config = Config { cases: runs.saturating_mul(share), failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

/// Sends everything while taking whatever comes, then half-closes; the other side must end it. Gives what came.
fn drive(stream: UnixStream, bytes: &[u8]) -> Vec<u8> {
    let mut reading = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut taken = Vec::new();
            // The end may come as a reset, if the other side had not read everything.
            let _ = reading.read_to_end(&mut taken);
            taken
        });
        // The other side may close before it has taken everything.
        let mut writing = &stream;
        let _ = writing.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        reader.join().unwrap()
    })
}
