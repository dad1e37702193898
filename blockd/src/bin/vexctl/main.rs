//! `vexctl`: vectors and search on mounted VexFS volumes; the daemons that serve them; care for images.
//!
//! It talks to a mount through ordinary files, xattrs and the session files ([`session`]) only; it links no file system.
//! It talks to a daemon through its control socket ([`daemon`]). Images it opens itself, as the daemon would ([`scrub`], [`resize`]).

mod cli;
mod collection;
mod daemon;
mod embedder;
mod ingest;
mod npy;
mod output;
mod put;
mod remedy;
mod resize;
mod schema;
mod scrub;
mod search;
mod session;
mod snapshot;
mod snippet;
mod stale;
mod stats;
mod status;
mod vectors;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, CollectionCommand, Command};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Collection(CollectionCommand::Create(args)) => collection::create(&args),
        Command::Collection(CollectionCommand::Show(args)) => collection::show(&args),
        Command::Put(args) => put::run(&args),
        Command::Search(args) => search::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Stale(args) => stale::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Checkpoint(args) => daemon::jobs::checkpoint(&args),
        Command::Compact(args) => daemon::jobs::compact(&args),
        Command::Tune(args) => daemon::jobs::tune(&args),
        Command::Drain(args) => daemon::jobs::drain(&args),
        Command::Ingest(args) => ingest::run(&args),
        Command::Scrub(args) => scrub::run(&args),
        Command::Snapshot(command) => snapshot::run(&command),
        Command::Send(args) => snapshot::backup::send(&args),
        Command::Receive(args) => snapshot::backup::receive(&args),
        Command::Resize(args) => resize::run(&args),
    };
    match result {
        Ok(status) => status,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vexctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
