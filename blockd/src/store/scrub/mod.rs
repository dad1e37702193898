//! Scrub: reads everything that counts and checks its crc, so that damage is found while a copy still exists.
//!
//! [`data`]: segments of records, read front to back in large pieces. A page that is what its record says
//! is good, whoever refers to it; only of one that is not the map is asked whether it counts. So a scrub of a
//! sound store needs no lookups and reads at the speed of the backing. [`meta`]: superblock slots, the
//! checkpoint and the leaves of the map. [`report`]: what was found. [`pace`]: progress, rate, stop.
//!
//! It runs beside everything else: what was moved, overwritten or used again while it was read is asked of
//! the map anew, as in [`super::reader`].

mod data;
mod meta;
pub mod pace;
pub mod report;

use std::io;
use std::ops::ControlFlow;

use layout::addr::PAGE;

pub use pace::{Control, Progress};
pub use report::{BadPage, Damaged, Report};

use super::Shared;
use super::format::Loc;
use super::format::segment::Stream;
use super::map::segments::{Segment, State};
use crate::buf::AlignedBuf;
use pace::Pace;

/// Pages read at once (4 MiB): more than any record has.
const CHUNK_PAGES: usize = 1024;

/// A scrub under way. Its steps break off when it is to stop.
struct Scrub<'s, 'c> {
    shared: &'s Shared,
    pace: Pace<'c>,
    report: Report,
    buf: AlignedBuf,
}

impl Shared {
    /// Reads and checks everything that the last checkpoint or the map refers to. Failed reads are findings, not
    /// errors. Blocks until done, or until `control` says stop; see [`Report::stopped`].
    pub fn scrub(&self, control: Control<'_>) -> Report {
        let total_pages = {
            let maps = self.maps.read();
            let data = maps.segments.all().iter().filter(|s| holds_records(s));
            data.map(|s| u64::from(s.used_pages)).sum::<u64>() + maps.leaf_count() as u64 + 2
        };
        let mut scrub = Scrub {
            shared: self,
            pace: Pace::new(control, total_pages * PAGE as u64),
            report: Report::default(),
            buf: AlignedBuf::zeroed(CHUNK_PAGES * PAGE),
        };
        scrub.report.stopped = scrub.run().is_break();
        scrub.pace.finish(scrub.report.bad_count);
        scrub.report
    }
}

impl Scrub<'_, '_> {
    fn run(&mut self) -> ControlFlow<()> {
        self.superblocks()?;
        self.checkpoint()?;
        self.directories()?;
        self.leaves()?;
        self.records()
    }

    /// Fills the first `pages` pages of the buffer; gives the pages that cannot be read, which are zeroed, and why.
    fn fill(&mut self, at: Loc, pages: usize) -> Vec<(usize, io::Error)> {
        let offset = self.shared.geometry.byte(at);
        let buf = &mut self.buf[..pages * PAGE];
        self.report.bytes_read += buf.len() as u64;
        if self.shared.storage.read_exact(offset, buf).is_ok() {
            return Vec::new();
        }
        let mut failed = Vec::new();
        for (i, page) in buf.chunks_exact_mut(PAGE).enumerate() {
            if let Err(e) = self.shared.storage.read_exact(offset + (i * PAGE) as u64, page) {
                page.fill(0);
                failed.push((i, e));
            }
        }
        failed
    }

    /// Tells of progress, keeps to the rate; breaks when the scrub is to stop.
    fn advance(&mut self, pages: usize) -> ControlFlow<()> {
        self.pace.advance((pages * PAGE) as u64, self.report.bad_count)
    }

    fn bad(&mut self, damaged: Damaged, at: Loc, finding: Finding) {
        self.bad_of(None, damaged, at, finding);
    }

    /// As [`Scrub::bad`], of what a snapshot keeps.
    fn bad_of(&mut self, snapshot: Option<String>, damaged: Damaged, at: Loc, finding: Finding) {
        let image_byte = self.shared.geometry.byte(at);
        self.report.add(BadPage { snapshot, ..BadPage::new(damaged, Some(at), image_byte, finding) });
    }
}

/// What is wrong with a page.
#[derive(Debug)]
enum Finding {
    Crc { expected: u32, found: u32 },
    Other(String),
}

/// Whether a segment holds records that something refers to.
fn holds_records(s: &Segment) -> bool {
    s.state != State::Free && s.stream != Stream::Meta && s.live() > 0
}

/// One page, read alone; `None` if its crc is as expected.
fn read_again(shared: &Shared, at: Loc, expected: u32, crc: impl Fn(&[u8]) -> u32) -> Result<(), Finding> {
    let mut page = AlignedBuf::zeroed(PAGE);
    match shared.storage.read_exact(shared.geometry.byte(at), &mut page) {
        Err(e) => Err(Finding::Other(e.to_string())),
        Ok(()) => match crc(&page) {
            found if found == expected => Ok(()),
            found => Err(Finding::Crc { expected, found }),
        },
    }
}
