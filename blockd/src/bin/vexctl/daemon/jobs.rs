//! `vexctl checkpoint`, `vexctl compact`, `vexctl tune` and `vexctl drain`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use blockd::control::protocol::Request;
use blockd::volume::compact::{Compacted, Progress};
use indicatif::HumanBytes;
use serde_json::Value;

use super::connect;
use crate::cli::{CheckpointArgs, CompactArgs, DrainArgs, TuneArgs};
use crate::output::{print, tame};
use crate::snapshot::meter::Meter;

/// Has a checkpoint written.
///
/// # Errors
/// It is not.
pub fn checkpoint(args: &CheckpointArgs) -> Result<ExitCode> {
    let result: Value = connect(&args.daemon)?.ask(&Request::Checkpoint { export: args.export.clone() })?;
    print(&format!("checkpoint written in {} ms\n", result["took_ms"]))?;
    Ok(ExitCode::SUCCESS)
}

/// Has dead space given back.
///
/// # Errors
/// There is no room for a checkpoint, or the backing failed.
pub fn compact(args: &CompactArgs) -> Result<ExitCode> {
    let request = Request::Compact { export: args.export.clone() };
    let mut client = connect(&args.daemon)?;
    let mut meter = Meter::bytes("compact");
    let done: Result<Compacted, _> = client.ask_with_progress(&request, |value| {
        // What another version says of its progress is not worth an error.
        if let Ok(Progress { done_bytes, total_bytes }) = serde_json::from_value(value) {
            meter.show(done_bytes, total_bytes);
        }
    });
    drop(meter);
    let done = done?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&done)?))?;
    } else {
        let stopped = if done.stopped { "; stopped before the end" } else { "" };
        print(&format!(
            "{} copied, {} segments emptied; {} more are free ({}){stopped}\n",
            HumanBytes(done.copied_bytes),
            done.cleaned_segments,
            done.freed_segments,
            HumanBytes(done.freed_bytes)
        ))?;
    }
    Ok(if done.stopped { ExitCode::FAILURE } else { ExitCode::SUCCESS })
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
