//! Pass 5: collections and their rows files (FORMAT.md section 6.1): each names the other, and the header is right.

use std::collections::BTreeMap;

use layout::addr::{PAGE, PageNo};
use layout::inode::{Ino, Inode, InodeFlags, Kind};
use layout::page_store::PageBytes;
use layout::schema::{CHUNK_ROWS, CollectionHeader, Element, Metric, Schema};
use layout::windows::{CLASSES, class_pages, map_page};

use super::bits::SparseBits;
use super::context::Check;
use super::finding::{Code, Finding};
use super::pool::Run;

/// A rows file that belongs to a collection.
pub struct Rows {
    /// The hidden inode.
    pub inode: Inode,
    /// Its header.
    pub header: CollectionHeader,
    /// Rows on the chain of their file.
    pub chained: SparseBits,
}

impl Check<'_> {
    /// The whole pass.
    pub(super) fn pass_collections(&mut self) -> Run<()> {
        let files: Vec<u64> = self.rows_files.iter().copied().collect();
        let owners: BTreeMap<u64, u64> =
            self.collections.iter().rev().map(|(dir, rows)| (*rows, *dir)).collect();
        for (done, rows) in files.iter().enumerate() {
            self.progress(done as u64, files.len() as u64)?;
            self.rows_file(*rows, owners.get(rows).copied())?;
        }
        let collections: Vec<(u64, u64)> = self.collections.iter().map(|(dir, rows)| (*dir, *rows)).collect();
        for (dir, rows) in collections {
            if self.rows.get(&rows).is_none_or(|rows| rows.header.dir != dir) {
                let finding = Finding::new(Code::CollectionRows).ino(dir);
                self.find(finding.detail(format!("its rows file, inode {rows}, is not there")))?;
                self.collections.remove(&dir);
                if let Some(mut inode) = self.inode(dir)? {
                    inode.flags.remove(InodeFlags::COLLECTION);
                    inode.rows_ino = Ino(0);
                    self.put_inode(&inode)?;
                }
            }
        }
        Ok(())
    }

    /// A rows file, and the directory that names it.
    fn rows_file(&mut self, ino: u64, owner: Option<u64>) -> Run<()> {
        let Some(inode) = self.inode(ino)? else { return Ok(()) };
        let page = map_page(&inode, 0).unwrap_or(PageNo(0));
        let header = match self.pool.read(page)? {
            Ok(bytes) => match CollectionHeader::decode(page, &bytes) {
                Ok(header) => header,
                Err(error) => {
                    self.find(Finding::new(Code::RowsHeader).ino(ino).of(&error))?;
                    let Some(header) = mend(&bytes, &inode, owner) else { return self.free_inode(ino) };
                    self.put_header(&inode, &header)?;
                    header
                }
            },
            Err(why) => {
                self.find(Finding::new(Code::RowsHeader).ino(ino).page(page.0).detail(why.0))?;
                return self.free_inode(ino);
            }
        };
        let Some(header) = self.owner_of_rows(&inode, header, owner)? else { return Ok(()) };
        let (inode, header) = self.rows_size(inode, header)?;
        self.rows.insert(ino, Rows { inode, header, chained: SparseBits::default() });
        Ok(())
    }

    /// Settles which collection a rows file belongs to; `None` when it was freed.
    fn owner_of_rows(
        &mut self,
        inode: &Inode,
        mut header: CollectionHeader,
        owner: Option<u64>,
    ) -> Run<Option<CollectionHeader>> {
        let ino = inode.ino.0;
        let dir = header.dir;
        match (self.collections.get(&dir).copied(), owner) {
            (Some(rows), _) if rows == ino => return Ok(Some(header)),
            // The directory that names it knows better than a header that names none.
            (said, Some(owner)) if said.is_none_or(|rows| rows != ino) => {
                self.find(Finding::new(Code::CollectionRows).ino(owner).page(0).values(owner, dir))?;
                header.dir = owner;
                self.put_header(inode, &header)?;
                return Ok(Some(header));
            }
            (Some(rows), None) if !self.rows_files.contains(&rows) => {}
            (None, None) if self.census.kind(dir) == Some(Kind::Dir) && !self.census.is_orphan(dir) => {}
            _ => {
                self.find(Finding::new(Code::RowsUnowned).ino(ino).detail(format!("it names inode {dir}")))?;
                self.free_inode(ino)?;
                return Ok(None);
            }
        }
        self.find(
            Finding::new(Code::CollectionRows).ino(dir).detail(format!("inode {ino} is its rows file")),
        )?;
        if let Some(mut collection) = self.inode(dir)? {
            collection.flags |= InodeFlags::COLLECTION;
            collection.rows_ino = Ino(ino);
            self.put_inode(&collection)?;
        }
        self.collections.insert(dir, ino);
        Ok(Some(header))
    }

    /// The size is the end of the last begun chunk: two witnesses of how many rows there are.
    fn rows_size(
        &mut self,
        mut inode: Inode,
        mut header: CollectionHeader,
    ) -> Run<(Inode, CollectionHeader)> {
        let chunks = header.next_row.div_ceil(CHUNK_ROWS);
        let expected = header.schema.chunk_offset(chunks).unwrap_or(PAGE as u64);
        if inode.size == expected {
            return Ok((inode, header));
        }
        let finding = Finding::new(Code::RowsSize).ino(inode.ino.0).values(expected, inode.size);
        self.find(finding)?;
        let by_size = chunks_of(&header.schema, inode.size);
        let mut beyond = false;
        for class in 0..CLASSES {
            if let Some(range) = class_pages(&inode, class, inode.size, layout::inode::MAX_FILE_BYTES)
                && (class == 0 || self.owns(&inode, class))
            {
                beyond |= self.pool.has_mapped(range)?;
            }
        }
        match by_size.filter(|_| !beyond) {
            Some(chunks) => {
                header.next_row = chunks * CHUNK_ROWS;
                header.live_rows = header.live_rows.min(header.next_row);
                self.put_header(&inode, &header)?;
            }
            None => {
                inode.size = expected.min(layout::inode::MAX_FILE_BYTES);
                if inode.size < expected {
                    // No file is so large: the count of rows is wrong after all.
                    header.next_row = 0;
                    header.live_rows = 0;
                    inode.size = PAGE as u64;
                    self.put_header(&inode, &header)?;
                }
                self.put_inode(&inode)?;
            }
        }
        Ok((inode, header))
    }

    /// Writes the header of a rows file.
    pub(super) fn put_header(&mut self, inode: &Inode, header: &CollectionHeader) -> Run<()> {
        let mut bytes = [0; PAGE];
        header.encode(&mut bytes);
        self.pool.write(map_page(inode, 0).unwrap_or(PageNo(0)), &bytes)
    }
}

/// Chunks of a rows file of exactly this size.
fn chunks_of(schema: &Schema, size: u64) -> Option<u64> {
    let rest = size.checked_sub(PAGE as u64)?;
    (rest % schema.chunk_bytes() == 0).then(|| rest / schema.chunk_bytes())
}

/// A header whose bad fields can be told from the others, and from the size of the file.
fn mend(page: &PageBytes, inode: &Inode, owner: Option<u64>) -> Option<CollectionHeader> {
    let number = |at: usize, len: usize| {
        page[at..at + len].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let (dim, vector_bytes) = (number(8, 4) as u32, number(12, 4));
    let element = Element::from_code(page[6]);
    let metric = Metric::from_code(page[7]).unwrap_or(Metric::L2);
    // Two of dimension, element and bytes of a vector give the third.
    let mut candidates: Vec<Schema> = Vec::new();
    if let Ok(element) = element {
        let by_bytes = u32::try_from(vector_bytes / element.bytes() as u64).ok();
        candidates.extend(
            [Some(dim), by_bytes].into_iter().flatten().filter_map(|d| Schema::new(d, element, metric).ok()),
        );
    }
    let others =
        [Element::F32, Element::F16, Element::I8].map(|element| Schema::new(dim, element, metric).ok());
    candidates
        .extend(others.into_iter().flatten().filter(|schema| schema.vector_bytes() as u64 == vector_bytes));
    let schema = candidates.into_iter().find(|schema| chunks_of(schema, inode.size).is_some())?;
    let next_row = number(24, 8);
    let chunks = chunks_of(&schema, inode.size)?;
    let next_row = if next_row.div_ceil(CHUNK_ROWS) == chunks { next_row } else { chunks * CHUNK_ROWS };
    let live_rows = number(32, 8).min(next_row);
    Some(CollectionHeader { schema, dir: owner.unwrap_or(number(16, 8)), next_row, live_rows })
}

#[cfg(test)]
mod tests {
    use layout::page_store::Timespec;

    use super::*;

    #[test]
    fn a_header_with_one_bad_field_is_mended_from_the_others() {
        let schema = Schema::new(24, Element::F16, Metric::Cosine).unwrap();
        let header = CollectionHeader { schema, dir: 9, next_row: 130, live_rows: 100 };
        let mut inode = Inode::new(Ino(5), 1, Kind::Rows, 0, Timespec::default());
        inode.size = schema.chunk_offset(3).unwrap();
        let mut good = [0; PAGE];
        header.encode(&mut good);
        for at in (0..7).chain(8..40) {
            let mut page = good;
            page[at] ^= 0xff;
            if CollectionHeader::decode(PageNo(1), &page).is_ok() {
                continue;
            }
            let mended = mend(&page, &inode, Some(9)).unwrap_or_else(|| panic!("byte {at}"));
            assert_eq!(
                (mended.schema.dim(), mended.schema.vector_bytes(), mended.dir),
                (24, 48, 9),
                "byte {at}"
            );
            assert_eq!(mended.next_row.div_ceil(64), 3, "byte {at}");
        }
        assert!(mend(&[0x5a; PAGE], &inode, None).is_none());
    }
}
