//! `vexctl checkpoint`, `vexctl tune` and `vexctl drain`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use blockd::control::protocol::Request;
use serde_json::Value;

use super::connect;
use crate::cli::{CheckpointArgs, DrainArgs, TuneArgs};
use crate::output::{print, tame};

/// Has a checkpoint written.
///
/// # Errors
/// It is not.
pub fn checkpoint(args: &CheckpointArgs) -> Result<ExitCode> {
    let result: Value = connect(&args.daemon)?.ask(&Request::Checkpoint { export: args.export.clone() })?;
    print(&format!("checkpoint written in {} ms\n", result["took_ms"]))?;
    Ok(ExitCode::SUCCESS)
}

/// Changes settings and shows what holds.
///
/// # Errors
/// A key is unknown or a value makes no sense; then nothing is changed.
pub fn tune(args: &TuneArgs) -> Result<ExitCode> {
    let request = Request::Tune { export: args.export.clone(), set: args.set.iter().cloned().collect() };
    let now: BTreeMap<String, BTreeMap<String, u64>> = connect(&args.daemon)?.ask(&request)?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&now)?))?;
        return Ok(ExitCode::SUCCESS);
    }
    for (export, values) in &now {
        let lines: String = values.iter().map(|(key, value)| format!("  {key:20}{value}\n")).collect();
        print(&tame(&format!("export {export:?}\n{lines}")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Has a daemon end.
///
/// # Errors
/// It does not, or not everything could be written.
pub fn drain(args: &DrainArgs) -> Result<ExitCode> {
    let _: Value = connect(&args.daemon)?.ask(&Request::Drain {})?;
    print("drained; everything is written\n")?;
    Ok(ExitCode::SUCCESS)
}
