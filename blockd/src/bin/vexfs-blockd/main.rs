//! `vexfs-blockd`: the daemon that serves an image.

mod args;
mod nbd;
mod serve;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let result = match args.command {
        args::Command::Serve(serve) => serve::run(&serve),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vexfs-blockd: {}", blockd::report::one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
