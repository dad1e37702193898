//! A volume that gets full and is emptied, again and again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfs, statvfs, syncfs};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use vexfs_tests::stage::{Mount, Stage};
use vexfs_tests::wait;

const PAGE: u64 = 4096;
const BIG: u64 = 3 << 20;
const SMALL: u64 = 22_000;
/// More files than a volume of 48 MiB takes of [`SMALL`] bytes.
const FILES: usize = 2000;
/// Commits come when they are asked for, not by a timer.
const UNTIMED: &str = "commit=100000";

fn content(number: u64, len: u64) -> Vec<u8> {
    (0..len).map(|at| (number * 31 + at / 64) as u8).collect()
}

fn no_space(what: &str, error: &io::Error) {
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{what}: {error}");
}

/// Files of a length, until one can't be written: those that were promised to be there, and the refused one as it is. Many are
/// synced together, since each sync of a change is a commit: space may be refused as late as at the sync, but not later.
fn fill(dir: &Path, round: u64, len: u64) -> Vec<(PathBuf, u64)> {
    let together = if len == SMALL { 500 } else { 1 };
    let mut good = Vec::new();
    for batch in 0.. {
        let mut written = Vec::new();
        let mut refused = None;
        for number in batch * together..(batch + 1) * together {
            let path = dir.join(format!("{round}-{number}"));
            let file =
                File::create(&path).and_then(|mut file| file.write_all(&content(number, len)).map(|()| file));
            match file {
                Ok(file) => written.push((file, path, number)),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        if let Some((file, ..)) = written.first() {
            // All at once; what it can't write is told by the file's own sync.
            let _ = syncfs(file);
        }
        for (file, path, number) in written {
            match file.sync_all() {
                Ok(()) => good.push((path, number)),
                Err(error) => refused = Some(error),
            }
        }
        if let Some(error) = refused {
            no_space("a write", &error);
            return good;
        }
    }
    unreachable!("batches do not end")
}

/// What is free, once all is committed.
fn space(mount: &Mount) -> StatVfs {
    File::open(mount.path()).and_then(|root| root.sync_all()).expect("the root can be synced");
    statvfs(mount.path()).expect("statfs")
}

fn remove_all(mount: &Mount) {
    for entry in fs::read_dir(mount.path()).expect("the root can be read") {
        fs::remove_file(entry.expect("an entry").path()).expect("a full volume lets go of files");
    }
}

/// Removes all and waits until all inodes are free, without a commit. The kernel tells of the last close of a file a little later,
/// and only then a removed one is freed.
fn empty(mount: &Mount) {
    remove_all(mount);
    wait::until("only the root is left", || {
        let space = statvfs(mount.path()).expect("statfs");
        (space.f_files - space.f_ffree == 1).then_some(())
    });
}

/// Takes what stays for ever, as large as [`FILES`] files ever need it: the inode table, and for each kind of numbers both free
/// stacks, which are pushed on in epochs of one parity each (FORMAT.md, section 5.6).
fn take_what_stays(mount: &Mount) {
    // Three commits a round: the rounds end in epochs of different parity.
    for _ in 0..2 {
        for number in 0..FILES {
            File::create(mount.join(format!("{number}"))).expect("an empty file");
        }
        // Two windows: a page that has only the number 0 is not stored.
        for name in ["big", "bigger"] {
            let mut file = File::create(mount.join(name)).expect("a file with a window");
            file.write_all(&content(0, BIG)).and_then(|()| file.sync_all()).expect("a commit");
        }
        empty(mount);
        space(mount);
    }
}

#[test]
fn a_volume_filled_and_emptied_twenty_times_has_its_space_back() {
    let stage = Stage::vexfs(48);
    let mut mount = stage.mount_with(UNTIMED);
    take_what_stays(&mount);
    mount.unmount();
    let used_at_start = stage.status("used_pages");
    mount = stage.mount_with(UNTIMED);
    let start = space(&mount);
    for round in 0..20 {
        let len = if round % 6 == 3 { SMALL } else { BIG };
        let good = fill(mount.path(), round, len);
        let stored = good.len() as u64 * len.next_multiple_of(PAGE) / PAGE;
        let full = space(&mount);
        assert!(good.len() < FILES, "round {round}: {} files, more than were prepared for", good.len());
        // What statfs said was available could be had (each small file needs an inode, too), and nothing is left.
        assert!(
            stored * 10 >= start.f_bavail * 8,
            "round {round}: {stored} pages stored of {}",
            start.f_bavail
        );
        assert!(full.f_bavail * 20 <= start.f_bavail, "round {round}: full, with {} pages", full.f_bavail);
        if round % 5 == 0 {
            mount.unmount();
            mount = stage.mount_with(UNTIMED);
        }
        for (path, number) in &good {
            let bytes = fs::read(path).expect("a file of a full volume can be read");
            assert!(bytes == content(*number, len), "{} differs", path.display());
        }
        empty(&mount);
        // Not to the page: how many pages the store's own map needs depends on where the volume's pages stand in it.
        let lost = start.f_bfree.abs_diff(space(&mount).f_bfree);
        assert!(lost <= 80, "round {round}: {lost} pages of {} are not free again", start.f_bfree);
    }
    mount.unmount();
    // To the page, as the store counts them.
    assert_eq!(stage.status("used_pages"), used_at_start, "pages of an empty volume that hold something");
}

/// Writes a byte by mmap where the file has a hole.
fn map_and_write(path: &Path, at: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: a new mapping of one page that the file has and keeps; nothing else refers to it, and it is unmapped after its last use.
    unsafe {
        let page = mmap(std::ptr::null_mut(), PAGE as usize, protection, flags, &file, at)?;
        page.cast::<u8>().write(1);
        let synced = msync(page, PAGE as usize, MsyncFlags::SYNC);
        munmap(page, PAGE as usize)?;
        synced?;
    }
    file.sync_all()
}

#[test]
fn a_full_volume_says_so_and_stays_usable() {
    let stage = Stage::vexfs(48);
    let mount = stage.mount();
    fs::create_dir(mount.join("dir")).unwrap();
    File::create(mount.join("sparse")).and_then(|file| file.set_len(1 << 30)).unwrap();
    let good = fill(mount.path(), 0, BIG);
    // To the last page: what is refused to a large write may be left to a small one.
    let small = fill(mount.path(), 1, SMALL);
    let (path, number) = &good[0];

    let mut refused = 0;
    for at in 0..2000 {
        if let Err(error) = map_and_write(&mount.join("sparse"), at * PAGE) {
            no_space("a mapped write", &error);
            refused += 1;
            break;
        }
    }
    assert_eq!(refused, 1, "a full volume takes mapped writes without end");
    let sparse = File::open(mount.join("sparse")).unwrap();
    let mut byte = [7];
    sparse.read_exact_at(&mut byte, (1 << 30) - 1).unwrap();
    assert_eq!(byte, [0]);
    drop(sparse);

    // Everything is there, and everything that frees works.
    assert!(fs::read(path).unwrap() == content(*number, BIG));
    assert_eq!(
        fs::read_dir(mount.path()).unwrap().filter(|e| e.as_ref().unwrap().path() == *path).count(),
        1
    );
    fs::remove_dir(mount.join("dir")).expect("rmdir");
    File::options().write(true).open(&good[1].0).unwrap().set_len(0).expect("a truncation");
    for (path, _) in &small {
        fs::remove_file(path).expect("unlink");
    }
    fs::remove_file(path).expect("unlink");
    // And there is space again, at once and after a remount.
    fs::write(mount.join("again"), content(9, BIG)).expect("space for what was freed");
    File::open(mount.join("again")).unwrap().sync_all().unwrap();
    mount.unmount();
    let mount = stage.mount();
    assert!(fs::read(mount.join("again")).unwrap() == content(9, BIG));
    for (path, number) in &good[2..] {
        assert!(fs::read(path).unwrap() == content(*number, BIG));
    }
    let mut file = File::create(mount.join("more")).unwrap();
    file.write_all(&content(10, BIG / 2)).and_then(|()| file.sync_all()).expect("space after a remount");
    drop(file);
    mount.unmount();
}
