//! The session files `DIR/.vexfs/{schema,put,search,stats,stale}` and `user.vexfs.vector`
//! (FORMAT.md section 6.5), without anything of FUSE in it.
//!
//! Life of a handle: *idle* -> writes gather a request -> the first read carries it out -> reads take
//! the reply -> a write begins the next request. A `schema` request is carried out by the
//! write that completes it, so that `echo ... > DIR/.vexfs/schema` works and reports its error.
//!
//! Requests are carried out with the rights of the process that opened the handle. A set-uid program
//! whose standard input or output it becomes lends it nothing.
//!
//! A reply is read from offset 0. Where the reader goes on at the offset at which the request ended
//! (one descriptor without a seek, as a shell does it), the reply begins there.

mod access;
mod caller;
mod error;
mod handle;
mod json;
mod put;
mod resolve;
mod schema;
mod search;
mod stale;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use layout::fs::Fs;
use layout::inode::{Ino, Kind};
use layout::page_store::Timespec;
use parking_lot::Mutex;

pub use access::{FsAccess, Published};
pub use caller::{Caller, Identity};
pub use error::{SessionError, SessionResult};

use crate::search::Searcher;
use handle::{Budget, Handle};

/// The name of the directory of session files.
pub const SESSION_DIR: &str = ".vexfs";
/// The extended attribute that is a file's row.
pub const VECTOR_XATTR: &str = "user.vexfs.vector";

/// Which session file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SessionKind {
    /// Read: the schema. Write: makes the directory a collection.
    Schema,
    /// Write a put, read its reply.
    Put,
    /// Write a search, read its reply.
    Search,
    /// Read: counts.
    Stats,
    /// Read: which files changed after their rows were put.
    Stale,
}

impl SessionKind {
    /// All of them.
    pub const ALL: [SessionKind; 5] =
        [SessionKind::Schema, SessionKind::Put, SessionKind::Search, SessionKind::Stats, SessionKind::Stale];

    /// Its name in the session directory.
    pub const fn name(self) -> &'static str {
        match self {
            SessionKind::Schema => "schema",
            SessionKind::Put => "put",
            SessionKind::Search => "search",
            SessionKind::Stats => "stats",
            SessionKind::Stale => "stale",
        }
    }

    /// Whether it takes requests.
    pub const fn is_writable(self) -> bool {
        !matches!(self, SessionKind::Stats | SessionKind::Stale)
    }

    /// The session file of that name.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        SessionKind::ALL.into_iter().find(|kind| kind.name().as_bytes() == name)
    }
}

/// Bounds of what sessions may use.
#[derive(Clone, Copy, Debug)]
pub struct SessionSettings {
    /// Threads of one search.
    pub threads: usize,
    /// RAM for vectors.
    pub cache_bytes: usize,
    /// RAM for requests and replies of all handles together.
    pub buffer_bytes: usize,
}

impl Default for SessionSettings {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        SessionSettings { threads, cache_bytes: 512 << 20, buffer_bytes: 256 << 20 }
    }
}

/// All session files of a mount.
pub struct SessionFiles<A: FsAccess> {
    access: A,
    searcher: Searcher,
    handles: Mutex<HashMap<u64, Arc<Mutex<Handle>>>>,
    next: AtomicU64,
    budget: Arc<Budget>,
}

impl<A: FsAccess> SessionFiles<A>
where
    Fs<A::Store>: Sync,
{
    /// The session files of the file system that `access` gives.
    pub fn new(access: A, settings: SessionSettings) -> Self {
        SessionFiles {
            access,
            searcher: Searcher::new(settings.threads, settings.cache_bytes),
            handles: Mutex::default(),
            next: AtomicU64::new(1),
            budget: Arc::new(Budget::new(settings.buffer_bytes)),
        }
    }

    /// Opens a session file of a directory for `caller`, with whose rights its requests are carried
    /// out; gives the handle.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR.
    pub fn open(&self, kind: SessionKind, dir: Ino, caller: &Caller) -> SessionResult<u64> {
        let inode = self.access.read(|fs| fs.inode(dir))?;
        if inode.kind != Kind::Dir {
            return Err(layout::error::Error::NotDir.into());
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = Handle::new(kind, dir, caller.identify(), self.budget.clone());
        self.handles.lock().insert(id, Arc::new(Mutex::new(handle)));
        Ok(id)
    }

    /// Takes bytes of a request; gives how many, which is all.
    ///
    /// # Errors
    /// EFBIG over 64 MiB, ENOMEM when all handles together hold too much, EINVAL out of order; for
    /// `schema` also what makes the directory no collection; EACCES for `stats` and `stale`; EBADF.
    pub fn write(&self, handle: u64, offset: u64, bytes: &[u8]) -> SessionResult<usize> {
        let handle = self.handle(handle)?;
        let mut handle = handle.lock();
        if !handle.kind.is_writable() {
            return Err(SessionError::denied("stats and stale can only be read"));
        }
        handle.take(offset, bytes)?;
        if handle.kind == SessionKind::Schema {
            let done = schema::write_schema(&self.access, handle.dir, handle.request(), &handle.opener);
            match done {
                Ok(false) => {}
                Ok(true) => {
                    let reply = self.answer(handle.kind, handle.dir, b"", &handle.opener);
                    handle.reply(reply, None);
                }
                Err(error) => {
                    handle.reply(json::failure(&error), None);
                    return Err(error);
                }
            }
        }
        Ok(bytes.len())
    }

    /// Gives bytes of the reply; the first read after a write carries the request out. A request that
    /// fails is no error here: the reply says so.
    ///
    /// # Errors
    /// EBADF; ENOMEM when the reply does not fit what handles may hold.
    pub fn read(&self, handle: u64, offset: u64, len: usize) -> SessionResult<Vec<u8>> {
        let handle = self.handle(handle)?;
        let mut handle = handle.lock();
        if handle.wants_answer(offset) {
            let reply = self.answer(handle.kind, handle.dir, handle.request(), &handle.opener);
            // What was put is there: its reply, which is short, must say so.
            if handle.kind != SessionKind::Put && !self.budget.fits(reply.len()) {
                return Err(handle::out_of_budget());
            }
            handle.reply(reply, Some(offset));
        }
        Ok(handle.part(offset, len).to_vec())
    }

    /// Bytes of the request that a read at this offset would carry out.
    ///
    /// # Errors
    /// EBADF.
    pub fn pending_bytes(&self, handle: u64, offset: u64) -> SessionResult<usize> {
        let handle = self.handle(handle)?;
        let handle = handle.lock();
        Ok(if handle.wants_answer(offset) { handle.request().len() } else { 0 })
    }

    /// Closes a handle. A request that was never read is not carried out.
    pub fn release(&self, handle: u64) {
        self.handles.lock().remove(&handle);
    }

    /// Carries out one request.
    fn answer(&self, kind: SessionKind, dir: Ino, request: &[u8], opener: &Identity) -> Vec<u8> {
        let is_json = request.first() == Some(&b'{');
        let done = match kind {
            SessionKind::Schema => schema::read_schema(&self.access, dir),
            SessionKind::Stats => schema::read_stats(&self.access, dir, &self.searcher),
            SessionKind::Stale => stale::read_stale(&self.access, dir, opener),
            SessionKind::Put | SessionKind::Search if request.is_empty() => {
                Err(SessionError::invalid("write a request first, then read its reply"))
            }
            SessionKind::Put if is_json => put::put_json(&self.access, dir, request, opener),
            SessionKind::Search if is_json => {
                search::search_json(&self.access, &self.searcher, dir, request, opener)
            }
            SessionKind::Put => Ok(put::put_binary(&self.access, dir, request, opener)),
            SessionKind::Search => {
                Ok(search::search_binary(&self.access, &self.searcher, dir, request, opener))
            }
        };
        done.unwrap_or_else(|error| json::failure(&error))
    }

    /// The value of `user.vexfs.vector`: the file's first live row's vector, in the collection's element type.
    ///
    /// # Errors
    /// ENODATA without rows, EACCES without read permission.
    pub fn vector(&self, file: Ino, caller: &Caller) -> SessionResult<Vec<u8>> {
        put::get_vector(&self.access, file, caller)
    }

    /// Sets `user.vexfs.vector`: a put of one row for the whole file. The value is raw little-endian elements
    /// of the collection's type, or of f32. `exists`: `Some(true)` for XATTR_REPLACE, `Some(false)` for XATTR_CREATE.
    ///
    /// # Errors
    /// EOPNOTSUPP outside a collection, EACCES without write permission, EINVAL for a vector that is refused.
    pub fn set_vector(
        &self,
        file: Ino,
        value: &[u8],
        exists: Option<bool>,
        caller: &Caller,
    ) -> SessionResult<()> {
        put::set_vector(&self.access, file, value, exists, caller)
    }

    /// Removes `user.vexfs.vector`: the file's rows die.
    ///
    /// # Errors
    /// ENODATA without rows, EACCES without write permission.
    pub fn remove_vector(&self, file: Ino, caller: &Caller) -> SessionResult<()> {
        put::remove_vector(&self.access, file, caller)
    }

    /// The search engine, for measurements and settings.
    pub fn searcher(&self) -> &Searcher {
        &self.searcher
    }

    fn handle(&self, id: u64) -> SessionResult<Arc<Mutex<Handle>>> {
        self.handles.lock().get(&id).cloned().ok_or_else(|| SessionError {
            errno: libc::EBADF,
            message: "no such handle of a session file".into(),
        })
    }
}

/// The present time.
fn now() -> Timespec {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timespec { secs: since.as_secs().cast_signed(), nanos: since.subsec_nanos() }
}

/// A message cut to what a binary reply can hold, at a character's border.
fn short(message: &str) -> &str {
    message
        .get(..message.floor_char_boundary(layout::uapi::raw::VEXFS_MESSAGE_BYTES_MAX as usize))
        .unwrap_or_default()
}
