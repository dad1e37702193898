//! The rows of a file as a set that travels, and back (FORMAT.md section 6.6).

use super::{RowsFile, split};
use crate::cycle::Cycle;
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::inode::{Ino, Inode, InodeFlags, Kind};
use crate::page_store::{PageStore, Timespec};
use crate::rows::set::{Record, SetShape, part_of_name};
use crate::rows::{Row, headers};
use crate::xattr::XATTR_NAME_MAX;

/// The live rows of a file, as they stood at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowSet {
    rows_file: RowsFile,
    file: Inode,
    /// Number of rows, and what they are.
    pub shape: SetShape,
}

/// Rows that are fresh at one moment, with which they stay fresh for bytes that come later
/// ([`Fs::rows_fresh_again`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreshRows {
    ino: Ino,
    generation: u32,
    first_row: u64,
    row_count: u32,
    data_version: u64,
}

impl FreshRows {
    /// The rows of a file; none if it has none that are fresh.
    pub fn of(file: &Inode) -> Option<FreshRows> {
        let fresh = file.row_count > 0 && file.flags.contains(InodeFlags::ROWS_FRESH);
        fresh.then_some(FreshRows {
            ino: file.ino,
            generation: file.generation,
            first_row: file.first_row,
            row_count: file.row_count,
            data_version: file.data_version,
        })
    }

    /// The file.
    pub fn ino(&self) -> Ino {
        self.ino
    }
}

impl<P: PageStore> Fs<P> {
    /// Gives each live row of a file with its id, in the order of the chain, until `each` says false.
    fn each_row(
        &self,
        rows_file: &RowsFile,
        file: &Inode,
        each: &mut dyn FnMut(u64, &Row) -> Result<bool>,
    ) -> Result<()> {
        let mut next = file.first_row.checked_sub(1);
        let mut cycle = Cycle::new();
        for _ in 0..file.row_count {
            let Some(id) = next.filter(|id| *id < rows_file.header.next_row) else { break };
            if cycle.closes(id) {
                return Err(rows_file.corrupt("chain of a file's rows without a loop", 0, id));
            }
            let (chunk, slot) = split(id);
            let page = rows_file.row_page(chunk)?;
            let row = match headers(&*self.store().read(page)?).get(slot) {
                Some(raw) => raw.decode(page)?,
                None => None,
            };
            match row {
                Some(row) if row.ino == file.ino && row.generation == file.generation => {
                    next = row.next;
                    if !each(id, &row)? {
                        break;
                    }
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// The rows of a file as a set; none without live rows, or if they are more than a set can have.
    ///
    /// # Errors
    /// [`Error::NotFound`] without such a file, [`Error::Corrupt`].
    pub fn row_set(&self, file: Ino) -> Result<Option<RowSet>> {
        let file = self.inode(file)?;
        if file.kind != Kind::File || file.rows_ino.0 == 0 {
            return Ok(None);
        }
        let Some(rows_file) = self.rows_file_at(file.rows_ino)? else { return Ok(None) };
        let mut count = 0;
        self.each_row(&rows_file, &file, &mut |_, _| {
            count += 1;
            Ok(true)
        })?;
        Ok(SetShape::new(*rows_file.schema(), count).map(|shape| RowSet { rows_file, file, shape }))
    }

    /// Gives bytes [from, to) of a set's stream, piece by piece. `memory` holds a vector.
    ///
    /// # Errors
    /// [`Error::Range`] if `memory` is too small, [`Error::Corrupt`], [`Error::Io`].
    pub fn read_row_set(
        &self,
        set: &RowSet,
        (from, to): (u64, u64),
        memory: &mut [u8],
        put: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        let record_bytes = set.shape.record_bytes() as u64;
        let vector = memory.get_mut(..set.shape.schema.vector_bytes()).ok_or(Error::Range)?;
        let mut begin = 0u64;
        self.each_row(&set.rows_file, &set.file, &mut |id, row| {
            let end = begin + record_bytes;
            if end > from {
                let (chunk, slot) = split(id);
                let head = Record {
                    offset: row.offset,
                    length: row.length,
                    tag: row.tag,
                    stale: row.data_version != set.file.data_version,
                };
                self.vector_bytes(&set.rows_file, chunk, slot * vector.len(), vector)?;
                let mut at = begin;
                for piece in [&head.bytes()[..], vector] {
                    let piece_end = at + piece.len() as u64;
                    let (low, high) = (from.clamp(at, piece_end) - at, to.clamp(at, piece_end) - at);
                    if let Some(wanted) = piece.get(low as usize..high as usize).filter(|w| !w.is_empty()) {
                        put(wanted);
                    }
                    at = piece_end;
                }
            }
            begin = end;
            Ok(begin < to)
        })
    }

    /// Rows that were put before the file's bytes came, and are stale by these bytes alone, are fresh again.
    /// For a writer who knew both: a tool that copies attributes before or while it writes
    /// the bytes. False, and nothing changes, if anything else happened to the file's rows.
    ///
    /// # Errors
    /// What reading and writing the inode gives.
    pub fn rows_fresh_again(&mut self, rows: &FreshRows) -> Result<bool> {
        self.writable()?;
        let file = match self.inode(rows.ino) {
            Err(Error::NotFound) => return Ok(false),
            found => found?,
        };
        let same = file.generation == rows.generation
            && file.first_row == rows.first_row
            && file.row_count == rows.row_count
            && file.data_version == rows.data_version.wrapping_add(1)
            && !file.flags.contains(InodeFlags::ROWS_FRESH);
        if same {
            self.inode_update(rows.ino, |file| {
                file.data_version = rows.data_version;
                file.flags |= InodeFlags::ROWS_FRESH;
            })?;
        }
        Ok(same)
    }

    /// Removes the parts of sets that are kept as ordinary attributes: the file has rows now.
    pub(super) fn forget_kept_sets(&mut self, file: Ino, now: Timespec) -> Result<()> {
        if !self.inode(file)?.has_xattrs() {
            return Ok(());
        }
        loop {
            let mut name = [0; XATTR_NAME_MAX];
            let mut len = 0;
            self.listxattr(file, &mut |each| {
                if part_of_name(each).is_some()
                    && let Some(place) = name.get_mut(..each.len())
                {
                    place.copy_from_slice(each);
                    len = each.len();
                }
            })?;
            let Some(name) = name.get(..len).filter(|name| !name.is_empty()) else { return Ok(()) };
            self.removexattr(file, name, now)?;
        }
    }
}
