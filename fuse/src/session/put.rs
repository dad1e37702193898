//! Carrying out a put: rows, and the name to publish the file under, in one epoch.

use std::borrow::Cow;

use layout::error::Error;
use layout::fs::{Fs, Put, RenameFlags};
use layout::inode::{Ino, Inode, Kind};
use layout::name::Name;
use layout::page_store::PageStore;
use layout::schema::{Element, Schema};
use layout::search::{Access, Credentials};
use layout::uapi::put::{PutAnswer, PutReply, PutRequest};
use layout::uapi::raw::vexfs_put_row;
use layout::uapi::{check_name, check_relative_path};
use layout::vector;
use zerocopy::IntoBytes;

use super::access::{FsAccess, Published};
use super::caller::{Caller, Identity};
use super::error::{SessionError, SessionResult};
use super::json::{self, PutForm, PutReplyForm};
use super::now;
use super::resolve::resolve;

/// A put with its vectors in the collection's element type.
struct Job<'a> {
    schema: Schema,
    append: bool,
    file: &'a [u8],
    publish_as: Option<&'a [u8]>,
    rows: Cow<'a, [vexfs_put_row]>,
    vectors: Vec<u8>,
}

/// The JSON reply to a JSON put.
pub(super) fn put_json<A: FsAccess>(
    access: &A,
    dir: Ino,
    request: &[u8],
    opener: &Identity,
) -> SessionResult<Vec<u8>> {
    let form: PutForm = json::parse(request)?;
    check_relative_path(form.file.as_bytes())?;
    form.publish_as.as_deref().map_or(Ok(()), |name| check_name(name.as_bytes()))?;
    let schema = schema_for(access, dir, form.file.as_bytes(), opener)?;
    let (rows, vectors) = form.rows(&schema)?;
    let job = Job {
        schema,
        append: form.append,
        file: form.file.as_bytes(),
        publish_as: form.publish_as.as_deref().map(str::as_bytes),
        rows: rows.into(),
        vectors: convert_all(&schema, Element::F32, &vectors)?,
    };
    let PutAnswer { epoch, ino, first_row, count } = carry_out(access, dir, &job, opener)?;
    json::line(&PutReplyForm { ino, first_row, count, epoch })
}

/// The binary reply to a binary put, failures included.
pub(super) fn put_binary<A: FsAccess>(access: &A, dir: Ino, request: &[u8], opener: &Identity) -> Vec<u8> {
    let answer = PutRequest::parse(request)
        .map_err(SessionError::from)
        .and_then(|request| put_request(access, dir, &request, opener));
    reply(&answer)
}

fn put_request<A: FsAccess>(
    access: &A,
    dir: Ino,
    request: &PutRequest<'_>,
    opener: &Identity,
) -> SessionResult<PutAnswer> {
    let schema = schema_for(access, dir, request.file, opener)?;
    let vectors = if request.rows.is_empty() {
        Vec::new()
    } else {
        json::check_dim(&schema, request.dim as usize)?;
        convert_all(&schema, Element::from_code(request.element)?, request.vectors)?
    };
    let job = Job {
        schema,
        append: request.append,
        file: request.file,
        publish_as: request.publish_as,
        rows: request.rows.into(),
        vectors,
    };
    carry_out(access, dir, &job, opener)
}

/// The binary reply of an answer or failure.
pub(super) fn reply(answer: &SessionResult<PutAnswer>) -> Vec<u8> {
    let reply = match answer {
        Ok(answer) => PutReply { answer: Ok(*answer), message: "" },
        Err(error) => PutReply { answer: Err(error.errno), message: super::short(&error.message) },
    };
    let mut bytes = match reply.header() {
        Ok(header) => header.as_bytes().to_vec(),
        Err(_) => Vec::new(),
    };
    bytes.extend_from_slice(reply.message.as_bytes());
    bytes
}

/// The schema that the file's vectors must have.
fn schema_for<A: FsAccess>(access: &A, dir: Ino, file: &[u8], opener: &Identity) -> SessionResult<Schema> {
    access.read(|fs| {
        let collection = resolve(fs, dir, file, &opener.credentials())?.in_collection()?;
        Ok(fs.schema(collection)?)
    })
}

/// Converts vectors of type `from` to the schema's.
pub(super) fn convert_all(schema: &Schema, from: Element, given: &[u8]) -> SessionResult<Vec<u8>> {
    let from_bytes = schema.dim() as usize * from.bytes();
    let mut out = vec![0; given.len() / from_bytes * schema.vector_bytes()];
    let pairs = given.chunks_exact(from_bytes).zip(out.chunks_exact_mut(schema.vector_bytes()));
    for (index, (given, out)) in pairs.enumerate() {
        vector::convert(schema, from, given, out)
            .map_err(|e| SessionError::about(e, format!("vector {index} (counted from 0)")))?;
    }
    Ok(out)
}

fn carry_out<A: FsAccess>(
    access: &A,
    dir: Ino,
    job: &Job<'_>,
    opener: &Identity,
) -> SessionResult<PutAnswer> {
    let who = opener.credentials();
    let done = access.write(|fs| {
        let done = put_and_publish(fs, dir, job, &who)?;
        access.rows_put(&fs.inode(Ino(done.answer.ino))?);
        Ok::<_, SessionError>(done)
    })?;
    if let (Some(new_name), Some((parent, replaced))) = (job.publish_as, done.renamed) {
        let old_name = last_name(job.file);
        access.published(&Published { dir: parent, old_name, new_name, replaced });
    }
    Ok(done.answer)
}

struct Done {
    answer: PutAnswer,
    /// The directory, and what was replaced.
    renamed: Option<(Ino, Option<Inode>)>,
}

fn put_and_publish<P: PageStore>(
    fs: &mut Fs<P>,
    dir: Ino,
    job: &Job<'_>,
    who: &Credentials<'_>,
) -> SessionResult<Done> {
    let found = resolve(fs, dir, job.file, who)?;
    let (file, parent) = (found.inode, found.parent);
    let collection = found.in_collection()?;
    if !fs.permits(who, &file, Access::Write)? {
        return Err(SessionError::denied("no write permission on the file"));
    }
    if fs.schema(collection)? != job.schema {
        return Err(SessionError {
            errno: libc::EAGAIN,
            message: "the collection changed meanwhile; try again".into(),
        });
    }
    let publish = job.publish_as.filter(|name| *name != last_name(job.file));
    if let Some(name) = publish {
        may_publish(fs, &parent, &file, name, who)?;
    }
    if file.nlink > 1 && fs.collection_of(file.ino) != Ok(collection) {
        // A search looks for a file by its place first.
        fs.set_place(file.ino, parent.ino, last_name(job.file))?;
    }
    let Put { first_row, count } =
        fs.put_rows(collection, file.ino, &job.rows, &job.vectors, job.append, now())?;
    let answer = PutAnswer { epoch: fs.open_epoch(), ino: file.ino.0, first_row, count };
    let Some(name) = publish else { return Ok(Done { answer, renamed: None }) };
    match fs.rename(parent.ino, last_name(job.file), parent.ino, name, RenameFlags::empty(), now()) {
        Ok(replaced) => Ok(Done { answer, renamed: Some((parent.ino, replaced)) }),
        Err(error) => {
            // The name did not come into being, so the rows must not either.
            fs.kill_rows(file.ino)?;
            Err(SessionError::about(error, "publishing the file (it has no rows now)"))
        }
    }
}

/// What rename(2) asks for.
fn may_publish<P: PageStore>(
    fs: &Fs<P>,
    parent: &Inode,
    file: &Inode,
    name: &[u8],
    who: &Credentials<'_>,
) -> SessionResult<()> {
    if Name::new(name)?.is_session_dir() {
        return Err(SessionError::about(Error::NotPermitted, "the name to publish the file under"));
    }
    if !fs.permits(who, parent, Access::Write)? || !fs.permits(who, parent, Access::Search)? {
        return Err(SessionError::denied("no permission to rename in the file's directory (w and x)"));
    }
    let replaced = match fs.lookup(parent.ino, name) {
        Ok(inode) => Some(inode),
        Err(Error::NotFound) => None,
        Err(error) => return Err(error.into()),
    };
    if replaced.is_some_and(|inode| inode.kind == Kind::Dir) {
        return Err(SessionError::about(Error::IsDir, "the name to publish the file under"));
    }
    let sticky = parent.perm & 0o1000 != 0 && who.uid != 0 && who.uid != parent.uid;
    if sticky && [Some(*file), replaced].iter().flatten().any(|inode| inode.uid != who.uid) {
        return Err(SessionError {
            errno: libc::EPERM,
            message: "in a directory with the sticky bit only a file's owner may rename or replace it".into(),
        });
    }
    Ok(())
}

fn last_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

/// Setting `user.vexfs.vector`: one row for the whole file.
pub(super) fn set_vector<A: FsAccess>(
    access: &A,
    file: Ino,
    value: &[u8],
    exists: Option<bool>,
    caller: &Caller,
) -> SessionResult<()> {
    let identity = caller.identify();
    access.write(|fs| {
        let inode = writable_file(fs, file, &identity.credentials())?;
        let collection = match fs.collection_of(file) {
            Err(Error::NotFound) => {
                return Err(SessionError {
                    errno: libc::EOPNOTSUPP,
                    message: "user.vexfs.vector can be set only below a collection".into(),
                });
            }
            found => found?,
        };
        match exists {
            Some(true) if inode.row_count == 0 => return Err(Error::NoAttr.into()),
            Some(false) if inode.row_count > 0 => return Err(Error::Exists.into()),
            _ => {}
        }
        let schema = fs.schema(collection)?;
        let is_f32 = value.len() == schema.dim() as usize * Element::F32.bytes();
        let from = if is_f32 { Element::F32 } else { schema.element() };
        if value.len() != schema.dim() as usize * from.bytes() {
            let elements = value.len() / schema.element().bytes();
            json::check_dim(&schema, elements)?;
        }
        let vector = convert_all(&schema, from, value)?;
        let row =
            vexfs_put_row { offset: 0.into(), length: inode.size.into(), tag: 0.into(), reserved: 0.into() };
        fs.put_rows(collection, file, &[row], &vector, false, now())?;
        access.rows_put(&fs.inode(file)?);
        Ok(())
    })
}

/// Removing `user.vexfs.vector`: all rows of the file die.
pub(super) fn remove_vector<A: FsAccess>(access: &A, file: Ino, caller: &Caller) -> SessionResult<()> {
    let identity = caller.identify();
    access.write(|fs| {
        let inode = writable_file(fs, file, &identity.credentials())?;
        if inode.row_count == 0 {
            return Err(Error::NoAttr.into());
        }
        fs.kill_rows(file)?;
        Ok(())
    })
}

fn writable_file<P: PageStore>(fs: &Fs<P>, file: Ino, who: &Credentials<'_>) -> SessionResult<Inode> {
    let inode = fs.inode(file)?;
    if inode.kind != Kind::File {
        return Err(SessionError { errno: libc::EOPNOTSUPP, message: "only a regular file has rows".into() });
    }
    if !fs.permits(who, &inode, Access::Write)? {
        return Err(SessionError::denied("no write permission on the file"));
    }
    Ok(inode)
}

/// Reading `user.vexfs.vector`: the first live row's vector.
pub(super) fn get_vector<A: FsAccess>(access: &A, file: Ino, caller: &Caller) -> SessionResult<Vec<u8>> {
    let identity = caller.identify();
    access.read(|fs| {
        let inode = fs.inode(file)?;
        if inode.row_count == 0 {
            return Err(Error::NoAttr.into());
        }
        if !fs.permits(&identity.credentials(), &inode, Access::Read)? {
            return Err(SessionError::denied("no read permission on the file"));
        }
        let mut vector = vec![0; fs.first_vector(file, &mut [])?];
        fs.first_vector(file, &mut vector)?;
        Ok(vector)
    })
}
