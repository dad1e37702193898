//! `vexfs-blockd`: the daemon that serves an image.

mod activation;
mod args;
mod check;
mod config;
mod descriptors;
mod logging;
mod nbd;
mod notify;
mod serve;
mod settings;
mod side;
mod signals;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let result = match args.command {
        args::Command::Serve(serve) => serve::run(&serve),
        args::Command::CheckConfig(check) => check::run(&check),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vexfs-blockd: {}", blockd::report::one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
