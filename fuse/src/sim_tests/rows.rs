//! Random operations on rows, and their model.

use std::collections::BTreeMap;

use layout::error::Error;
use layout::fs::Ino;
use layout::inode::Kind;
use layout::rows::headers;
use layout::schema::{CHUNK_ROWS, Element, Metric, Schema};
use layout::uapi::raw::vexfs_put_row;
use rand::Rng;

use super::clock;
use super::world::World;
use crate::engine::Cost;
use crate::session::FsAccess;

/// The rows of a collection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Collection {
    dim: u32,
    next_row: u64,
    /// File and tag of each live row.
    pub(super) live: BTreeMap<u64, (Ino, u64)>,
}

fn schema(dim: u32) -> Schema {
    Schema::new(dim, Element::F32, Metric::L2).expect("a schema")
}

/// The vector of a tag.
fn vector(tag: u64, dim: u32) -> Vec<u8> {
    (0..dim).flat_map(|i| ((tag % 10_000) as f32 + i as f32).to_le_bytes()).collect()
}

impl World {
    pub(super) fn change_rows(&mut self) {
        let dirs: Vec<Ino> = self.tree.rows.keys().copied().collect();
        if dirs.is_empty() || self.once_in(12) {
            return self.make_collection();
        }
        let Some(file) = self.some_file() else { return };
        let dir = dirs[self.rng.random_range(0..dirs.len())];
        if self.once_in(5) { self.kill(file) } else { self.put(dir, file) }
    }

    fn make_collection(&mut self) {
        let (dir, now) = (self.some_dir(), clock::tick());
        let dim = [2, 130][self.rng.random_range(0..2)];
        self.note(format!("  collection in {}", dir.0));
        // As the session file does: the space is reserved before.
        let done = {
            let space = self.mounted.engine().reserve(Cost::Pages(16));
            space.and_then(|_space| {
                FsAccess::write(&self.mounted, |fs| fs.collection_create(dir, schema(dim), now))
            })
        };
        self.catch_up();
        match done {
            Ok(()) => {
                let node = self.tree.names.at(dir);
                assert!(node.kind == Kind::Dir && node.nlink > 0, "only a directory is made a collection");
                node.times[2] = now;
                let new = Collection { dim, next_row: 0, live: BTreeMap::new() };
                assert!(self.tree.rows.insert(dir, new).is_none(), "a collection is made once");
            }
            Err(Error::Exists) => assert!(self.tree.rows.contains_key(&dir)),
            Err(Error::NotDir) => assert_ne!(self.tree.names.get(dir).kind, Kind::Dir),
            // Inside another one, or a directory that was removed.
            Err(Error::Invalid(_) | Error::NotFound) => {}
            Err(error) => assert!(self.is_explained(error), "a collection: {error}"),
        }
    }

    /// The collection that has rows of the file.
    fn home(&self, file: Ino) -> Option<Ino> {
        let has = |c: &Collection| c.live.values().any(|(ino, _)| *ino == file);
        self.tree.rows.iter().find(|(_, c)| has(c)).map(|(dir, _)| *dir)
    }

    fn put(&mut self, dir: Ino, file: Ino) {
        let now = clock::tick();
        let dim = self.tree.rows[&dir].dim;
        let count = [1, 1, 3, 40, 150][self.rng.random_range(0..5)];
        let append = self.rng.random() && self.home(file) == Some(dir);
        let tags: Vec<u64> = (0..count).map(|i| now.secs as u64 * 1000 + i).collect();
        let rows: Vec<vexfs_put_row> = tags.iter().map(|tag| row(*tag)).collect();
        let vectors: Vec<u8> = tags.iter().flat_map(|tag| vector(*tag, dim)).collect();
        self.note(format!("  put of {count} rows of {} into {}, append {append}", file.0, dir.0));
        let pages = vectors.len() as u64 / 4096 * 2 + 8;
        let done = {
            let space = self.mounted.engine().reserve(Cost::Pages(pages));
            space.and_then(|_space| {
                FsAccess::write(&self.mounted, |fs| fs.put_rows(dir, file, &rows, &vectors, append, now))
            })
        };
        self.catch_up();
        match done {
            Ok(put) => {
                let node = self.tree.names.at(file);
                assert!(node.nlink > 0, "an orphan takes no rows");
                node.times[2] = now;
                if !append {
                    self.forget_rows(file);
                }
                let collection = self.tree.rows.get_mut(&dir).expect("it was chosen from those");
                assert_eq!(put.first_row, collection.next_row, "row ids grow");
                for tag in tags {
                    collection.live.insert(collection.next_row, (file, tag));
                    collection.next_row += 1;
                }
            }
            Err(Error::NotFound) => assert_eq!(self.tree.names.get(file).nlink, 0, "a file takes rows"),
            Err(error) => assert!(self.is_explained(error), "a put: {error}"),
        }
    }

    fn forget_rows(&mut self, file: Ino) {
        for collection in self.tree.rows.values_mut() {
            collection.live.retain(|_, (ino, _)| *ino != file);
        }
    }

    fn kill(&mut self, file: Ino) {
        clock::tick();
        self.note(format!("  kill rows of {}", file.0));
        let done = {
            let space = self.mounted.engine().reserve(Cost::Freeing);
            space.and_then(|_space| FsAccess::write(&self.mounted, |fs| fs.kill_rows(file).map(drop)))
        };
        self.catch_up();
        match done {
            Ok(()) => self.forget_rows(file),
            Err(error) => assert!(self.is_explained(error), "a kill: {error}"),
        }
    }

    /// Every live row is there with its vector, and no other.
    pub(super) fn compare_rows(&self) -> Result<(), Error> {
        for (dir, expected) in &self.tree.rows {
            let found = FsAccess::read(&self.mounted, |fs| {
                let rows = fs.rows_file(*dir)?;
                let mut live = BTreeMap::new();
                let len = rows.schema().vector_bytes();
                for chunk in 0..rows.chunks() {
                    let page = fs.row_headers(&rows, chunk)?;
                    let mut bytes = vec![0; rows.chunk_rows(chunk) * len];
                    fs.chunk_vectors(&rows, chunk, &mut bytes)?;
                    for (slot, (raw, found)) in headers(&page).iter().zip(bytes.chunks_exact(len)).enumerate()
                    {
                        if let Some(row) = raw.decode(layout::addr::PageNo(0))? {
                            let id = chunk * CHUNK_ROWS + slot as u64;
                            assert!(
                                found == vector(row.tag, expected.dim),
                                "the vector of row {id} of {}",
                                dir.0
                            );
                            live.insert(id, (row.ino, row.tag));
                        }
                    }
                }
                let header = rows.header;
                assert_eq!(header.live_rows, live.len() as u64, "live rows counted in {}", dir.0);
                Ok(Collection { dim: header.schema.dim(), next_row: header.next_row, live })
            })?;
            assert_eq!(&found, expected, "rows of {}", dir.0);
        }
        Ok(())
    }
}

fn row(tag: u64) -> vexfs_put_row {
    vexfs_put_row { offset: tag.into(), length: 1.into(), tag: tag.into(), reserved: 0.into() }
}
