//! Sockets that systemd listens on for us (sd_listen_fds(3)), by name: `control`, `metrics`, and all others for NBD.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use blockd::handover::{Handed, Kind, ListenerState};
use blockd::nbd::server::SocketFile;
use rustix::net::{AddressFamily, SocketAddrUnix, getsockname};

/// Those that were passed to this process.
///
/// # Errors
/// What was passed cannot be listened on.
pub fn listeners() -> Result<Vec<Handed>> {
    let passed = sd_notify::listen_fds_with_names().context("the sockets of systemd cannot be had")?;
    let handed = |(fd, name): (i32, String)| {
        // SAFETY: systemd passed this descriptor to this process alone, and it is taken once, at the start.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let kind = match name.as_str() {
            "control" => Kind::Control,
            "metrics" => Kind::Metrics,
            _ => Kind::Nbd,
        };
        let address =
            address(&socket).with_context(|| format!("the socket {name:?} of systemd cannot be used"))?;
        Ok(Handed { socket, state: ListenerState { kind, address, activated: true } })
    };
    passed.map(handed).collect()
}

fn address(socket: impl AsFd) -> Result<String> {
    let address = getsockname(socket)?;
    Ok(match address.address_family() {
        AddressFamily::UNIX => {
            let unix = SocketAddrUnix::try_from(address)?;
            let path = unix.path().context("it has no path")?;
            format!("unix:{}", path.to_string_lossy())
        }
        _ => format!("tcp:{}", std::net::SocketAddr::try_from(address)?),
    })
}

/// Closes a socket that nobody wants any more; its file goes, unless it is systemd's.
pub fn discard(handed: Handed) {
    let ListenerState { address, activated, .. } = handed.state;
    if let (Some(path), false) = (address.strip_prefix("unix:"), activated)
        && let Some(mut file) = SocketFile::adopt(Path::new(path))
    {
        file.own();
    }
}
