//! fsck.vexfs as a program: exit status, what it refuses, repairs of a real image and of a served one.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoOp, blocking};
use blockd::nbd::server::{Export, Exports, Limits, Listener, Server};
use blockd::session::{GrantCell, OpenMode, Session, boot_id};
use blockd::volume::{OpenOptions, Volume};
use common::{Bench, can_mount, run};
use layout::addr::{CLASS0_BASE, PAGE, PageNo};
use layout::inode::Ino;

fn fsck(args: &[&str], source: &str) -> Output {
    run(vexfs_harness::command(env!("CARGO_BIN_EXE_fsck-vexfs")).args(args).arg(source))
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Changes a page as a mounter would, so that its checksum is right.
fn change(image: &Path, page: PageNo, change: impl FnOnce(&mut [u8])) {
    let volume = Volume::open(image, &OpenOptions::default()).unwrap();
    let device = Arc::clone(&volume) as Arc<dyn Device>;
    let client = device.connect();
    let cell = GrantCell::default();
    let session =
        Session::open(Arc::clone(&device), client, OpenMode::ReadWrite, boot_id().unwrap(), &cell).unwrap();
    let read = |page: PageNo| {
        let op = IoOp::Read { offset: page.byte(), buf: AlignedBuf::zeroed(PAGE) };
        blocking(&*device, client, op).unwrap().unwrap()
    };
    let write = |page: PageNo, buf: AlignedBuf| {
        blocking(&*device, client, IoOp::Write { offset: page.byte(), buf, fua: page.0 == 0 }).unwrap();
    };
    let mut buf = read(page);
    change(&mut buf);
    write(page, buf);
    if page.0 != 0 {
        write(PageNo(0), read(PageNo(0)));
    }
    session.close().unwrap();
    volume.shutdown().unwrap();
}

/// The first page of the root directory.
fn root_page() -> PageNo {
    PageNo::containing(CLASS0_BASE + (2 << 20))
}

#[test]
fn a_damaged_image_is_told_of_repaired_and_mounted_again() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(64 << 20);
    let image = bench.image();
    let source = image.to_str().unwrap();
    let mount = bench.mount("");
    fs::create_dir(bench.path("kept")).unwrap();
    fs::write(bench.path("kept/file"), "still here").unwrap();
    let busy = fsck(&[], source);
    assert_eq!(code(&busy), 8);
    assert!(text(&busy.stderr).contains("in use by another process (pid"), "{busy:?}");
    mount.unmount();

    for args in [&[][..], &["-n"], &["-f"], &["-p"], &["-a"], &["--data"], &["-y"]] {
        assert_eq!(code(&fsck(args, source)), 0, "{args:?}");
    }
    assert!(text(&fsck(&["-p"], source).stdout).contains("clean"));

    change(&image, root_page(), |bytes| bytes[..4].fill(0));
    let before = fs::read(&image).unwrap();
    let found = fsck(&[], source);
    assert_eq!(code(&found), 4);
    assert!(
        text(&found.stdout).contains("dir-page: a page of a directory is damaged, inode 2 (/)"),
        "{found:?}"
    );
    assert!(fs::read(&image).unwrap() == before, "a check changes nothing");
    let json = text(&fsck(&["--json"], source).stdout);
    let lines: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["code"], "dir-page");
    assert_eq!(lines.last().unwrap()["summary"]["repaired"], false);
    assert_eq!(code(&fsck(&["-p"], source)), 0, "it was unmounted in order: preening does not look");
    assert_eq!(code(&fsck(&["-p", "-f"], source)), 4, "preening leaves what may lose something");
    assert_eq!(code(&fsck(&["-y"], source)), 1);
    assert_eq!(code(&fsck(&["-n"], source)), 0);
    let mount = bench.mount("");
    assert_eq!(fs::read_to_string(bench.path("kept/file")).unwrap(), "still here");
    mount.unmount();
}

#[test]
fn what_a_killed_mount_leaves_is_no_error() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(64 << 20);
    let source = bench.image().to_str().unwrap().to_owned();
    let mount = bench.mount("");
    for i in 0..200 {
        fs::write(bench.path(&format!("{i}")), vec![i as u8; 1000 * (i + 1)]).unwrap();
        if i == 100 {
            fs::File::open(bench.path("100")).unwrap().sync_all().unwrap();
        }
    }
    mount.kill();
    let looked = fsck(&["-n"], &source);
    assert_eq!(code(&looked), 0, "{looked:?}");
    assert_eq!(code(&fsck(&["-p"], &source)), 0);
    let mount = bench.mount("");
    assert_eq!(fs::read(bench.path("50")).unwrap().len(), 1000 * 51);
    mount.unmount();
}

#[test]
fn a_wrong_command_line_and_a_wrong_source_have_their_own_status() {
    let bench = Bench::bare();
    assert_eq!(code(&fsck(&["-n", "-y"], "x")), 16);
    assert_eq!(code(&fsck(&["--help"], "x")), 0);
    assert_eq!(code(&fsck(&[], "/nowhere/image")), 8);
    fs::write(bench.image(), vec![7; 4 << 20]).unwrap();
    let other = fsck(&["-y"], bench.image().to_str().unwrap());
    assert_eq!(code(&other), 8, "{other:?}");
    common::make_volume(&bench.beside("raw"), 16 << 20, blockd::device::VolumeKind::Raw);
    let raw = fsck(&[], bench.beside("raw").to_str().unwrap());
    assert_eq!(code(&raw), 8);
    assert!(text(&raw.stderr).contains("raw volume"), "{raw:?}");
}

#[test]
fn a_served_volume_is_checked_and_repaired_unless_it_is_mounted() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(64 << 20);
    let mount = bench.mount("");
    fs::write(bench.path("file"), "x").unwrap();
    mount.unmount();
    change(&bench.image(), root_page(), |bytes| bytes[..4].fill(0));
    let socket = bench.beside("socket");
    let source = format!("nbd+unix:///?socket={}", socket.display());
    let volume = Volume::open(&bench.image(), &OpenOptions::default()).unwrap();
    let export = Export::new("", Arc::clone(&volume) as Arc<dyn Device>).expect("an export");
    let server =
        Server::bind(vec![Listener::unix(&socket)], Exports::single(export), Limits::default()).unwrap();
    let stopper = server.stopper();
    let thread = thread::spawn(move || drop(server.run()));

    assert_eq!(code(&fsck(&[], &source)), 4);
    assert_eq!(code(&fsck(&["-y"], &source)), 1);
    assert_eq!(code(&fsck(&["--data"], &source)), 0);
    // A mount that fails leaves no session behind.
    let said = bench.refused(&source, &bench.mountpoint(), &format!("fsname={}", "x".repeat(5000)));
    assert!(said.contains("cannot mount"), "{said}");
    assert_eq!(code(&fsck(&["-n"], &source)), 0);
    let mount = bench.mount_source(&source, "");
    let refused = fsck(&["-y"], &source);
    assert_eq!(code(&refused), 8);
    assert!(text(&refused.stderr).contains("is mounted (session"), "{refused:?}");
    assert_eq!(fs::read_to_string(bench.path("file")).unwrap(), "x", "the mount was left alone");
    mount.kill();
    assert_eq!(code(&fsck(&["-n"], &source)), 8, "nobody knows that its mounter is dead");
    assert_eq!(code(&fsck(&["-y", "--fence"], &source)), 0);

    stopper.stop();
    thread.join().unwrap();
    volume.shutdown().unwrap();
}

#[test]
fn a_repair_goes_on_when_nobody_reads_what_it_says() {
    let bench = Bench::new(64 << 20);
    let image = bench.image();
    change(&image, root_page(), |page| page.fill(0xee));
    let mut child = vexfs_harness::command(env!("CARGO_BIN_EXE_fsck-vexfs"))
        .args(["-y", image.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(code(&ended), 1, "{}", text(&ended.stderr));
    assert_eq!(code(&fsck(&[], image.to_str().unwrap())), 0);
}

#[test]
fn a_damaged_inode_hides_no_other_name() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(64 << 20);
    let mount = bench.mount("");
    // More than one reply holds: the kernel asks for attributes with the second, too, when those of the first were used.
    for number in 0..600 {
        fs::write(bench.path(&format!("file {number}")), "x").unwrap();
    }
    let names = || fs::read_dir(bench.mountpoint()).unwrap().map(|entry| entry.unwrap().file_name());
    let damaged = bench.mountpoint().join(names().nth(400).unwrap());
    let ino = fs::metadata(&damaged).unwrap().ino();
    mount.unmount();
    let page = Ino(ino).page().unwrap();
    change(&bench.image(), page, |bytes| bytes[ino as usize % 8 * 512 + 5] = 0xff);
    let mount = bench.mount("");
    let bad: Vec<_> = names()
        .map(|name| bench.mountpoint().join(name))
        .enumerate()
        .filter(|(_, path)| fs::metadata(path).is_err())
        .collect();
    assert_eq!(bad, [(400, damaged)]);
    assert_eq!(names().count(), 600);
    mount.unmount();
}

#[test]
fn progress_goes_where_fsck_wants_it() {
    let bench = Bench::new(64 << 20);
    let (mut reader, writer) = std::io::pipe().unwrap();
    // The child has the pipe as its descriptor 1.
    let status = Command::new(env!("CARGO_BIN_EXE_fsck-vexfs"))
        .args(["-C", "1", "-n"])
        .arg(bench.image())
        .stdout(Stdio::from(writer))
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert!(said.contains("no errors"), "{said}");
    let bad =
        run(vexfs_harness::command(env!("CARGO_BIN_EXE_fsck-vexfs")).args(["-C", "999"]).arg(bench.image()));
    assert_eq!(bad.status.code(), Some(8));
    assert!(text(&bad.stderr).contains("file descriptor 999"), "{bad:?}");
}

#[test]
fn a_check_can_be_cancelled() {
    let bench = Bench::new(64 << 20);
    // Nobody takes away what it says, so that it waits at its first line.
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while (&writer).write(&[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_fsck-vexfs"))
        .args(["-v", "-n"])
        .arg(bench.image())
        .stdout(Stdio::from(writer))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    common::wait_for("it takes SIGINT itself", || {
        let text = fs::read_to_string(&status).unwrap();
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
        u64::from_str_radix(caught, 16).unwrap() & 1 << (2 - 1) != 0
    });
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    std::io::copy(&mut &reader, &mut std::io::sink()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(32));
}
