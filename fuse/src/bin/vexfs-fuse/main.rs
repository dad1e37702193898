//! `vexfs-fuse SOURCE MOUNTPOINT`: mounts a VexFS volume.
//!
//! Exit status: 0 after an orderly unmount whose last commit succeeded; 1 when the mount could not
//! be made, or the last commit failed.

mod daemon;
mod logging;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::Parser;
use vexfs_fuse::mount::{MountSettings, Source, mount};

const AFTER_HELP: &str = "\
Unmount with umount(8) or fusermount3 -u. They return before the last commit is written;
what opens the image next waits a few seconds for it. While the daemon of an nbd+unix mount is
away, every operation waits until it serves again, the last commit too.

Signals:
  SIGTERM, SIGINT   Unmount (detach, if the mount is in use), commit and exit. A second one
                    exits at once, without the commit: the way out when a daemon stays away.

Exit status:
  0   Unmounted, all is committed; without -f: mounted.
  1   The mount could not be made, or the last commit failed; standard error says why.
  2   A wrong command line.

Examples:
  vexfs-fuse docs.img /mnt
  vexfs-fuse 'nbd+unix:///?socket=/run/docs.sock' /mnt -o ro";

/// Mounts a VexFS volume.
#[derive(Parser, Debug)]
#[command(version, about, max_term_width = 100, after_help = AFTER_HELP)]
struct Args {
    /// An image file (the store runs in this process), a block device, or nbd+unix:///?socket=PATH
    /// (a volume served by vexfs-blockd)
    source: String,
    /// An existing directory
    mountpoint: PathBuf,
    /// Mount options, separated by commas: ro, rw, allow_other, default_permissions, fsname=NAME,
    /// cache_mib=N, commit=SECONDS, threads=N, (no)suid, (no)dev, (no)exec, (no)atime
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    foreground: bool,
    /// File for log lines once in the background; without it they go to the system log
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Internal: the process that the first one starts to stay in the background
    #[arg(long, hide = true)]
    background_child: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    logging::start(args.background_child);
    let done = if args.foreground || args.background_child { run(&args) } else { daemon::start() };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::debug!("{error:?}");
            eprintln!("vexfs-fuse: {}", blockd::report::one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
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
    let opened = source.open(settings.read_only)?;
    let running = match mount(Arc::clone(&opened.device), &opened.cell, &source.to_string(), settings) {
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
