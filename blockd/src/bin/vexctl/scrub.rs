//! `vexctl scrub`: reads an image that no daemon has open, or has a daemon read it, and reports what is damaged.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use blockd::control::protocol::{Request, Scrubbed};
use blockd::device::Device;
use blockd::storage::file::OpenError;
use blockd::store::StoreError;
use blockd::store::scrub::{BadPage, Control, Damaged, Progress};
use blockd::volume::{OpenOptions, Volume};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::json;

use crate::cli::ScrubArgs;
use crate::daemon::connect;
use crate::output::{print, tame};

/// Damage was found and remains.
const DAMAGED: u8 = 4;
/// Ended by a signal.
const INTERRUPTED: u8 = 130;
/// Kind of a volume with a file system.
const VEXFS: &str = "vexfs";
/// Time between two lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

/// Scrubs.
///
/// # Errors
/// The image cannot be read at all, or is no store; or no daemon answers.
pub fn run(args: &ScrubArgs) -> Result<ExitCode> {
    let scrubbed = match &args.image {
        Some(image) => offline(image, args)?,
        None => Some(by_daemon(args)?),
    };
    let Some(scrubbed) = scrubbed else { return Ok(ExitCode::from(DAMAGED)) };
    let report = &scrubbed.report;
    let repaired =
        |b: &&BadPage| report.superblock_repaired && matches!(b.damaged, Damaged::SuperblockSlot { .. });
    let remaining = report.bad_count - report.bad.iter().filter(repaired).count() as u64;
    if args.json {
        let mut out = serde_json::to_value(&scrubbed)?;
        out["clean"] = json!(report.bad_count == 0 && !report.stopped);
        print(&format!("{out}\n"))?;
    } else {
        print(&tame(&text(&scrubbed)))?;
    }
    Ok(match (remaining, report.stopped) {
        (1.., _) => ExitCode::from(DAMAGED),
        (0, true) => ExitCode::from(INTERRUPTED),
        (0, false) => ExitCode::SUCCESS,
    })
}

fn by_daemon(args: &ScrubArgs) -> Result<Scrubbed> {
    let request = Request::Scrub { export: args.export.clone(), bytes_per_s: args.rate.unwrap_or(0) };
    let mut meter = Meter::new(args.json);
    let scrubbed = connect(&args.daemon)?.ask_with_progress(&request, |value| {
        // What another version says of its progress is not worth an error.
        if let Ok(progress) = serde_json::from_value(value) {
            meter.show(progress);
        }
    });
    meter.clear();
    Ok(scrubbed?)
}

/// Scrubs an image; none if it is too damaged to be opened, which is said.
fn offline(image: &Path, args: &ScrubArgs) -> Result<Option<Scrubbed>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("signals cannot be caught")?;
    }
    let volume = match open(image, true) {
        Ok(volume) => volume,
        Err(
            e @ (StoreError::Corrupt { .. } | StoreError::LogBroken { .. } | StoreError::Truncated { .. }),
        ) => {
            let error = blockd::report::one_line(&e);
            if args.json {
                print(&format!("{}\n", json!({"image": image, "clean": false, "error": error})))?;
            }
            eprintln!("vexctl: {}: {error}", image.display());
            return Ok(None);
        }
        Err(e) => {
            let remedy = match e {
                StoreError::Open(OpenError::InUse { .. }) => {
                    " (or have its daemon do it: vexctl scrub --export NAME)"
                }
                _ => "",
            };
            bail!("{}: {}{remedy}", image.display(), blockd::report::one_line(&e));
        }
    };
    let kind = volume.info().kind.name();
    let mut meter = Meter::new(args.json);
    let rate = AtomicU64::new(args.rate.unwrap_or(0));
    let mut report =
        volume.scrub(Control { bytes_per_s: &rate, stop: &stop, progress: &mut |p| meter.show(p) });
    meter.clear();
    volume.shutdown()?;
    drop(volume);
    if args.repair && report.superblock_is_bad() {
        // A start writes both slots before anything else.
        let volume = open(image, false).map_err(|e| {
            anyhow!("the bad superblock slot cannot be written anew: {}", blockd::report::one_line(&e))
        })?;
        volume.shutdown()?;
        report.superblock_repaired = true;
    }
    Ok(Some(Scrubbed { image: image.display().to_string(), kind: kind.to_owned(), report }))
}

fn open(image: &Path, read_only: bool) -> Result<Arc<Volume>, StoreError> {
    Volume::open(image, &OpenOptions { read_only, cleaner: false, ..OpenOptions::default() })
}

fn text(Scrubbed { image, kind, report }: &Scrubbed) -> String {
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
    out += &format!("{image}: {pages} pages ({read}) checked, {found}{stopped}\n");
    let has = |wanted: fn(&BadPage) -> bool| report.bad.iter().any(wanted);
    let is_page = |b: &BadPage| matches!(b.damaged, Damaged::Page { .. });
    if report.bad.iter().any(|b| is_page(b) && b.snapshot.is_none()) {
        out += if kind == VEXFS {
            "Reading these bytes fails with EIO until they are written again: restore the files from a copy (find MOUNT -inum N \
             names the file of an inode).\n"
        } else {
            "Reading these pages fails with EIO until they are written again: restore them from a copy.\n"
        };
    }
    if report.bad.iter().any(|b| is_page(b) && b.snapshot.is_some()) {
        out += "A bad page of a snapshot stays bad for as long as the snapshot is there; the live volume does not need it.\n";
    }
    if has(|b| matches!(b.damaged, Damaged::Checkpoint | Damaged::MapLeaf { .. })) {
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
