//! Measures VexFS and a rival side by side: interleaved rounds, medians, ratios, spread, CPU per operation.
//!
//! A workload has cases and contenders, ours first; [`rounds`] runs them, [`report`] prints. Every later figure of
//! the project comes from this tool, so that all are taken the same way and can be repeated by the printed command.

mod amplification;
mod bars;
mod cgroup;
mod contender;
mod cpu;
mod env;
mod machine;
mod report;
mod rounds;
mod server;
mod stats;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde_json::json;

use crate::env::Env;
use crate::machine::Machine;
use crate::rounds::Effort;

/// Runs ours and a rival in interleaved rounds; prints medians, ratios, spread and CPU per operation.
///
/// "server" is the CPU time of the serving process with all its threads, "client" that of the load generator;
/// neither holds what kernel threads do for them later (writeback, for instance).
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Options {
    /// Rounds to count, after one to warm up.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each contender in each round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only cases whose name (workload/case) contains this; may be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// One JSON object per case, after one for the machine.
    #[arg(long)]
    json: bool,
    /// Scratch space; its file system is what is measured [default: perf/scratch in the target directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Control group below which servers get little memory in nbd-small-ram [default: this process's own, if that is cgroup v2]
    #[arg(long, value_name = "DIR")]
    memory_group: Option<PathBuf>,
    /// List the cases.
    #[arg(long)]
    list: bool,
    #[command(subcommand)]
    tool: Option<Tool>,
}

/// Measurements of ours alone.
#[derive(Debug, Subcommand)]
enum Tool {
    /// Bytes that the store writes for each byte of a user, in three patterns (in memory, deterministic by seed).
    Amplification(amplification::Options),
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vexfs-perf: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if let Some(Tool::Amplification(options)) = &options.tool {
        return amplification::run(options);
    }
    anyhow::ensure!(
        options.seconds.is_finite() && (0.1..=3600.0).contains(&options.seconds),
        "--seconds must be between 0.1 and 3600, not {}",
        options.seconds
    );
    let wanted = |case: &str| options.only.is_empty() || options.only.iter().any(|part| case.contains(part));
    if options.list {
        for (name, cases) in workloads::NAMES {
            for case in *cases {
                println!("{name}/{case}");
            }
        }
        return Ok(());
    }
    let env = Env::new(options.dir.as_deref(), options.memory_group.as_deref())?;
    let effort = Effort { rounds: options.rounds as usize, time: Duration::from_secs_f64(options.seconds) };
    print_header(options, &Machine::this(env.scratch()));
    let mut ran = 0;
    for (name, cases) in workloads::NAMES {
        if !cases.iter().any(|case| wanted(&format!("{name}/{case}"))) {
            continue;
        }
        ran += 1;
        let mut workload = match workloads::prepare(name, &env) {
            Ok(workload) => workload,
            Err(missing) => {
                print_skip(options, name, &missing);
                continue;
            }
        };
        if !options.json {
            println!("\n{name}: {}\n", workload.about);
        }
        for rival in &workload.missing {
            print_skip(options, &format!("{name}, a rival"), rival);
        }
        rounds::run(&mut workload, &env, effort, wanted, |comparison| {
            if options.json {
                println!("{}", json!(comparison));
            } else {
                println!("{}", report::text(&comparison));
            }
        })?;
    }
    anyhow::ensure!(ran > 0, "no case matches --only {}; --list names them", options.only.join(" --only "));
    Ok(())
}

fn print_header(options: &Options, machine: &Machine) {
    let command: Vec<String> = std::env::args().collect();
    let version = env!("CARGO_PKG_VERSION");
    if options.json {
        println!("{}", json!({"machine": machine, "version": version, "command": command}));
    } else {
        println!("vexfs-perf {version} | {machine}");
        println!("again: {}", command.join(" "));
    }
}

fn print_skip(options: &Options, name: &str, missing: &str) {
    if options.json {
        println!("{}", json!({"skipped": name, "because": missing}));
    } else {
        println!("\n{name}: SKIPPED, {missing}");
    }
}
