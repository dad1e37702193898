//! The real daemon, `vexfs-blockd serve`, on real images: started, stopped, refused, and killed.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoError, IoOp, VolumeKind, blocking};
use blockd::nbd::client::{ConnectOptions, NbdClient, Target};
use blockd::session::{DevicePort, GrantCell, OpenMode, Session, boot_id, reconnect_hook, status};
use blockd::volume::{CreateOptions, OpenOptions, Volume};
use layout::addr::{CLASS0_BASE, PageNo, PageRange};
use rustix::process::Signal;

use crate::common::daemon::Daemon;
use crate::ram::tagged;

const MIB: u64 = 1 << 20;

pub struct Place {
    _dir: tempfile::TempDir,
    pub image: PathBuf,
    pub socket: PathBuf,
}

pub fn place(kind: VolumeKind) -> Place {
    let dir = tempfile::tempdir().expect("a directory");
    let (image, socket) = (dir.path().join("image"), dir.path().join("sock"));
    let raw_size_bytes = if kind == VolumeKind::Raw { 16 * MIB } else { 0 };
    let options = CreateOptions {
        kind,
        uuid: uuid::Uuid::from_u128(42),
        size_bytes: 256 * MIB,
        raw_size_bytes,
        segment_bytes: 0,
        force: false,
    };
    Volume::create(&image, &options).expect("an image");
    Place { _dir: dir, image, socket }
}

fn connect(socket: &Path, options: ConnectOptions) -> NbdClient {
    NbdClient::connect(&Target::socket(socket), options).expect("connected")
}

fn read(device: &dyn Device, offset: u64, len: usize) -> AlignedBuf {
    let op = IoOp::Read { offset, buf: AlignedBuf::zeroed(len) };
    blocking(device, device.connect(), op).expect("read").expect("bytes")
}

#[test]
fn it_serves_stops_and_leaves_nothing_behind() {
    let place = place(VolumeKind::Raw);
    let daemon = Daemon::start(&place.image, &place.socket);
    assert!(daemon.ready.contains("raw volume, 16777216 bytes"), "{}", daemon.ready);
    assert!(daemon.ready.contains(&Target::socket(&place.socket).to_string()), "{}", daemon.ready);
    let client = connect(&place.socket, ConnectOptions::fail_fast());
    assert_eq!(client.info().uuid, uuid::Uuid::from_u128(42));
    let id = client.connect();
    for i in 0..64 {
        let op = IoOp::Write { offset: i * 65536, buf: tagged(i, 65536), fua: false };
        blocking(&client, id, op).unwrap();
    }
    // Stopped with the client connected, and without a flush.
    assert_eq!(daemon.stop(), Some(0));
    assert!(!place.socket.exists());
    drop(client);
    let volume = Volume::open(&place.image, &OpenOptions::default()).unwrap();
    for i in 0..64 {
        assert!(read(&*volume, i * 65536, 65536)[..] == tagged(i, 65536)[..], "write {i} is there");
    }
    volume.shutdown().unwrap();
}

#[test]
fn what_is_in_use_or_missing_is_refused_with_a_reason() {
    let place = place(VolumeKind::Raw);
    let other = self::place(VolumeKind::Raw);
    let daemon = Daemon::start(&place.image, &place.socket);
    let locked = Daemon::refused(&place.image, &other.socket);
    assert!(locked.contains(place.image.to_str().unwrap()), "{locked}");
    let taken = Daemon::refused(&other.image, &place.socket);
    assert!(taken.contains("another server is listening") && taken.contains("choose another"), "{taken}");
    assert!(place.socket.exists(), "the live server keeps its socket");
    let missing = Daemon::refused(Path::new("/nonexistent/image"), &other.socket);
    assert!(missing.contains("/nonexistent/image"), "{missing}");
    std::fs::write(&other.image, vec![7; 1 << 20]).unwrap();
    let garbage = Daemon::refused(&other.image, &other.socket);
    assert!(garbage.contains(other.image.to_str().unwrap()), "{garbage}");
    assert_eq!(read(&connect(&place.socket, ConnectOptions::fail_fast()), 0, 512)[..], [0; 512]);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn wrong_command_lines_and_help_are_answered() {
    let run = |arguments: &[&str]| {
        let output = vexfs_harness::command(env!("CARGO_BIN_EXE_vexfs-blockd"))
            .args(arguments)
            .output()
            .expect("started");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).expect("UTF-8"))
    };
    let (code, text) = run(&["serve", "image", "--nbd", "tpc:1.2.3.4"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("unix:PATH"), "{text}");
    let (code, text) = run(&["serve", "--help"]);
    assert_eq!(code, Some(0));
    for word in ["Examples:", "Exit status:", "SIGTERM", "--read-only", "0600"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let (code, text) = run(&["serve", "image", "--nbd", "unix:/x", "--log", "a=b=c"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("--log"), "{text}");
}

#[test]
fn a_stale_socket_of_a_killed_daemon_is_replaced() {
    let place = place(VolumeKind::Raw);
    Daemon::start(&place.image, &place.socket).kill();
    assert!(place.socket.exists(), "a killed daemon cannot remove it");
    let mut daemon = Daemon::start(&place.image, &place.socket);
    daemon.signal(Signal::INT);
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    daemon.child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "one line on standard output, no more");
}

#[test]
fn a_read_only_daemon_refuses_writes_and_leaves_the_image_alone() {
    let place = place(VolumeKind::Raw);
    let before = std::fs::read(&place.image).unwrap();
    let mut child = Daemon::command(&place.image, &place.socket)
        .arg("--read-only")
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let daemon = Daemon { child, ready: line };
    assert!(daemon.ready.contains("read-only"), "{}", daemon.ready);
    let client = connect(&place.socket, ConnectOptions::fail_fast());
    assert!(client.info().read_only);
    let write = IoOp::Write { offset: 0, buf: tagged(1, 4096), fua: false };
    assert!(matches!(blocking(&client, client.connect(), write), Err(IoError::ReadOnly)));
    assert_eq!(read(&client, 0, 4096)[..], [0; 4096]);
    drop(client);
    assert_eq!(daemon.stop(), Some(0));
    assert!(std::fs::read(&place.image).unwrap() == before, "not a byte changed");
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_acknowledged() {
    let place = place(VolumeKind::Raw);
    let mut daemon = Daemon::start(&place.image, &place.socket);
    let client = connect(&place.socket, ConnectOptions::default());
    const SLOTS: u64 = 64;
    let last: Vec<AtomicU64> = (0..4 * SLOTS).map(|_| AtomicU64::new(0)).collect();
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    /// Lets the threads end when the test fails.
    struct GiveUp<'a>(&'a NbdClient);
    impl Drop for GiveUp<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.close();
            }
        }
    }
    std::thread::scope(|scope| {
        for t in 0..4 {
            let (client, last, stop, count) = (&client, &last, &stop, &count);
            scope.spawn(move || {
                let id = client.connect();
                for i in 1.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let slot = t * SLOTS + i % SLOTS;
                    let (offset, buf) = (slot * 4096, tagged(i, 4096));
                    blocking(client, id, IoOp::Write { offset, buf, fua: i % 16 == 0 }).unwrap();
                    last[slot as usize].store(i, Ordering::SeqCst);
                    let other = t * SLOTS + (i * 7) % SLOTS;
                    let expected = last[other as usize].load(Ordering::SeqCst);
                    let op = IoOp::Read { offset: other * 4096, buf: AlignedBuf::zeroed(4096) };
                    let back = blocking(client, id, op).unwrap().unwrap();
                    assert!(back[..] == tagged(expected, 4096)[..], "slot {other} has its last write");
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let _give_up = GiveUp(&client);
        for _ in 0..6 {
            let before = count.load(Ordering::SeqCst);
            while count.load(Ordering::SeqCst) < before + 100 {
                assert!(client.pending() <= 4);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            daemon.signal(Signal::KILL);
            daemon.child.wait().unwrap();
            daemon = Daemon::start(&place.image, &place.socket);
        }
        stop.store(true, Ordering::SeqCst);
    });
    drop(client);
    daemon.kill();
    let volume = Volume::open(&place.image, &OpenOptions::default()).unwrap();
    for (slot, last) in last.iter().enumerate() {
        let expected = last.load(Ordering::SeqCst);
        assert!(read(&*volume, slot as u64 * 4096, 4096)[..] == tagged(expected, 4096)[..], "slot {slot}");
    }
    volume.shutdown().unwrap();
}

#[test]
fn a_session_survives_the_daemon_and_dies_by_a_new_mounter() {
    let place = place(VolumeKind::VexFs);
    let daemon = Daemon::start(&place.image, &place.socket);
    let cell = GrantCell::default();
    let options = ConnectOptions { hook: Some(reconnect_hook(cell.clone())), ..ConnectOptions::default() };
    let client = Arc::new(connect(&place.socket, options));
    assert_eq!(client.info().kind, VolumeKind::VexFs);
    let id = client.connect();
    let page = |i: u64| CLASS0_BASE + i * 4096;
    let write = |i: u64| {
        blocking(&*client, id, IoOp::Write { offset: page(i), buf: tagged(i, 4096), fua: false }).map(|_| ())
    };
    assert!(matches!(write(1), Err(IoError::Fenced(_))), "no session yet");
    let session = Session::open(client.clone(), id, OpenMode::ReadWrite, boot_id().unwrap(), &cell).unwrap();
    assert_ne!(session.number(), 0);
    let live = status(&mut DevicePort { device: &*client, client: id }).unwrap();
    assert_eq!(live.session.get(), session.number());
    (1..=20).for_each(|i| write(i).unwrap());
    let free = |i| session.free_ranges(&[PageRange { first: PageNo::containing(page(i)), count: 1 }]);
    free(3).unwrap();

    // Nothing of this was committed; the session goes on all the same.
    daemon.kill();
    let daemon = Daemon::start(&place.image, &place.socket);
    for i in 1..=20 {
        let expected = if i == 3 { AlignedBuf::zeroed(4096) } else { tagged(i, 4096) };
        assert!(read(&*client, page(i), 4096)[..] == expected[..], "page {i}");
    }
    write(21).unwrap();
    free(4).unwrap();
    assert_eq!(read(&*client, page(4), 4096)[..], [0; 4096]);

    // The daemon dies, and before the old mounter is back another one takes the volume.
    let thief_place = place.image.clone();
    daemon.kill();
    let volume = Volume::open(&thief_place, &OpenOptions::default()).unwrap();
    let thief = volume.connect();
    let stolen =
        Session::open(volume.clone(), thief, OpenMode::ReadWrite, boot_id().unwrap(), &GrantCell::default())
            .unwrap();
    assert_ne!(stolen.number(), session.number());
    drop(stolen);
    volume.shutdown().unwrap();
    drop(volume);
    let _daemon = Daemon::start(&place.image, &place.socket);
    assert!(matches!(write(22), Err(IoError::Fenced(_))), "the old mounter is told");
    assert!(session.free_ranges(&[]).is_ok());
    assert!(free(5).unwrap_err().is_fenced());
}

#[test]
fn dead_space_is_given_back_when_vexctl_asks_for_it() {
    let place = place(VolumeKind::Raw);
    let control = place.socket.with_extension("control");
    let mut command = vexfs_harness::command(env!("CARGO_BIN_EXE_vexfs-blockd"));
    command.arg("serve").arg(&place.image).arg("--nbd").arg(format!("unix:{}", place.socket.display()));
    command.arg("--control").arg(format!("unix:{}", control.display()));
    let daemon = Daemon::run(command.args(["--log", "warn"]).stdin(Stdio::null()));
    let client = connect(&place.socket, ConnectOptions::fail_fast());
    let id = client.connect();
    let write = |page: u64, tag: u64| {
        let op = IoOp::Write { offset: page * 4096, buf: tagged(tag, 4096), fua: false };
        blocking(&client, id, op).expect("a write");
    };
    // Every second page dies, and each was written behind a header of its own.
    (0..4096).for_each(|page| write(page, page));
    (0..4096).step_by(2).for_each(|page| write(page, page + 5000));
    let vexctl = |args: &[&str]| {
        let mut vexctl = vexfs_harness::command(env!("CARGO_BIN_EXE_vexctl"));
        let output = vexctl.args(args).arg("--daemon").arg(&control).output().expect("it runs");
        (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"), output.stderr)
    };
    let (status, text, stderr) = vexctl(&["compact", "--json"]);
    assert_eq!(status, Some(0), "{}", String::from_utf8_lossy(&stderr));
    let done: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let number = |key: &str| done[key].as_u64().unwrap_or_else(|| panic!("{key} in {done}"));
    assert!(number("cleaned_segments") >= 8 && number("freed_segments") >= 4, "{done}");
    assert_eq!(number("freed_bytes"), number("freed_segments") * MIB);
    assert!((8 * MIB..=17 * MIB).contains(&number("copied_bytes")), "{done}");
    assert_eq!(done["stopped"], false);
    let (status, text, _) = vexctl(&["compact"]);
    assert!(
        status == Some(0) && text.starts_with("0 B copied, 0 segments"),
        "nothing is left to gain: {text}"
    );
    let (status, _, stderr) = vexctl(&["compact", "nonsense"]);
    assert!(status == Some(1) && String::from_utf8_lossy(&stderr).contains("no export"), "{stderr:?}");
    for page in 0..4096 {
        let tag = if page % 2 == 0 { page + 5000 } else { page };
        assert!(read(&client, page * 4096, 4096)[..] == tagged(tag, 4096)[..], "page {page}");
    }
    assert_eq!(daemon.stop(), Some(0));
}
