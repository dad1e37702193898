//! A scrub of a volume: the store's, with names for bad pages of a file system, and a bad superblock slot mended.

use super::{Volume, page_name};
use crate::device::VolumeKind;
use crate::store::scrub::{Control, Damaged, Report};

impl Volume {
    /// Reads and checks everything that counts, beside all other work. On a volume open for writing a bad
    /// superblock slot is written anew (by a checkpoint, which writes both).
    pub fn scrub(&self, control: Control<'_>) -> Report {
        let mut report = self.core.store.scrub(control);
        if self.core.store.kind == VolumeKind::VexFs {
            self.name_pages(&mut report);
        }
        if report.superblock_is_bad() && !self.core.read_only {
            match self.checkpoint() {
                Ok(()) => report.superblock_repaired = true,
                Err(e) => tracing::error!("the bad superblock slot cannot be written anew: {e}"),
            }
        }
        report
    }

    fn name_pages(&self, report: &mut Report) {
        let page_of = |damaged: &Damaged| match damaged {
            Damaged::Page { device_page } => Some(*device_page),
            _ => None,
        };
        let pages: Vec<u64> = report.bad.iter().filter_map(|b| page_of(&b.damaged)).collect();
        let mut names = page_name::names(&self.core.store, &pages).into_iter();
        for bad in &mut report.bad {
            if page_of(&bad.damaged).is_some() {
                bad.name = names.next();
            }
        }
    }
}
