//! `scrub`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::control::host::Host;
use crate::control::protocol::Scrubbed;
use crate::control::server::Replies;
use crate::device::Device;
use crate::store::scrub::{Control, Progress};

/// Time between two words of progress.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// Reads and checks a volume beside everything else; ends early when nobody listens any more, and when the daemon drains.
pub(super) fn run(
    host: &Host,
    export: Option<&str>,
    bytes_per_s: u64,
    replies: &Replies,
) -> Result<Scrubbed, String> {
    let served = host.select_one(export)?;
    let (rate, stop) = (AtomicU64::new(bytes_per_s), AtomicBool::new(false));
    let mut told: Option<Instant> = None;
    let mut tell = |progress: Progress| {
        if told.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        told = Some(Instant::now());
        let gone = serde_json::to_value(progress).is_ok_and(|value| replies.progress(value).is_err());
        if gone || host.is_draining() {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let report = served.volume.scrub(Control { bytes_per_s: &rate, stop: &stop, progress: &mut tell });
    tracing::info!(
        export = served.name,
        bad = report.bad_count,
        bytes = report.bytes_read,
        stopped = report.stopped,
        "scrub"
    );
    let kind = served.volume.info().kind.name().to_owned();
    Ok(Scrubbed { image: served.image.display().to_string(), kind, report })
}
