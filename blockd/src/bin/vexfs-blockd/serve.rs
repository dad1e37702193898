//! `vexfs-blockd serve`.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use blockd::device::{Device, VolumeKind};
use blockd::nbd::server::{Exports, Limits, Server, Stopper};
use blockd::session::boot_id;
use blockd::storage::IoEngine;
use blockd::volume::{OpenOptions, Volume};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;

use crate::args::{Io, Serve};

/// Serves until a signal comes.
pub fn run(args: &Serve) -> Result<()> {
    start_logging(&args.log)?;
    let options = OpenOptions {
        read_only: args.read_only,
        io: match args.io {
            Io::Auto => IoEngine::Auto,
            Io::Uring => IoEngine::Uring,
            Io::Sync => IoEngine::Sync,
        },
        boot_id: boot_id()?.0,
        ..OpenOptions::default()
    };
    let volume = Volume::open(&args.image, &options)
        .with_context(|| format!("cannot open the image {}", args.image.display()))?;
    let served = serve(args, &volume);
    let closed = volume.shutdown().with_context(|| {
        format!("cannot write the last state of {}; the next start replays the log", args.image.display())
    });
    served.and(closed)
}

fn serve(args: &Serve, volume: &Arc<Volume>) -> Result<()> {
    let signals = Signals::new([SIGTERM, SIGINT]).context("cannot take signals")?;
    let export = args.nbd.export(Arc::clone(volume) as Arc<dyn Device>)?;
    let server = Server::bind(args.nbd.listeners()?, Exports::single(export), Limits::default())?;
    let stopper = server.stopper();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || stop_at_signal(signals, &stopper))
        .context("cannot start a thread")?;
    announce(args, &**volume, &server.addresses());
    server.run();
    tracing::info!("all clients are drained; closing the image");
    Ok(())
}

fn stop_at_signal(mut signals: Signals, stopper: &Stopper) {
    let mut stopping = false;
    for signal in signals.forever() {
        if stopping {
            eprintln!("vexfs-blockd: second signal, exiting at once; the next start replays the log");
            std::process::exit(1);
        }
        stopping = true;
        tracing::info!(signal, "stopping");
        stopper.stop();
    }
}

/// The one line on standard output: from now on clients can connect.
fn announce(args: &Serve, device: &dyn Device, addresses: &[String]) {
    let info = device.info();
    let kind = match info.kind {
        VolumeKind::Raw => "raw",
        VolumeKind::VexFs => "vexfs",
    };
    let mode = if info.read_only { ", read-only" } else { "" };
    let targets: Vec<_> = addresses.iter().map(|address| args.nbd.uri(address)).collect();
    let mut out = std::io::stdout().lock();
    // Nobody may be reading it.
    let _ = writeln!(
        out,
        "vexfs-blockd: serving {} ({kind} volume, {} bytes, uuid {}{mode}) at {}",
        args.image.display(),
        info.size_bytes,
        info.uuid,
        targets.join(" "),
    );
    let _ = out.flush();
}

fn start_logging(filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| {
        format!("--log {filter:?} is no filter; write error, warn, info, debug, trace or module=level")
    })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    Ok(())
}
