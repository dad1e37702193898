//! `vexctl scrub` on real images: named findings, exit statuses, the repair of a superblock slot.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoError, IoOp, VolumeKind, blocking};
use blockd::nbd::client::{NbdClient, Target};
use blockd::store::scrub::Control;
use blockd::volume::{CreateOptions, OpenOptions, Volume};
use common::daemon::Daemon;
use layout::addr::PAGE;
use serde_json::Value;

mod common;

const MIB: u64 = 1 << 20;

/// A raw volume with `pages` written pages, page i full of i + 1.
fn image(dir: &Path, pages: u64) -> PathBuf {
    let path = dir.join("image");
    let options = CreateOptions {
        kind: VolumeKind::Raw,
        uuid: uuid::Uuid::new_v4(),
        size_bytes: 64 * MIB,
        raw_size_bytes: 32 * MIB,
        segment_bytes: 0,
        force: false,
    };
    Volume::create(&path, &options).expect("a new volume");
    let volume = Volume::open(&path, &OpenOptions::default()).expect("it opens");
    let client = volume.connect();
    for page in 0..pages {
        let mut buf = AlignedBuf::zeroed(PAGE);
        buf.fill(page as u8 + 1);
        let op = IoOp::Write { offset: page * PAGE as u64, buf, fua: false };
        blocking(&*volume, client, op).expect("a write");
    }
    volume.shutdown().expect("a clean end");
    path
}

fn scrub(image: &Path, args: &[&str]) -> Output {
    vexfs_harness::command(env!("CARGO_BIN_EXE_vexctl"))
        .arg("scrub")
        .arg(image)
        .args(args)
        .output()
        .expect("it runs")
}

/// Changes one byte of the image.
fn damage(image: &Path, byte: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(image).expect("the image");
    let mut one = [0];
    file.read_exact_at(&mut one, byte).expect("a byte");
    file.write_all_at(&[one[0] ^ 0x40], byte).expect("another byte");
}

/// Image byte of a page full of `value`.
fn find_page(image: &Path, value: u8) -> u64 {
    let bytes = std::fs::read(image).expect("the image");
    let at = bytes.chunks(PAGE).position(|page| page.iter().all(|&b| b == value));
    at.expect("the page stands somewhere") as u64 * PAGE as u64
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_sound_image_is_clean() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = image(dir.path(), 50);
    let output = scrub(&image, &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("nothing is damaged"), "{text}");
    let output = scrub(&image, &["--json", "--rate", "1G"]);
    let report = json(&output);
    assert_eq!((report["clean"].as_bool(), report["bad_count"].as_u64()), (Some(true), Some(0)));
    assert!(report["data_pages"].as_u64() >= Some(50), "{report}");
}

#[test]
fn a_bad_page_is_named_and_stays_eio() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = image(dir.path(), 50);
    let byte = find_page(&image, 8);
    damage(&image, byte + 1000);
    let output = scrub(&image, &["--json"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let report = json(&output);
    let bad = &report["bad"][0];
    assert_eq!((bad["what"].as_str(), bad["device_page"].as_u64()), (Some("page"), Some(7)), "{report}");
    assert_eq!(bad["image_byte"].as_u64(), Some(byte));
    assert_ne!(bad["crc_expected"], bad["crc_found"]);
    let text = String::from_utf8(scrub(&image, &[]).stdout).expect("UTF-8");
    assert!(text.contains("device page 0x7 ") && text.contains(&format!("image byte {byte}")), "{text}");

    let volume = Volume::open(&image, &OpenOptions::default()).expect("it opens");
    let client = volume.connect();
    let read = |page: u64| {
        let buf = AlignedBuf::zeroed(PAGE);
        blocking(&*volume, client, IoOp::Read { offset: page * PAGE as u64, buf })
    };
    assert!(matches!(read(7), Err(IoError::Io(_))));
    assert!(read(8).is_ok());
    drop(volume);
    assert_eq!(scrub(&image, &[]).status.code(), Some(4), "a start changes nothing about it");
}

#[test]
fn a_bad_superblock_slot_is_found_and_written_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = image(dir.path(), 5);
    for slot in [0, 8 * PAGE as u64] {
        damage(&image, slot + 50);
        let found = scrub(&image, &["--json"]);
        assert_eq!(found.status.code(), Some(4));
        assert_eq!(json(&found)["bad"][0]["what"], "superblock-slot");
        let repaired = scrub(&image, &["--repair", "--json"]);
        assert_eq!(repaired.status.code(), Some(0), "{repaired:?}");
        assert_eq!(json(&repaired)["superblock_repaired"], true);
        assert_eq!(scrub(&image, &[]).status.code(), Some(0));
    }
}

#[test]
fn an_image_that_cannot_even_be_opened_is_damaged_and_what_is_no_image_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = image(dir.path(), 5);
    std::fs::OpenOptions::new().write(true).open(&image).expect("the image").set_len(60 * MIB).expect("cut");
    let output = scrub(&image, &["--json"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(json(&output)["error"].as_str().is_some_and(|e| e.contains("cut short")));
    let other = dir.path().join("other");
    std::fs::write(&other, vec![7; 4 << 20]).expect("a file");
    let output = scrub(&other, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("mkfs.vexfs"));
}

#[test]
fn an_image_in_use_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = image(dir.path(), 5);
    let volume = Volume::open(&image, &OpenOptions::default()).expect("it opens");
    let output = scrub(&image, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("in use"), "{output:?}");
    drop(volume);
}

/// Pages move, die and are written over while they are read: none of it is damage.
#[test]
fn a_scrub_beside_writes_and_cleaning_accuses_nobody() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    let dir = tempfile::tempdir().expect("a directory");
    let image = image(dir.path(), 0);
    let options = OpenOptions { checkpoint_bytes: 2 << 20, discard: true, ..OpenOptions::default() };
    let volume = Volume::open(&image, &options).expect("it opens");
    let finished = AtomicBool::new(false);
    let scrubs = std::thread::scope(|scope| {
        scope.spawn(|| {
            let client = volume.connect();
            // 128 MiB through a log of 64: every segment is used again several times.
            for i in 0..2048u64 {
                let mut buf = AlignedBuf::zeroed(16 * PAGE);
                buf.fill(i as u8 | 1);
                let offset = i * 7919 % 500 * (16 * PAGE as u64);
                blocking(&*volume, client, IoOp::Write { offset, buf, fua: false }).expect("a write");
            }
            finished.store(true, Ordering::SeqCst);
        });
        let mut scrubs = 0;
        let (rate, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        while scrubs < 3 || !finished.load(Ordering::SeqCst) {
            let report = volume.scrub(Control { bytes_per_s: &rate, stop: &stop, progress: &mut |_| {} });
            assert_eq!(report.bad, []);
            scrubs += 1;
        }
        scrubs
    });
    assert!(scrubs >= 3);
    volume.shutdown().expect("a clean end");
    drop(volume);
    assert_eq!(scrub(&image, &[]).status.code(), Some(0));
}

#[test]
fn a_daemon_scrubs_what_it_serves_and_mends_a_superblock_slot() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = image(dir.path(), 50);
    let page = find_page(&image, 8);
    let run_dir = dir.path().join("run");
    std::fs::create_dir(&run_dir).expect("a directory");
    let mut command = Daemon::controlled(&image, &dir.path().join("nbd"), &run_dir);
    let daemon = Daemon::run(command.args(["--export", "it"]));
    let scrub = |args: &[&str]| {
        let mut command = vexfs_harness::command(env!("CARGO_BIN_EXE_vexctl"));
        command.arg("scrub").args(args).env("VEXFS_RUN_DIR", &run_dir).output().expect("it runs")
    };
    let clean = scrub(&[]);
    let damages = [(page + 77, "page"), (60, "superblock-slot")];
    let found = damages.map(|(byte, what)| {
        damage(&image, byte);
        let output = scrub(&["--json", "--export", "it"]);
        damage(&image, byte);
        (output, what)
    });
    let unknown = scrub(&["--export", "other"]);
    daemon.kill();

    assert_eq!(clean.status.code(), Some(0), "{clean:?}");
    let [(page, what), (slot, slot_what)] = &found;
    assert_eq!(page.status.code(), Some(4), "{page:?}");
    assert_eq!(
        (json(page)["bad"][0]["what"].as_str(), json(page)["kind"].as_str()),
        (Some(*what), Some("raw"))
    );
    assert_eq!(json(slot)["bad"][0]["what"], *slot_what);
    assert_eq!((slot.status.code(), json(slot)["superblock_repaired"].as_bool()), (Some(0), Some(true)));
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no export"), "{unknown:?}");
}

/// Serves an image and connects to it; or says why that is not possible.
fn serve(image: &Path, dir: &Path, more: &[&str]) -> Result<(Daemon, NbdClient), String> {
    let socket = dir.join("nbd");
    let mut command = Daemon::controlled(image, &socket, &dir.join("run"));
    let daemon = Daemon::try_run(command.args(more).stderr(Stdio::piped()))?;
    let target = Target { socket, export: String::new() };
    Ok((daemon, NbdClient::connect(&target, Default::default()).expect("it connects")))
}

/// Far enough from page 0 for another leaf of the map.
const FAR: u64 = 20 << 30;

/// An empty volume of more than one leaf.
fn sparse_image(dir: &Path) -> PathBuf {
    let image = dir.join("image");
    let options = CreateOptions {
        kind: VolumeKind::Raw,
        uuid: uuid::Uuid::new_v4(),
        size_bytes: 64 * MIB,
        raw_size_bytes: 2 * FAR,
        segment_bytes: 0,
        force: false,
    };
    Volume::create(&image, &options).expect("a new volume");
    image
}

fn write_two(client: &NbdClient, offset: u64, value: u8) -> Result<(), IoError> {
    let mut buf = AlignedBuf::zeroed(2 * PAGE);
    buf.fill(value);
    blocking(client, client.connect(), IoOp::Write { offset, buf, fua: true }).map(|_| ())
}

fn read(client: &NbdClient, offset: u64) -> Result<u8, IoError> {
    let op = IoOp::Read { offset, buf: AlignedBuf::zeroed(PAGE) };
    blocking(client, client.connect(), op).map(|buf| buf.expect("its buffer")[0])
}

/// Damages the map's leaf of page 0, wherever it has stood.
fn damage_first_leaf(image: &Path) {
    let bytes = std::fs::read(image).expect("the image");
    let key = |page: &[u8]| u64::from_le_bytes(page[32..40].try_into().expect("eight bytes"));
    let is_leaf = |page: &[u8]| page.starts_with(b"VEXFSLEF") && key(page) == 0;
    let leaves = bytes.chunks_exact(PAGE).enumerate().filter(|(_, page)| is_leaf(page));
    let leaves: Vec<u64> = leaves.map(|(i, _)| (i * PAGE) as u64).collect();
    assert!(!leaves.is_empty(), "the leaf stands somewhere");
    leaves.iter().for_each(|byte| damage(image, byte + 50));
}

#[test]
fn an_image_with_a_bad_page_of_the_map_is_written_but_for_what_that_maps() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = sparse_image(dir.path());
    let (daemon, client) = serve(&image, dir.path(), &[]).expect("it is served");
    for (offset, value) in [(0, 1), (MIB, 2), (FAR, 3)] {
        write_two(&client, offset, value).expect("a write");
    }
    drop(client);
    assert_eq!(daemon.stop(), Some(0));
    damage_first_leaf(&image);
    for value in [4, 5] {
        let (daemon, client) = serve(&image, dir.path(), &[]).expect("it is served");
        let e = write_two(&client, MIB, 9).expect_err("nobody knows what is replaced");
        assert!(e.errno() == libc::EIO && e.to_string().contains("map leaf 0x0"), "{e}");
        let trim = IoOp::Trim { offset: 0, len_bytes: MIB, fua: false };
        assert!(blocking(&client, client.connect(), trim).is_err());
        write_two(&client, FAR + MIB, value).expect("nothing is wrong there");
        blocking(&client, client.connect(), IoOp::Flush).expect("the store goes on");
        assert_eq!((read(&client, FAR).ok(), read(&client, FAR + MIB).ok()), (Some(3), Some(value)));
        drop(client);
        assert_eq!(daemon.stop(), Some(0), "a checkpoint can be written");
    }
}

#[test]
fn an_image_whose_log_needs_a_bad_page_of_the_map_is_served_read_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = sparse_image(dir.path());
    let write = |client: &NbdClient, offset: u64, value| {
        write_two(client, offset, value).expect("a write");
    };
    let (daemon, client) = serve(&image, dir.path(), &[]).expect("it is served");
    write(&client, 0, 1);
    write(&client, FAR, 2);
    drop((client, daemon));
    // This start writes both leaves; what comes then is in the log alone.
    let (daemon, client) = serve(&image, dir.path(), &[]).expect("it is served");
    write(&client, MIB, 3);
    write(&client, FAR + MIB, 4);
    drop((client, daemon));
    damage_first_leaf(&image);
    let said = serve(&image, dir.path(), &[]).err().expect("it cannot be written");
    assert!(said.contains("map leaf 0x0") && said.contains("--read-only"), "{said}");
    let (daemon, client) = serve(&image, dir.path(), &["--read-only"]).expect("it can be read");
    for offset in [0, MIB, 2 * MIB] {
        let e = read(&client, offset).expect_err("neither old data nor zeros");
        assert!(e.to_string().contains("map leaf 0x0"), "{e}");
    }
    assert_eq!([FAR, FAR + MIB, FAR + 2 * MIB].map(|at| read(&client, at).expect("it is sound")), [2, 4, 0]);
    drop((client, daemon));
    let found = scrub(&image, &["--json"]);
    assert_eq!((found.status.code(), json(&found)["bad"][0]["what"].as_str()), (Some(4), Some("map-leaf")));
}
