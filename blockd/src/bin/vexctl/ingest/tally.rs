//! What a run did, counted; threads share one.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::decide::Foreign;

/// Messages about single files that are shown; the rest is counted.
const NOTES_MAX: usize = 20;

/// Why a file of the source was left out, on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    Binary,
    TooLarge,
    BadGzip,
    Symlink,
    Special,
    NotIncluded,
    Name,
    Twin,
}

const REASONS: [(Skip, &str); 8] = [
    (Skip::Binary, "binary"),
    (Skip::TooLarge, "too large (--max-file-size)"),
    (Skip::BadGzip, "named .gz but not gzip"),
    (Skip::Symlink, "symbolic link"),
    (Skip::Special, "special file"),
    (Skip::NotIncluded, "not of --include"),
    (Skip::Name, "name reserved by vexctl, or path too long"),
    (Skip::Twin, "FILE and FILE.gz: one of them is taken"),
];

/// The counters.
#[derive(Debug, Default)]
pub struct Tally {
    pub added: AtomicU64,
    pub replaced: AtomicU64,
    pub reembedded: AtomicU64,
    pub kept: AtomicU64,
    pub gone: AtomicU64,
    pub pruned: AtomicU64,
    pub leftovers: AtomicU64,
    pub passages: AtomicU64,
    pub bytes: AtomicU64,
    unreadable: AtomicU64,
    refused: AtomicU64,
    skipped: [AtomicU64; REASONS.len()],
    notes: Mutex<Vec<String>>,
}

impl Tally {
    /// Adds 1.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    /// A file is left out on purpose.
    pub fn skip(&self, reason: Skip) {
        if let Some(index) = REASONS.iter().position(|(known, _)| *known == reason) {
            Self::count(&self.skipped[index]);
        }
    }

    /// A file of the source cannot be read.
    pub fn unreadable(&self, path: &Path, error: &dyn std::fmt::Display) {
        Self::count(&self.unreadable);
        self.note(format!("{}: cannot be read: {error}", path.display()));
    }

    /// A file of the collection is not overwritten.
    pub fn refused(&self, path: &Path, reason: Foreign) {
        Self::count(&self.refused);
        let reason = match reason {
            Foreign::NotIngested => "was not put there by ingest",
            Foreign::OtherTree => "was ingested from another tree",
            Foreign::Edited => "was edited in the collection, and the source changed as well",
        };
        self.note(format!("{}: {reason}, and is not overwritten (--overwrite does)", path.display()));
    }

    /// A message for the end of the run.
    pub fn note(&self, note: String) {
        self.notes.lock().push(note);
    }

    /// Messages about single files, the first of them.
    pub fn notes(&self) -> Vec<String> {
        let notes = self.notes.lock();
        let mut shown: Vec<String> = notes.iter().take(NOTES_MAX).cloned().collect();
        if notes.len() > NOTES_MAX {
            shown.push(format!("… and {} more such files", notes.len() - NOTES_MAX));
        }
        shown
    }

    /// Counts by reason, those that occurred.
    #[cfg(test)]
    pub fn skipped(&self) -> Vec<(Skip, u64)> {
        let counts =
            REASONS.iter().zip(&self.skipped).map(|((reason, _), count)| (*reason, count.load(Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// Some file was left out that the user will miss.
    pub fn is_partial(&self) -> bool {
        self.unreadable.load(Relaxed) + self.refused.load(Relaxed) > 0
    }

    /// For `--json`.
    pub fn to_json(&self) -> serde_json::Value {
        let skipped: serde_json::Map<String, serde_json::Value> = self
            .skipped_texts()
            .into_iter()
            .map(|(reason, count)| (reason.to_owned(), count.into()))
            .collect();
        serde_json::json!({
            "added": self.added.load(Relaxed), "replaced": self.replaced.load(Relaxed),
            "reembedded": self.reembedded.load(Relaxed), "unchanged": self.kept.load(Relaxed),
            "gone": self.gone.load(Relaxed), "pruned": self.pruned.load(Relaxed),
            "leftovers_removed": self.leftovers.load(Relaxed), "passages": self.passages.load(Relaxed),
            "bytes": self.bytes.load(Relaxed), "unreadable": self.unreadable.load(Relaxed),
            "refused": self.refused.load(Relaxed), "skipped": skipped,
        })
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{} files added, {} replaced, {} embedded again, {} unchanged; {} passages, {:.1} MiB\n",
            self.added.load(Relaxed),
            self.replaced.load(Relaxed),
            self.reembedded.load(Relaxed),
            self.kept.load(Relaxed),
            self.passages.load(Relaxed),
            self.bytes.load(Relaxed) as f64 / f64::from(1 << 20)
        );
        let (gone, pruned) = (self.gone.load(Relaxed), self.pruned.load(Relaxed));
        for (count, what) in [
            (gone, "files are gone from the source and still in the collection (--prune removes them)"),
            (pruned, "files that are gone from the source were removed"),
            (self.leftovers.load(Relaxed), "left-over temporary files of an earlier run were removed"),
            (self.unreadable.load(Relaxed), "files could not be read"),
            (self.refused.load(Relaxed), "files of the collection were not overwritten"),
        ] {
            if count > 0 {
                text.push_str(&format!("{count} {what}\n"));
            }
        }
        let skipped: Vec<String> =
            self.skipped_texts().into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        if !skipped.is_empty() {
            text.push_str(&format!("skipped: {}\n", skipped.join("; ")));
        }
        text
    }

    fn skipped_texts(&self) -> Vec<(&'static str, u64)> {
        let counts = REASONS.iter().zip(&self.skipped).map(|((_, text), count)| (*text, count.load(Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_names_only_what_occurred() {
        let tally = Tally::default();
        Tally::count(&tally.added);
        tally.skip(Skip::Binary);
        tally.skip(Skip::Binary);
        assert!(!tally.is_partial());
        let text = tally.to_text();
        assert!(text.starts_with("1 files added") && text.ends_with("skipped: 2 binary\n"), "{text}");
        assert!(!text.contains("gone"));
        tally.unreadable(Path::new("/x"), &"denied");
        assert!(tally.is_partial());
        assert_eq!(tally.to_json()["skipped"]["binary"], 2);
        assert_eq!(tally.to_json()["unreadable"], 1);
    }

    #[test]
    fn many_notes_are_counted() {
        let tally = Tally::default();
        (0..NOTES_MAX + 5).for_each(|i| tally.note(format!("{i}")));
        assert_eq!(tally.notes().len(), NOTES_MAX + 1);
        assert!(tally.notes()[NOTES_MAX].contains("5 more"));
    }
}
