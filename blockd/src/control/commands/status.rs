//! `status` and `stats`.

use std::time::SystemTime;

use crate::control::host::Host;
use crate::control::protocol::{ConnectionStatus, ExportStats, ExportStatus, Stats, Status};
use crate::device::Device;
use crate::nbd::server::ConnectionInfo;

pub(super) fn status(host: &Host) -> Status {
    let export = |served: &crate::control::host::Served| ExportStatus {
        name: served.name.clone(),
        image: served.image.display().to_string(),
        identity: served.volume.identity(),
        volume: served.volume.status(),
    };
    Status {
        name: host.name().to_owned(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: if host.is_draining() { "draining" } else { "serving" }.to_owned(),
        uptime_s: host.started().elapsed().as_secs(),
        side_engine: host.engine().name().to_owned(),
        listen: host.listen().to_vec(),
        negotiations: host.server().negotiations(),
        exports: host.exports().iter().map(export).collect(),
        connections: host.server().connections().into_iter().map(connection).collect(),
    }
}

fn connection(info: ConnectionInfo) -> ConnectionStatus {
    let age = SystemTime::now().duration_since(info.since).unwrap_or_default();
    let ConnectionInfo { number, export, peer, tls, .. } = info;
    ConnectionStatus { number, export, peer, tls, age_s: age.as_secs() }
}

pub(super) fn stats(host: &Host) -> Stats {
    let export = |served: &crate::control::host::Served| {
        let stats =
            ExportStats { requests: served.volume.counters().stats(), store: served.volume.store_stats() };
        (served.name.clone(), stats)
    };
    Stats {
        uptime_us: u64::try_from(host.started().elapsed().as_micros()).unwrap_or(u64::MAX),
        exports: host.exports().iter().map(export).collect(),
    }
}
