//! `vexctl stats` of a daemon: since its start, or what was done over each interval.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use blockd::control::protocol::{ExportStats, Request, Stats};
use blockd::stats::{RequestStats, StoreStats};

use super::connect;
use crate::cli::StatsArgs;
use crate::output::{print, tame};
use crate::status::size;

/// Shows them.
///
/// # Errors
/// No daemon answers, or not any more.
pub fn run(args: &StatsArgs) -> Result<ExitCode> {
    let mut before = ask(args)?;
    let Some(interval_s) = args.watch else {
        show(args, &before, None)?;
        return Ok(ExitCode::SUCCESS);
    };
    loop {
        std::thread::sleep(Duration::from_secs(interval_s));
        let now = ask(args)?;
        show(args, &now, Some(&before))?;
        before = now;
    }
}

fn ask(args: &StatsArgs) -> Result<Stats> {
    // A connection each time: the daemon does not keep those that say nothing for long.
    Ok(connect(&args.daemon)?.ask_at_once(&Request::Stats {})?)
}

fn show(args: &StatsArgs, now: &Stats, before: Option<&Stats>) -> Result<()> {
    if args.json {
        return print(&format!("{}\n", serde_json::to_string(now)?));
    }
    // A daemon that was started anew counts from zero again.
    let before = before.filter(|before| before.uptime_us <= now.uptime_us);
    let seconds = (now.uptime_us - before.map_or(0, |before| before.uptime_us)) as f64 / 1e6;
    let mut out = String::new();
    for (name, stats) in &now.exports {
        let earlier = before.and_then(|before| before.exports.get(name));
        describe(&mut out, name, stats, earlier, seconds);
    }
    print(&tame(&out))
}

fn describe(out: &mut String, name: &str, now: &ExportStats, earlier: Option<&ExportStats>, seconds: f64) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "export {name:?}, over {seconds:.1} s");
    let _ = writeln!(
        out,
        "  {:12}{:>12}{:>10}{:>12}{:>10}{:>10}{:>10}{:>8}",
        "requests", "count", "/s", "bytes/s", "mean", "p50", "p99", "errors"
    );
    let stats = now.requests.iter().map(|now| since(now, earlier));
    for stats in stats.filter(|stats| stats.latency.count() > 0) {
        let count = stats.latency.count();
        let mean = Duration::from_nanos(stats.latency.sum_ns.checked_div(count).unwrap_or(0));
        let quantile = |part| stats.latency.quantile(part).map_or_else(String::new, time);
        let _ = writeln!(
            out,
            "  {:12}{count:>12}{:>10.0}{:>12}{:>10}{:>10}{:>10}{:>8}",
            stats.kind.name(),
            count as f64 / seconds,
            size((stats.bytes as f64 / seconds) as u64),
            time(mean),
            quantile(0.5),
            quantile(0.99),
            stats.errors
        );
    }
    let store = store_since(&now.store, earlier.map(|earlier| &earlier.store));
    let amplification = store.write_amplification().map_or_else(|| "-".to_owned(), |x| format!("{x:.2}"));
    let _ = writeln!(
        out,
        "  image: {} of data in {} records, {} moved by the cleaner, {} of checkpoints ({}); written in all {amplification} \
         times the data; {} syncs, {} read, {} leaves loaded, {} read errors, {} writes refused for want of space",
        size(store.user_bytes),
        store.records,
        size(store.moved_bytes),
        size(store.checkpoint_bytes),
        store.checkpoints.count(),
        store.syncs,
        size(store.read_bytes),
        store.leaf_loads,
        store.read_errors,
        store.no_space
    );
}

fn since(now: &RequestStats, earlier: Option<&ExportStats>) -> RequestStats {
    let Some(before) = earlier.and_then(|e| e.requests.iter().find(|of| of.kind == now.kind)) else {
        return now.clone();
    };
    RequestStats {
        kind: now.kind,
        bytes: now.bytes.saturating_sub(before.bytes),
        errors: now.errors.saturating_sub(before.errors),
        latency: now.latency.since(&before.latency),
    }
}

fn store_since(now: &StoreStats, before: Option<&StoreStats>) -> StoreStats {
    let Some(before) = before else { return now.clone() };
    StoreStats {
        records: now.records.saturating_sub(before.records),
        user_bytes: now.user_bytes.saturating_sub(before.user_bytes),
        moved_bytes: now.moved_bytes.saturating_sub(before.moved_bytes),
        moved_header_bytes: now.moved_header_bytes.saturating_sub(before.moved_header_bytes),
        log_bytes: now.log_bytes.saturating_sub(before.log_bytes),
        checkpoint_bytes: now.checkpoint_bytes.saturating_sub(before.checkpoint_bytes),
        checkpoints: now.checkpoints.since(&before.checkpoints),
        checkpoints_without_room: now
            .checkpoints_without_room
            .saturating_sub(before.checkpoints_without_room),
        syncs: now.syncs.saturating_sub(before.syncs),
        read_bytes: now.read_bytes.saturating_sub(before.read_bytes),
        leaf_loads: now.leaf_loads.saturating_sub(before.leaf_loads),
        read_errors: now.read_errors.saturating_sub(before.read_errors),
        cleaned_segments: now.cleaned_segments.saturating_sub(before.cleaned_segments),
        no_space: now.no_space.saturating_sub(before.no_space),
    }
}

/// A duration for people.
fn time(duration: Duration) -> String {
    let us = duration.as_secs_f64() * 1e6;
    match us {
        ..1000.0 => format!("{us:.0} us"),
        ..1e6 => format!("{:.1} ms", us / 1e3),
        _ => format!("{:.1} s", us / 1e6),
    }
}
