//! `vexctl stats`: of a collection, or of a daemon.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::StatsArgs;
use crate::output::print;
use crate::session::SessionDir;

/// Shows the numbers of `.vexfs/stats`, or those of a daemon.
///
/// # Errors
/// There is no collection, or no daemon answers.
pub fn run(args: &StatsArgs) -> Result<ExitCode> {
    let Some(dir) = &args.dir else { return crate::daemon::stats::run(args) };
    let session = SessionDir::open(dir)?;
    session.collection_schema()?;
    let stats = session.stats()?;
    if args.json {
        print(&format!("{}\n", serde_json::Value::Object(stats)))?;
    } else {
        let width = stats.keys().map(String::len).max().unwrap_or(0);
        let lines: String = stats
            .iter()
            .map(|(key, value)| match value {
                serde_json::Value::String(text) => format!("{key:width$}  {text}\n"),
                other => format!("{key:width$}  {other}\n"),
            })
            .collect();
        print(&lines)?;
    }
    Ok(ExitCode::SUCCESS)
}
