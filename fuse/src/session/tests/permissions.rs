//! Who may put, and whose rows a search returns.

use std::io::{Read, Write};
use std::process::Stdio;

use layout::fs::SetAttr;

use super::*;

const ALICE: Caller = Caller { uid: 1000, gid: 1000, pid: 0 };
const BOB: Caller = Caller { uid: 1001, gid: 1001, pid: 0 };

fn chmod(files: &Files, ino: Ino, perm: u16) {
    change(files, |fs| fs.setattr(ino, SetAttr { perm: Some(perm), ..SetAttr::default() }, now()))
        .expect("sets");
}

fn put_at(files: &Files, dir: Ino, path: &str, x: f32) {
    let request = format!(r#"{{"file":"{path}","rows":[{{"vector":[{x},0],"length":1}}]}}"#);
    let reply = json(files, SessionKind::Put, dir, &request, ROOT);
    assert!(reply["error"].is_null(), "{reply}");
}

fn found(files: &Files, dir: Ino, k: usize, caller: Caller) -> Vec<String> {
    let request = format!(r#"{{"vector":[0,0],"k":{k}}}"#);
    let reply = json(files, SessionKind::Search, dir, &request, caller);
    paths(&reply).into_iter().map(str::to_string).collect()
}

#[test]
fn a_search_gives_k_permitted_rows_however_many_are_nearer() {
    let (files, dir) = collection(2, "f32", "l2");
    for i in 0..300 {
        // The nearest 290 files are Bob's alone.
        let (owner, perm) = if i < 290 { (BOB, 0o600) } else { (BOB, 0o644) };
        make(&files, dir, &i.to_string(), Kind::File, owner, perm);
        put_at(&files, dir, &i.to_string(), i as f32);
    }
    let allowed: Vec<String> = (290..300).map(|i| i.to_string()).collect();
    assert_eq!(found(&files, dir, 4, ALICE), allowed[..4]);
    assert_eq!(found(&files, dir, 100, ALICE), allowed);
    assert_eq!(found(&files, dir, 1, BOB), ["0"]);
    assert_eq!(found(&files, dir, 300, ROOT).len(), 300);
}

#[test]
fn every_directory_on_the_way_must_be_searchable() {
    let (files, dir) = collection(2, "f32", "l2");
    let outer = make(&files, dir, "outer", Kind::Dir, ALICE, 0o755);
    let inner = make(&files, outer, "inner", Kind::Dir, ALICE, 0o755);
    make(&files, inner, "f", Kind::File, ALICE, 0o644);
    put_at(&files, dir, "outer/inner/f", 1.0);
    assert_eq!(found(&files, dir, 5, BOB), ["outer/inner/f"]);
    for closed in [outer, inner, dir, ROOT_INO] {
        chmod(&files, closed, 0o744);
        let request = r#"{"vector":[0,0]}"#;
        let reply = json(&files, SessionKind::Search, dir, request, BOB);
        assert_eq!(paths(&reply), [""; 0], "closed {closed:?}");
        assert_eq!(found(&files, dir, 5, ROOT), ["outer/inner/f"]);
        chmod(&files, closed, 0o755);
    }
    chmod(&files, outer, 0o700);
    assert_eq!(found(&files, dir, 5, ALICE), ["outer/inner/f"], "the owner may");
    let reply = json(&files, SessionKind::Search, dir, r#"{"vector":[0,0],"subdir":"outer/inner"}"#, BOB);
    assert_eq!(reply["errno"], libc::EACCES, "{reply}");
}

#[test]
fn a_path_longer_than_a_request_may_have_hides_no_other_hit() {
    let (files, dir) = collection(2, "f32", "l2");
    file(&files, dir, "near");
    put_at(&files, dir, "near", 2.0);
    let mut deep = dir;
    let name = "d".repeat(250);
    for _ in 0..20 {
        deep = make(&files, deep, &name, Kind::Dir, ALICE, 0o755);
    }
    make(&files, deep, "f", Kind::File, ALICE, 0o644);
    put_at(&files, deep, "f", 1.0);
    assert_eq!(found(&files, dir, 5, BOB), ["near"]);
    assert_eq!(found(&files, deep, 5, BOB), ["f"]);
}

#[test]
fn classes_of_permission_bits_do_not_add_up() {
    let (files, dir) = collection(2, "f32", "l2");
    let f = make(&files, dir, "f", Kind::File, ALICE, 0o044);
    put_at(&files, dir, "f", 1.0);
    assert!(found(&files, dir, 5, ALICE).is_empty(), "the owner's class says no");
    assert_eq!(found(&files, dir, 5, BOB), ["f"]);
    chmod(&files, f, 0o604);
    let same_group = Caller { uid: 1002, gid: 1000, pid: 0 };
    assert!(found(&files, dir, 5, same_group).is_empty(), "the group's class says no");
    chmod(&files, f, 0o640);
    assert_eq!(found(&files, dir, 5, same_group), ["f"]);
    assert!(found(&files, dir, 5, BOB).is_empty());
}

#[test]
fn supplementary_groups_come_from_the_calling_process() {
    if !rustix::process::geteuid().is_root() {
        return; // Only root may take on other groups; identify() itself is tested without.
    }
    let (files, dir) = collection(2, "f32", "l2");
    let owner = Caller { uid: 5, gid: 2000, pid: 0 };
    make(&files, dir, "f", Kind::File, owner, 0o640);
    put_at(&files, dir, "f", 1.0);
    let mut process = vexfs_harness::command("setpriv")
        .args(["--reuid", "1000", "--regid", "1000", "--groups", "2000,3000", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("setpriv (util-linux) runs");
    // Its echo says that it has its new ids.
    process.stdin.as_mut().expect("a pipe").write_all(b"x").expect("writes");
    process.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("reads");
    let member = Caller { uid: 1000, gid: 1000, pid: process.id() };
    let with_groups = found(&files, dir, 5, member);
    let other_user = found(&files, dir, 5, Caller { uid: 1003, ..member });
    drop(process.stdin.take());
    process.wait().expect("ends");
    assert_eq!(with_groups, ["f"]);
    assert!(other_user.is_empty(), "another user's process lends no groups");
    assert!(found(&files, dir, 5, member).is_empty(), "the process is gone: fail closed");
}

#[test]
fn a_put_needs_write_permission() {
    let (files, dir) = collection(2, "f32", "l2");
    make(&files, dir, "f", Kind::File, ALICE, 0o644);
    let rows = r#""rows":[{"vector":[1,1],"length":1}]"#;
    let put = |path: &str, caller| {
        json(&files, SessionKind::Put, dir, &format!(r#"{{"file":"{path}",{rows}}}"#), caller)["errno"]
            .clone()
    };
    assert_eq!(put("f", BOB), libc::EACCES);
    assert_eq!(put("f", ALICE), Value::Null);
    let closed = make(&files, dir, "closed", Kind::Dir, ROOT, 0o700);
    make(&files, closed, "g", Kind::File, ALICE, 0o666);
    assert_eq!(put("closed/g", ALICE), libc::EACCES, "no way to the file");
    assert_eq!(put("closed/g", ROOT), Value::Null);

    let f = files.access.read().lookup(dir, b"f").expect("there").ino;
    assert_eq!(files.set_vector(f, &[0; 8], None, &BOB).unwrap_err().errno, libc::EACCES);
    assert_eq!(files.remove_vector(f, &BOB).unwrap_err().errno, libc::EACCES);
    assert_eq!(files.set_vector(f, &[0; 8], None, &ALICE), Ok(()));
    chmod(&files, f, 0o600);
    assert_eq!(files.vector(f, &BOB).unwrap_err().errno, libc::EACCES);
    assert_eq!(files.vector(f, &ALICE), Ok(vec![0; 8]));
}

#[test]
fn publishing_needs_what_rename_needs() {
    let (files, dir) = collection(2, "f32", "l2");
    let publish = |path: &str, name: &str, caller| {
        let request = format!(r#"{{"file":"{path}","publish_as":"{name}","rows":[]}}"#);
        json(&files, SessionKind::Put, dir, &request, caller)["errno"].clone()
    };
    make(&files, dir, "f", Kind::File, ALICE, 0o644);
    assert_eq!(publish("f", "g", ALICE), libc::EACCES, "the directory is root's");
    let shared = make(&files, dir, "tmp", Kind::Dir, ROOT, 0o777);
    chmod(&files, shared, 0o1777);
    make(&files, shared, "mine", Kind::File, ALICE, 0o644);
    make(&files, shared, "his", Kind::File, BOB, 0o666);
    assert_eq!(publish("tmp/his", "x", ALICE), libc::EPERM, "his file, sticky");
    assert_eq!(publish("tmp/mine", "his", ALICE), libc::EPERM, "over his file, sticky");
    assert_eq!(publish("tmp/mine", "new", ALICE), Value::Null);
    assert!(files.access.read().lookup(shared, b"new").is_ok());
}

#[test]
fn a_collection_is_made_by_who_may_write_the_directory() {
    let files = volume();
    let dir = make(&files, ROOT_INO, "d", Kind::Dir, ALICE, 0o755);
    let (alices, bobs) =
        (files.open(SessionKind::Schema, dir, &ALICE), files.open(SessionKind::Schema, dir, &BOB));
    let schema = br#"{"dim":2,"element":"f32","metric":"l2"}"#;
    assert_eq!(files.write(bobs.expect("opens"), 0, schema).unwrap_err().errno, libc::EACCES);
    assert_eq!(files.write(alices.expect("opens"), 0, schema), Ok(schema.len()));
}
