//! What each request does. A command runs in a thread of its own and may wait; a long one says how far it is about once
//! a second, and ends when nobody listens any more.

mod checkpoint;
mod compact;
mod drain;
pub(super) mod exposition;
mod scrub;
mod snapshot;
mod status;
mod takeover;
mod tune;

use serde::Serialize;
use serde_json::Value;

use super::host::Host;
use super::protocol::Request;
use super::server::Replies;

pub(super) fn run(host: &Host, request: Request, replies: &Replies) -> Result<Value, String> {
    match request {
        Request::Status {} => value(&status::status(host)),
        Request::Stats {} => value(&status::stats(host)),
        Request::Checkpoint { export } => checkpoint::run(host, export.as_deref()),
        Request::SnapshotCreate { export, name } => snapshot::create(host, export.as_deref(), &name),
        Request::SnapshotList { export } => snapshot::list(host, export.as_deref()),
        Request::SnapshotDelete { export, name } => snapshot::delete(host, export.as_deref(), &name, replies),
        Request::SnapshotRollback { export, name } => {
            snapshot::rollback(host, export.as_deref(), &name, replies)
        }
        Request::Send { export, from, to } => {
            let what = snapshot::Send { from: from.as_deref(), to: &to };
            snapshot::send(host, export.as_deref(), &what, replies)
        }
        Request::Tune { export, set } => value(&tune::run(host, export.as_deref(), &set)?),
        Request::Scrub { export, bytes_per_s } => {
            value(&scrub::run(host, export.as_deref(), bytes_per_s, replies)?)
        }
        Request::Compact { export } => value(&compact::run(host, export.as_deref(), replies)?),
        Request::Drain {} => drain::run(host),
        Request::Takeover {} => takeover::run(host, replies),
    }
}

fn value(result: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(result).map_err(|error| format!("the answer cannot be written as JSON: {error}"))
}
