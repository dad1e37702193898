//! Requests and replies.
//!
//! A client sends a request as one line of JSON, such as `{"cmd":"status"}`, and gets lines of JSON back: any number of
//! `{"progress":…}`, then one `{"result":…}` or one `{"error":"a sentence"}`. Then it may send the next one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::stats::{RequestStats, StoreStats};
use crate::storage::identity::Identity;
use crate::store::scrub::Report;
use crate::volume::status::VolumeStatus;

/// Longest request, in bytes with its newline.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Longest line that a client takes for a reply, in bytes.
pub const REPLY_BYTES_MAX: usize = 64 << 20;
/// Key of a progress by which the daemon asks the client for something.
pub const AWAITING: &str = "awaiting";
/// Its value: one end of a unix stream socket, with a byte (SCM_RIGHTS).
pub const DESCRIPTOR: &str = "descriptor";

/// What can be asked.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(tag = "cmd", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the daemon and its volumes stand: a [`Status`].
    Status {},
    /// What was done since the start: a [`Stats`].
    Stats {},
    /// Write a checkpoint of one volume, or of all.
    Checkpoint {
        /// The export; all if it is missing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        export: Option<String>,
    },
    /// Take a snapshot: a [`SnapshotInfo`](crate::volume::snapshot::SnapshotInfo).
    SnapshotCreate {
        /// The export; may be left out if there is only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        export: Option<String>,
        /// The snapshot's name.
        name: String,
    },
    /// The snapshots of a volume: a [`SnapshotList`](crate::volume::snapshot::SnapshotList).
    SnapshotList {
        /// The export; may be left out if there is only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        export: Option<String>,
    },
    /// Delete a snapshot; answered when its space is given back.
    SnapshotDelete {
        /// The export; may be left out if there is only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        export: Option<String>,
        /// The snapshot's name.
        name: String,
    },
    /// Make a volume what it was at a snapshot.
    SnapshotRollback {
        /// The export; may be left out if there is only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        export: Option<String>,
        /// The snapshot's name.
        name: String,
    },
    /// Write a backup stream to a socket of the client's. The daemon asks for it by the progress
    /// `{"awaiting":"descriptor"}`; the client answers with one byte that carries one end of a unix(7) stream socket
    /// (SCM_RIGHTS) and keeps the other, on which the stream comes and ends.
    Send {
        /// The export; may be left out if there is only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        export: Option<String>,
        /// The older snapshot; without it, all of the newer one is sent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        /// The newer snapshot.
        to: String,
    },
    /// Change settings of one volume, or of all, until they are closed; gives what holds then, by export.
    Tune {
        /// The export; all if it is missing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        export: Option<String>,
        /// By key; empty changes nothing.
        #[serde(default)]
        set: BTreeMap<String, u64>,
    },
    /// Read a volume whole and check every checksum: a [`Scrubbed`], and
    /// [`crate::store::scrub::Progress`] meanwhile.
    Scrub {
        /// The export; may be missing if there is only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        export: Option<String>,
        /// Most bytes to read a second; 0 = no limit.
        #[serde(default)]
        bytes_per_s: u64,
    },
    /// Empty all segments with dead space: a [`Compacted`](crate::volume::compact::Compacted), and
    /// [`crate::volume::compact::Progress`] meanwhile.
    Compact {
        /// The export; may be left out if there is only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        export: Option<String>,
    },
    /// Take no more clients, finish, exit.
    Drain {},
    /// Hand everything over to the process that asks. The answer is not JSON: see [`crate::handover`].
    Takeover {},
}

/// One line of an answer.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// More comes; what a long job has done so far.
    Progress(Value),
    /// The end, well.
    Result(Value),
    /// The end, not well; a sentence with cause and remedy.
    Error(String),
}

/// A daemon at a moment.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Status {
    /// The daemon's name, after which its control socket is called.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// "serving" or "draining".
    pub state: String,
    /// Time since it began to serve, in seconds.
    pub uptime_s: u64,
    /// What its side work runs on: "io_uring" or "epoll".
    pub side_engine: String,
    /// Where clients connect.
    pub listen: Vec<String>,
    /// Clients in their negotiation.
    pub negotiations: usize,
    /// Its volumes, by export.
    pub exports: Vec<ExportStatus>,
    /// Clients that send requests, oldest first.
    pub connections: Vec<ConnectionStatus>,
}

/// A client's connection.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct ConnectionStatus {
    /// Grows with each connection of the daemon.
    pub number: u64,
    /// Name of its export.
    pub export: String,
    /// Address and port, or the process on the unix socket.
    pub peer: String,
    /// Everything is encrypted.
    pub tls: bool,
    /// For how long, in seconds.
    pub age_s: u64,
}

/// A served volume at a moment.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct ExportStatus {
    /// The export's name; may be empty.
    pub name: String,
    /// Path of the image, absolute in the daemon's view of the file system.
    pub image: String,
    /// Which file or block device that is.
    pub identity: Option<Identity>,
    /// The volume in it.
    pub volume: VolumeStatus,
}

/// What a scrub found.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct Scrubbed {
    /// Path of the image.
    pub image: String,
    /// `raw` or `vexfs`.
    pub kind: String,
    /// The findings.
    #[serde(flatten)]
    pub report: Report,
}

/// Counters of a daemon at a moment.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Stats {
    /// Time since it began to serve, in microseconds: two of these tell over what a difference was made.
    pub uptime_us: u64,
    /// By export.
    pub exports: BTreeMap<String, ExportStats>,
}

/// Counters of a served volume at a moment.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct ExportStats {
    /// What its clients asked.
    pub requests: Vec<RequestStats>,
    /// What the store did.
    pub store: StoreStats,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_documented_and_nothing_else_does() {
        let parse = serde_json::from_str::<Request>;
        assert_eq!(parse(r#"{"cmd":"status"}"#).unwrap(), Request::Status {});
        let all = Request::Checkpoint { export: None };
        assert_eq!(parse(r#"{"cmd":"checkpoint"}"#).unwrap(), all);
        assert_eq!(serde_json::to_string(&all).unwrap(), r#"{"cmd":"checkpoint"}"#);
        let one = Request::Checkpoint { export: Some("a".into()) };
        assert_eq!(parse(r#"{"export":"a","cmd":"checkpoint"}"#).unwrap(), one);
        for bad in [r#"{"cmd":"status","x":1}"#, r#"{"cmd":"nonsense"}"#, "{}", "[]", "7", "", "{"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let unknown = parse(r#"{"cmd":"nonsense"}"#).unwrap_err().to_string();
        assert!(unknown.contains("status"), "it says what there is: {unknown}");
    }

    #[test]
    fn replies_are_told_apart_by_their_key() {
        let line = serde_json::to_string(&Reply::Error("no".into())).unwrap();
        assert_eq!(line, r#"{"error":"no"}"#);
        assert_eq!(serde_json::to_string(&Reply::Result(Value::Null)).unwrap(), r#"{"result":null}"#);
    }
}
