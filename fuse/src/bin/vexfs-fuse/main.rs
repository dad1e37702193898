//! `vexfs-fuse SOURCE MOUNTPOINT`: mounts a VexFS volume. As `mount.fuse.vexfs` it is what mount(8) calls.
//!
//! Exit status: 0 after an orderly unmount whose last commit succeeded; 1 when the mount could not
//! be made, or the last commit failed.

mod args;
mod daemon;
mod logging;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::Parser;
use vexfs_fuse::mount::{MountSettings, Source, mount};

use args::{Args, Helper};

/// Exit statuses of mount(8).
const WRONG_CALL: u8 = 1;
const NOT_MOUNTED: u8 = 32;

fn main() -> ExitCode {
    if args::is_helper(std::env::args_os().next().as_deref()) {
        return help_mount();
    }
    let args = Args::parse();
    logging::start(args.background_child);
    let done = if args.foreground || args.background_child { run(&args) } else { daemon::start(&args) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => told("vexfs-fuse", &error, ExitCode::FAILURE),
    }
}

/// As mount(8) wants it: comes back when the mount is live.
fn help_mount() -> ExitCode {
    const NAME: &str = "mount.fuse.vexfs";
    match args::helper(std::env::args_os()) {
        Ok(Helper::Nothing) => ExitCode::SUCCESS,
        Ok(Helper::Mount(args)) => match daemon::start(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => told(NAME, &error, ExitCode::from(NOT_MOUNTED)),
        },
        Err(error) => told(NAME, &error.into(), ExitCode::from(WRONG_CALL)),
    }
}

/// Says why on standard error, unless that has been said.
fn told(name: &str, error: &anyhow::Error, code: ExitCode) -> ExitCode {
    tracing::debug!("{error:?}");
    if !error.is::<daemon::ChildFailed>() {
        eprintln!("{name}: {}", blockd::report::one_line(error.as_ref()));
    }
    code
}

fn run(args: &Args) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        // A second signal ends it at once, without a commit: the way out when a daemon stays away.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))
            .context("cannot watch for signals")?;
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot watch for signals")?;
    }
    // Threads started from here on serve what memory reclaim may wait for: they must not wait for it.
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::debug!("not marked as an I/O flusher (it needs CAP_SYS_RESOURCE): {error}");
    }
    // In the background the working directory changes, and the way back to the mount point with it.
    let at = std::path::absolute(&args.mountpoint).context("cannot resolve the mount point")?;
    let mut settings = MountSettings::new(at);
    for list in &args.options {
        settings.apply(list)?;
    }
    let background =
        args.background_child.then(|| logging::Background::open(args.log.as_deref())).transpose()?;
    let source = Source::parse(&args.source)?;
    let mountpoint = args.mountpoint.display();
    let opened = source.open(settings.read_only, settings.snapshot.as_deref())?;
    let running = match mount(Arc::clone(&opened.device), &opened.cell, &args.source, settings) {
        Ok(running) => running,
        Err(error) => {
            opened.shutdown();
            return Err(anyhow::Error::new(error).context(format!("cannot mount {source} on {mountpoint}")));
        }
    };
    tracing::info!("{source} is mounted on {mountpoint}");
    if let Some(background) = background {
        daemon::detach(background);
    }
    let served = running.serve(|| stop.load(Ordering::Relaxed));
    opened.shutdown();
    if let Err(error) = &served {
        tracing::error!(
            "the last commit of {source} failed: {error}; changes after the commit before are lost"
        );
    }
    served.with_context(|| format!("the last commit of {source} failed, so the latest changes are lost"))?;
    tracing::info!("{source} is unmounted");
    Ok(())
}
