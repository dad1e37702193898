//! The client side of the session files `DIR/.vexfs/{schema,put,search,stats,stale}` (FORMAT.md section 6.5).
//!
//! Requests go out in the binary form of `uapi/vexfs.h`. Replies are untrusted and checked by `layout::uapi`. Every error names the
//! directory, the cause and the remedy.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use layout::uapi::put::{PutAnswer, PutReply, PutRequest, encode_put};
use layout::uapi::raw;
use layout::uapi::search::{SearchReply, SearchRequest};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::remedy::{failed, remedy};
use crate::schema::Schema;

/// Replies are read no further: 10,000 results with the longest paths.
const REPLY_BYTES_MAX: usize = 64 << 20;
/// Vectors and rows of one request, at most; the rest goes into further requests.
const PUT_BYTES_MAX: usize = 16 << 20;

/// A directory of a mounted volume.
#[derive(Clone, Debug)]
pub struct SessionDir {
    dir: PathBuf,
}

/// One row of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// First byte of the passage.
    pub offset: u64,
    /// Bytes of the passage.
    pub length: u64,
    /// The user's bits.
    pub tag: u64,
}

/// Rows for a file; `vectors` is `[rows.len()][dim]`, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Put<'a> {
    /// Relative to the session's directory.
    pub file: &'a Path,
    /// What the vectors stand for.
    pub rows: &'a [Row],
    /// The vectors.
    pub vectors: &'a [f32],
    /// Elements of each.
    pub dim: usize,
    /// Keep the rows that the file has.
    pub append: bool,
    /// Rename the file to this name in the commit of the (last) rows.
    pub publish_as: Option<&'a Path>,
}

/// A row found.
#[derive(Clone, Debug)]
pub struct Hit {
    /// Relative to the session's directory.
    pub path: PathBuf,
    /// Smaller is nearer.
    pub distance: f64,
    /// Id in the collection.
    pub row: u64,
    /// The file's inode number.
    pub ino: u64,
    /// First byte of the passage.
    pub offset: u64,
    /// Bytes of the passage.
    pub length: u64,
    /// The user's bits.
    pub tag: u64,
    /// The file changed after the row was put.
    pub stale: bool,
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Whose state was searched.
    pub epoch: u64,
    /// Rows compared.
    pub rows_scanned: u64,
    /// Nearest first.
    pub hits: Vec<Hit>,
}

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The vector.
    pub vector: &'a [f32],
    /// Results wanted.
    pub k: u32,
    /// Only below this directory, relative to the session's; empty for all.
    pub subdir: &'a Path,
    /// Only rows with one of these bits; 0 for all.
    pub tags_any: u64,
    /// Leave stale rows out.
    pub fresh_only: bool,
}

impl SessionDir {
    /// The session files of `dir`, which must be a directory of a VexFS mount.
    ///
    /// # Errors
    /// `dir` is none, or on another file system.
    pub fn open(dir: &Path) -> Result<Self> {
        let shown = dir.display();
        match std::fs::metadata(dir) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => bail!("{shown}: is not a directory; name a directory of a VexFS mount"),
            Err(error) => return Err(failed(shown, &error)),
        }
        let session = Self { dir: dir.to_owned() };
        match std::fs::symlink_metadata(session.path("schema")) {
            Ok(_) => Ok(session),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(failed(shown, &error)),
            Err(_) => Err(anyhow!(
                "{shown}: is not on a VexFS mount (there is no .vexfs/schema in it); mount the volume with \
                 `vexfs-fuse SOURCE MOUNTPOINT` and name a directory below the mount point"
            )),
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(".vexfs").join(name)
    }

    /// The schema of the collection that the directory is or lies in; `None` if there is no collection.
    ///
    /// # Errors
    /// The file cannot be read, or says something else.
    pub fn schema(&self) -> Result<Option<Schema>> {
        let path = self.path("schema");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) => {
                let errno = error.raw_os_error().map(Errno::from_raw_os_error);
                return match errno {
                    Some(Errno::NODATA | Errno::NOENT | Errno::INVAL | Errno::NOTSUP) => Ok(None),
                    _ => Err(failed(path.display(), &error)),
                };
            }
        };
        let value: serde_json::Value = match serde_json::from_slice(&text) {
            Ok(value) => value,
            Err(_) if text.trim_ascii().is_empty() => return Ok(None),
            Err(error) => {
                bail!("{}: is not a schema ({error}); is this vexctl as new as the mount?", path.display())
            }
        };
        match value {
            serde_json::Value::Null => Ok(None),
            value if value.get("error").is_some() => {
                let errno = value.get("errno").and_then(serde_json::Value::as_i64);
                match errno.and_then(|e| i32::try_from(e).ok()).map(Errno::from_raw_os_error) {
                    Some(Errno::NODATA | Errno::NOENT | Errno::INVAL | Errno::NOTSUP) => Ok(None),
                    _ => bail!("{}: {}", path.display(), value["error"]),
                }
            }
            value => serde_json::from_value(value).map(Some).map_err(|error| {
                anyhow!("{}: is not a schema ({error}); is this vexctl as new as the mount?", path.display())
            }),
        }
    }

    /// As [`SessionDir::schema`], which there must be.
    ///
    /// # Errors
    /// There is no collection, or as [`SessionDir::schema`].
    pub fn collection_schema(&self) -> Result<Schema> {
        self.schema()?.ok_or_else(|| {
            anyhow!(
                "{0}: is not (in) a collection; make it one with `vexctl collection create {0} --dim N`",
                self.dir.display()
            )
        })
    }

    /// The directory that is the collection: the highest one upwards from here that is in it.
    ///
    /// # Errors
    /// There is no collection.
    pub fn collection_root(&self) -> Result<Self> {
        self.collection_schema()?;
        let mut root =
            Self { dir: self.dir.canonicalize().map_err(|error| failed(self.dir.display(), &error))? };
        while let Some(parent) = root.dir.parent() {
            match Self::open(parent) {
                Ok(above) if matches!(above.schema(), Ok(Some(_))) => root = above,
                _ => break,
            }
        }
        Ok(root)
    }

    /// Makes the directory a collection.
    ///
    /// # Errors
    /// It is one already, lies in one, or may not be changed.
    pub fn create_collection(&self, schema: &Schema) -> Result<()> {
        let path = self.path("schema");
        let json = serde_json::to_vec(schema)?;
        let file =
            OpenOptions::new().write(true).open(&path).map_err(|error| failed(path.display(), &error))?;
        (&file).write_all(&json).map_err(|error| failed(path.display(), &error))?;
        // What the write could not say is found by reading back.
        drop(file);
        match self.schema()? {
            Some(made) if made == *schema => Ok(()),
            Some(made) => {
                bail!("{}: was asked for {schema}, but is a collection of {made}", self.dir.display())
            }
            None => {
                bail!("{}: did not become a collection; see the messages of vexfs-fuse", self.dir.display())
            }
        }
    }

    /// Numbers about the collection.
    ///
    /// # Errors
    /// There is no collection, or the file cannot be read.
    pub fn stats(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        self.numbers("stats")
    }

    /// The files below the directory that changed after their rows were put.
    ///
    /// # Errors
    /// As [`SessionDir::stats`].
    pub fn stale(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        self.numbers("stale")
    }

    fn numbers(&self, name: &str) -> Result<serde_json::Map<String, serde_json::Value>> {
        let path = self.path(name);
        let text = std::fs::read(&path).map_err(|error| failed(path.display(), &error))?;
        match serde_json::from_slice(&text) {
            Ok(serde_json::Value::Object(map)) => match map.get("error") {
                Some(error) => bail!("{}: {}", path.display(), error.as_str().unwrap_or("failed")),
                None => Ok(map),
            },
            _ => bail!("{}: is not a JSON object; is this vexctl as new as the mount?", path.display()),
        }
    }

    /// Gives a file its rows: in one commit with its new name, if that is given.
    ///
    /// Rows beyond 16 MiB go in several requests, the name with the last.
    ///
    /// # Errors
    /// What the mount says, with the file's path.
    pub fn put(&self, put: &Put<'_>) -> Result<PutAnswer> {
        let path = self.path("put");
        let handle = open_session(&path)?;
        let rows_max = (PUT_BYTES_MAX / (put.dim * 4 + size_of::<raw::vexfs_put_row>()))
            .clamp(1, raw::VEXFS_PUT_ROWS_MAX as usize);
        let mut first: Option<PutAnswer> = None;
        let mut done = 0;
        loop {
            let end = put.rows.len().min(done + rows_max);
            let rows: Vec<raw::vexfs_put_row> = put.rows[done..end].iter().map(wire_row).collect();
            let elements = f32_bytes(&put.vectors[done * put.dim..end * put.dim]);
            let last = end == put.rows.len();
            let request = PutRequest {
                append: put.append || done > 0,
                dim: u32::try_from(put.dim)?,
                element: raw::VEXFS_ELEMENT_F32 as u8,
                rows: &rows,
                vectors: &elements,
                file: put.file.as_os_str().as_bytes(),
                publish_as: put.publish_as.filter(|_| last).map(|name| name.as_os_str().as_bytes()),
            };
            let bytes_max = 64 + rows.as_bytes().len() + elements.len() + 4096 + 256;
            let mut bytes = vec![0; bytes_max];
            let file = self.dir.join(put.file);
            let len =
                encode_put(&request, &mut bytes).map_err(|error| anyhow!("{}: {error}", file.display()))?;
            let reply = exchange(&handle, &bytes[..len])
                .map_err(|error| failed(format_args!("{}: vectors cannot be put", file.display()), &error))?;
            let reply = PutReply::parse(&reply).map_err(|error| anyhow!("{}: {error}", path.display()))?;
            let answer = match reply.answer {
                Ok(answer) => answer,
                Err(errno) => {
                    bail!("{}: vectors cannot be put: {}", file.display(), sentence(reply.message, errno))
                }
            };
            let sum = first.get_or_insert(PutAnswer { count: 0, ..answer });
            sum.count += answer.count;
            done = end;
            if last {
                return Ok(*sum);
            }
        }
    }

    /// The rows nearest to a vector.
    ///
    /// # Errors
    /// What the mount says.
    pub fn search(&self, query: &Query<'_>) -> Result<Found> {
        let path = self.path("search");
        let handle = open_session(&path)?;
        let elements = f32_bytes(query.vector);
        let request = SearchRequest {
            fresh_only: query.fresh_only,
            tags_any: query.tags_any,
            k: query.k,
            dim: u32::try_from(query.vector.len())?,
            element: raw::VEXFS_ELEMENT_F32 as u8,
            query: &elements,
            subdir: query.subdir.as_os_str().as_bytes(),
        };
        let shown = self.dir.display();
        let mut bytes = vec![0; 64 + elements.len() + request.subdir.len()];
        let len = request.encode(&mut bytes).map_err(|error| anyhow!("{shown}: {error}"))?;
        let reply = exchange(&handle, &bytes[..len])
            .map_err(|error| failed(format_args!("{shown}: cannot be searched"), &error))?;
        let reply = SearchReply::parse(&reply).map_err(|error| anyhow!("{}: {error}", path.display()))?;
        if reply.errno != 0 {
            bail!("{shown}: cannot be searched: {}", sentence(reply.message, reply.errno));
        }
        let hits = reply.hits().map(|hit| Hit {
            path: PathBuf::from(std::ffi::OsStr::from_bytes(hit.path)),
            distance: hit.distance,
            row: hit.row,
            ino: hit.ino,
            offset: hit.offset,
            length: hit.length,
            tag: hit.tag,
            stale: hit.stale,
        });
        Ok(Found { epoch: reply.epoch, rows_scanned: reply.rows_scanned, hits: hits.collect() })
    }
}

fn open_session(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).map_err(|error| failed(path.display(), &error))
}

/// Writes a request and reads its reply to the end.
fn exchange(mut handle: &File, request: &[u8]) -> io::Result<Vec<u8>> {
    // The reply goes on where the request ended, so no seek is needed (nor, on a stream, possible).
    handle.write_all(request)?;
    let mut reply = Vec::new();
    let mut block = vec![0; 256 << 10];
    loop {
        match handle.read(&mut block) {
            Ok(0) => return Ok(reply),
            Ok(len) if reply.len() + len <= REPLY_BYTES_MAX => reply.extend_from_slice(&block[..len]),
            Ok(_) => {
                return Err(io::Error::other("the reply has no end; is this vexctl as new as the mount?"));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The mount's message, or the system's if it gave none, and the remedy.
fn sentence(message: &str, errno: i32) -> String {
    let said =
        if message.is_empty() { io::Error::from_raw_os_error(errno).to_string() } else { message.to_owned() };
    format!("{said}{}", remedy(Some(errno)))
}

fn wire_row(row: &Row) -> raw::vexfs_put_row {
    raw::vexfs_put_row {
        offset: row.offset.into(),
        length: row.length.into(),
        tag: row.tag.into(),
        reserved: 0.into(),
    }
}

fn f32_bytes(elements: &[f32]) -> Vec<u8> {
    elements.iter().flat_map(|x| x.to_le_bytes()).collect()
}
