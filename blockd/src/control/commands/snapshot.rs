//! `snapshot-create`, `snapshot-list`, `snapshot-delete`, `snapshot-rollback` and `send`.

use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::value;
use crate::control::host::Host;
use crate::control::server::Replies;
use crate::volume::snapshot::SnapshotError;

/// Time between two lines of progress.
const TELL: Duration = Duration::from_secs(1);
/// Bytes of a stream that are written at once.
const PIECE_BYTES: usize = 1 << 20;

fn text(e: SnapshotError) -> String {
    e.to_string()
}

pub(super) fn create(host: &Host, export: Option<&str>, name: &str) -> Result<Value, String> {
    value(&host.select_one(export)?.volume.snapshot_create(name).map_err(text)?)
}

pub(super) fn list(host: &Host, export: Option<&str>) -> Result<Value, String> {
    value(&host.select_one(export)?.volume.snapshots())
}

/// Deletes a snapshot and waits until its space is given back, or nobody listens any more: the daemon does it all the same.
pub(super) fn delete(
    host: &Host,
    export: Option<&str>,
    name: &str,
    replies: &Replies,
) -> Result<Value, String> {
    let volume = &host.select_one(export)?.volume;
    let mut told = Told::new(replies);
    let progress = |left| told.say(|| json!({ "pages_left": left }));
    volume.snapshot_delete_and_settle(name, progress).map_err(text)?;
    Ok(json!({}))
}

pub(super) fn rollback(
    host: &Host,
    export: Option<&str>,
    name: &str,
    replies: &Replies,
) -> Result<Value, String> {
    let volume = &host.select_one(export)?.volume;
    let mut told = Told::new(replies);
    volume.snapshot_rollback(name, |left| told.say(|| json!({ "pages_left": left }))).map_err(text)?;
    Ok(json!({}))
}

/// What is to be sent.
pub(super) struct Send<'a> {
    pub(super) from: Option<&'a str>,
    pub(super) to: &'a str,
}

pub(super) fn send(
    host: &Host,
    export: Option<&str>,
    what: &Send<'_>,
    replies: &Replies,
) -> Result<Value, String> {
    let volume = Arc::clone(&host.select_one(export)?.volume);
    let stream = replies.client_stream().map_err(|e| format!("there is no socket for the stream: {e}"))?;
    let mut out = BufWriter::with_capacity(PIECE_BYTES, stream);
    let mut told = Told::new(replies);
    volume
        .send(what.from, what.to, &mut out, |p| {
            told.say(|| json!({ "done_bytes": p.done_bytes, "total_bytes": p.total_bytes }));
        })
        .map_err(|e| e.to_string())?;
    out.flush().map_err(|e| format!("the stream cannot be sent: {e}"))?;
    Ok(json!({}))
}

/// Says how far a job is, but not too often.
struct Told<'a> {
    replies: &'a Replies,
    last: Instant,
}

impl<'a> Told<'a> {
    fn new(replies: &'a Replies) -> Self {
        Told { replies, last: Instant::now() }
    }

    fn say(&mut self, progress: impl FnOnce() -> Value) {
        if self.last.elapsed() >= TELL {
            self.last = Instant::now();
            // The job is not for this client only, or ends with its stream.
            let _ = self.replies.progress(progress());
        }
    }
}
