//! A life is a script: steps drawn from a seed, each with a seed of its own, so that the rest stay the same when
//! some are left out. A life that fails is run again with ever fewer steps, and what is left is printed with all
//! that happened in it.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::timeline::Timeline;

/// A number from the environment.
///
/// # Panics
/// If it is something else.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")))
}

/// Seeds to run: `count` from 0 on, or those of the environment.
pub fn seeds(count: u64) -> Vec<u64> {
    let (seed, runs) = (number("VEXFS_SIM_SEED"), number("VEXFS_SIM_RUNS"));
    let first = seed.unwrap_or(0);
    (first..first + runs.unwrap_or(if seed.is_some() { 1 } else { count })).collect()
}

/// Runs `f` for each seed; a failure names its seed.
pub fn for_seeds(count: u64, f: impl Fn(u64) + panic::RefUnwindSafe) {
    for seed in seeds(count) {
        if let Err(panic) = panic::catch_unwind(|| f(seed)) {
            eprintln!("failed with VEXFS_SIM_SEED={seed}");
            panic::resume_unwind(panic);
        }
    }
}

/// How often each kind of step comes, by relative weights.
pub type Weights<O> = [(O, u32)];

/// One step.
#[derive(Clone, Copy, Debug)]
pub struct Step<O> {
    /// What it does.
    pub op: O,
    /// Of all its random choices.
    pub seed: u64,
}

/// The steps of a seed.
fn script<L: Life>(seed: u64, steps: usize) -> Vec<Step<L::Op>> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x7363_7269_7074);
    (0..steps).map(|_| draw(&mut rng, L::WEIGHTS)).collect()
}

/// The next step.
pub fn draw<O: Copy>(rng: &mut StdRng, weights: &Weights<O>) -> Step<O> {
    let mut left = rng.random_range(0..weights.iter().map(|(_, weight)| weight).sum());
    for &(op, weight) in weights {
        if left < weight {
            return Step { op, seed: rng.random() };
        }
        left -= weight;
    }
    unreachable!("what was drawn is less than the sum of the weights")
}

/// A volume, the model of it, and what can happen to both.
pub trait Life {
    /// What a step may do.
    type Op: Copy + fmt::Debug + Send + Sync + 'static;
    /// For messages.
    const NAME: &'static str;
    /// What happens in it.
    const WEIGHTS: &'static Weights<Self::Op>;
    /// A new volume.
    fn begin(seed: u64, timeline: Timeline) -> Self;
    /// One step; panics when the volume is not as the model says.
    fn step(&mut self, step: Step<Self::Op>);
    /// The last comparison.
    fn end(&mut self);
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Panics of this thread are reported in the end, not when they come: many are expected while a failing script
/// is made shorter.
fn be_quiet() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    QUIET.set(true);
}

/// How a life failed.
pub struct Failure {
    /// The step, or their number when it was the end.
    pub at: usize,
    pub message: String,
    pub timeline: Timeline,
}

/// Runs a script; gives its timeline.
fn run<L: Life>(seed: u64, steps: &[Step<L::Op>]) -> Result<Timeline, Failure> {
    attempt::<L>(seed, |life, timeline, at| {
        for step in steps {
            timeline.note(format!("{at}: {:?}", step.op));
            life.step(*step);
            *at += 1;
        }
        timeline.note("the end");
        life.end();
    })
}

/// Begins a life and goes on as `body` says, which counts the steps; what the store logs goes to the timeline.
pub fn attempt<L: Life>(
    seed: u64,
    body: impl FnOnce(&mut L, &Timeline, &mut usize),
) -> Result<Timeline, Failure> {
    let timeline = Timeline::default();
    let mine = timeline.clone();
    let log = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .with_writer(move || LogLine(mine.clone()))
        .finish();
    let mut at = 0;
    be_quiet();
    let result = tracing::subscriber::with_default(log, || {
        panic::catch_unwind(AssertUnwindSafe(|| {
            let mut life = L::begin(seed, timeline.clone());
            body(&mut life, &timeline, &mut at);
        }))
    });
    QUIET.set(false);
    let Err(panic) = result else { return Ok(timeline) };
    let text = panic.downcast_ref::<String>().cloned();
    let message = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    let message = message.unwrap_or_else(|| "a panic without words".into());
    Err(Failure { at, message, timeline })
}

struct LogLine(Timeline);

impl std::io::Write for LogLine {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        (&self.0).write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Most runs for making a failing script shorter, unless VEXFS_SIM_MINIMISE says so.
const MINIMISING_RUNS_MAX: u64 = 400;

/// Leaves steps out while it still fails, however it does.
fn minimise<L: Life>(seed: u64, steps: &[Step<L::Op>], mut failure: Failure) -> (Vec<Step<L::Op>>, Failure) {
    let mut steps = steps[..steps.len().min(failure.at + 1)].to_vec();
    let mut runs = 0;
    let runs_max = number("VEXFS_SIM_MINIMISE").unwrap_or(MINIMISING_RUNS_MAX);
    let mut size = (steps.len() / 2).max(1);
    loop {
        let mut from = 0;
        let before = steps.len();
        while from < steps.len() && runs < runs_max {
            let mut fewer = steps.clone();
            fewer.drain(from..(from + size).min(steps.len()));
            runs += 1;
            match run::<L>(seed, &fewer) {
                Err(found) => {
                    fewer.truncate(found.at + 1);
                    (steps, failure) = (fewer, found);
                }
                Ok(_) => from += size,
            }
        }
        if runs >= runs_max || (size == 1 && steps.len() == before) {
            return (steps, failure);
        }
        size = (size / 2).max(1);
    }
}

/// Lives of `steps` steps for each of the seeds, on all processors.
///
/// # Panics
/// When one fails: with its seed, the steps that matter, and what happened in them.
pub fn live<L: Life>(seeds: &[u64], steps: usize) {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<(u64, Failure)>> = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(seeds.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if failed.lock().is_some() {
                        return;
                    }
                    if let Err(failure) = run::<L>(seed, &script::<L>(seed, steps)) {
                        failed.lock().get_or_insert((seed, failure));
                    }
                }
            });
        }
    });
    if let Some((seed, failure)) = failed.into_inner() {
        panic!("{}", report::<L>(seed, steps, failure));
    }
}

fn report<L: Life>(seed: u64, steps: usize, first: Failure) -> String {
    let mut text = format!(
        "\n{} life of seed {seed} fails in step {} of {steps}: {}\nagain: make sim SEED={seed}\n",
        L::NAME,
        first.at,
        first.message
    );
    let (at, all) = (first.at, script::<L>(seed, steps));
    let (left, last) = minimise::<L>(seed, &all, first);
    let _ = writeln!(text, "{} of {} steps are enough: {}", left.len(), at + 1, last.message);
    for step in &left {
        let _ = writeln!(text, "  {:?} with seed {:#x}", step.op, step.seed);
    }
    let lines = number("VEXFS_SIM_TRACE").unwrap_or(120) as usize;
    let _ = write!(text, "What happened, {}", last.timeline.last(lines));
    text
}

/// Whether a seed does the same each time.
pub fn is_reproducible<L: Life>(seed: u64, steps: usize) -> bool {
    let steps = script::<L>(seed, steps);
    let mut prints = (0..2).map(|_| run::<L>(seed, &steps).map(|t| t.fingerprint()).map_err(|f| f.message));
    match (prints.next(), prints.next()) {
        (Some(Ok(a)), Some(Ok(b))) => a == b,
        other => panic!("seed {seed} of {} fails: {other:?}", L::NAME),
    }
}
