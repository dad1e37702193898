//! `vexctl status`.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};
use blockd::control::client::ControlClient;
use blockd::control::protocol::{Request, Status};

use crate::cli::StatusArgs;
use crate::daemon;
use crate::output::{print, tame};

/// Shows how the daemons stand.
///
/// # Errors
/// One that is named does not answer, or none does.
pub fn run(args: &StatusArgs) -> Result<ExitCode> {
    let sockets = daemon::sockets(&args.daemon)?;
    let mut shown = 0;
    for path in &sockets {
        let status: Status = match ControlClient::connect(path)
            .and_then(|mut daemon| daemon.ask_at_once(&Request::Status {}))
        {
            Ok(status) => status,
            Err(error) if sockets.len() > 1 => {
                eprintln!("vexctl: {error}");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        shown += 1;
        if args.json {
            print(&format!("{}\n", serde_json::to_string(&status)?))?;
        } else {
            print(&tame(&text(&status)))?;
        }
    }
    if shown == 0 {
        bail!("no daemon is running");
    }
    Ok(ExitCode::SUCCESS)
}

fn text(status: &Status) -> String {
    let mut out = String::new();
    let (name, pid, state) = (&status.name, status.pid, &status.state);
    let _ =
        writeln!(out, "{name}: {state} for {}, pid {pid}, version {}", span(status.uptime_s), status.version);
    for listen in &status.listen {
        let _ = writeln!(out, "  listens at {listen}");
    }
    for export in &status.exports {
        let (volume, space) = (&export.volume, &export.volume.space);
        let mode = if volume.read_only { ", read-only" } else { "" };
        let _ = writeln!(
            out,
            "  export {:?}: {} ({} volume of {}{mode})",
            export.name,
            export.image,
            volume.kind,
            size(volume.size_bytes)
        );
        if let Some(why) = &volume.failure {
            let _ = writeln!(out, "    STOPPED WRITING: {why}");
        }
        let percent = (space.used_bytes * 100).checked_div(space.capacity_bytes).unwrap_or(0);
        let _ = writeln!(
            out,
            "    used {} of {} ({percent} %), available {}, dead {}; {} of {} segments free",
            size(space.used_bytes),
            size(space.capacity_bytes),
            size(space.available_bytes),
            size(space.dead_bytes),
            space.free_segments,
            space.segments
        );
        if volume.kind == "vexfs" {
            let session = if volume.session == 0 {
                "not mounted".to_owned()
            } else {
                format!("session {:#x}", volume.session)
            };
            let _ = writeln!(out, "    commit {}, {session}", volume.epoch);
        }
    }
    for client in &status.connections {
        let tls = if client.tls { ", TLS" } else { "" };
        let _ = writeln!(
            out,
            "  client {}: {} on {:?} for {}{tls}",
            client.number,
            client.peer,
            client.export,
            span(client.age_s)
        );
    }
    out
}

/// A size for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 100.0);
    format!("{value:.digits$} {}", UNITS[unit])
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(300 << 20), "300 MiB");
        assert_eq!(size(1 << 62), "4.0 EiB");
        assert_eq!((span(5), span(300), span(90_000)), ("5 s".into(), "5 min".into(), "25 h".into()));
    }
}
