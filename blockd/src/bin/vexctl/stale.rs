//! `vexctl stale`: files whose vectors are out of date.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::Value;

use crate::cli::StaleArgs;
use crate::output::print;
use crate::session::SessionDir;

/// Shows what `.vexfs/stale` says: a line a file, then the sum.
///
/// # Errors
/// There is no collection.
pub fn run(args: &StaleArgs) -> Result<ExitCode> {
    let session = SessionDir::open(&args.dir)?;
    session.collection_schema()?;
    let stale = session.stale()?;
    if args.json {
        print(&format!("{}\n", Value::Object(stale)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let number = |key: &str| stale.get(key).and_then(Value::as_u64).unwrap_or(0);
    let files = stale.get("files").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut lines = String::new();
    for file in files {
        let path = file["path"].as_str().unwrap_or_default();
        lines.push_str(&format!("{}\n", args.dir.join(path).display()));
    }
    if stale.get("more").is_some_and(|more| *more == true) {
        lines.push_str("... and more\n");
    }
    let (rows, rows_stale, files_stale) = (number("rows"), number("rows_stale"), number("files_stale"));
    print(&format!("{lines}{rows_stale} of {rows} vectors are stale, in {files_stale} files\n"))?;
    Ok(ExitCode::SUCCESS)
}
