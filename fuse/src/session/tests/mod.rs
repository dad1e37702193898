//! Session files over the in-memory page store.

mod acls;
mod exact;
mod permissions;
mod requests;

use layout::fs::{Fs, NewInode};
use layout::inode::{Ino, Kind, ROOT_INO};
use layout::testing::{MemStore, format_params, mount};
use layout::uapi::put::{PutReply, PutRequest, encode_put};
use layout::uapi::raw::vexfs_put_row;
use parking_lot::RwLock;
use serde_json::Value;

use super::*;

type Files = SessionFiles<RwLock<Fs<MemStore>>>;

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// Session files of an empty volume, two threads a search.
fn volume() -> Files {
    let fs = mount(&MemStore::formatted(format_params())).expect("mounts");
    let settings = SessionSettings { threads: 2, cache_bytes: 64 << 20, buffer_bytes: 256 << 20 };
    SessionFiles::new(RwLock::new(fs), settings)
}

/// Session files of a volume with a collection `c`.
fn collection(dim: u32, element: &str, metric: &str) -> (Files, Ino) {
    let files = volume();
    let dir = make(&files, ROOT_INO, "c", Kind::Dir, ROOT, 0o755);
    let schema = format!(r#"{{"dim":{dim},"element":"{element}","metric":"{metric}"}}"#);
    let handle = files.open(SessionKind::Schema, dir, &ROOT).expect("opens");
    files.write(handle, 0, schema.as_bytes()).expect("makes a collection");
    files.release(handle);
    (files, dir)
}

/// Changes the file system behind the sessions.
fn change<R>(files: &Files, change: impl FnOnce(&mut Fs<MemStore>) -> R) -> R {
    change(&mut files.access.write())
}

fn make(files: &Files, dir: Ino, name: &str, kind: Kind, owner: Caller, perm: u16) -> Ino {
    let new = NewInode { kind, perm, umask: 0, uid: owner.uid, gid: owner.gid, rdev: 0 };
    change(files, |fs| fs.create(dir, name.as_bytes(), new, now())).expect("creates").ino
}

fn file(files: &Files, dir: Ino, name: &str) -> Ino {
    make(files, dir, name, Kind::File, ROOT, 0o644)
}

/// Writes a request and reads the whole reply.
fn ask(files: &Files, kind: SessionKind, dir: Ino, request: &[u8], caller: Caller) -> Vec<u8> {
    let handle = files.open(kind, dir, &caller).expect("opens");
    assert_eq!(files.write(handle, 0, request), Ok(request.len()));
    let mut reply = Vec::new();
    loop {
        let part = files.read(handle, reply.len() as u64, 100).expect("reads");
        if part.is_empty() {
            break;
        }
        reply.extend(part);
    }
    files.release(handle);
    reply
}

/// Asks in JSON.
fn json(files: &Files, kind: SessionKind, dir: Ino, request: &str, caller: Caller) -> Value {
    let reply = ask(files, kind, dir, request.as_bytes(), caller);
    assert_eq!(reply.last(), Some(&b'\n'), "a reply is a line");
    serde_json::from_slice(&reply).expect("a JSON reply")
}

/// The paths in a reply to a search.
fn paths(reply: &Value) -> Vec<&str> {
    assert!(reply["error"].is_null(), "{reply}");
    reply["results"].as_array().expect("results").iter().map(|r| r["path"].as_str().expect("path")).collect()
}

/// Puts rows of raw vectors, with the row's number as tag.
fn put(files: &Files, dir: Ino, path: &str, dim: u32, element: u8, vectors: &[u8]) {
    let vector_bytes = dim as usize * layout::uapi::element_bytes(element).expect("known");
    let rows: Vec<vexfs_put_row> = (0..vectors.len() / vector_bytes)
        .map(|i| vexfs_put_row {
            offset: (i as u64).into(),
            length: 1.into(),
            tag: (i as u64).into(),
            reserved: 0.into(),
        })
        .collect();
    let file = path.as_bytes();
    let request = PutRequest { append: false, dim, element, rows: &rows, vectors, file, publish_as: None };
    let mut bytes = vec![0; vectors.len() + rows.len() * 32 + 4096];
    let len = encode_put(&request, &mut bytes).expect("encodes");
    let reply = ask(files, SessionKind::Put, dir, &bytes[..len], ROOT);
    let reply = PutReply::parse(&reply).expect("a reply");
    assert_eq!(reply.answer.map(|answer| answer.count), Ok(rows.len() as u32), "{}", reply.message);
}
