//! `fsck.vexfs` (built as `fsck-vexfs`, since cargo allows no dot in a binary's name): checks and repairs the file system
//! of a VexFS volume. The work is in [`vexfs_fuse::check`].

mod args;
mod console;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use vexfs_fuse::check::source::{Checked, OpenError};
use vexfs_fuse::check::{Mode, Outcome, Stop, run};
use vexfs_fuse::mount::Source;

use args::Args;
use console::Console;

const REPAIRED: u8 = 1;
const LEFT: u8 = 4;
const FAILED: u8 = 8;
const USAGE: u8 = 16;
const CANCELLED: u8 = 32;

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Source(#[from] vexfs_fuse::mount::MountError),
    #[error(transparent)]
    Stop(#[from] Stop),
    #[error("cannot watch for signals: {0}")]
    Signals(std::io::Error),
    #[error("cannot write progress to file descriptor {0}: {1}")]
    Progress(u32, std::io::Error),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Stop(Stop::Cancelled) => CANCELLED,
            Failure::Stop(Stop::Unsafe | Stop::TooMuch) => LEFT,
            _ => FAILED,
        }
    }
}

fn main() -> ExitCode {
    let args = match Args::try_parse_from(args::normalise(std::env::args_os())) {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    // What the store says of a bad page is told with its finding.
    let level = if args.verbose { "info" } else { "off" };
    tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr).with_target(false).init();
    match check(&args) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let _ = std::io::stdout().flush();
            let why = blockd::report::one_line(&failure);
            let about = if why.contains(&args.source) { String::new() } else { format!("{}: ", args.source) };
            eprintln!("fsck.vexfs: {about}{why}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn check(args: &Args) -> Result<u8, Failure> {
    let cancelled = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&cancelled)).map_err(Failure::Signals)?;
    }
    let source = Source::parse(&args.source)?;
    let mode = args.mode();
    if mode == Mode::Preen && !args.force {
        let mut checked = Checked::open(&source, args.snapshot.as_deref(), false, args.fence)?;
        let clean = checked.is_clean();
        checked.close()?;
        if clean? {
            if !args.json {
                console::print_line(&format!("{}: clean", args.source));
            }
            return Ok(0);
        }
    }
    let mut console = Console::new(args, cancelled)?;
    let mut checked = Checked::open(&source, args.snapshot.as_deref(), mode != Mode::Look, args.fence)?;
    let result = run(&mut checked.pool, mode, args.data, &mut console);
    console.clear();
    let closed = checked.close();
    let outcome = result?;
    if !(outcome.repaired || mode == Mode::Look) {
        closed?;
    } else if let Err(error) = closed {
        eprintln!(
            "fsck.vexfs: {}: the session could not be closed; the next mount does it: {error}",
            args.source
        );
    }
    console.summary(&outcome, mode);
    Ok(exit_code(&outcome))
}

fn exit_code(outcome: &Outcome) -> u8 {
    match outcome.exit_code() {
        0 if outcome.repaired => REPAIRED,
        code => code,
    }
}
