//! What a commit means for the operations beside it.

use std::thread;

use layout::addr::{PAGE, PageNo};
use layout::fs::{RenameFlags, XattrFlags};
use layout::windows;

use super::*;
use crate::mount::holes::Seek;

const ROOT: Ino = Ino(2);
const PAGE_BYTES: u64 = PAGE as u64;

fn directory(m: &Mounted, name: &[u8]) -> Ino {
    m.create(ROOT, name, NewInode { kind: Kind::Dir, perm: 0o755, ..FILE }, false).unwrap().ino
}

fn file(m: &Mounted, name: &[u8], bytes: &[u8]) -> Ino {
    let ino = m.create(ROOT, name, FILE, false).unwrap().ino;
    m.write(ino, 0, bytes, true).unwrap();
    ino
}

/// Every operation of a mount, on names and inodes that the commit under way also holds: `f` is a file of eight pages, `d` a directory.
fn operate(m: &Mounted, f: Ino, d: Ino, round: u8) {
    let made = m.create(d, b"made", FILE, true).unwrap().ino;
    assert_eq!(m.lookup(d, b"made").unwrap().ino, made);
    m.write(f, 3, &[round; 2 * PAGE], true).unwrap();
    assert_eq!(m.read(f, 3, 2 * PAGE).unwrap()[..], [round; 2 * PAGE]);
    m.write(made, 0, &[round; 100], true).unwrap();
    m.release(made);

    let perm = SetAttr { perm: Some(0o600), ..SetAttr::default() };
    m.setattr(f, perm, true).unwrap();
    m.setattr(f, SetAttr { size: Some(20 * PAGE_BYTES), ..SetAttr::default() }, true).unwrap();
    m.setattr(f, SetAttr { size: Some(8 * PAGE_BYTES - 5), ..SetAttr::default() }, true).unwrap();
    m.punch_hole(f, 4 * PAGE_BYTES, PAGE_BYTES, true).unwrap();
    m.zero_range(f, 5 * PAGE_BYTES, 10, true, true).unwrap();
    m.allocate(f, 0, 8 * PAGE_BYTES, false, true).unwrap();
    assert_eq!(m.seek(f, 0, Seek::Data).unwrap(), Some(0));
    m.copy((f, 0), (made, 0), PAGE_BYTES, true).unwrap();
    assert_eq!(m.read(made, PAGE_BYTES - 1, 1).unwrap()[..], [round]);
    m.blocks(&m.inode(f).unwrap()).unwrap();

    m.setxattr(f, b"user.round", &[round; 1000], XattrFlags::empty(), false).unwrap();
    assert_eq!(m.getxattr(f, b"user.round").unwrap(), [round; 1000]);
    assert_ne!(m.listxattr(f, true).unwrap(), b"");
    m.removexattr(f, b"user.round").unwrap();

    m.link(f, d, b"link").unwrap();
    let soft = m.symlink(d, b"soft", &[b't'; 400], (0, 0)).unwrap().ino;
    assert_eq!(m.readlink(soft).unwrap(), [b't'; 400]);
    m.rename((d, b"link"), (d, b"other"), RenameFlags::empty()).unwrap();
    m.rename((d, b"soft"), (d, b"other"), RenameFlags::EXCHANGE).unwrap();
    let mut names = 0;
    m.readdir(d, 0, true, &mut |_, _| {
        names += 1;
        true
    })
    .unwrap();
    assert_eq!(names, 5, "., .., made, soft and other");
    let nameless = m.tmpfile(d, FILE).unwrap().ino;
    m.write(nameless, 0, b"x", true).unwrap();
    m.release(nameless);
    for name in [&b"made"[..], b"soft", b"other"] {
        m.unlink(d, name).unwrap();
    }
    let below = m.create(d, b"below", NewInode { kind: Kind::Dir, perm: 0o755, ..FILE }, false).unwrap().ino;
    assert_eq!(m.inode(below).unwrap().nlink, 2);
    m.rmdir(d, b"below").unwrap();
    assert!(m.space().unwrap().free > 0);
}

/// The device keeps a commit waiting as long as it likes: were there an operation that waits for it, this would not end.
#[test]
fn every_operation_goes_on_while_the_device_holds_a_commit() {
    let device = formatted();
    let m = mounted(Arc::clone(&device) as Arc<dyn Device>);
    let (f, d) = (file(&m, b"f", &[1; 8 * PAGE]), directory(&m, b"d"));
    m.sync().unwrap();
    m.write(f, 0, &[2; 4 * PAGE], true).unwrap();
    device.hold_pages();
    device.hold_commits();
    let committer = {
        let m = Arc::clone(&m);
        thread::spawn(move || m.sync())
    };
    let mut rounds = 2;
    while !committer.is_finished() {
        if device.is_holding() {
            rounds += 1;
            operate(&m, f, d, rounds);
            assert!(device.is_holding() && !committer.is_finished(), "the commit is held by the device");
            device.let_these_go();
        }
        thread::yield_now();
    }
    committer.join().unwrap().unwrap();
    assert!(rounds > 2, "no operation met the commit");

    // It is of the moment of its freeze, and the next one has all the rest.
    let crashed = mounted(device.after_crash());
    assert_eq!(crashed.read(f, 0, 4 * PAGE).unwrap()[..], [2; 4 * PAGE]);
    assert_eq!(crashed.inode(f).unwrap().perm, 0o644);
    device.let_go();
    m.sync().unwrap();
    let crashed = mounted(device.after_crash());
    assert_eq!(crashed.read(f, 3, 2 * PAGE).unwrap()[..], [rounds; 2 * PAGE]);
    assert_eq!(crashed.inode(f).unwrap().perm, 0o600);
}

/// Pages that the committed state of the device maps for a file's bytes.
fn mapped(device: &RamDevice, inode: &layout::fs::Inode) -> usize {
    let crashed = device.after_crash();
    let ranges: Vec<_> =
        (0..windows::CLASSES).filter_map(|class| windows::class_pages(inode, class, 0, 1 << 48)).collect();
    let inside = |page: u64| ranges.iter().any(|r| (r.first.0..r.first.0 + r.count).contains(&page));
    crashed.mapped().into_iter().filter(|page| inside(*page)).count()
}

#[test]
fn what_is_deleted_is_discarded_in_the_same_commit() {
    let device = formatted();
    let m = mounted(Arc::clone(&device) as Arc<dyn Device>);
    let ino = file(&m, b"f", &[1; 10 * PAGE]);
    // In a window of each class.
    for border in [1 << 20, 1 << 30, 1 << 40] {
        m.write(ino, border - PAGE_BYTES, &[2; 2 * PAGE], true).unwrap();
    }
    m.setxattr(ino, b"user.large", &[3; 5000], XattrFlags::empty(), false).unwrap();
    m.sync().unwrap();
    let inode = m.inode(ino).unwrap();
    let xattrs = PageNo::containing(layout::addr::XATTR_BASE + ino.0 * layout::addr::XATTR_BYTES);
    assert_eq!(mapped(&device, &inode), 16);
    assert!(device.after_crash().is_mapped(xattrs.0));

    m.punch_hole(ino, 0, 4 * PAGE_BYTES, true).unwrap();
    m.sync().unwrap();
    assert_eq!(mapped(&device, &inode), 12);
    m.setattr(ino, SetAttr { size: Some((1 << 30) + 1), ..SetAttr::default() }, true).unwrap();
    m.sync().unwrap();
    assert_eq!(mapped(&device, &inode), 10, "cut off behind the border of a GiB");
    m.unlink(ROOT, b"f").unwrap();
    assert_eq!(mapped(&device, &inode), 10, "not before the commit");
    m.sync().unwrap();
    assert_eq!(mapped(&device, &inode), 0);
    assert!(!device.after_crash().is_mapped(xattrs.0));
}
