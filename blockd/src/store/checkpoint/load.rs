//! Reading a map's directory back, level by level from the top.

use layout::addr::PAGE;

use crate::buf::AlignedBuf;
use crate::storage::{Read, Storage};
use crate::store::StoreError;
use crate::store::format::checkpoint::MapRef;
use crate::store::format::directory::{self, Ref, Target};
use crate::store::format::leaf::NOWHERE;
use crate::store::format::{Geometry, Malformed, Mapping, check};
use crate::store::map::base::BaseMap;
use crate::store::map::directory::Node;

/// Pages read at once.
const BATCH_PAGES: usize = 256;

/// Where a store's pages are, and whose they are.
pub(in crate::store) struct Source<'a> {
    pub(in crate::store) storage: &'a dyn Storage,
    pub(in crate::store) geometry: Geometry,
    pub(in crate::store) uuid: [u8; 16],
}

impl Source<'_> {
    fn corrupt(&self, at: Mapping) -> impl Fn(Malformed) -> StoreError {
        let offset = self.geometry.byte(at.loc);
        move |malformed| StoreError::Corrupt { offset, malformed }
    }

    /// Reads pages and checks their crcs; gives each to `f` with its index.
    ///
    /// # Errors
    /// [`StoreError::Io`] or `Corrupt`, or what `f` says.
    pub(in crate::store) fn read_pages(
        &self,
        action: &'static str,
        pages: &[Mapping],
        mut f: impl FnMut(usize, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut buf = AlignedBuf::zeroed(BATCH_PAGES.min(pages.len()) * PAGE);
        for (n, part) in pages.chunks(BATCH_PAGES).enumerate() {
            for at in part {
                let what = "place of a page of the checkpoint";
                let (expected, found) = (u64::from(self.geometry.segments), u64::from(at.loc.segment));
                if !self.geometry.contains(at.loc) {
                    return Err(StoreError::Corrupt {
                        offset: 0,
                        malformed: Malformed { what, expected, found },
                    });
                }
            }
            let mut reads: Vec<Read<'_>> = buf
                .chunks_exact_mut(PAGE)
                .zip(part)
                .map(|(bytes, at)| Read::new(self.geometry.byte(at.loc), bytes))
                .collect();
            self.storage.read_batch(&mut reads);
            for read in reads {
                let offset = read.offset;
                read.result.map_err(|source| StoreError::Io { action, offset, source })?;
            }
            for (i, (bytes, at)) in buf.chunks_exact_mut(PAGE).zip(part).enumerate() {
                if crc32c::crc32c(bytes) != at.crc {
                    // A cache of the backing may be behind what its disk has.
                    let offset = self.geometry.byte(at.loc);
                    self.storage.read_exact(offset, bytes).map_err(|source| StoreError::Io {
                        action,
                        offset,
                        source,
                    })?;
                }
                check("crc32c of a page of the checkpoint", at.crc, crc32c::crc32c(bytes))
                    .map_err(self.corrupt(*at))?;
                f(n * BATCH_PAGES + i, bytes)?;
            }
        }
        Ok(())
    }

    /// Checks what does not need a page to be read.
    fn check_entry(&self, r: &Ref, page: Mapping) -> Result<(), StoreError> {
        match r.target {
            Target::Entry(e) if e.segment != NOWHERE && !self.geometry.contains(e.loc()) => {
                let (expected, found) = (u64::from(self.geometry.segments), u64::from(e.segment));
                let malformed = Malformed { what: "place of a single entry", expected, found };
                Err(self.corrupt(page)(malformed))
            }
            _ => Ok(()),
        }
    }
}

/// Reads the directory of a map; its leaves are loaded later, one by one.
///
/// # Errors
/// [`StoreError::Io`], or `Corrupt` when a page is not what it has to be.
pub(in crate::store) fn load_map(source: &Source<'_>, map: &MapRef) -> Result<BaseMap, StoreError> {
    let top = Ref { key: 0, target: Target::Page { page: map.top, count: map.count } };
    let mut refs = if map.levels == 0 { Vec::new() } else { vec![top] };
    let mut levels = Vec::new();
    for level in (0..map.levels as u16).rev() {
        let pages: Vec<(u64, Node)> = refs
            .iter()
            .filter_map(|r| match r.target {
                Target::Page { page, count } => Some((r.key, Node { page, count })),
                Target::Entry(_) => None,
            })
            .collect();
        let places: Vec<Mapping> = pages.iter().map(|(_, node)| node.page).collect();
        refs.clear();
        source.read_pages("reading the map's directory", &places, |i, bytes| {
            let (key, node) = pages[i];
            let corrupt = source.corrupt(node.page);
            let found = directory::decode(source.uuid, level, key, bytes).map_err(&corrupt)?;
            check("references of a directory page", node.count, found.len() as u64).map_err(&corrupt)?;
            if let (Some(before), Some(first)) = (refs.last(), found.first())
                && before.key >= first.key
            {
                let (expected, found) = (before.key, first.key);
                return Err(corrupt(Malformed { what: "order of directory pages", expected, found }));
            }
            found.iter().try_for_each(|r| source.check_entry(r, node.page))?;
            refs.extend(found);
            Ok(())
        })?;
        levels.push(pages);
    }
    let mut loaded = BaseMap::from_directory(&refs);
    for (level, pages) in levels.into_iter().rev().enumerate() {
        for (key, node) in pages {
            loaded.directory.insert(level, key, node);
        }
    }
    check("pages of a map", map.pages, loaded.page_count()).map_err(source.corrupt(map.top))?;
    Ok(loaded)
}
