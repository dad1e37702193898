//! What fsck.vexfs says: findings on standard output, progress on standard error or where fsck(8) wants it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use vexfs_fuse::check::{Code, Finding, Mode, Outcome, Watch, Weight};

use super::Failure;
use super::args::Args;

/// Findings of one code that are told in full, unless -v or --json asks for all.
const EACH_MAX: u64 = 100;
/// Between two lines of progress.
const INTERVAL: Duration = Duration::from_millis(200);

enum Meter {
    Bar(ProgressBar),
    Lines(File),
    Nothing,
}

pub struct Console {
    source: String,
    mode: Mode,
    verbose: bool,
    json: bool,
    meter: Meter,
    pass: u32,
    last: Instant,
    calls: u32,
    told: BTreeMap<Code, u64>,
    cancelled: Arc<AtomicBool>,
}

impl Console {
    pub fn new(args: &Args, cancelled: Arc<AtomicBool>) -> Result<Self, Failure> {
        let meter = match args.progress {
            Some(fd) if fd > 0 => {
                let file = File::options().append(true).open(format!("/proc/self/fd/{fd}"));
                Meter::Lines(file.map_err(|error| Failure::Progress(fd, error))?)
            }
            Some(_) => Meter::Bar(bar()),
            None if std::io::stderr().is_terminal() => Meter::Bar(bar()),
            None => Meter::Nothing,
        };
        Ok(Console {
            source: args.source.clone(),
            mode: args.mode(),
            verbose: args.verbose,
            json: args.json,
            meter,
            pass: 0,
            last: Instant::now(),
            calls: 0,
            told: BTreeMap::new(),
            cancelled,
        })
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Meter::Bar(bar) = &self.meter {
            bar.finish_and_clear();
        }
    }

    fn say(&self, line: &str) {
        let print = || print_line(line);
        match &self.meter {
            Meter::Bar(bar) => bar.suspend(print),
            Meter::Lines(_) | Meter::Nothing => print(),
        }
    }

    /// The last word.
    pub fn summary(&self, outcome: &Outcome, mode: Mode) {
        if self.json {
            let codes: BTreeMap<&str, u64> = self.told.iter().map(|(code, n)| (code.name(), *n)).collect();
            let summary = json!({
                "source": self.source,
                "inodes": outcome.inodes,
                "findings": outcome.findings,
                "unrepairable": outcome.unrepairable,
                "notes": outcome.notes,
                "repaired": outcome.repaired,
                "rounds": outcome.rounds,
                "codes": codes,
            });
            print_line(&json!({ "summary": summary }).to_string());
            return;
        }
        if !self.verbose {
            for (code, count) in self.told.iter().filter(|(_, count)| **count > EACH_MAX) {
                print_line(&format!("{}: {} more (-v tells of each)", code.name(), count - EACH_MAX));
            }
        }
        let (findings, left) = (outcome.findings, outcome.unrepairable);
        let what = match (findings, left) {
            (0, 0) => "no errors".to_owned(),
            (_, 0) if outcome.repaired => format!("{findings} errors repaired"),
            (0, _) => format!("{left} errors that cannot be repaired"),
            (_, _) if outcome.repaired => format!("{findings} errors repaired, {left} cannot be repaired"),
            (_, 0) => format!("{findings} errors; -y repairs them"),
            _ => format!("{findings} errors that -y repairs, {left} that it cannot"),
        };
        let notes = match outcome.notes {
            0 => String::new(),
            notes if mode == Mode::Look => format!(", {notes} notes (-v tells of each)"),
            notes => format!(", {notes} notes"),
        };
        print_line(&format!("{}: {} inodes, {what}{notes}", self.source, outcome.inodes));
    }
}

/// Writes a line to standard output. Whoever reads it may have seen enough (head): a repair goes on.
pub fn print_line(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(1);
    // The template is fixed; if indicatif refused it, its default style would show.
    if let Ok(style) = ProgressStyle::with_template("{msg:<18} [{bar:40}] {percent}%") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

impl Watch for Console {
    fn found(&mut self, finding: &Finding) {
        let told = self.told.entry(finding.code).or_default();
        *told += 1;
        let told = *told;
        if self.json {
            self.say(&finding.to_json());
            return;
        }
        let weight = finding.code.weight();
        if !self.verbose && (told > EACH_MAX || weight == Weight::Note) {
            return;
        }
        let repair = finding.code.repair();
        let line = match (weight, self.mode) {
            (Weight::None, _) => format!("{finding}; repair: {repair}"),
            (_, Mode::Look) => format!("{finding}; -y: {repair}"),
            (Weight::Loss, Mode::Preen) => format!("{finding}; not repaired"),
            _ => format!("{finding}; {repair}"),
        };
        self.say(&line);
    }

    fn pass(&mut self, number: u32, title: &'static str) {
        self.pass = number;
        if self.verbose && !self.json {
            self.say(&format!("Pass {number}: {title}"));
        }
        if let Meter::Bar(bar) = &self.meter {
            bar.set_message(format!("Pass {number}: {title}"));
            bar.set_position(0);
        }
    }

    fn progress(&mut self, done: u64, total: u64) {
        // The clock is read once in a while.
        self.calls = self.calls.wrapping_add(1);
        if !self.calls.is_multiple_of(64) || self.last.elapsed() < INTERVAL {
            return;
        }
        self.last = Instant::now();
        match &mut self.meter {
            Meter::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done.min(total));
            }
            // Whoever reads it may be gone: the check goes on.
            Meter::Lines(file) => drop(writeln!(file, "{} {done} {total} {}", self.pass, self.source)),
            Meter::Nothing => {}
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}
