//! `vexctl snapshot`, `send` and `receive` on real images, alone and through a daemon.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoOp, VolumeKind, blocking};
use blockd::volume::{CreateOptions, OpenOptions, Volume};
use common::daemon::Daemon;
use layout::addr::PAGE;
use serde_json::Value;

mod common;

const MIB: u64 = 1 << 20;

type Plain = BTreeMap<u64, u8>;

fn create(path: &Path) {
    let options = CreateOptions {
        kind: VolumeKind::Raw,
        uuid: uuid::Uuid::new_v4(),
        size_bytes: 64 * MIB,
        raw_size_bytes: 32 * MIB,
        segment_bytes: 0,
        force: false,
    };
    Volume::create(path, &options).expect("a new volume");
}

fn open(path: &Path) -> Arc<Volume> {
    Volume::open(path, &OpenOptions::default()).expect("it opens")
}

fn write(path: &Path, plain: &mut Plain, pages: std::ops::Range<u64>, value: u8) {
    let volume = open(path);
    let client = volume.connect();
    for page in pages {
        let mut buf = AlignedBuf::zeroed(PAGE);
        buf.fill(value);
        blocking(&*volume, client, IoOp::Write { offset: page * PAGE as u64, buf, fua: false })
            .expect("a write");
        plain.insert(page, value);
    }
    volume.disconnect(client);
    volume.shutdown().expect("a clean end");
}

fn check(device: &dyn Device, plain: &Plain) {
    let client = device.connect();
    for page in 0..200 {
        let op = IoOp::Read { offset: page * PAGE as u64, buf: AlignedBuf::zeroed(PAGE) };
        let buf = blocking(device, client, op).expect("a read").expect("its buffer");
        let expected = plain.get(&page).copied().unwrap_or(0);
        assert!(buf.iter().all(|&b| b == expected), "page {page}: {} and not {expected}", buf[0]);
    }
    device.disconnect(client);
}

struct Vexctl {
    run_dir: PathBuf,
    /// Working directory, if it matters.
    directory: Option<PathBuf>,
}

impl Vexctl {
    fn new(dir: &Path) -> Self {
        Vexctl { run_dir: dir.join("run"), directory: None }
    }

    fn run(&self, args: &[&str], image: &Path, more: &[&str], stdin: &[u8]) -> Output {
        let mut child = vexfs_harness::command(env!("CARGO_BIN_EXE_vexctl"))
            .current_dir(self.directory.as_deref().unwrap_or(Path::new(".")))
            // Of no use to a daemon with a private one.
            .env("TMPDIR", "/nonexistent")
            .args(args)
            .arg(image)
            .args(more)
            .env("VEXFS_RUN_DIR", &self.run_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut input = child.stdin.take().expect("a pipe");
        let stdin = stdin.to_vec();
        // A command that refuses the stream does not read all of it.
        let writer = std::thread::spawn(move || drop(std::io::Write::write_all(&mut input, &stdin)));
        let output = child.wait_with_output().expect("it ends");
        writer.join().expect("the writer ends");
        output
    }

    fn ok(&self, args: &[&str], image: &Path, more: &[&str], stdin: &[u8]) -> Vec<u8> {
        let output = self.run(args, image, more, stdin);
        assert!(output.status.success(), "{args:?} {more:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn refused(&self, args: &[&str], image: &Path, more: &[&str], stdin: &[u8]) -> String {
        let output = self.run(args, image, more, stdin);
        assert_eq!(output.status.code(), Some(1), "{args:?} {more:?}: {output:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    fn names(&self, image: &Path) -> Vec<String> {
        let list: Value =
            serde_json::from_slice(&self.ok(&["snapshot", "list"], image, &["--json"], b"")).expect("JSON");
        let all = list["snapshots"].as_array().expect("a list").iter();
        all.map(|s| s["name"].as_str().expect("a name").to_owned()).collect()
    }
}

#[test]
fn snapshots_of_an_image_outlive_processes_and_go_to_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let (image, copy) = (dir.path().join("image"), dir.path().join("copy"));
    let vexctl = Vexctl::new(dir.path());
    create(&image);
    let mut plain = Plain::new();
    write(&image, &mut plain, 0..100, 1);
    vexctl.ok(&["snapshot", "create"], &image, &["monday"], b"");
    let monday = plain.clone();
    write(&image, &mut plain, 50..150, 2);
    vexctl.ok(&["snapshot", "create"], &image, &["tuesday"], b"");
    let tuesday = plain.clone();
    write(&image, &mut plain, 0..10, 3);
    assert_eq!(vexctl.names(&image), ["monday", "tuesday"]);
    let text = String::from_utf8(vexctl.ok(&["snapshot", "list"], &image, &[], b"")).expect("UTF-8");
    assert!(text.contains("monday") && text.contains("200.00 KiB"), "{text}");
    for (name, why) in [("monday", "already"), ("a/b", "not allowed"), ("", "not empty")] {
        let said = vexctl.refused(&["snapshot", "create"], &image, &[name], b"");
        assert!(said.contains(why), "{said}");
    }
    // To another image, in two steps.
    let full = vexctl.ok(&["send"], &image, &["--to", "monday"], b"");
    let step = vexctl.ok(&["send"], &image, &["--from", "monday", "--to", "tuesday"], b"");
    assert!(vexctl.refused(&["receive"], &copy, &[], &step).contains("does not exist"));
    assert!(!copy.exists());
    assert!(vexctl.refused(&["receive"], &copy, &[], &full[..full.len() / 2]).contains("before its trailer"));
    assert!(!copy.exists(), "nothing half-made is left");
    vexctl.ok(&["receive"], &copy, &[], &full);
    let mut damaged = step.clone();
    damaged[step.len() / 2] ^= 1;
    assert!(vexctl.refused(&["receive"], &copy, &[], &damaged).contains("crc32c"));
    vexctl.ok(&["receive"], &copy, &[], &step);
    assert_eq!(vexctl.names(&copy), ["monday", "tuesday"]);
    let volume = open(&copy);
    check(&*volume, &tuesday);
    check(&*volume.open_snapshot("monday").expect("it is there"), &monday);
    volume.shutdown().expect("a clean end");
    drop(volume);
    // Back, and away.
    vexctl.ok(&["snapshot", "rollback"], &image, &["tuesday"], b"");
    check(&*open(&image), &tuesday);
    vexctl.ok(&["snapshot", "delete"], &image, &["monday"], b"");
    assert_eq!(vexctl.names(&image), ["tuesday"]);
    assert!(vexctl.refused(&["snapshot", "rollback"], &image, &["monday"], b"").contains("no snapshot"));
    let volume = open(&image);
    check(&*volume, &tuesday);
    check(&*volume.open_snapshot("tuesday").expect("it is there"), &tuesday);
    assert_eq!(volume.snapshots().held_bytes, 0);
}

fn serve(image: &Path, run_dir: &Path, socket: &Path, more: &[&str]) -> Daemon {
    serve_in(Path::new("."), image, run_dir, socket, more)
}

/// A daemon with a working directory of its own.
fn serve_in(directory: &Path, image: &Path, run_dir: &Path, socket: &Path, more: &[&str]) -> Daemon {
    Daemon::run(Daemon::controlled(image, socket, run_dir).current_dir(directory).args(more))
}

#[test]
fn a_daemon_is_asked_for_the_snapshots_of_its_image() {
    let dir = tempfile::tempdir().expect("a directory");
    let (image, copy) = (dir.path().join("image"), dir.path().join("copy"));
    let vexctl = Vexctl::new(dir.path());
    create(&image);
    let mut plain = Plain::new();
    write(&image, &mut plain, 0..100, 1);
    let daemon = serve(&image, &vexctl.run_dir, &dir.path().join("nbd"), &[]);
    vexctl.ok(&["snapshot", "create"], &image, &["a"], b"");
    assert_eq!(vexctl.names(&image), ["a"]);
    let full = vexctl.ok(&["send"], &image, &["--to", "a"], b"");
    assert!(vexctl.refused(&["send"], &image, &["--to", "b"], b"").contains("no snapshot"));
    vexctl.ok(&["snapshot", "create"], &image, &["b"], b"");
    vexctl.ok(&["snapshot", "rollback"], &image, &["a"], b"");
    assert_eq!(vexctl.names(&image), ["a"]);
    vexctl.ok(&["snapshot", "delete"], &image, &["a"], b"");
    assert!(vexctl.names(&image).is_empty());
    drop(daemon);
    vexctl.ok(&["receive"], &copy, &[], &full);
    check(&*open(&copy), &plain);
    // The snapshot alone, read-only.
    let mut later = plain.clone();
    write(&copy, &mut later, 0..50, 9);
    let socket = dir.path().join("nbd-snapshot");
    let _daemon = serve(&copy, &vexctl.run_dir, &socket, &["--snapshot", "a"]);
    let target = blockd::nbd::client::Target { socket, export: String::new() };
    let client = blockd::nbd::client::NbdClient::connect(&target, Default::default()).expect("it connects");
    assert!(client.info().read_only);
    check(&client, &plain);
}

#[test]
fn a_daemon_is_asked_for_its_own_image_and_no_other_of_the_same_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let [here, there] = ["here", "there"].map(|name| dir.path().join(name));
    for place in [&here, &there] {
        std::fs::create_dir(place).expect("a directory");
        create(&place.join("disk.img"));
    }
    let mut vexctl = Vexctl::new(dir.path());
    let relative = Path::new("disk.img");
    let daemon = serve_in(&there, relative, &vexctl.run_dir, &dir.path().join("nbd"), &[]);
    let names = |vexctl: &Vexctl| [&here, &there].map(|place| vexctl.names(&place.join("disk.img")));
    // From where the same relative path means another image.
    vexctl.directory = Some(here.clone());
    vexctl.ok(&["snapshot", "create"], relative, &["mine"], b"");
    assert_eq!(names(&vexctl), [vec!["mine"], vec![]], "here, there");
    vexctl.directory = Some(there.clone());
    vexctl.ok(&["snapshot", "create"], relative, &["its"], b"");
    vexctl.directory = None;
    assert_eq!(names(&vexctl), [vec!["mine"], vec!["its"]], "here, there");
    // Another path to the served one.
    let link = here.join("link");
    std::os::unix::fs::symlink(there.join("disk.img"), &link).expect("a link");
    assert_eq!(vexctl.names(&link), ["its"]);
    // The file at the path is another one than the daemon has open.
    let image = there.join("disk.img");
    std::fs::rename(&image, there.join("old.img")).expect("renamed");
    create(&image);
    vexctl.ok(&["snapshot", "create"], &image, &["new"], b"");
    assert_eq!(vexctl.names(&image), ["new"]);
    assert_eq!(vexctl.names(&there.join("old.img")), ["its"]);
    // Overwritten under the daemon, which nothing can keep: no guess is made.
    let other = std::fs::read(&image).expect("read");
    let mut old = std::fs::OpenOptions::new().write(true).open(there.join("old.img")).expect("opened");
    std::io::Write::write_all(&mut old, &other[..64 << 10]).expect("written");
    let said = vexctl.refused(&["snapshot", "delete"], &there.join("old.img"), &["its"], b"");
    assert!(said.contains("was overwritten") && said.contains("disk"), "{said}");
    drop(daemon);
}

#[test]
fn a_daemon_that_says_nothing_is_left_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    let vexctl = Vexctl::new(dir.path());
    create(&image);
    let _daemon = serve(&image, &vexctl.run_dir, &dir.path().join("nbd"), &[]);
    // As a stopped process: connections come about, and nobody answers. It is before "image" in the list.
    let silent = vexctl.run_dir.join("a.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).expect("a socket");
    let created = vexctl.run(&["snapshot", "create"], &image, &["a"], b"");
    let said = String::from_utf8(created.stderr).expect("UTF-8");
    assert!(
        created.status.success() && said.contains("a.sock") && said.contains("does not answer"),
        "{said}"
    );
    let status = vexfs_harness::command(env!("CARGO_BIN_EXE_vexctl"))
        .arg("status")
        .env("VEXFS_RUN_DIR", &vexctl.run_dir)
        .output()
        .expect("it ends");
    let (out, said) = (String::from_utf8_lossy(&status.stdout), String::from_utf8_lossy(&status.stderr));
    assert!(status.status.success() && out.contains("image: serving"), "{out}{said}");
    assert!(said.contains("a.sock") && said.contains("does not answer"), "{said}");
}

#[test]
fn clients_see_the_size_that_a_rollback_gives_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let [image, socket] = ["image", "nbd"].map(|name| dir.path().join(name));
    let vexctl = Vexctl::new(dir.path());
    create(&image);
    let mut plain = Plain::new();
    write(&image, &mut plain, 0..150, 1);
    vexctl.ok(&["snapshot", "create"], &image, &["a"], b"");
    vexctl.ok(&["resize"], &image, &["--volume-size", "256K", "--force"], b"");
    let _daemon = serve(&image, &vexctl.run_dir, &socket, &["--export", "vol"]);
    let client = |export: &str| {
        let target = blockd::nbd::client::Target { socket: socket.clone(), export: export.into() };
        blockd::nbd::client::NbdClient::connect(&target, Default::default()).expect("it connects")
    };
    assert_eq!(client("vol").info().size_bytes, 256 << 10);
    let snapshot = client("vol@a");
    assert_eq!(snapshot.info().size_bytes, 32 * MIB);
    check(&snapshot, &plain);
    drop(snapshot);
    vexctl.ok(&["snapshot", "rollback"], &image, &["a"], b"");
    let whole = client("vol");
    assert_eq!(whole.info().size_bytes, 32 * MIB);
    check(&whole, &plain);
}

/// What the daemon tells Prometheus in a line that begins so.
fn metric(socket: &Path, line: &str) -> f64 {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("a connection");
    std::io::Write::write_all(&mut stream, b"GET /metrics HTTP/1.1\r\n\r\n").expect("a request");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stream, &mut text).expect("an answer");
    let found =
        text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_else(|| panic!("no {line} in {text}"));
    found.trim().parse().expect("a number")
}

#[test]
fn what_a_snapshots_clients_ask_is_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let [image, socket, metrics] = ["image", "nbd", "metrics"].map(|name| dir.path().join(name));
    let vexctl = Vexctl::new(dir.path());
    create(&image);
    let mut plain = Plain::new();
    write(&image, &mut plain, 0..100, 1);
    vexctl.ok(&["snapshot", "create"], &image, &["a"], b"");
    let metrics_at = format!("unix:{}", metrics.display());
    // As an export beside the volume, and alone.
    for (more, export) in [(&[][..], "vol@a"), (&["--snapshot", "a"], "vol")] {
        let arguments = [&["--export", "vol", "--metrics", &metrics_at], more].concat();
        let _daemon = serve(&image, &vexctl.run_dir, &socket, &arguments);
        let numbers = || {
            ["vexfs_connections{export=\"vol\"}", "vexfs_request_bytes_total{export=\"vol\",op=\"read\"}"]
                .map(|line| metric(&metrics, line))
        };
        assert_eq!(numbers(), [0.0, 0.0], "{export}");
        let target = blockd::nbd::client::Target { socket: socket.clone(), export: export.into() };
        let client =
            blockd::nbd::client::NbdClient::connect(&target, Default::default()).expect("it connects");
        check(&client, &plain);
        assert_eq!(numbers(), [1.0, (200 * PAGE) as f64], "{export}");
    }
}
