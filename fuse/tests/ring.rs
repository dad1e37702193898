//! The mount with requests by io_uring, where the kernel has FUSE over io_uring (Linux 6.14).

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use common::{Bench, can_mount};
use vexfs_harness::FuseRings;

/// Threads of a process whose name begins so.
fn threads(pid: i32, name: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|found| found.starts_with(name)).count()
}

/// A directory of files of many sizes, written and read in pieces of many sizes, with fsyncs.
fn work(dir: &Path, seed: u8) {
    fs::create_dir(dir).unwrap();
    for i in 0..30_u32 {
        let path = dir.join(format!("file{i}"));
        let bytes: Vec<u8> = (0..i * i * 4000 + i).map(|at| (at / 7) as u8 ^ seed).collect();
        let mut file = File::create(&path).unwrap();
        for piece in bytes.chunks(1 << (8 + i % 13)) {
            file.write_all(piece).unwrap();
        }
        if i % 3 == 0 {
            file.sync_all().unwrap();
        }
        let mut back = Vec::new();
        File::open(&path).unwrap().read_to_end(&mut back).unwrap();
        assert!(back == bytes, "{path:?}");
        fs::rename(&path, dir.join(format!("named{i}"))).unwrap();
        xattr::set(dir.join(format!("named{i}")), "user.size", bytes.len().to_string().as_bytes()).unwrap();
    }
    fs::remove_file(dir.join("named7")).unwrap();
}

fn check(dir: &Path, seed: u8) {
    assert_eq!(fs::read_dir(dir).unwrap().count(), 29);
    for i in (0..30_u32).filter(|i| *i != 7) {
        let path = dir.join(format!("named{i}"));
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u32, i * i * 4000 + i);
        assert!(bytes.iter().zip(0_u32..).all(|(byte, at)| *byte == (at / 7) as u8 ^ seed), "{path:?}");
        assert_eq!(xattr::get(&path, "user.size").unwrap().unwrap(), bytes.len().to_string().as_bytes());
    }
}

/// A file whose only page with bytes is found by lseek(2) while the kernel still holds it back, again and again.
fn seek(path: &Path) {
    let file = File::create(path).unwrap();
    for page in (1..40_u64).rev() {
        file.write_all_at(&[7; 4096], page * 4096).unwrap();
        let found =
            [SeekFrom::Data(0), SeekFrom::Hole(page * 4096)].map(|from| rustix::fs::seek(&file, from));
        // More of them at once than a ring takes.
        if !found.contains(&Err(Errno::OPNOTSUPP)) {
            assert_eq!(found, [Ok(page * 4096), Ok((page + 1) * 4096)]);
        }
        file.set_len(0).unwrap();
    }
}

#[test]
fn seeks_for_which_the_kernel_must_write_back_never_wait_for_each_other() {
    if !can_mount() {
        return;
    }
    let enabled = FuseRings::enable();
    for options in ["nouring,threads=2", "uring"] {
        if options == "uring" && enabled.is_err() {
            eprintln!("skipped: this kernel has no FUSE over io_uring");
            return;
        }
        let bench = Bench::new(512 << 20);
        let mount = bench.mount(options);
        let processors = thread::available_parallelism().unwrap().get();
        thread::scope(|scope| {
            for i in 0..40 * processors {
                let path = bench.path(&format!("file{i}"));
                scope.spawn(move || seek(&path));
            }
        });
        mount.unmount();
    }
}

#[test]
fn requests_by_rings_do_what_requests_by_the_device_do() {
    let Some(_enabled) = can_mount().then(FuseRings::enable).and_then(Result::ok) else {
        eprintln!("skipped: this kernel has no FUSE over io_uring");
        return;
    };
    let bench = Bench::new(512 << 20);
    let mount = bench.mount("uring,commit=3600");
    // Answered once the rings are there.
    fs::write(bench.path("one"), "").unwrap();
    let processors = thread::available_parallelism().unwrap().get();
    assert!(threads(mount.pid().as_raw_nonzero().get(), "vexfs-ring") >= processors, "rings are in use");
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 0..4 {
            let dir = bench.path(&format!("dir{seed}"));
            scope.spawn(move || work(&dir, seed));
        }
        // Commits all the time: others do not wait for them, and more of them wait than a ring has entries.
        let syncers: Vec<_> = (0..40)
            .map(|i| {
                let file = File::create(bench.path(&format!("synced{i}"))).unwrap();
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        file.write_all_at(b"synced", 0).unwrap();
                        file.sync_all().unwrap();
                    }
                })
            })
            .collect();
        for i in 0..300 {
            fs::write(bench.path("one"), format!("{i}")).unwrap();
            assert_eq!(fs::read_to_string(bench.path("one")).unwrap(), format!("{i}"));
        }
        stop.store(true, Ordering::Relaxed);
        syncers.into_iter().for_each(|syncer| syncer.join().unwrap());
    });
    mount.unmount();
    for options in ["nouring", "uring"] {
        let mount = bench.mount(options);
        (0..4).for_each(|seed| check(&bench.path(&format!("dir{seed}")), seed));
        let rings = threads(mount.pid().as_raw_nonzero().get(), "vexfs-ring");
        assert_eq!(rings > 0, options == "uring");
        mount.unmount();
    }
}
