//! Carrying out a search and writing its reply.

use std::collections::HashMap;

use layout::error::Error;
use layout::fs::Fs;
use layout::inode::{Ino, Kind};
use layout::page_store::PageStore;
use layout::schema::Element;
use layout::search::{Filter, Hit};
use layout::uapi::check_relative_path;
use layout::uapi::raw::VEXFS_PATH_BYTES_MAX;
use layout::uapi::search::{SearchHit, SearchReplyShape, SearchRequest};
use layout::vector;
use zerocopy::IntoBytes;

use super::access::FsAccess;
use super::caller::Identity;
use super::error::{SessionError, SessionResult};
use super::json::{self, ResultForm, SearchForm, SearchReplyForm};
use super::resolve::resolve;
use crate::search::{Answer, Query, Searcher};

/// What is searched for; the vector not yet checked against the schema.
struct Job<'a> {
    vector: &'a [u8],
    element: Element,
    dim: usize,
    k: usize,
    subdir: &'a [u8],
    filter: Filter,
}

/// An answer with the paths of its files.
struct Found {
    answer: Answer,
    paths: Paths,
}

/// The paths of the hits.
struct Paths {
    /// All paths, one after the other.
    strings: Vec<u8>,
    /// Offset and length in `strings` of each hit's path.
    places: Vec<(u32, u32)>,
}

/// The JSON reply to a JSON search.
pub(super) fn search_json<A: FsAccess>(
    access: &A,
    searcher: &Searcher,
    dir: Ino,
    request: &[u8],
    opener: &Identity,
) -> SessionResult<Vec<u8>>
where
    Fs<A::Store>: Sync,
{
    let form: SearchForm = json::parse(request)?;
    if !form.subdir.is_empty() {
        check_relative_path(form.subdir.as_bytes())?;
    }
    let vector: Vec<u8> = form.vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    let job = Job {
        vector: &vector,
        element: Element::F32,
        dim: form.vector.len(),
        k: form.check_k()?,
        subdir: form.subdir.as_bytes(),
        filter: Filter { tags_any: form.tags_any, fresh_only: form.fresh_only },
    };
    let found = carry_out(access, searcher, dir, &job, opener)?;
    let results = found.hits().map(|hit| ResultForm {
        path: String::from_utf8_lossy(hit.path),
        ino: hit.ino,
        offset: hit.offset,
        length: hit.length,
        distance: hit.distance,
        row: hit.row,
        tag: hit.tag,
        stale: hit.stale,
    });
    json::line(&SearchReplyForm {
        epoch: found.answer.epoch,
        rows_scanned: found.answer.rows_scanned,
        results: results.collect(),
    })
}

/// The binary reply to a binary search, failures included.
pub(super) fn search_binary<A: FsAccess>(
    access: &A,
    searcher: &Searcher,
    dir: Ino,
    request: &[u8],
    opener: &Identity,
) -> Vec<u8>
where
    Fs<A::Store>: Sync,
{
    let found = SearchRequest::parse(request).map_err(SessionError::from).and_then(|request| {
        let job = Job {
            vector: request.query,
            element: Element::from_code(request.element)?,
            dim: request.dim as usize,
            k: request.k as usize,
            subdir: request.subdir,
            filter: Filter { tags_any: request.tags_any, fresh_only: request.fresh_only },
        };
        carry_out(access, searcher, dir, &job, opener)
    });
    match found {
        Ok(found) => found.reply(),
        Err(error) => failure(&error),
    }
}

/// The binary reply of a failure.
pub(super) fn failure(error: &SessionError) -> Vec<u8> {
    let message = super::short(&error.message);
    let shape = SearchReplyShape {
        errno: error.errno,
        epoch: 0,
        rows_scanned: 0,
        count: 0,
        strings_bytes: message.len() as u32,
        message_offset: 0,
        message_bytes: message.len() as u32,
    };
    [shape.header().as_bytes(), message.as_bytes()].concat()
}

fn carry_out<A: FsAccess>(
    access: &A,
    searcher: &Searcher,
    dir: Ino,
    job: &Job<'_>,
    opener: &Identity,
) -> SessionResult<Found>
where
    Fs<A::Store>: Sync,
{
    let who = opener.credentials();
    access.read(|fs| {
        let scope = resolve(fs, dir, job.subdir, &who)?;
        if scope.inode.kind != Kind::Dir {
            return Err(SessionError::about(Error::NotDir, "subdir"));
        }
        let collection = scope.in_collection()?;
        let schema = fs.schema(collection)?;
        json::check_dim(&schema, job.dim)?;
        let mut vector = vec![0; schema.vector_bytes()];
        vector::convert(&schema, job.element, job.vector, &mut vector)
            .map_err(|e| SessionError::about(e, "the query"))?;
        let query =
            Query { collection, scope: scope.inode.ino, vector: &vector, k: job.k, filter: job.filter, who };
        let mut answer = searcher.search(fs, &query)?;
        let paths = paths_of(fs, &mut answer.hits, scope.inode.ino, dir)?;
        Ok(Found { answer, paths })
    })
}

/// The path of each hit relative to `dir`; a file's path is there once. A hit whose path is longer
/// than a request could name is left out: it must not keep the others from being found.
fn paths_of<P: PageStore>(fs: &Fs<P>, hits: &mut Vec<Hit>, scope: Ino, dir: Ino) -> SessionResult<Paths> {
    let mut strings = Vec::new();
    let mut known = HashMap::new();
    let mut places = Vec::with_capacity(hits.len());
    let mut path = [0; VEXFS_PATH_BYTES_MAX as usize];
    for hit in &*hits {
        let place = match known.get(&hit.ino) {
            Some(place) => *place,
            None => {
                let place = match fs.search_path(hit.ino, scope, dir, &mut path) {
                    Ok(len) => {
                        let place = (strings.len() as u32, len as u32);
                        strings.extend_from_slice(path.get(..len).unwrap_or_default());
                        Some(place)
                    }
                    Err(Error::Range) => None,
                    Err(e) => {
                        return Err(SessionError::about(e, format!("the path of inode {}", hit.ino.0)));
                    }
                };
                known.insert(hit.ino, place);
                place
            }
        };
        places.push(place);
    }
    let mut found = places.iter().map(Option::is_some);
    hits.retain(|_| found.next() == Some(true));
    Ok(Paths { strings, places: places.into_iter().flatten().collect() })
}

impl Found {
    fn hits(&self) -> impl Iterator<Item = SearchHit<'_>> {
        self.answer.hits.iter().zip(&self.paths.places).map(|(hit, &(offset, len))| SearchHit {
            distance: hit.distance,
            row: hit.row,
            ino: hit.ino.0,
            generation: hit.generation,
            offset: hit.offset,
            length: hit.length,
            tag: hit.tag,
            stale: hit.stale,
            path: self.paths.strings.get(offset as usize..(offset + len) as usize).unwrap_or_default(),
        })
    }

    fn reply(&self) -> Vec<u8> {
        let shape = SearchReplyShape {
            errno: 0,
            epoch: self.answer.epoch,
            rows_scanned: self.answer.rows_scanned,
            count: self.answer.hits.len() as u32,
            strings_bytes: self.paths.strings.len() as u32,
            message_offset: 0,
            message_bytes: 0,
        };
        let mut reply = shape.header().as_bytes().to_vec();
        for (hit, &(offset, _)) in self.hits().zip(&self.paths.places) {
            reply.extend_from_slice(hit.result(offset).as_bytes());
        }
        reply.extend_from_slice(&self.paths.strings);
        reply
    }
}
