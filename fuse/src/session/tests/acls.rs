//! ACLs in the search gate and in the checks of session files.

use layout::acl::AclKind;

use super::*;

const ALICE: Caller = Caller { uid: 1000, gid: 1000, pid: 0 };
const BOB: Caller = Caller { uid: 1001, gid: 1001, pid: 0 };
const CAROL: Caller = Caller { uid: 1002, gid: 1002, pid: 0 };
const READ: u16 = 4;
const WRITE: u16 = 2;
const SEARCH: u16 = 1;

/// Sets an access ACL: the owner may everything, Bob and Carol's group what is given, others `other`.
fn allow(files: &Files, ino: Ino, bob: u16, carols: u16, mask: u16, other: u16) {
    let nobody = u32::MAX;
    let entries = [
        (0x01u16, 7, nobody),
        (0x02, bob, BOB.uid),
        (0x04, 0, nobody),
        (0x08, carols, CAROL.gid),
        (0x10, mask, nobody),
        (0x20, other, nobody),
    ];
    let mut value = Vec::from(2u32.to_le_bytes());
    for (tag, perm, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(perm.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    change(files, |fs| fs.set_acl(ino, AclKind::Access, &value, false, now())).expect("sets the ACL");
}

fn found(files: &Files, dir: Ino, caller: Caller) -> Vec<String> {
    let reply = json(files, SessionKind::Search, dir, r#"{"vector":[0,0]}"#, caller);
    paths(&reply).into_iter().map(str::to_string).collect()
}

fn put_at(files: &Files, dir: Ino, path: &str, caller: Caller) -> Value {
    let request = format!(r#"{{"file":"{path}","rows":[{{"vector":[1,0],"length":1}}]}}"#);
    json(files, SessionKind::Put, dir, &request, caller)["errno"].clone()
}

#[test]
fn a_search_finds_what_an_acl_admits_and_not_what_it_denies() {
    let (files, dir) = collection(2, "f32", "l2");
    let f = make(&files, dir, "f", Kind::File, ALICE, 0o600);
    assert_eq!(put_at(&files, dir, "f", ROOT), Value::Null);
    let nothing: [&str; 0] = [];
    for who in [BOB, CAROL] {
        assert_eq!(found(&files, dir, who), nothing);
    }
    allow(&files, f, READ, READ, 7, 0);
    for who in [ALICE, BOB, CAROL] {
        assert_eq!(found(&files, dir, who), ["f"], "{who:?}");
    }
    let stranger = Caller { uid: 7, gid: 7, pid: 0 };
    assert_eq!(found(&files, dir, stranger), nothing);
    // The mask takes it away; a named entry counts though all others may.
    allow(&files, f, READ, READ, WRITE | SEARCH, READ);
    assert_eq!(found(&files, dir, BOB), nothing);
    assert_eq!(found(&files, dir, CAROL), nothing);
    assert_eq!(found(&files, dir, stranger), ["f"]);
    allow(&files, f, 0, WRITE, 7, READ);
    assert_eq!(found(&files, dir, BOB), nothing);
    assert_eq!(found(&files, dir, CAROL), nothing);
}

#[test]
fn acls_of_the_directories_on_the_way_count() {
    let (files, dir) = collection(2, "f32", "l2");
    let outer = make(&files, dir, "outer", Kind::Dir, ALICE, 0o700);
    let inner = make(&files, outer, "inner", Kind::Dir, ALICE, 0o700);
    make(&files, inner, "f", Kind::File, ALICE, 0o644);
    assert_eq!(put_at(&files, dir, "outer/inner/f", ROOT), Value::Null);
    assert!(found(&files, dir, BOB).is_empty());
    allow(&files, outer, SEARCH, 0, 7, 0);
    assert!(found(&files, dir, BOB).is_empty(), "the inner one is closed");
    allow(&files, inner, SEARCH, 0, 7, 0);
    assert_eq!(found(&files, dir, BOB), ["outer/inner/f"]);
    assert!(found(&files, dir, CAROL).is_empty());
    let below = |who| {
        json(&files, SessionKind::Search, dir, r#"{"vector":[0,0],"subdir":"outer/inner"}"#, who)["errno"]
            .clone()
    };
    assert_eq!((below(BOB), below(CAROL)), (Value::Null, libc::EACCES.into()));
    // Open to all but Bob; and to Bob, but for the mask.
    for (bob, mask) in [(READ, 7), (7, READ)] {
        allow(&files, outer, bob, SEARCH, mask, SEARCH);
        allow(&files, inner, 7, 7, 7, 7);
        assert!(found(&files, dir, BOB).is_empty(), "{bob} {mask}");
        assert_eq!(below(BOB), libc::EACCES);
        assert_eq!(found(&files, dir, Caller { uid: 7, gid: 7, pid: 0 }), ["outer/inner/f"]);
    }
}

#[test]
fn puts_and_schemas_need_what_the_acl_gives() {
    let (files, dir) = collection(2, "f32", "l2");
    let f = make(&files, dir, "f", Kind::File, ALICE, 0o622);
    allow(&files, f, READ | WRITE, WRITE, 7, WRITE);
    assert_eq!(put_at(&files, dir, "f", BOB), Value::Null);
    allow(&files, f, READ, WRITE, 7, WRITE);
    assert_eq!(put_at(&files, dir, "f", BOB), libc::EACCES);
    assert_eq!(put_at(&files, dir, "f", CAROL), Value::Null);
    assert_eq!(files.vector(f, &CAROL).unwrap_err().errno, libc::EACCES);
    assert!(files.vector(f, &BOB).is_ok());
    assert_eq!(files.set_vector(f, &[0; 8], None, &BOB).unwrap_err().errno, libc::EACCES);
    assert_eq!(files.remove_vector(f, &BOB).unwrap_err().errno, libc::EACCES);

    let publish = |who| {
        let request = r#"{"file":"f","publish_as":"g","rows":[]}"#;
        json(&files, SessionKind::Put, dir, request, who)["errno"].clone()
    };
    assert_eq!(publish(CAROL), libc::EACCES);
    allow(&files, dir, READ | SEARCH, WRITE | SEARCH, 7, 7);
    assert_eq!(publish(BOB), libc::EACCES);
    assert_eq!(publish(CAROL), Value::Null);

    let plain = make(&files, ROOT_INO, "d", Kind::Dir, ALICE, 0o777);
    allow(&files, plain, READ, WRITE, 7, WRITE);
    let schema = br#"{"dim":2,"element":"f32","metric":"l2"}"#;
    let make = |who| {
        let handle = files.open(SessionKind::Schema, plain, &who).expect("opens");
        files.write(handle, 0, schema).map_err(|error| error.errno)
    };
    assert_eq!(make(BOB), Err(libc::EACCES));
    assert_eq!(make(CAROL), Ok(schema.len()));
}
