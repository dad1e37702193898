//! How far a command is: a bar on a terminal, on stderr; else nothing.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Goes away when it is dropped.
pub struct Meter {
    bar: Option<ProgressBar>,
    most: u64,
}

impl Meter {
    /// Of pages that are left to look at.
    pub fn pages(what: &'static str) -> Self {
        Meter::new(what, "{msg} [{bar:40}] {pos}/{len} pages  {eta} left")
    }

    /// Of bytes.
    pub fn bytes(what: &'static str) -> Self {
        Meter::new(
            what,
            "{msg} [{bar:40}] {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
        )
    }

    fn new(what: &'static str, template: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            // The template is fixed; if indicatif refused it, its default style would show.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(what);
            bar
        });
        Meter { bar, most: 0 }
    }

    /// So much is left.
    pub fn left(&mut self, left: u64) {
        self.most = self.most.max(left);
        self.show(self.most - left, self.most);
    }

    /// So much is done.
    pub fn show(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
