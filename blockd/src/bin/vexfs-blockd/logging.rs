//! The log, on standard error.

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;

/// Reads a filter.
///
/// # Errors
/// It is none.
pub fn filter(text: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(text).with_context(|| {
        format!(
            "--log (or log in the configuration): {text:?} is no filter; write error, warn, info, debug, trace or module=level"
        )
    })
}

/// Starts it.
///
/// # Errors
/// The filter is none.
pub fn start(text: &str, format: LogFormat) -> Result<()> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter(text)?)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}
