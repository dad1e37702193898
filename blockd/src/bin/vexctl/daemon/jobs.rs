//! `vexctl checkpoint` and `vexctl drain`.

use std::process::ExitCode;

use anyhow::Result;
use blockd::control::protocol::Request;
use serde_json::Value;

use super::connect;
use crate::cli::{CheckpointArgs, DrainArgs};
use crate::output::print;

/// Has a checkpoint written.
///
/// # Errors
/// It is not.
pub fn checkpoint(args: &CheckpointArgs) -> Result<ExitCode> {
    let result: Value = connect(&args.daemon)?.ask(&Request::Checkpoint { export: args.export.clone() })?;
    print(&format!("checkpoint written in {} ms\n", result["took_ms"]))?;
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
