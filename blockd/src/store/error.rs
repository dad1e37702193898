//! Why a store cannot be made or opened.

use std::path::PathBuf;

use super::format::Malformed;
use crate::storage::file::OpenError;

/// Why a store cannot be made or opened; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The backing cannot be had.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Reading or writing failed.
    #[error("I/O error while {action} at byte {offset} of the image")]
    Io {
        /// What was going on.
        action: &'static str,
        /// Where.
        offset: u64,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Neither superblock slot is a VexFS store's.
    #[error("not a VexFS image ({0}); make one with mkfs.vexfs")]
    NotAStore(Malformed),
    /// A store of a newer or broken kind.
    #[error("this store cannot be used: {0}")]
    Unusable(Malformed),
    /// The image is shorter than the store in it.
    #[error(
        "the image has {found} bytes but its store was made for {expected}: it was cut short; restore its length"
    )]
    Truncated {
        /// Bytes when it was made.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
    /// A structure that was durable is bad.
    #[error("the image is damaged at byte {offset}: {malformed}; restore it from a copy")]
    Corrupt {
        /// Byte of the backing.
        offset: u64,
        /// What is wrong.
        malformed: Malformed,
    },
    /// A leaf of the map is bad, and the log has changes of it.
    #[error(
        "{why}; the log has changes of what it maps, device pages {first_page:#x} to {last_page:#x}, and cannot be replayed: open the \
         image read-only (vexfs-blockd serve --read-only), which gives errors for these pages alone, copy what can be read, and \
         restore the rest from a copy"
    )]
    MapDamaged {
        /// Which leaf, where it stands, what is wrong with it.
        why: String,
        /// The first device page that it may map.
        first_page: u64,
        /// The last one.
        last_page: u64,
    },
    /// Records that were durable are missing.
    #[error(
        "the image is damaged near {place}: record {expected} is missing or bad, though records up to {durable} were \
         durable (next good one: {found}); restore it from a copy"
    )]
    LogBroken {
        /// Where the log ends.
        place: String,
        /// The record that should stand there.
        expected: u64,
        /// The last record known to have been durable.
        durable: u64,
        /// Sequence of the next record found, 0 if none.
        found: u64,
    },
    /// mkfs: the size does not do.
    #[error("{0}")]
    BadSize(String),
    /// mkfs: something is there already.
    #[error("{path} holds {what}; use -f to overwrite it")]
    InUse {
        /// The image.
        path: PathBuf,
        /// What stands in it.
        what: String,
    },
    /// mkfs: whatever is there is at work.
    #[error("{path} is {by}; unmount or stop that first (-f does not help)")]
    Busy {
        /// The image.
        path: PathBuf,
        /// What has it.
        by: String,
    },
    /// Too little space to start.
    #[error("no space left in the image to start the store: {0}")]
    NoSpace(String),
}
