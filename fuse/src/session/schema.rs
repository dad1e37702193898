//! `schema` and `stats`.

use layout::error::Error;
use layout::fs::Fs;
use layout::inode::Ino;
use layout::page_store::PageStore;
use layout::schema::{Element, Metric, Schema};
use layout::search::Access;
use serde::{Deserialize, Serialize};

use super::access::FsAccess;
use super::caller::Identity;
use super::error::{SessionError, SessionResult};
use super::now;
use super::resolve::resolve;
use crate::search::Searcher;

/// A schema as JSON.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct SchemaForm {
    dim: u32,
    element: String,
    metric: String,
}

#[derive(Serialize)]
struct Stats {
    dim: u32,
    element: &'static str,
    metric: &'static str,
    rows_live: u64,
    rows_total: u64,
    rows_file_bytes: u64,
    vector_bytes: usize,
    /// Of all collections of this mount.
    cache_bytes: usize,
    epoch: u64,
}

/// The schema of the collection that `dir` lies in.
pub(super) fn schema_of<P: PageStore>(fs: &Fs<P>, dir: Ino) -> SessionResult<(Ino, Schema)> {
    let root = layout::search::Credentials { uid: 0, gid: 0, groups: &[] };
    let collection = resolve(fs, dir, b"", &root)?.in_collection()?;
    Ok((collection, fs.schema(collection)?))
}

/// What reading `schema` gives.
pub(super) fn read_schema<A: FsAccess>(access: &A, dir: Ino) -> SessionResult<Vec<u8>> {
    let (_, schema) = access.read(|fs| schema_of(fs, dir))?;
    super::json::line(&SchemaForm {
        dim: schema.dim(),
        element: schema.element().name().into(),
        metric: schema.metric().name().into(),
    })
}

/// What reading `stats` gives.
pub(super) fn read_stats<A: FsAccess>(access: &A, dir: Ino, searcher: &Searcher) -> SessionResult<Vec<u8>> {
    let (rows, epoch) = access.read(|fs| -> SessionResult<_> {
        let (collection, _) = schema_of(fs, dir)?;
        Ok((fs.rows_file(collection)?, fs.open_epoch()))
    })?;
    let schema = rows.schema();
    super::json::line(&Stats {
        dim: schema.dim(),
        element: schema.element().name(),
        metric: schema.metric().name(),
        rows_live: rows.header.live_rows,
        rows_total: rows.header.next_row,
        rows_file_bytes: rows.inode.size,
        vector_bytes: schema.vector_bytes(),
        cache_bytes: searcher.cache().bytes(),
        epoch,
    })
}

/// Makes `dir` a collection if `request` is a whole JSON schema; false if it is only the beginning of one.
pub(super) fn write_schema<A: FsAccess>(
    access: &A,
    dir: Ino,
    request: &[u8],
    opener: &Identity,
) -> SessionResult<bool> {
    let form: SchemaForm = match serde_json::from_slice(request) {
        Ok(form) => form,
        Err(error) if error.is_eof() => return Ok(false),
        Err(error) => {
            return Err(SessionError::invalid(format!(
                "not a schema: {error}; it is {{\"dim\":1 to 16384,\"element\":\"f32|f16|i8\",\"metric\":\"cosine|l2|ip\"}}"
            )));
        }
    };
    let element = Element::from_name(&form.element).map_err(|e| {
        SessionError::about(e, format!("element {:?} (f32, f16 and i8 are there)", form.element))
    })?;
    let schema = Schema::new(form.dim, element, Metric::from_name(&form.metric)?)?;
    access.write(|fs| {
        let inode = fs.inode(dir)?;
        if !fs.permits(&opener.credentials(), &inode, Access::Write)? {
            return Err(SessionError::denied("no write permission on the directory"));
        }
        fs.collection_create(dir, schema, now()).map_err(|error| match error {
            Error::Exists => {
                SessionError::about(error, "the directory is a collection, and a schema is fixed")
            }
            error => SessionError::about(error, "making the collection"),
        })
    })?;
    Ok(true)
}
