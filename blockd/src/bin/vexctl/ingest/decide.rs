//! What to do with one file: a pure function of what is known about it.

use super::cut::CUTTER_VERSION;
use super::record::{Record, Stamp};

/// What a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Hash of the source tree's path.
    pub root: u64,
    /// The embedder's fingerprint.
    pub embedder: u64,
    /// The source wins over edits and files from elsewhere.
    pub overwrite: bool,
}

/// A file of the collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub stamp: Stamp,
    /// `None`: ingest did not put it there.
    pub record: Option<Record>,
    /// Some row of it lives.
    pub has_rows: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Copy the source and embed it; the name is free.
    Add,
    /// Copy the source and embed it, in place of what is there.
    Replace,
    /// Embed the stored text again; it stays as it is.
    Reembed {
        /// The source changed as well, and is not taken.
        conflict: bool,
    },
    /// Nothing to do.
    Keep,
    /// Leave what is there, and say so.
    Refuse(Foreign),
}

/// Why a name is not ours to overwrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// There is a file that no ingest put there.
    NotIngested,
    /// It was ingested from another tree.
    OtherTree,
    /// It was edited in the collection, and the source changed as well.
    Edited,
}

/// For a file of the source tree.
pub fn decide(run: &Run, source: Stamp, stored: Option<&Stored>) -> Choice {
    let Some(stored) = stored else { return Choice::Add };
    let Some(record) = stored.record else {
        return if run.overwrite { Choice::Replace } else { Choice::Refuse(Foreign::NotIngested) };
    };
    if record.root != run.root {
        return if run.overwrite { Choice::Replace } else { Choice::Refuse(Foreign::OtherTree) };
    }
    let edited = record.edited || stored.stamp != record.stored;
    let source_changed = source != record.source;
    match (source_changed, edited) {
        (true, false) => Choice::Replace,
        (_, true) if run.overwrite => Choice::Replace,
        _ => match decide_stored(run, stored) {
            Choice::Keep if source_changed => Choice::Refuse(Foreign::Edited),
            Choice::Reembed { .. } => Choice::Reembed { conflict: source_changed },
            choice => choice,
        },
    }
}

/// For a file of the collection alone: are its rows those of its text by this embedder?
pub fn decide_stored(run: &Run, stored: &Stored) -> Choice {
    match stored.record {
        None => Choice::Keep,
        Some(record) => {
            let rows_are_right = stored.stamp == record.stored
                && record.embedder == run.embedder
                && record.cutter_version == CUTTER_VERSION
                && stored.has_rows == (record.passages > 0);
            if rows_are_right { Choice::Keep } else { Choice::Reembed { conflict: false } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Run = Run { root: 7, embedder: 9, overwrite: false };
    const SOURCE: Stamp = Stamp { size_bytes: 10, mtime_ns: 100 };
    const STORED: Stamp = Stamp { size_bytes: 30, mtime_ns: 100 };
    const RECORD: Record = Record {
        cutter_version: CUTTER_VERSION,
        root: 7,
        source: SOURCE,
        stored: STORED,
        embedder: 9,
        passages: 2,
        edited: false,
    };

    fn stored(record: Record, stamp: Stamp) -> Stored {
        Stored { stamp, record: Some(record), has_rows: true }
    }

    fn changed(stamp: Stamp) -> Stamp {
        Stamp { mtime_ns: stamp.mtime_ns + 1, ..stamp }
    }

    #[test]
    fn new_changed_and_unchanged_files() {
        let same = stored(RECORD, STORED);
        assert_eq!(decide(&RUN, SOURCE, None), Choice::Add);
        assert_eq!(decide(&RUN, SOURCE, Some(&same)), Choice::Keep);
        assert_eq!(decide(&RUN, changed(SOURCE), Some(&same)), Choice::Replace);
        let larger = Stamp { size_bytes: 11, ..SOURCE };
        assert_eq!(decide(&RUN, larger, Some(&same)), Choice::Replace);
    }

    #[test]
    fn rows_that_are_not_of_the_text_are_made_again() {
        let again = Choice::Reembed { conflict: false };
        assert_eq!(decide(&RUN, SOURCE, Some(&stored(RECORD, changed(STORED)))), again);
        assert_eq!(decide(&RUN, SOURCE, Some(&stored(Record { embedder: 8, ..RECORD }, STORED))), again);
        assert_eq!(
            decide(&RUN, SOURCE, Some(&stored(Record { cutter_version: 0, ..RECORD }, STORED))),
            again
        );
        let lost = Stored { has_rows: false, ..stored(RECORD, STORED) };
        assert_eq!(decide(&RUN, SOURCE, Some(&lost)), again);
        let empty = Stored { has_rows: false, ..stored(Record { passages: 0, ..RECORD }, STORED) };
        assert_eq!(decide(&RUN, SOURCE, Some(&empty)), Choice::Keep);
    }

    #[test]
    fn an_edit_in_the_collection_is_never_lost_unless_asked() {
        let edited_now = stored(RECORD, changed(STORED));
        let edited_before =
            stored(Record { edited: true, stored: changed(STORED), ..RECORD }, changed(STORED));
        assert_eq!(decide(&RUN, changed(SOURCE), Some(&edited_now)), Choice::Reembed { conflict: true });
        assert_eq!(decide(&RUN, changed(SOURCE), Some(&edited_before)), Choice::Refuse(Foreign::Edited));
        assert_eq!(decide(&RUN, SOURCE, Some(&edited_before)), Choice::Keep);
        let overwrite = Run { overwrite: true, ..RUN };
        for stored in [edited_now, edited_before] {
            assert_eq!(decide(&overwrite, SOURCE, Some(&stored)), Choice::Replace);
        }
    }

    #[test]
    fn names_of_others_are_refused() {
        let by_hand = Stored { stamp: STORED, record: None, has_rows: false };
        let elsewhere = stored(Record { root: 6, ..RECORD }, STORED);
        assert_eq!(decide(&RUN, SOURCE, Some(&by_hand)), Choice::Refuse(Foreign::NotIngested));
        assert_eq!(decide(&RUN, SOURCE, Some(&elsewhere)), Choice::Refuse(Foreign::OtherTree));
        let overwrite = Run { overwrite: true, ..RUN };
        assert_eq!(decide(&overwrite, SOURCE, Some(&by_hand)), Choice::Replace);
        assert_eq!(decide(&overwrite, SOURCE, Some(&elsewhere)), Choice::Replace);
        assert_eq!(decide_stored(&RUN, &by_hand), Choice::Keep);
        assert_eq!(decide_stored(&RUN, &elsewhere), Choice::Keep);
    }
}
