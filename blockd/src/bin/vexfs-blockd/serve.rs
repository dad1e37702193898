//! `vexfs-blockd serve`.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use blockd::control::host::{Host, Served};
use blockd::device::Device;
use blockd::nbd::client::Target;
use blockd::nbd::server::{Export, Limits, Server};
use blockd::report::one_line;
use blockd::session::boot_id;
use blockd::volume::Volume;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::args::Serve;
use crate::settings::Settings;
use crate::side::SideWork;
use crate::{logging, notify};

/// Serves until a signal or `vexctl drain` comes.
pub fn run(args: &Serve) -> Result<()> {
    let settings = Settings::new(args)?;
    logging::start(&settings.log, settings.log_format)?;
    ensure!(
        settings.exports.len() == 1 && settings.listen.len() == 1,
        "this version serves one export at one socket; start a daemon for each"
    );
    let export = &settings.exports[0];
    let volume = Volume::open(&export.image, &export.options(boot_id()?.0))
        .with_context(|| format!("cannot open the image {}", export.image.display()))?;
    let served = serve(&settings, &volume);
    let closed = volume.shutdown().with_context(|| {
        format!("cannot write the last state of {}; the next start replays the log", export.image.display())
    });
    let (host, side) = served?;
    host.ended(match &closed {
        Ok(()) => Ok(()),
        Err(error) => Err(one_line(error.as_ref())),
    });
    side.stop();
    closed
}

fn serve(settings: &Settings, volume: &Arc<Volume>) -> Result<(Arc<Host>, SideWork)> {
    let signals = Signals::new([SIGTERM, SIGINT]).context("cannot take signals")?;
    let (config, listen) = (&settings.exports[0], &settings.listen[0]);
    let export = Export { name: config.name.clone(), device: Arc::clone(volume) as Arc<dyn Device> };
    let limits = Limits {
        drain_timeout_ms: u64::try_from(settings.drain_timeout.as_millis()).unwrap_or(u64::MAX),
        ..Limits::default()
    };
    let server = Server::bind(&listen.unix, export, limits)?;
    let stopper = server.stopper();
    let exports =
        vec![Served { name: config.name.clone(), image: config.image.clone(), volume: Arc::clone(volume) }];
    let stop = move || {
        notify::stopping("draining");
        stopper.stop();
    };
    let place = format!("unix:{}", listen.unix.display());
    let host = Host::new(settings.name.clone(), vec![place], exports, Box::new(stop));
    let side = SideWork::start(settings, &host)?;
    let for_signals = Arc::clone(&host);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || stop_at_signal(signals, &for_signals))
        .context("cannot start a thread")?;
    announce(settings, &**volume);
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

/// The one line on standard output: from now on clients can connect.
fn announce(settings: &Settings, device: &dyn Device) {
    let info = device.info();
    let kind = info.kind.name();
    let mode = if info.read_only { ", read-only" } else { "" };
    let (export, listen) = (&settings.exports[0], &settings.listen[0]);
    let target = Target { socket: listen.unix.clone(), export: export.name.clone() };
    let mut out = std::io::stdout().lock();
    // Nobody may be reading it.
    let _ = writeln!(
        out,
        "vexfs-blockd: serving {} ({kind} volume, {} bytes, uuid {}{mode}) at {target}",
        export.image.display(),
        info.size_bytes,
        info.uuid,
    );
    let _ = out.flush();
}
