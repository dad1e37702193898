//! `checkpoint`.

use std::time::Instant;

use serde_json::{Value, json};

use crate::control::host::Host;

/// Writes a checkpoint of each volume meant.
pub(super) fn run(host: &Host, export: Option<&str>) -> Result<Value, String> {
    let begun = Instant::now();
    for served in host.select(export)? {
        served
            .volume
            .checkpoint()
            .map_err(|error| format!("no checkpoint of {}: {error}", served.image.display()))?;
    }
    Ok(json!({ "took_ms": u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX) }))
}
