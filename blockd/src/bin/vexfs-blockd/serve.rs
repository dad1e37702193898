//! `vexfs-blockd serve`: *starting* -> *serving* -> drained, or handed over to a successor. A hand-over that fails leads
//! back to serving, with the same sockets and connections.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use blockd::control::host::{Host, Served};
use blockd::device::Device;
use blockd::handover::{self, Estate, Exported, Handed, Kind, ListenerState, Predecessor};
use blockd::nbd::server::{Exports, Limits, Parked, Server, SnapshotExports};
use blockd::report::one_line;
use blockd::session::boot_id;
use blockd::volume::Volume;
use blockd::volume::snapshot::SnapshotError;
use rustix::net::sockopt::socket_peercred;

use crate::args::Serve;
use crate::settings::{Control, Settings};
use crate::side::SideWork;
use crate::signals::SignalThread;
use crate::{activation, config, descriptors, logging, nbd, notify};

/// Serves until a signal or `vexctl drain` comes, or a successor serves.
///
/// # Errors
/// It cannot serve, or not everything could be written at the end.
pub fn run(args: &Serve) -> Result<()> {
    let settings = Settings::new(args)?;
    logging::start(&settings.log, settings.log_format)?;
    descriptors::raise(settings.connections);
    let signals = SignalThread::start(&settings)?;
    let (mut estate, mut predecessor) = if args.takeover {
        let (estate, predecessor) = take_over(&settings)?;
        (estate, Some(predecessor))
    } else {
        (Estate { listeners: activation::listeners()?, ..Estate::default() }, None)
    };
    loop {
        let Some((successor, left)) = serve(&settings, estate, predecessor.take(), &signals)? else {
            return Ok(());
        };
        let begun = std::time::Instant::now();
        match handover::give(&left, &successor) {
            Ok(()) => {
                tracing::info!(took = ?begun.elapsed(), "handed over");
                if let Ok(peer) = socket_peercred(&successor) {
                    notify::successor(peer.pid.as_raw_nonzero().get().unsigned_abs());
                    if signals.stopping() {
                        // It came when nothing was left to end here.
                        tracing::info!(pid = %peer.pid, "passing the signal to stop on");
                        rustix::process::kill_process(peer.pid, rustix::process::Signal::TERM)?;
                    }
                }
                return Ok(());
            }
            Err(error) => {
                tracing::error!(%error, "the successor did not begin to serve; going on in this process");
                estate = left;
            }
        }
    }
}

fn take_over(settings: &Settings) -> Result<(Estate, Predecessor)> {
    match &settings.control {
        Control::Off => {
            bail!("--takeover needs the control socket of the running daemon, and none is configured")
        }
        Control::Default(path) | Control::At(path) => Ok(handover::take_over(path, settings.drain_timeout)?),
    }
}

/// Serves once; gives what is left and who wants it, unless it ends for good.
fn serve(
    settings: &Settings,
    estate: Estate,
    predecessor: Option<Predecessor>,
    signals: &SignalThread,
) -> Result<Option<(UnixStream, Estate)>> {
    let volumes = open(settings)?;
    let served = serve_volumes(settings, &volumes, estate, predecessor, signals);
    signals.watch(None);
    let closed = close(settings, &volumes);
    let Ended { host, side, connections, listeners } = served?;
    let Some(successor) = host.take_successor() else {
        host.ended(match &closed {
            Ok(()) => Ok(()),
            Err(error) => Err(one_line(error.as_ref())),
        });
        side.stop();
        // There are some if a signal to stop came in the midst of a hand-over.
        drop(connections);
        listeners.into_iter().filter(|_| host.is_handing_over()).for_each(activation::discard);
        return closed.map(|()| None);
    };
    if let Err(error) = closed {
        // Whoever opens it next replays the log.
        tracing::error!("{}", one_line(error.as_ref()));
    }
    let mut estate = Estate { exports: exported(settings, &volumes), listeners, connections };
    estate.listeners.extend(side.hand_over()?);
    Ok(Some((successor, estate)))
}

fn open(settings: &Settings) -> Result<Vec<Arc<Volume>>> {
    let boot_id = boot_id()?.0;
    let volume = |export: &config::Export| {
        Volume::open(&export.image, &export.options(boot_id))
            .with_context(|| format!("cannot open the image {}", export.image.display()))
    };
    settings.exports.iter().map(volume).collect()
}

/// The volumes by the names of their exports.
fn exported(settings: &Settings, volumes: &[Arc<Volume>]) -> Vec<Exported> {
    let exported = |(config, volume): (&config::Export, &Arc<Volume>)| Exported {
        name: config.name.clone(),
        volume: volume.info().uuid,
    };
    settings.exports.iter().zip(volumes).map(exported).collect()
}

/// What is exported of a volume.
fn device(config: &config::Export, volume: &Arc<Volume>) -> Result<Arc<dyn Device>> {
    match &config.snapshot {
        None => Ok(Arc::clone(volume) as Arc<dyn Device>),
        Some(name) => {
            let snapshot = volume.open_snapshot(name);
            Ok(snapshot.with_context(|| format!("cannot export {}", config.image.display()))?)
        }
    }
}

/// The snapshots of a volume, as exports beside it.
fn snapshots(config: &config::Export, volume: &Arc<Volume>) -> Arc<SnapshotExports> {
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

/// What is there when all clients are drained or parked.
struct Ended {
    host: Arc<Host>,
    side: SideWork,
    connections: Vec<Parked>,
    listeners: Vec<Handed>,
}

fn serve_volumes(
    settings: &Settings,
    volumes: &[Arc<Volume>],
    estate: Estate,
    predecessor: Option<Predecessor>,
    signals: &SignalThread,
) -> Result<Ended> {
    estate.check(&exported(settings, volumes))?;
    let exports = Exports::new();
    for (config, volume) in settings.exports.iter().zip(volumes) {
        let export = nbd::export(config, device(config, volume)?)
            .with_context(|| format!("cannot export {}", config.image.display()))?;
        exports.add(export)?;
        exports.add_source(snapshots(config, volume));
    }
    let limits = Limits {
        connections: settings.connections,
        drain_timeout_ms: u64::try_from(settings.drain_timeout.as_millis()).unwrap_or(u64::MAX),
        ..Limits::default()
    };
    let Estate { mut listeners, connections, .. } = estate;
    let activated: Vec<String> = listeners
        .iter()
        .filter(|handed| handed.state.activated)
        .map(|handed| handed.state.address.clone())
        .collect();
    let mut server = Server::bind(nbd::listeners(&settings.listen, &mut listeners)?, exports, limits)?;
    let served = |(config, volume): (&config::Export, &Arc<Volume>)| Served {
        name: config.name.clone(),
        image: config.image.clone(),
        volume: Arc::clone(volume),
    };
    let host = Host::new(
        settings.name.clone(),
        server.addresses(),
        settings.exports.iter().zip(volumes).map(served).collect(),
        server.stopper(),
        Box::new(|| notify::stopping("draining")),
    );
    let mut side = SideWork::start(settings, &host, &mut listeners)?;
    let handed = |(address, socket)| {
        let activated = activated.contains(&address);
        Handed { socket, state: ListenerState { kind: Kind::Nbd, address, activated } }
    };
    let left =
        server.sockets().context("the listening sockets cannot be copied")?.into_iter().map(handed).collect();
    // Nothing can fail any more. Until the old process knows, not a byte may be read: it would carry out again what it has.
    if let Some(predecessor) = predecessor {
        predecessor.done()?;
    }
    server.resume(connections);
    side.own();
    for unwanted in listeners {
        tracing::info!(address = unwanted.state.address, "a socket is not configured any more; closing it");
        activation::discard(unwanted);
    }
    announce(settings, volumes, &server.addresses());
    notify::ready("serving");
    signals.watch(Some(&host));
    let connections = server.run();
    tracing::info!(handed_over = connections.len(), "all clients are drained; closing the image");
    Ok(Ended { host, side, connections, listeners: left })
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
