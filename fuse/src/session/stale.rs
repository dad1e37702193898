//! What reading `stale` gives: the files below a directory whose bytes changed after their rows were put.

use std::collections::BTreeMap;

use layout::error::Error;
use layout::inode::Ino;
use layout::rows::headers;
use layout::search::{Freshness, Gate, Verdict};
use layout::uapi::raw::VEXFS_PATH_BYTES_MAX;
use serde::Serialize;

use super::access::FsAccess;
use super::caller::Identity;
use super::error::SessionResult;
use super::json;
use super::resolve::resolve;

/// Files named at most; the counts are of all.
const FILES_MAX: usize = 10_000;
/// Chunks looked at under one lock: writers get in between.
const CHUNKS_AT_ONCE: u64 = 64;

#[derive(Serialize)]
struct StaleForm {
    /// Of those that the caller may read.
    rows: u64,
    rows_stale: u64,
    files_stale: u64,
    files: Vec<FileForm>,
    /// There are more than could be named.
    more: bool,
}

#[derive(Serialize)]
struct FileForm {
    path: String,
    ino: u64,
    rows_stale: u64,
}

#[derive(Default)]
struct Count {
    rows: u64,
    /// Stale rows of each file.
    stale: BTreeMap<u64, u64>,
}

/// Counts the stale rows that the opener may see, and names their files.
pub(super) fn read_stale<A: FsAccess>(access: &A, dir: Ino, opener: &Identity) -> SessionResult<Vec<u8>> {
    let mut count = Count::default();
    let mut next = Some(0);
    while let Some(first) = next {
        next = count_some(access, dir, opener, first, &mut count)?;
    }
    let mut files = Vec::new();
    let mut path = [0; VEXFS_PATH_BYTES_MAX as usize];
    for (ino, rows_stale) in count.stale.iter().take(FILES_MAX) {
        match access.read(|fs| fs.search_path(Ino(*ino), dir, dir, &mut path)) {
            Ok(len) => {
                let path = String::from_utf8_lossy(path.get(..len).unwrap_or_default()).into_owned();
                files.push(FileForm { path, ino: *ino, rows_stale: *rows_stale });
            }
            // Gone meanwhile, or too long to be named.
            Err(Error::NotFound | Error::Range) => {}
            Err(error) => return Err(error.into()),
        }
    }
    json::line(&StaleForm {
        rows: count.rows,
        rows_stale: count.stale.values().sum(),
        files_stale: count.stale.len() as u64,
        more: files.len() < count.stale.len(),
        files,
    })
}

/// Looks at some chunks from `first` on; gives the next one.
fn count_some<A: FsAccess>(
    access: &A,
    dir: Ino,
    opener: &Identity,
    first: u64,
    count: &mut Count,
) -> SessionResult<Option<u64>> {
    let who = opener.credentials();
    access.read(|fs| {
        let collection = resolve(fs, dir, b"", &who)?.in_collection()?;
        let rows_file = fs.rows_file(collection)?;
        let mut memory = vec![Verdict::EMPTY; 4096];
        let mut gate = Gate::new(fs, dir, rows_file.inode.ino, who, &mut memory);
        let end = rows_file.chunks().min(first.saturating_add(CHUNKS_AT_ONCE));
        for chunk in first..end {
            let page = fs.row_headers(&rows_file, chunk)?;
            let page_no = rows_file.row_page(chunk)?;
            for raw in headers(&page).iter().take(rows_file.chunk_rows(chunk)) {
                let Some(row) = raw.decode(page_no)? else { continue };
                let Some(freshness) = gate.admit(&row)? else { continue };
                count.rows += 1;
                if freshness == Freshness::Stale {
                    *count.stale.entry(row.ino.0).or_default() += 1;
                }
            }
        }
        Ok((end < rows_file.chunks()).then_some(end))
    })
}
