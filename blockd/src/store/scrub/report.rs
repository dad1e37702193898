//! What a scrub found.

use serde::{Deserialize, Serialize};

use super::Finding;
use crate::store::format::Loc;

/// Most bad pages that a report lists; all are counted.
const LISTED_MAX: usize = 10_000;

/// What a bad page is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Damaged {
    /// A superblock slot; the other one is good, or nothing could have been opened.
    SuperblockSlot {
        /// `A` or `B`.
        slot: char,
    },
    /// The checkpoint's root page, or a part of its payload: the next start fails.
    Checkpoint,
    /// A leaf of the map: the pages it maps cannot be found after the next start.
    MapLeaf {
        /// Lowest device page it may map.
        device_page: u64,
    },
    /// The header of a record. The pages behind it can be read all the same; the segment is never cleaned.
    RecordHeader,
    /// A page of the volume: reading it gives EIO.
    Page {
        /// Its number on the device.
        device_page: u64,
    },
}

/// A page that is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BadPage {
    /// What it is.
    #[serde(flatten)]
    pub damaged: Damaged,
    /// To whom it belongs, for people: `inode 12, file bytes 4096 to 8191`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The snapshot that keeps it, if the live volume has no use for it; older ones may share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Segment it stands in; none for superblock slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<u32>,
    /// Page of the segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_page: Option<u16>,
    /// Byte of the image where it begins.
    pub image_byte: u64,
    /// crc32c that it should have, where a crc is what is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc_expected: Option<u32>,
    /// crc32c that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc_found: Option<u32>,
    /// What is wrong, for people.
    pub why: String,
}

impl BadPage {
    pub(super) fn new(damaged: Damaged, at: Option<Loc>, image_byte: u64, finding: Finding) -> Self {
        let (crcs, why) = match finding {
            Finding::Crc { expected, found } => {
                (Some((expected, found)), format!("crc32c expected {expected:#010x}, found {found:#010x}"))
            }
            Finding::Other(why) => (None, why),
        };
        BadPage {
            damaged,
            name: None,
            snapshot: None,
            segment: at.map(|at| at.segment),
            segment_page: at.map(|at| at.offset),
            image_byte,
            crc_expected: crcs.map(|c| c.0),
            crc_found: crcs.map(|c| c.1),
            why,
        }
    }
}

impl std::fmt::Display for BadPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.damaged {
            Damaged::SuperblockSlot { slot } => write!(f, "superblock slot {slot}")?,
            Damaged::Checkpoint => write!(f, "checkpoint")?,
            Damaged::MapLeaf { device_page } => write!(f, "map leaf of device pages {device_page:#x} on")?,
            Damaged::RecordHeader => write!(f, "record header")?,
            Damaged::Page { device_page } => write!(f, "device page {device_page:#x}")?,
        }
        if let Some(name) = &self.name {
            write!(f, " ({name})")?;
        }
        if let Some(snapshot) = &self.snapshot {
            write!(f, " of snapshot {snapshot:?}")?;
        }
        if let (Some(segment), Some(page)) = (self.segment, self.segment_page) {
            write!(f, " at segment {segment} page {page},")?;
        }
        write!(f, " image byte {}: {}", self.image_byte, self.why)
    }
}

/// The outcome of a scrub.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Data pages checked, those that nothing refers to any more included.
    pub data_pages: u64,
    /// Pages of superblocks, checkpoint and map checked.
    pub meta_pages: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bad pages.
    pub bad_count: u64,
    /// The first ten thousand of them.
    pub bad: Vec<BadPage>,
    /// A bad superblock slot was written anew.
    pub superblock_repaired: bool,
    /// It was stopped before it had seen everything.
    pub stopped: bool,
}

impl Report {
    pub(super) fn add(&mut self, bad: BadPage) {
        tracing::error!("scrub: {bad}");
        self.bad_count += 1;
        if self.bad.len() < LISTED_MAX {
            self.bad.push(bad);
        }
    }

    /// Whether a superblock slot is bad, which a checkpoint mends.
    pub fn superblock_is_bad(&self) -> bool {
        self.bad.iter().any(|b| matches!(b.damaged, Damaged::SuperblockSlot { .. }))
    }
}
