//! What is refused, bounded or left undone: space, RAM, pages that can't be read, names that are not for everyone.

use std::os::unix::fs::OpenOptionsExt;

use layout::error::Error;
use layout::fs::XattrFlags;
use layout::schema::{Element, Metric, Schema};

use super::*;
use crate::mount::session_files::Sessions;
use crate::session::{Caller, SessionKind, SessionSettings};

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// Makes the collection `c` with vectors of two elements.
fn collection(m: &Mounted) -> Ino {
    let dir = m.create(Ino(2), b"c", NewInode { kind: Kind::Dir, perm: 0o755, ..FILE }, false).unwrap().ino;
    let schema = Schema::new(2, Element::F32, Metric::L2).unwrap();
    m.change(crate::engine::Cost::Pages(0), |fs| {
        fs.collection_create(dir, schema, super::super::volume::now())
    })
    .unwrap();
    dir
}

/// Puts a row by an open session file.
fn put(sessions: &Sessions, handle: u64, request: &[u8]) -> String {
    for (i, part) in request.chunks(1 << 20).enumerate() {
        sessions.write(SessionKind::Put, handle, (i as u64) << 20, part).unwrap();
    }
    String::from_utf8(sessions.read(SessionKind::Put, handle, 0, 4096).unwrap()).unwrap()
}

#[test]
fn one_handle_takes_puts_without_end() {
    let m = mounted(formatted_with(8192));
    let dir = collection(&m);
    m.create(dir, b"f", FILE, false).unwrap();
    let sessions = Sessions::new(Arc::clone(&m), SessionSettings::default());
    let handle = sessions.open(SessionKind::Put, dir, &ROOT).unwrap();
    let mut request = br#"{"file":"f","rows":[{"vector":[1,2],"length":1}]}"#.to_vec();
    request.resize(2 << 20, b' ');
    // All of them together are larger than the volume.
    for _ in 0..20 {
        let reply = put(&sessions, handle, &request);
        assert!(reply.contains(r#""count":1"#), "{reply}");
    }
}

#[test]
fn the_orphans_of_a_crash_are_freed_some_in_an_epoch() {
    let device = formatted();
    let m = mounted(Arc::clone(&device) as Arc<dyn Device>);
    let used = m.reading().unwrap().superblock().inodes_used;
    for _ in 0..100 {
        m.tmpfile(Ino(2), FILE).unwrap();
    }
    m.sync().unwrap();
    let device = device.after_crash();
    let before = device.commits();
    let m = mounted(Arc::clone(&device) as Arc<dyn Device>);
    assert_eq!(m.reading().unwrap().superblock().inodes_used, used);
    assert_eq!(device.commits() - before, 3);
}

#[test]
fn a_page_that_cannot_be_read_leaves_a_file_that_would_be_cut_there_as_it_is() {
    let device = formatted();
    let m = mounted(Arc::clone(&device) as Arc<dyn Device>);
    let ino = m.create(Ino(2), b"f", FILE, true).unwrap().ino;
    m.write(ino, 0, &[1; 9000], true).unwrap();
    m.sync().unwrap();
    let before = m.inode(ino).unwrap();
    device.fail_reads(IoError::Io("bad backing".to_owned()));
    let truncated = m.setattr(ino, SetAttr { size: Some(5000), ..SetAttr::default() }, true);
    let changes = [
        truncated.map(drop),
        m.punch_hole(ino, 100, 5000, true),
        m.zero_range(ino, 0, 5000, true, true),
        m.zero_range(ino, 8000, 1 << 20, false, true),
    ];
    for change in changes {
        assert!(matches!(change, Err(Error::Io(_))), "{change:?}");
        assert_eq!(m.inode(ino).unwrap(), before);
    }
    m.setattr(ino, SetAttr { size: Some(8192), ..SetAttr::default() }, true).unwrap();
}

#[test]
fn names_of_trusted_attributes_are_for_the_administrator() {
    let m = mounted(formatted());
    let ino = m.create(Ino(2), b"f", FILE, false).unwrap().ino;
    for name in [&b"trusted.a"[..], b"user.b"] {
        m.setxattr(ino, name, b"x", XattrFlags::empty(), false).unwrap();
    }
    assert_eq!(m.listxattr(ino, true).unwrap(), b"trusted.a\0user.b\0");
    assert_eq!(m.listxattr(ino, false).unwrap(), b"user.b\0");
}

#[test]
fn rows_that_find_no_room_as_attributes_take_no_rows_away() {
    let m = mounted(formatted());
    let dir = collection(&m);
    let ino = m.create(dir, b"f", FILE, false).unwrap().ino;
    let sessions = Sessions::new(Arc::clone(&m), SessionSettings::default());
    let handle = sessions.open(SessionKind::Put, dir, &ROOT).unwrap();
    put(&sessions, handle, br#"{"file":"f","rows":[{"vector":[1,2],"length":1}]}"#);
    m.rename((dir, b"f"), (Ino(2), b"out"), layout::fs::RenameFlags::empty()).unwrap();
    m.setxattr(ino, b"user.fill", &vec![1; 65_400], XattrFlags::empty(), false).unwrap();
    let rows = m.getxattr(ino, b"user.vexfs.rows").unwrap();
    let refused = m.setxattr(ino, b"user.vexfs.rows", &rows, XattrFlags::empty(), false);
    assert_eq!(refused, Err(Error::NoSpace));
    assert_eq!(m.getxattr(ino, b"user.vexfs.rows"), Ok(rows), "they are live still");
}

#[test]
fn synchronous_writes_are_committed_on_a_volume_that_is_nearly_full() {
    let device = formatted_with(8192);
    let Some(m) = TestMount::new(&device, "commit=1000") else { return };
    let fill = fs::File::create(m.path("fill")).unwrap();
    for at in 0..37 {
        fill.write_all_at(&vec![1; 200 * 4096], at * 200 * 4096).unwrap();
        fill.sync_all().unwrap();
    }
    assert!(m.running.as_ref().unwrap().mounted().is_narrow(1 << 18), "files are written through now");
    for flags in [libc::O_SYNC, libc::O_DSYNC] {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).custom_flags(flags).open(m.path("f")).unwrap();
        for at in 0..3 {
            let before = device.commits();
            file.write_all_at(b"x", at).unwrap();
            assert_eq!(device.commits(), before + 1);
        }
    }
    m.unmount();
}
