//! A connection between two processes: its socket and all that the other end may count on.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::attached::Attached;
use super::export::Export;
use super::handshake::{Admitted, Transmission};
use super::{Shared, connection};

/// What a client was told of its export, and counts on.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Told {
    uuid: Uuid,
    size_bytes: u64,
    block_bytes_min: u32,
    read_only: bool,
}

impl Told {
    pub fn of(export: &Export) -> Told {
        let info = export.info();
        let (size_bytes, block_bytes_min) = (info.size_bytes, info.block_bytes_min);
        Told { uuid: info.uuid, size_bytes, block_bytes_min, read_only: info.read_only }
    }
}

/// What a successor must know of a connection, besides its socket.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ParkedState {
    /// Name of its export.
    pub export: String,
    /// What was said of that; another volume, or a changed one, is none that the client may go on with.
    pub(super) told: Told,
    /// Who it is, for people.
    pub peer: String,
    /// When it asked for its export.
    pub since: SystemTime,
    /// What it may do.
    pub(super) negotiated: Transmission,
    /// Bytes that were received and belong to requests not begun.
    pub(super) unread: Vec<u8>,
    /// What the device knows of the client.
    pub(super) client: Vec<u8>,
}

/// A connection that nobody serves at the moment: every request taken from it is answered, the next one is not read.
#[derive(Debug)]
pub struct Parked {
    /// Its socket.
    pub socket: OwnedFd,
    /// The rest.
    pub state: ParkedState,
}

impl Parked {
    /// Serves it from now on. One that cannot be served is closed, so that its client comes again.
    pub(super) fn resume(self, shared: &Arc<Shared>) {
        let ParkedState { export: name, told, peer, since, negotiated, unread, client: known } = self.state;
        let resumed = (|| {
            let export = match shared.exports.find(&name) {
                Ok(export) => export,
                Err(why) => return Err(format!("{why:?}")),
            };
            let client = Attached::new(&export);
            export.device().ready().map_err(|e| e.to_string())?;
            if Told::of(&export) != told {
                return Err("its export is another volume now, or was changed".into());
            }
            let socket = self.socket.try_clone().map_err(|e| e.to_string())?;
            let max = shared.limits.connections;
            let seat = shared
                .registry
                .reserve(&export, socket, (peer.clone(), false), max)
                .map_err(|refused| format!("{refused:?}"))?;
            seat.since(since);
            let admitted = Admitted { export, negotiated, seat, client };
            let before = connection::Before { unread, client: known };
            connection::start(shared, UnixStream::from(self.socket), admitted, before);
            Ok(())
        })();
        if let Err(why) = resumed {
            tracing::warn!(export = name, peer, "a connection cannot be gone on with ({why}); closing it");
        }
    }
}
