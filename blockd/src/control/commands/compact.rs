//! `compact`.

use crate::control::host::Host;
use crate::control::server::Replies;
use crate::volume::compact::Compacted;

/// Has the cleaner empty all segments with dead space; ends early when nobody listens any more, and when the daemon drains.
pub(super) fn run(host: &Host, export: Option<&str>, replies: &Replies) -> Result<Compacted, String> {
    let served = host.select_one(export)?;
    let done = served.volume.compact(|progress| {
        let gone = serde_json::to_value(progress).is_ok_and(|value| replies.progress(value).is_err());
        !gone && !host.is_draining()
    });
    let done = done.map_err(|error| format!("{} cannot be compacted: {error}", served.image.display()))?;
    tracing::info!(export = served.name, ?done, "compacted");
    Ok(done)
}
