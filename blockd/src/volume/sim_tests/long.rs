//! One life that lasts for hours of simulated time: thousands of checkpoints and rounds of cleaning between deaths.
//! `make sim-long` runs it; VEXFS_SIM_HOURS says how long.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::number;
use super::raw::RawLife;
use super::script::{Life, Op, Weights, attempt, draw};
use super::vexfs::VexFsLife;

/// How often each comes, in ten thousand: a busy server that dies a few times an hour.
const WEIGHTS: &Weights = &[
    (Op::Batch, 7200),
    (Op::Commit, 2000),
    (Op::Clean, 300),
    (Op::Special, 300),
    (Op::LateCopies, 60),
    (Op::SlowRead, 60),
    (Op::Checkpoint, 20),
    (Op::Check, 20),
    (Op::Session, 10),
    (Op::Crash, 8),
    (Op::CrashAtWrite, 6),
    (Op::CrashAtStart, 4),
    (Op::ReadError, 4),
    (Op::WriteError, 3),
    (Op::SyncError, 3),
    (Op::Damage, 2),
    (Op::Snapshot, 100),
    (Op::Resize, 1),
];

const HOUR_US: u64 = 3600 * 1_000_000;

/// Lives until the simulated clock says so.
fn live_long<L: Life<Op = Op>>(seed: u64, hours: u64) {
    let outcome = attempt::<L>(seed, |life, timeline, at| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut told = 0;
        while timeline.now_us() < hours * HOUR_US {
            let step = draw(&mut rng, WEIGHTS);
            timeline.note(format!("{at}: {:?} with seed {:#x}", step.op, step.seed));
            life.step(step);
            // Bursts, and pauses of some seconds in between.
            let pause_us = if rng.random_ratio(1, 50) { 10_000_000 } else { 100_000 };
            timeline.pass(rng.random_range(0..pause_us));
            *at += 1;
            if timeline.now_us() / HOUR_US > told {
                told += 1;
                eprintln!("{}: {told} of {hours} hours, {at} steps", L::NAME);
            }
        }
        life.end();
    });
    if let Err(failure) = outcome {
        panic!(
            "\nthe long {} life of seed {seed} fails in step {}: {}\nWhat happened, {}",
            L::NAME,
            failure.at,
            failure.message,
            failure.timeline.last(number("VEXFS_SIM_TRACE").unwrap_or(400) as usize)
        );
    }
}

fn hours() -> u64 {
    number("VEXFS_SIM_HOURS").unwrap_or(12)
}

#[test]
#[ignore = "takes minutes: make sim-long"]
fn a_raw_volume_lives_for_hours() {
    live_long::<RawLife>(number("VEXFS_SIM_SEED").unwrap_or(0), hours());
}

#[test]
#[ignore = "takes minutes: make sim-long"]
fn a_vexfs_volume_lives_for_hours() {
    live_long::<VexFsLife>(number("VEXFS_SIM_SEED").unwrap_or(0), hours());
}
