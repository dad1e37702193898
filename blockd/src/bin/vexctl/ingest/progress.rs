//! How far a run is: a bar on a terminal, else a line now and then; on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Counts files of one phase.
pub struct Progress {
    phase: &'static str,
    total: u64,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
}

struct Lines {
    done: u64,
    last: Instant,
}

impl Progress {
    /// Of `total` files.
    pub fn new(phase: &'static str, total: usize) -> Self {
        let total = total as u64;
        let shown = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(total);
            // The template is fixed; if indicatif refused it, its default style would show.
            if let Ok(style) =
                ProgressStyle::with_template("{msg:>10} [{bar:40}] {pos}/{len} files  {per_sec}  {eta} left")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(phase);
            Shown::Bar(bar)
        } else {
            Shown::Lines(Mutex::new(Lines { done: 0, last: Instant::now() }))
        };
        Self { phase, total, shown }
    }

    /// One file more is done.
    pub fn step(&self) {
        match &self.shown {
            Shown::Bar(bar) => bar.inc(1),
            Shown::Lines(lines) => {
                let mut lines = lines.lock();
                lines.done += 1;
                if lines.last.elapsed() >= LINE_INTERVAL {
                    lines.last = Instant::now();
                    eprintln!("vexctl: {}: {} of {} files", self.phase, lines.done, self.total);
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}
