//! `drain`.

use serde_json::{Value, json};

use crate::control::host::Host;

/// Has the daemon end; answers when everything is written.
pub(super) fn run(host: &Host) -> Result<Value, String> {
    tracing::info!("draining: asked for by the control socket");
    host.drain();
    host.wait_for_end().map(|()| json!({}))
}
