//! Mounting, unmounting, signals, crashes, and what is said when a mount can't be made.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use blockd::device::VolumeKind;
use common::{Bench, can_mount, is_mounted, make_volume, program, run, wait_for};
use rustix::process::Signal;

const SIZE: u64 = 256 << 20;

#[test]
fn signals_unmount_and_commit() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    for (signal, name) in [(Signal::TERM, "term"), (Signal::INT, "int")] {
        let mount = bench.mount("commit=3600");
        fs::write(bench.path(name), name).unwrap();
        mount.signal(signal);
    }
    // A mount in use is detached, and what was written is committed all the same.
    let mount = bench.mount("commit=3600");
    let mut held = File::create(bench.path("held")).unwrap();
    held.write_all(b"held").unwrap();
    mount.signal(Signal::TERM);
    let done = held.write_all(b"more").and_then(|()| held.sync_all());
    assert!(done.is_err(), "its users get errors");
    drop(held);
    let mount = bench.mount("");
    for name in ["term", "int", "held"] {
        assert_eq!(fs::read_to_string(bench.path(name)).unwrap(), name);
    }
    mount.unmount();
}

#[test]
fn a_signal_leaves_alone_what_was_mounted_over_a_detached_mount() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let at = bench.mountpoint();
    let mount = bench.mount("");
    let held = File::create(bench.path("held")).unwrap();
    assert!(vexfs_harness::command("umount").arg("-l").arg(&at).status().unwrap().success());
    assert!(
        vexfs_harness::command("mount").args(["-t", "tmpfs", "none"]).arg(&at).status().unwrap().success()
    );
    rustix::process::kill_process(mount.pid(), Signal::TERM).unwrap();
    wait_for("it ends", || {
        rustix::process::waitid(
            rustix::process::WaitId::Pid(mount.pid()),
            rustix::process::WaitIdOptions::EXITED
                | rustix::process::WaitIdOptions::NOHANG
                | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap()
        .is_some()
    });
    assert!(is_mounted(&at), "the other mount is still there");
    drop(held);
    // Takes the other mount away.
    drop(mount);
    assert!(!is_mounted(&at));
}

#[test]
fn it_goes_to_the_background_when_the_mount_is_live() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    // Its standard streams must not be kept open: `output` waits for their end.
    let output =
        run(program().arg(bench.image()).arg(bench.mountpoint()).arg("--log").arg(bench.beside("log")));
    assert!(output.status.success(), "{output:?}");
    assert!(is_mounted(&bench.mountpoint()), "live when the first process ends");
    fs::write(bench.path("f"), "x").unwrap();
    assert!(vexfs_harness::command("umount").arg(bench.mountpoint()).status().unwrap().success());
    // The next mount waits for the last commit of the one before.
    let mount = bench.mount("");
    assert_eq!(fs::read_to_string(bench.path("f")).unwrap(), "x");
    mount.unmount();
    // A failure reaches the caller as its exit status and text.
    let output = run(program().arg(bench.image()).arg(bench.beside("missing")));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("create the mount point"), "{output:?}");
}

#[test]
fn a_signal_unmounts_in_the_background_also_by_a_relative_path() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let output = run(program().current_dir(bench.beside("")).args(["image", "mnt", "--log", "log"]));
    assert!(output.status.success(), "{output:?}");
    assert!(is_mounted(&bench.mountpoint()));
    let in_background = fs::read_dir("/proc").unwrap().find_map(|entry| {
        let pid = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let works_here = fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.windows(18).any(|part| part == b"--background-child"))
            && fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|mut fds| {
                fds.any(|fd| fs::read_link(fd.unwrap().path()).is_ok_and(|to| to == bench.image()))
            });
        works_here.then_some(pid)
    });
    let pid = rustix::process::Pid::from_raw(in_background.expect("it runs")).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    wait_for("it is unmounted", || !is_mounted(&bench.mountpoint()));
}

#[test]
fn a_log_that_cannot_be_opened_is_told_before_the_mount_is() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let log = bench.beside("no-such-directory/log");
    let output = run(program().arg(bench.image()).arg(bench.mountpoint()).arg("--log").arg(&log));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-directory"), "{output:?}");
    assert!(!is_mounted(&bench.mountpoint()), "no dead mount stays behind");
    bench.mount("").unmount();
}

#[test]
fn what_cannot_be_mounted_says_why_and_what_to_do() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let (image, at) = (bench.image().to_str().unwrap().to_owned(), bench.mountpoint());

    let said = bench.refused(&image, &bench.beside("missing"), "");
    assert!(said.contains("missing") && said.contains("mkdir -p"), "{said}");
    let said = bench.refused(&image, &bench.image(), "");
    assert!(said.contains("must be a directory"), "{said}");
    let said = bench.refused("/nowhere/image", &at, "");
    assert!(said.contains("/nowhere/image") && said.contains("mkfs.vexfs"), "{said}");
    let said = bench.refused(&image, &at, "speed=11");
    assert!(said.contains("speed=11"), "{said}");

    let foreign = bench.beside("foreign");
    fs::write(&foreign, vec![0xa5; 1 << 20]).unwrap();
    let said = bench.refused(foreign.to_str().unwrap(), &at, "");
    assert!(said.contains("not a VexFS image"), "{said}");
    let raw = bench.beside("raw");
    make_volume(&raw, SIZE, VolumeKind::Raw);
    let said = bench.refused(raw.to_str().unwrap(), &at, "");
    assert!(said.contains("raw volume"), "{said}");
    // A store without a file system in it.
    let empty = bench.beside("empty");
    make_volume(&empty, SIZE, VolumeKind::VexFs);
    let said = bench.refused(empty.to_str().unwrap(), &at, "");
    assert!(said.contains("cannot mount the file system"), "{said}");

    let said = bench.refused("nbd+unix:///?socket=/nowhere/socket", &at, "");
    assert!(said.contains("/nowhere/socket") && said.contains("vexfs-blockd"), "{said}");
    let said = bench.refused("nbd://host/", &at, "");
    assert!(said.contains("nbd+unix"), "{said}");

    let mount = bench.mount("");
    let other = bench.beside("other");
    fs::create_dir(&other).unwrap();
    let said = bench.refused(&image, &other, "");
    assert!(said.contains("in use"), "{said}");
    mount.unmount();
    assert_eq!(fs::metadata(&foreign).unwrap().len(), 1 << 20, "nothing was changed");
}

#[test]
fn what_was_synced_survives_kill_9() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mut expected_min = 0;
    for round in 0..5u64 {
        let mount = bench.mount("commit=1");
        let stop = Arc::new(AtomicBool::new(false));
        let synced = Arc::new(AtomicU64::new(expected_min));
        let writer = {
            let (stop, synced) = (Arc::clone(&stop), Arc::clone(&synced));
            let (counter, dir) = (bench.path("counter"), bench.mountpoint());
            thread::spawn(move || {
                let mut n = synced.load(Ordering::SeqCst);
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    // Two names and a file's bytes, made durable together.
                    let step = || -> std::io::Result<()> {
                        fs::write(dir.join(format!("a{n}")), n.to_le_bytes())?;
                        fs::rename(dir.join(format!("a{n}")), dir.join(format!("b{n}")))?;
                        if n > 20 {
                            let _ = fs::remove_file(dir.join(format!("b{}", n - 20)));
                        }
                        let file =
                            OpenOptions::new().write(true).create(true).truncate(false).open(&counter)?;
                        file.write_all_at(&n.to_le_bytes(), 0)?;
                        file.sync_all()
                    };
                    match step() {
                        Ok(()) => synced.store(n, Ordering::SeqCst),
                        Err(_) => return,
                    }
                }
            })
        };
        let target = expected_min + 20 + round * 7;
        wait_for("the writer makes progress", || synced.load(Ordering::SeqCst) >= target);
        mount.kill();
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        let durable = synced.load(Ordering::SeqCst);

        let mount = bench.mount("");
        let counter = fs::read(bench.path("counter")).unwrap();
        let counter = u64::from_le_bytes(counter.try_into().unwrap());
        assert!(counter >= durable, "round {round}: counter {counter} is older than the synced {durable}");
        assert!(counter <= durable + 1);
        for n in counter.saturating_sub(15).max(1)..=counter {
            let got = fs::read(bench.path(&format!("b{n}"))).unwrap();
            assert_eq!(got, n.to_le_bytes(), "round {round}: b{n}");
        }
        assert!(!bench.path(&format!("b{}", counter.saturating_sub(25))).exists() || counter < 26);
        mount.unmount();
        expected_min = counter;
    }
}

#[test]
fn unsynced_changes_of_a_killed_mount_roll_back_together() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mount = bench.mount("commit=3600");
    fs::write(bench.path("old"), vec![1; 100_000]).unwrap();
    File::open(bench.path("old")).unwrap().sync_all().unwrap();
    fs::rename(bench.path("old"), bench.path("renamed")).unwrap();
    fs::write(bench.path("renamed"), vec![2; 50_000]).unwrap();
    // Much data: it is written out before any commit, and must roll back too.
    fs::write(bench.path("big"), vec![3; 80 << 20]).unwrap();
    thread::sleep(Duration::from_millis(200));
    mount.kill();
    let mount = bench.mount("");
    assert_eq!(fs::read(bench.path("old")).unwrap(), vec![1; 100_000]);
    assert!(!bench.path("renamed").exists() && !bench.path("big").exists());
    let space = rustix::fs::statvfs(bench.mountpoint()).unwrap();
    assert!(space.f_blocks - space.f_bfree < 8 << 20 >> 12, "the space of what rolled back is free again");
    mount.unmount();
}

#[test]
fn open_unlinked_files_of_a_killed_mount_are_freed() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(SIZE);
    let mount = bench.mount("");
    let file = File::create(bench.path("f")).unwrap();
    file.write_all_at(&vec![1; 20 << 20], 0).unwrap();
    fs::remove_file(bench.path("f")).unwrap();
    file.sync_all().unwrap();
    mount.kill();
    drop(file);
    bench.mount("").unmount();
    let mount = bench.mount("ro");
    let space = rustix::fs::statvfs(bench.mountpoint()).unwrap();
    assert!(space.f_blocks - space.f_bfree < 10 << 20 >> 12, "20 MiB without a name were given back");
    mount.unmount();
}
