//! A volume with something of everything, and the file system logic over what a check left of it.

use std::sync::Arc;

use layout::acl::AclKind;
use layout::addr::{PAGE, PageNo};
use layout::fs::{FormatParams, Fs, NewInode, SetAttr, XattrFlags};
use layout::inode::{Ino, Kind, ROOT_INO};
use layout::page_store::Timespec;
use layout::schema::{Element, Metric, Schema};
use layout::testing::{MemStore, commit, format_params, mount};
use layout::uapi::raw::vexfs_put_row;

use crate::engine::ram::RamDevice;

pub const NOW: Timespec = Timespec { secs: 1_700_000_000, nanos: 7 };

pub fn new(kind: Kind) -> NewInode {
    NewInode { kind, perm: 0o755, uid: 5, gid: 6, umask: 0, rdev: 0 }
}

/// Bytes of a file at `offset`, a page of them.
pub fn write(fs: &mut Fs<MemStore>, ino: Ino, offset: u64) {
    let inode = fs.prepare_write(ino, offset, PAGE as u64).unwrap();
    let run = fs.map(&inode, offset).unwrap();
    fs.store().put(PageNo::containing(run.byte), &[offset as u8 | 1; PAGE]);
    fs.finish_write(ino, offset + PAGE as u64, NOW).unwrap();
}

fn put_rows(fs: &mut Fs<MemStore>, dir: Ino, file: Ino, count: usize, append: bool) {
    let rows: Vec<vexfs_put_row> = (0..count as u64)
        .map(|i| vexfs_put_row { offset: i.into(), length: 1.into(), tag: i.into(), reserved: 0.into() })
        .collect();
    let vectors: Vec<u8> = (0..count * 24).flat_map(|i| (i as f32).to_le_bytes()).collect();
    fs.put_rows(dir, file, &rows, &vectors, append, NOW).unwrap();
}

/// Everything that a volume can have; `names`: entries of its large directory.
pub fn rich(names: usize) -> Fs<MemStore> {
    let mut fs = mount(&MemStore::formatted(FormatParams { uuid: [0; 16], ..format_params() })).unwrap();
    let a = fs.create(ROOT_INO, b"a", new(Kind::Dir), NOW).unwrap().ino;
    let b = fs.create(a, b"b", new(Kind::Dir), NOW).unwrap().ino;
    let c = fs.create(b, b"c", new(Kind::Dir), NOW).unwrap().ino;
    fs.create(c, b"empty", new(Kind::Dir), NOW).unwrap();
    fs.create(c, b"fifo", new(Kind::Fifo), NOW).unwrap();
    fs.create(c, b"device", NewInode { rdev: 0x103, ..new(Kind::CharDevice) }, NOW).unwrap();
    let big = fs.create(ROOT_INO, b"big", new(Kind::Dir), NOW).unwrap().ino;
    for i in 0..names {
        fs.create(big, format!("{i:0>240}").as_bytes(), new(Kind::File), NOW).unwrap();
    }
    for (i, offset) in [0, 5 << 12, 3 << 20, 2 << 30, 5 << 40].into_iter().enumerate() {
        let f = fs.create(a, format!("file {i}").as_bytes(), new(Kind::File), NOW).unwrap().ino;
        write(&mut fs, f, 0);
        write(&mut fs, f, offset);
        fs.link(f, b, format!("link {i}").as_bytes(), NOW).unwrap();
        fs.setxattr(f, b"user.small", b"value", XattrFlags::empty(), NOW).unwrap();
        if i > 2 {
            fs.setxattr(f, b"user.large", &[7; 9000], XattrFlags::empty(), NOW).unwrap();
        }
    }
    for i in 0..260 {
        // More links than a byte counts.
        let f = fs.lookup(a, b"file 0").unwrap().ino;
        fs.link(f, c, format!("hard {i}").as_bytes(), NOW).unwrap();
    }
    // An owner, a named user, the group, a mask and others; it is also what is made below inherits.
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, u32::MAX), (2, 6, 1000), (4, 5, u32::MAX), (0x10, 7, u32::MAX), (0x20, 1, u32::MAX)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        acl.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    fs.set_acl(b, AclKind::Access, &acl, false, NOW).unwrap();
    fs.set_acl(b, AclKind::Default, &acl, false, NOW).unwrap();
    fs.create(b, b"inherits", new(Kind::File), NOW).unwrap();
    fs.symlink(a, b"short", b"../where", 0, 0, NOW).unwrap();
    let long = fs.symlink(a, b"long", &[b'x'; 2000], 0, 0, NOW).unwrap().ino;
    fs.setxattr(long, b"trusted.x", b"1", XattrFlags::empty(), NOW).unwrap();
    let col = fs.create(ROOT_INO, b"col", new(Kind::Dir), NOW).unwrap().ino;
    fs.collection_create(col, Schema::new(24, Element::F32, Metric::L2).unwrap(), NOW).unwrap();
    let mut files = Vec::new();
    for i in 0..6 {
        let f = fs.create(col, format!("doc {i}").as_bytes(), new(Kind::File), NOW).unwrap().ino;
        write(&mut fs, f, 0);
        put_rows(&mut fs, col, f, 30 + i * 20, false);
        files.push(f);
    }
    put_rows(&mut fs, col, files[1], 5, true);
    fs.kill_rows(files[2]).unwrap();
    let other = fs.create(ROOT_INO, b"col 2", new(Kind::Dir), NOW).unwrap().ino;
    fs.collection_create(other, Schema::new(24, Element::F32, Metric::Cosine).unwrap(), NOW).unwrap();
    commit(&mut fs, NOW);
    // Free numbers on both stacks, and what was open when the machine stopped.
    for i in 0..8 {
        let name = format!("gone {i}");
        let f = fs.create(a, name.as_bytes(), new(Kind::File), NOW).unwrap().ino;
        for offset in [0, 2 << 20, 3 << 30] {
            write(&mut fs, f, offset);
        }
        fs.unlink(a, name.as_bytes(), NOW).unwrap();
        if i < 5 {
            fs.reap(f).unwrap();
        }
        if i == 3 {
            commit(&mut fs, NOW);
        }
    }
    let f = fs.create(c, b"truncated", new(Kind::File), NOW).unwrap().ino;
    write(&mut fs, f, 4 << 20);
    fs.setattr(f, SetAttr { size: Some(100), ..SetAttr::default() }, NOW).unwrap();
    for i in 0..names / 2 {
        let name = format!("{i:0>240}");
        let f = fs.unlink(big, name.as_bytes(), NOW).unwrap().ino;
        fs.reap(f).unwrap();
    }
    commit(&mut fs, NOW);
    assert_eq!(layout::testing::check(&fs), Ok(()));
    fs
}

/// The same pages on a device.
pub fn device(store: &MemStore) -> Arc<RamDevice> {
    let device = RamDevice::new(1 << 20);
    for page in store.mapped() {
        device.put(page.0, &store.get(page));
    }
    device
}

/// The pages of a device in a store for the file system logic.
pub fn store(device: &RamDevice) -> MemStore {
    let store = MemStore::new();
    for page in device.mapped() {
        store.put(PageNo(page), &device.page(page));
    }
    store
}
