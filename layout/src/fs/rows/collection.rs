//! Collections: which directory is one, how one is made and how it ends.

use super::RowsFile;
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::inode::{Ino, Inode, InodeFlags, Kind};
use crate::name::NAME_MAX;
use crate::page_store::{PageStore, Timespec};
use crate::schema::{CollectionHeader, Schema};
use crate::windows::map_page;

impl<P: PageStore> Fs<P> {
    /// The collection that an inode belongs to: the nearest directory with COLLECTION among itself
    /// and those above it, by places.
    ///
    /// # Errors
    /// [`Error::NotFound`] outside of every collection, or where the place is unknown.
    pub fn collection_of(&self, ino: Ino) -> Result<Ino> {
        let inode = self.inode(ino)?;
        let dir = match inode.kind {
            Kind::Dir => inode,
            _ => self.place_name(&inode, &mut [0; NAME_MAX])?.ok_or(Error::NotFound)?.1,
        };
        let mut found = None;
        self.ancestors(dir.ino, &mut |dir| {
            found = dir.flags.contains(InodeFlags::COLLECTION).then_some(dir.ino);
            Ok(found.is_none())
        })?;
        found.ok_or(Error::NotFound)
    }

    /// The rows file of a collection's directory.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the directory is not a collection; [`Error::Corrupt`].
    pub fn rows_file(&self, collection: Ino) -> Result<RowsFile> {
        let dir = self.inode(collection)?;
        if dir.kind != Kind::Dir || !dir.flags.contains(InodeFlags::COLLECTION) {
            return Err(Error::Invalid("the directory is not a collection (make it one: .vexfs/schema)"));
        }
        let Some(rows) = self.rows_file_at(dir.rows_ino)? else {
            return Err(self.corrupt_inode(collection, "collection's rows file", 8, dir.rows_ino.0));
        };
        if rows.header.dir != collection.0 {
            let page = rows.header_page()?;
            return Err(crate::error::corrupt(
                page,
                "collection header: directory",
                collection.0,
                rows.header.dir,
            ));
        }
        Ok(rows)
    }

    /// The schema of a collection's directory.
    ///
    /// # Errors
    /// As [`Fs::rows_file`].
    pub fn schema(&self, collection: Ino) -> Result<Schema> {
        Ok(self.rows_file(collection)?.header.schema)
    }

    /// The rows file of that number, or none if it is gone: a file moved out of a collection may
    /// outlive the rows file that its rows stood in.
    pub(super) fn rows_file_at(&self, ino: Ino) -> Result<Option<RowsFile>> {
        if ino.0 == 0 {
            return Ok(None);
        }
        let inode = match self.hidden_inode(ino) {
            Ok(inode) => inode,
            Err(Error::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        let page =
            map_page(&inode, 0).ok_or_else(|| self.corrupt_inode(ino, "rows file's first page", 1, 0))?;
        let header = CollectionHeader::decode(page, &*self.store().read(page)?)?;
        Ok(Some(RowsFile { inode, header }))
    }

    /// Makes a directory a collection.
    ///
    /// # Errors
    /// [`Error::NotDir`]; [`Error::Exists`] if it is one; [`Error::Invalid`] inside another one;
    /// [`Error::NoSpace`].
    pub fn collection_create(&mut self, dir: Ino, schema: Schema, now: Timespec) -> Result<()> {
        self.writable()?;
        let inode = self.inode(dir)?;
        if inode.kind != Kind::Dir {
            return Err(Error::NotDir);
        }
        match self.collection_of(dir) {
            Ok(found) if found == dir => return Err(Error::Exists),
            Ok(_) => return Err(Error::Invalid("a collection may not lie inside another collection")),
            Err(Error::NotFound) => {}
            Err(error) => return Err(error),
        }
        if inode.nlink == 0 || inode.flags.contains(InodeFlags::ORPHAN) {
            return Err(Error::NotFound);
        }
        let rows = self.hidden_create(now)?;
        self.collection_link(dir, &rows, schema, now).or_else(|error| {
            // Nothing names the rows file yet: take it back, and report the first error.
            self.hidden_free(rows.ino)?;
            Err(error)
        })
    }

    /// Writes the header of a new rows file and names it in the directory.
    fn collection_link(&mut self, dir: Ino, rows: &Inode, schema: Schema, now: Timespec) -> Result<()> {
        let page = map_page(rows, 0).ok_or(Error::TooBig)?;
        let header = CollectionHeader { schema, dir: dir.0, next_row: 0, live_rows: 0 };
        header.encode(&mut *self.store().fresh(page)?);
        self.inode_update(rows.ino, |rows| rows.size = crate::addr::PAGE as u64)?;
        self.inode_update(dir, |dir| {
            dir.flags |= InodeFlags::COLLECTION;
            dir.rows_ino = rows.ino;
            dir.ctime = now;
        })?;
        Ok(())
    }

    /// Frees the rows file of a collection whose directory is about to be freed.
    pub(super) fn collection_free(&mut self, dir: &Inode) -> Result<Inode> {
        // A repeat after an error may find the number gone, or even in use by another collection.
        let rows = self.rows_file_at(dir.rows_ino)?;
        if let Some(rows) = rows.filter(|rows| rows.header.dir == dir.ino.0) {
            self.hidden_free(rows.inode.ino)?;
        }
        self.inode_update(dir.ino, |dir| {
            dir.flags.remove(InodeFlags::COLLECTION);
            dir.rows_ino = Ino(0);
        })
    }
}
