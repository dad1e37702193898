//! `user.vexfs.rows`: a file's rows as attributes, so that tools which copy attributes copy rows (FORMAT.md
//! section 6.6). The kernel has checked that the caller may, as for every attribute.

use std::collections::HashMap;

use layout::error::{Error, Result};
use layout::fs::{FreshRows, Fs, Ino, RowSet, XattrFlags};
use layout::inode::Kind;
use layout::rows::set::{
    CRC32C, PART_NAME_MAX, Part, RECORD_HEADER_BYTES, Record, SetShape, name_of_part, part_of_name,
};
use layout::uapi::raw::vexfs_put_row;
use parking_lot::Mutex;

use super::volume::{Mounted, now};
use crate::engine::{Cost, Pages};

/// RAM for sets of which parts are missing; the oldest are dropped beyond.
const HELD_BYTES_MAX: usize = 256 << 20;

/// A set of which some parts are here.
struct Held {
    shape: SetShape,
    stream_crc: u32,
    parts: Vec<Option<Box<[u8]>>>,
    missing: usize,
    /// RAM that it takes.
    bytes: usize,
    /// Grows with each set that begins.
    age: u64,
}

#[derive(Default)]
struct HeldSets {
    sets: HashMap<Ino, Held>,
    bytes: usize,
    ages: u64,
}

/// What is remembered between the requests that set and get parts.
#[derive(Default)]
pub struct RowSets {
    held: Mutex<HeldSets>,
    /// The set that was read last, and its stream's crc.
    last: Mutex<Option<(RowSet, u32)>>,
}

impl HeldSets {
    fn remove(&mut self, ino: Ino) -> Option<Held> {
        let held = self.sets.remove(&ino)?;
        self.bytes -= held.bytes;
        Some(held)
    }

    /// Takes a part in; gives the whole stream once it is complete.
    fn add(&mut self, ino: Ino, part: &Part<'_>) -> Option<Vec<u8>> {
        let same = |held: &Held| held.shape == part.shape && held.stream_crc == part.stream_crc;
        if !self.sets.get(&ino).is_some_and(same) {
            self.remove(ino);
            let parts = part.shape.parts() as usize;
            self.ages += 1;
            let held = Held {
                shape: part.shape,
                stream_crc: part.stream_crc,
                parts: (0..parts).map(|_| None).collect(),
                missing: parts,
                bytes: size_of::<Held>() + parts * size_of::<Option<Box<[u8]>>>(),
                age: self.ages,
            };
            self.bytes += held.bytes;
            self.sets.insert(ino, held);
        }
        let held = self.sets.get_mut(&ino)?;
        let place = held.parts.get_mut(part.part as usize)?;
        if place.is_none() {
            *place = Some(part.bytes.into());
            held.missing -= 1;
            held.bytes += part.bytes.len();
            self.bytes += part.bytes.len();
        }
        if held.missing == 0 {
            let parts = self.remove(ino)?.parts;
            return Some(parts.into_iter().flatten().flatten().collect());
        }
        while self.bytes > HELD_BYTES_MAX {
            let oldest = self.sets.iter().min_by_key(|(_, held)| held.age).map(|(ino, _)| *ino)?;
            self.remove(oldest);
            tracing::warn!(
                ino = oldest.0,
                "the vectors of a file that is being copied were dropped: parts are missing, and RAM is short"
            );
        }
        None
    }
}

impl Mounted {
    /// The file's rows, if it has live ones that a set can hold.
    fn rows_of(fs: &Fs<Pages>, ino: Ino) -> Result<Option<RowSet>> {
        if fs.inode(ino)?.row_count == 0 { Ok(None) } else { fs.row_set(ino) }
    }

    /// The value of a part of the file's live rows; none if it has none: then the attribute may be a kept one.
    pub(super) fn rows_part(&self, fs: &Fs<Pages>, ino: Ino, part: u32) -> Result<Option<Vec<u8>>> {
        let Some(set) = Self::rows_of(fs, ino)? else { return Ok(None) };
        if part >= set.shape.parts() {
            return Err(Error::NoAttr);
        }
        let mut memory = vec![0; set.shape.schema.vector_bytes()];
        let mut read =
            |from, to, put: &mut dyn FnMut(&[u8])| fs.read_row_set(&set, (from, to), &mut memory, put);
        let known = self.row_sets.last.lock().filter(|(last, _)| *last == set).map(|(_, crc)| crc);
        let stream_crc = match known {
            Some(crc) => crc,
            None => {
                let mut digest = CRC32C.digest();
                read(0, set.shape.stream_bytes(), &mut |piece| digest.update(piece))?;
                let crc = digest.finalize();
                *self.row_sets.last.lock() = Some((set, crc));
                crc
            }
        };
        let (from, to) = set.shape.share(part);
        let mut bytes = Vec::with_capacity((to - from) as usize);
        read(from, to, &mut |piece| bytes.extend_from_slice(piece))?;
        let header = Part { shape: set.shape, stream_crc, part, bytes: &bytes }.header();
        Ok(Some([&header[..], &bytes].concat()))
    }

    /// Gives the names of the parts of the file's live rows; false if it has none.
    pub(super) fn rows_names(fs: &Fs<Pages>, ino: Ino, each: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let Some(set) = Self::rows_of(fs, ino)? else { return Ok(false) };
        for part in 0..set.shape.parts() {
            each(name_of_part(part, &mut [0; PART_NAME_MAX]));
        }
        Ok(true)
    }

    /// Sets a part. Where the file lies in a collection of such vectors, the set's last part to arrive gives the file
    /// its rows; elsewhere parts are kept as they are.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a damaged part, [`Error::Unsupported`] for what is no regular file, and as a put.
    pub(super) fn set_rows_part(&self, ino: Ino, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        let part = Part::parse(value)?;
        if part_of_name(name) != Some(part.part) {
            return Err(Error::Invalid("the name of the attribute is that of another part"));
        }
        let pages = part.shape.stream_bytes().div_ceil(layout::addr::PAGE as u64) * 2 + 24;
        self.change(Cost::Pages(pages), |fs| {
            if fs.inode(ino)?.kind != Kind::File {
                return Err(Error::Unsupported);
            }
            let exists = match Self::rows_of(fs, ino)? {
                Some(set) => part.part < set.shape.parts(),
                None => fs.getxattr(ino, name, &mut []).is_ok(),
            };
            match exists {
                true if flags.contains(XattrFlags::CREATE) => return Err(Error::Exists),
                false if flags.contains(XattrFlags::REPLACE) => return Err(Error::NoAttr),
                _ => {}
            }
            let Some(collection) = Self::takes_rows(fs, ino, &part.shape)? else {
                // First what may find no room.
                let file = fs.setxattr(ino, name, value, XattrFlags::empty(), now())?;
                self.row_sets.held.lock().remove(ino);
                return if file.row_count > 0 { fs.kill_rows(ino).map(drop) } else { Ok(()) };
            };
            let Some(stream) = self.row_sets.held.lock().add(ino, &part) else { return Ok(()) };
            if CRC32C.checksum(&stream) != part.stream_crc {
                return Err(Error::Invalid("the parts of the file's rows are not of one set"));
            }
            put_stream(fs, collection, ino, &part.shape, &stream)?;
            let file = fs.inode(ino)?;
            // Whoever has it open may be writing what the rows were made from.
            if (file.size == 0 || self.files.is_open(ino))
                && let Some(rows) = FreshRows::of(&file)
            {
                self.filling.begin(rows);
            }
            Ok(())
        })
    }

    /// The collection that the file lies in, if its vectors are like these.
    fn takes_rows(fs: &Fs<Pages>, ino: Ino, shape: &SetShape) -> Result<Option<Ino>> {
        let collection = match fs.collection_of(ino) {
            Err(Error::NotFound) => return Ok(None),
            found => found?,
        };
        let schema = fs.schema(collection)?;
        if (schema.dim(), schema.element()) == (shape.schema.dim(), shape.schema.element()) {
            return Ok(Some(collection));
        }
        tracing::warn!(
            ino = ino.0,
            "a file was copied with vectors of {} {}, into a collection of {} {}: they are kept with it, but not found there",
            shape.schema.dim(),
            shape.schema.element().name(),
            schema.dim(),
            schema.element().name(),
        );
        Ok(None)
    }

    /// Removes a part. Part 0 takes all live rows with it; that another one is not there is no error, since it went
    /// with part 0.
    ///
    /// # Errors
    /// [`Error::NoAttr`] if there is no part 0.
    pub(super) fn remove_rows_part(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.change(Cost::Freeing, |fs| {
            self.row_sets.held.lock().remove(ino);
            let live = Self::rows_of(fs, ino)?.is_some();
            match part_of_name(name) {
                Some(0) if live => fs.kill_rows(ino).map(drop),
                Some(1..) if live => Ok(()),
                part => match fs.removexattr(ino, name, now()) {
                    Err(Error::NoAttr) if part != Some(0) => Ok(()),
                    done => done.map(drop),
                },
            }
        })
    }
}

/// Gives a file the rows of a whole stream.
fn put_stream(fs: &mut Fs<Pages>, collection: Ino, ino: Ino, shape: &SetShape, stream: &[u8]) -> Result<()> {
    let count = shape.rows as usize;
    let mut rows = Vec::with_capacity(count);
    let mut stale = Vec::with_capacity(count);
    let mut vectors = Vec::with_capacity(stream.len() - count * RECORD_HEADER_BYTES);
    for record in stream.chunks_exact(shape.record_bytes()) {
        let (record, vector) = Record::parse(record)?;
        let Record { offset, length, tag, .. } = record;
        rows.push(vexfs_put_row {
            offset: offset.into(),
            length: length.into(),
            tag: tag.into(),
            reserved: 0.into(),
        });
        stale.push(record.stale);
        vectors.extend_from_slice(vector);
    }
    let is_stale = |row: usize| stale.get(row).copied().unwrap_or(false);
    fs.put_marked_rows(collection, ino, &rows, &vectors, &is_stale, false, now()).map(drop)
}

#[cfg(test)]
mod tests {
    use layout::schema::{Element, Metric, Schema};

    use super::*;

    /// A value that says that it is one byte of 2000.
    fn tiny_part() -> Vec<u8> {
        let schema = Schema::new(492, Element::F32, Metric::L2).unwrap();
        let shape = SetShape::new(schema, 1).unwrap();
        let whole = Part { shape, stream_crc: 0, part: 0, bytes: &[0; 2000] };
        let mut value = [&whole.header()[..], &[7]].concat();
        value[16..20].copy_from_slice(&2000u32.to_le_bytes());
        value[24..28].copy_from_slice(&1u32.to_le_bytes());
        value[32..36].fill(0);
        let crc = CRC32C.checksum(&value);
        value[32..36].copy_from_slice(&crc.to_le_bytes());
        value
    }

    #[test]
    fn sets_with_many_small_parts_count_for_what_they_take() {
        let value = tiny_part();
        let part = Part::parse(&value).unwrap();
        assert_eq!((part.shape.parts(), part.bytes), (2000, &[7][..]));
        let mut held = HeldSets::default();
        for ino in 0..9_000 {
            assert_eq!(held.add(Ino(ino), &part), None);
        }
        assert!(
            held.sets.len() * 2000 * size_of::<Option<Box<[u8]>>>() <= HELD_BYTES_MAX,
            "{} sets",
            held.sets.len()
        );
        for ino in 0..9_000 {
            held.remove(Ino(ino));
        }
        assert_eq!(held.bytes, 0);
    }
}
