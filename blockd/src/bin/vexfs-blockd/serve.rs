//! `vexfs-blockd serve`.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result};
use blockd::control::host::{Host, Served};
use blockd::device::Device;
use blockd::nbd::server::{Exports, Limits, Server, SnapshotExports};
use blockd::report::one_line;
use blockd::session::boot_id;
use blockd::volume::Volume;
use blockd::volume::snapshot::SnapshotError;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::args::Serve;
use crate::settings::Settings;
use crate::side::SideWork;
use crate::{logging, nbd, notify};

/// Serves until a signal or `vexctl drain` comes.
///
/// # Errors
/// It cannot serve, or not everything could be written at the end.
pub fn run(args: &Serve) -> Result<()> {
    let settings = Settings::new(args)?;
    logging::start(&settings.log, settings.log_format)?;
    let volumes = open(&settings)?;
    let served = serve(&settings, &volumes);
    let closed = close(&settings, &volumes);
    let (host, side) = served?;
    host.ended(match &closed {
        Ok(()) => Ok(()),
        Err(error) => Err(one_line(error.as_ref())),
    });
    side.stop();
    closed
}

fn open(settings: &Settings) -> Result<Vec<Arc<Volume>>> {
    let boot_id = boot_id()?.0;
    let volume = |export: &crate::config::Export| {
        Volume::open(&export.image, &export.options(boot_id))
            .with_context(|| format!("cannot open the image {}", export.image.display()))
    };
    settings.exports.iter().map(volume).collect()
}

/// What is exported of a volume.
fn device(config: &crate::config::Export, volume: &Arc<Volume>) -> Result<Arc<dyn Device>> {
    match &config.snapshot {
        None => Ok(Arc::clone(volume) as Arc<dyn Device>),
        Some(name) => {
            let snapshot = volume.open_snapshot(name);
            Ok(snapshot.with_context(|| format!("cannot export {}", config.image.display()))?)
        }
    }
}

/// The snapshots of a volume, as exports beside it.
fn snapshots(config: &crate::config::Export, volume: &Arc<Volume>) -> Arc<SnapshotExports> {
    let (to_open, to_list) = (Arc::clone(volume), Arc::clone(volume));
    let open = move |name: &str| match to_open.open_snapshot(name) {
        Ok(device) => Ok(Some(device as Arc<dyn Device>)),
        Err(SnapshotError::Unknown(_)) => Ok(None),
        Err(e) => Err(e.to_string()),
    };
    let names = move || to_list.snapshots().snapshots.into_iter().map(|s| s.name).collect();
    SnapshotExports::new(&config.name, open, names)
}

/// Closes all of them; gives the first error.
fn close(settings: &Settings, volumes: &[Arc<Volume>]) -> Result<()> {
    let mut first = Ok(());
    for (export, volume) in settings.exports.iter().zip(volumes) {
        let closed = volume.shutdown().with_context(|| {
            let image = export.image.display();
            format!("cannot write the last state of {image}; the next start replays the log")
        });
        match &closed {
            Err(error) if first.is_err() => tracing::error!("{}", one_line(error.as_ref())),
            _ => first = first.and(closed),
        }
    }
    first
}

fn serve(settings: &Settings, volumes: &[Arc<Volume>]) -> Result<(Arc<Host>, SideWork)> {
    let signals = Signals::new([SIGTERM, SIGINT]).context("cannot take signals")?;
    let exports = Exports::new();
    for (config, volume) in settings.exports.iter().zip(volumes) {
        let export = nbd::export(config, device(config, volume)?)
            .with_context(|| format!("cannot export {}", config.image.display()))?;
        exports.add(export)?;
        exports.add_source(snapshots(config, volume));
    }
    let limits = Limits {
        drain_timeout_ms: u64::try_from(settings.drain_timeout.as_millis()).unwrap_or(u64::MAX),
        ..Limits::default()
    };
    let listeners = settings.listen.iter().map(nbd::listener).collect::<Result<_>>()?;
    let server = Server::bind(listeners, exports, limits)?;
    let stopper = server.stopper();
    let served = |(config, volume): (&crate::config::Export, &Arc<Volume>)| Served {
        name: config.name.clone(),
        image: config.image.clone(),
        volume: Arc::clone(volume),
    };
    let host = Host::new(
        settings.name.clone(),
        server.addresses(),
        settings.exports.iter().zip(volumes).map(served).collect(),
        stopper,
        Box::new(|| notify::stopping("draining")),
    );
    let side = SideWork::start(settings, &host)?;
    let for_signals = Arc::clone(&host);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || stop_at_signal(signals, &for_signals))
        .context("cannot start a thread")?;
    announce(settings, volumes, &server.addresses());
    notify::ready("serving");
    server.run();
    tracing::info!("all clients are drained; closing the image");
    Ok((host, side))
}

fn stop_at_signal(mut signals: Signals, host: &Host) {
    let mut stopping = false;
    for signal in signals.forever() {
        if stopping {
            eprintln!("vexfs-blockd: second signal, exiting at once; the next start replays the log");
            std::process::exit(1);
        }
        stopping = true;
        tracing::info!(signal, "stopping");
        host.drain();
    }
}

/// A line for each export on standard output: from now on clients can connect.
fn announce(settings: &Settings, volumes: &[Arc<Volume>], addresses: &[String]) {
    let mut out = std::io::stdout().lock();
    for (export, volume) in settings.exports.iter().zip(volumes) {
        let info = volume.info();
        let kind = info.kind.name();
        let mode = if info.read_only { ", read-only" } else { "" };
        let uris: Vec<_> =
            addresses.iter().map(|address| nbd::uri(address, &export.name, &settings.listen)).collect();
        // Nobody may be reading it.
        let _ = writeln!(
            out,
            "vexfs-blockd: serving {} ({kind} volume, {} bytes, uuid {}{mode}) at {}",
            export.image.display(),
            info.size_bytes,
            info.uuid,
            uris.join(" "),
        );
    }
    let _ = out.flush();
}
