//! What programs rely on and copying does not show.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, statx, utimensat};
use vexfs_tests::stage::Stage;
use vexfs_tests::{process, programs};

#[test]
fn fio_verifies_by_read_write_mmap_and_direct_io() {
    let stage = Stage::vexfs(1024);
    let mount = stage.mount();
    for (engine, direct) in [("psync", "0"), ("mmap", "0"), ("libaio", "1")] {
        let mut fio = programs::fio();
        fio.args(["--rw=randwrite", "--bsrange=4k-128k", "--size=64m", "--verify=crc32c", "--do_verify=1"]);
        fio.args([
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--fallocate=none",
            "--iodepth=8",
            "--end_fsync=1",
            "--name=file",
        ]);
        fio.args([&format!("--ioengine={engine}"), &format!("--direct={direct}")]);
        process::ok(fio.arg(format!("--filename={}", mount.join(engine).display())));
    }
    let read_all = |root: &Path| ["psync", "mmap", "libaio"].map(|name| fs::read(root.join(name)).unwrap());
    let before = read_all(mount.path());
    mount.unmount();
    let mount = stage.mount();
    assert!(read_all(mount.path()) == before, "a remount shows something else");
    mount.unmount();
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    let stage = Stage::vexfs(128);
    let mount = stage.mount();
    let path = mount.join("file");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(b"before").unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all(b" and after").unwrap();
    // A new file of the same name is another one.
    fs::write(&path, b"new").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "before and after");
    drop(file);
    assert_eq!(fs::read(&path).unwrap(), b"new");
    mount.unmount();
}

#[test]
fn space_comes_back_when_files_go() {
    let stage = Stage::vexfs(256);
    let mount = stage.mount();
    let free = || {
        File::open(mount.path()).unwrap().sync_all().unwrap();
        let stat = rustix::fs::statvfs(mount.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    let at_first = free();
    assert!(at_first > 100 << 20, "an empty volume of 256 MiB has {at_first} bytes");
    for _ in 0..6 {
        fs::write(mount.join("file"), vec![1; 64 << 20]).unwrap();
        let less = free();
        assert!(at_first - less >= 60 << 20, "64 MiB written, but {} bytes less free", at_first - less);
        fs::remove_file(mount.join("file")).unwrap();
    }
    let lost = at_first.saturating_sub(free());
    assert!(lost < 16 << 20, "{lost} bytes did not come back");
    mount.unmount();
}

/// Without a commit between: what the last commit holds, the deletions and the new files must all find room.
#[test]
fn a_full_volume_can_be_emptied_and_filled_again_at_once() {
    let stage = Stage::vexfs(64);
    let mount = stage.mount();
    let directory = mount.join("many");
    let content: Vec<u8> = (0..6000u32).map(|i| ((i * i) >> 3) as u8).collect();
    let part = |number: usize| &content[..1 + number * 37 % 6000];
    for _ in 0..4 {
        fs::create_dir(&directory).unwrap();
        let path = |number: usize| directory.join(number.to_string());
        let full = |number: &usize| {
            let result = fs::write(path(*number), part(*number));
            result.is_err_and(|e| {
                assert_eq!(e.kind(), std::io::ErrorKind::StorageFull);
                true
            })
        };
        let count = (0..100_000).find(full).expect("the volume is full at some time");
        assert!(count > 4000, "full after {count} small files");
        File::open(&directory).unwrap().sync_all().unwrap();
        for number in 0..count {
            assert_eq!(fs::read(path(number)).unwrap(), part(number), "file {number}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }
    mount.unmount();
}

#[test]
fn a_directory_can_be_read_while_it_changes() {
    let stage = Stage::vexfs(256);
    let mount = stage.mount();
    let directory = mount.join("wide");
    fs::create_dir(&directory).unwrap();
    let stay: BTreeSet<String> = (0..5000).map(|number| format!("stay-{number}")).collect();
    for name in &stay {
        File::create(directory.join(name)).unwrap();
        File::create(directory.join(format!("go-{name}"))).unwrap();
    }
    let mut seen = BTreeSet::new();
    for (number, entry) in fs::read_dir(&directory).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("go-") {
            let _ = fs::remove_file(directory.join(&name));
        }
        File::create(directory.join(format!("come-{number}"))).unwrap();
        assert!(seen.insert(name.clone()), "{name} was given twice");
        if number > 40_000 {
            break; // new names may be given too, without end
        }
    }
    let missed: Vec<_> = stay.difference(&seen).collect();
    assert!(missed.is_empty(), "names that were there all the time were not given: {missed:?}");
    mount.unmount();
}

#[test]
fn holes_read_as_zeros_and_cost_nothing() {
    let stage = Stage::vexfs(128);
    let mount = stage.mount();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(mount.join("sparse")).unwrap();
    file.write_all_at(b"end", (5 << 40) + 10).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().len(), (5 << 40) + 13);
    let mut bytes = [1; 8192];
    for offset in [0, 4 << 20, 3 << 30, (5 << 40) - 8192] {
        file.read_exact_at(&mut bytes, offset).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "not zeros at {offset}");
    }
    file.set_len((5 << 40) + 11).unwrap();
    file.set_len((5 << 40) + 13).unwrap();
    let mut tail = [1; 3];
    file.read_exact_at(&mut tail, (5 << 40) + 10).unwrap();
    assert_eq!(&tail, b"e\0\0", "what was cut off does not come back");
    assert!(file.metadata().unwrap().blocks() < 1000, "{} sectors", file.metadata().unwrap().blocks());
    drop(file);
    mount.unmount();
}

/// Times as stat(2) shows them, and the birth that only statx(2) does.
fn times(path: &Path) -> [(i64, u32); 3] {
    let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, flags).unwrap();
    assert!(StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME), "no time of birth");
    [found.stx_atime, found.stx_mtime, found.stx_btime].map(|time| (time.tv_sec, time.tv_nsec))
}

#[test]
fn times_are_kept_to_the_nanosecond_and_births_for_ever() {
    let stage = Stage::vexfs(64);
    let mut mount = stage.mount();
    let names = ["file", "directory", "link"];
    fs::write(mount.join("file"), b"x").unwrap();
    fs::create_dir(mount.join("directory")).unwrap();
    std::os::unix::fs::symlink("nowhere", mount.join("link")).unwrap();
    let born = names.map(|name| times(&mount.join(name))[2]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert!(born.iter().all(|(secs, _)| (now - 3600..=now + 1).contains(secs)), "{born:?}, and it is {now}");

    let set = |path: &Path, atime: (i64, i64), mtime: (i64, i64)| {
        let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
        let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    };
    // Before 1970, the last second of 32 bits and what is after, the last nanosecond of a second.
    for (atime, mtime) in [(-5, 1), (i64::from(i32::MAX), 999_999_999), (1 << 33, 123_456_789), (0, 0)]
        .map(|(secs, nanos)| ((secs, nanos), (secs + 1, 999_999_999 - nanos)))
    {
        for name in names {
            set(&mount.join(name), atime, mtime);
        }
        mount.unmount();
        mount = stage.mount();
        for (name, born) in names.iter().zip(born) {
            let expected = [atime, mtime].map(|(secs, nanos)| (secs, nanos as u32));
            assert_eq!(times(&mount.join(name)), [expected[0], expected[1], born], "{name}");
        }
    }

    // One left alone, the other of now; then a change of the bytes, and of the name.
    let path = mount.join("file");
    set(&path, (0, UTIME_OMIT), (0, UTIME_NOW));
    let [atime, mtime, birth] = times(&path);
    assert_eq!((atime, birth), ((0, 0), born[0]));
    assert!(mtime.0 >= now, "{mtime:?} is not of now");
    set(&path, (7, 7), (7, 7));
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"y").unwrap();
    fs::rename(&path, mount.join("renamed")).unwrap();
    mount.unmount();
    mount = stage.mount();
    let [_, mtime, birth] = times(&mount.join("renamed"));
    assert!(mtime.0 >= now && birth == born[0], "{mtime:?}, {birth:?}");
    mount.unmount();
}
