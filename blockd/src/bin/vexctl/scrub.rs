//! `vexctl scrub`: reads an image that no daemon has open, and reports what is damaged.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use blockd::device::{Device, VolumeKind};
use blockd::store::StoreError;
use blockd::store::scrub::{Control, Damaged, Progress, Report};
use blockd::volume::{OpenOptions, Volume};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::json;

use crate::cli::ScrubArgs;
use crate::output::print;

/// Damage was found and remains.
const DAMAGED: u8 = 4;
/// Ended by a signal.
const INTERRUPTED: u8 = 130;
/// Time between two lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

/// Scrubs.
///
/// # Errors
/// The image cannot be read at all, or is no store.
pub fn run(args: &ScrubArgs) -> Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("signals cannot be caught")?;
    }
    let volume = match open(&args.image, true) {
        Ok(volume) => volume,
        Err(
            e @ (StoreError::Corrupt { .. } | StoreError::LogBroken { .. } | StoreError::Truncated { .. }),
        ) => {
            let error = blockd::report::one_line(&e);
            if args.json {
                print(&format!("{}\n", json!({"image": args.image, "clean": false, "error": error})))?;
            }
            eprintln!("vexctl: {}: {error}", args.image.display());
            return Ok(ExitCode::from(DAMAGED));
        }
        Err(e) => return Err(anyhow!("{}: {}", args.image.display(), blockd::report::one_line(&e))),
    };
    let kind = volume.info().kind;
    let mut meter = Meter::new(args.json);
    let rate = AtomicU64::new(args.rate.unwrap_or(0));
    let mut report =
        volume.scrub(Control { bytes_per_s: &rate, stop: &stop, progress: &mut |p| meter.show(p) });
    meter.clear();
    volume.shutdown()?;
    drop(volume);
    if args.repair && report.superblock_is_bad() {
        // A start writes both slots before anything else.
        let volume = open(&args.image, false).map_err(|e| {
            anyhow!("the bad superblock slot cannot be written anew: {}", blockd::report::one_line(&e))
        })?;
        volume.shutdown()?;
        report.superblock_repaired = true;
    }
    let repaired = |b: &&blockd::store::scrub::BadPage| {
        report.superblock_repaired && matches!(b.damaged, Damaged::SuperblockSlot { .. })
    };
    let remaining = report.bad_count - report.bad.iter().filter(repaired).count() as u64;
    if args.json {
        let mut out = serde_json::to_value(&report)?;
        out["image"] = json!(args.image);
        out["clean"] = json!(report.bad_count == 0 && !report.stopped);
        print(&format!("{out}\n"))?;
    } else {
        print(&text(&args.image, kind, &report))?;
    }
    Ok(match (remaining, report.stopped) {
        (1.., _) => ExitCode::from(DAMAGED),
        (0, true) => ExitCode::from(INTERRUPTED),
        (0, false) => ExitCode::SUCCESS,
    })
}

fn open(image: &Path, read_only: bool) -> Result<Arc<Volume>, StoreError> {
    Volume::open(image, &OpenOptions { read_only, cleaner: false, ..OpenOptions::default() })
}

fn text(image: &Path, kind: VolumeKind, report: &Report) -> String {
    let mut out = String::new();
    for bad in &report.bad {
        out += &format!("bad: {bad}\n");
    }
    let listed = report.bad.len() as u64;
    if report.bad_count > listed {
        out += &format!("and {} more bad pages\n", report.bad_count - listed);
    }
    if report.superblock_repaired {
        out += "the bad superblock slot was written anew\n";
    }
    let pages = report.data_pages + report.meta_pages;
    let read = HumanBytes(report.bytes_read);
    let found = match report.bad_count {
        0 => "nothing is damaged".to_owned(),
        1 => "1 bad page".to_owned(),
        n => format!("{n} bad pages"),
    };
    let stopped = if report.stopped { "; stopped before the end" } else { "" };
    out += &format!("{}: {pages} pages ({read}) checked, {found}{stopped}\n", image.display());
    let has = |wanted: fn(&Damaged) -> bool| report.bad.iter().any(|b| wanted(&b.damaged));
    if has(|d| matches!(d, Damaged::Page { .. })) {
        out += match kind {
            VolumeKind::VexFs => {
                "Reading these bytes fails with EIO until they are written again: restore the files from a copy \
                 (find MOUNT -inum N names the file of an inode).\n"
            }
            VolumeKind::Raw => {
                "Reading these pages fails with EIO until they are written again: restore them from a copy.\n"
            }
        };
    }
    if has(|d| matches!(d, Damaged::Checkpoint | Damaged::MapLeaf { .. })) {
        out += "Checkpoint and map are needed by the next start: if a daemon serves this image, copy its data off before it is stopped.\n";
    }
    if report.superblock_is_bad() && !report.superblock_repaired {
        out += "The bad superblock slot is written anew by --repair, or by the next start for writing.\n";
    }
    out
}

/// How far it is: a bar on a terminal, else a line now and then; on stderr.
enum Meter {
    Bar(ProgressBar),
    Lines(Instant),
    Nothing,
}

impl Meter {
    fn new(quiet: bool) -> Self {
        if !std::io::stderr().is_terminal() {
            return if quiet { Meter::Nothing } else { Meter::Lines(Instant::now()) };
        }
        let bar = ProgressBar::new(0);
        let template =
            "scrub [{bar:40}] {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left{msg}";
        // The template is fixed; if indicatif refused it, its default style would show.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Meter::Bar(bar)
    }

    fn show(&mut self, p: Progress) {
        match self {
            Meter::Bar(bar) => {
                bar.set_length(p.total_bytes);
                bar.set_position(p.done_bytes);
                if p.bad_count > 0 {
                    bar.set_message(format!("  {} bad", p.bad_count));
                }
            }
            Meter::Lines(last) if last.elapsed() >= LINE_INTERVAL => {
                *last = Instant::now();
                let (done, total) = (HumanBytes(p.done_bytes), HumanBytes(p.total_bytes));
                eprintln!("vexctl: scrub: {done} of {total}, {} bad pages", p.bad_count);
            }
            Meter::Lines(_) | Meter::Nothing => {}
        }
    }

    fn clear(&self) {
        if let Meter::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
