//! `vexctl resize` on real images.

use std::path::Path;
use std::process::Output;

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoOp, VolumeKind, blocking};
use blockd::volume::{CreateOptions, OpenOptions, Volume};
use layout::addr::PAGE;

const MIB: u64 = 1 << 20;

fn make(path: &Path, kind: VolumeKind, image_bytes: u64, raw_size_bytes: u64) {
    let uuid = uuid::Uuid::new_v4();
    let options =
        CreateOptions { kind, uuid, size_bytes: image_bytes, raw_size_bytes, segment_bytes: 0, force: false };
    Volume::create(path, &options).expect("a new volume");
}

/// Writes, or checks, 16 pages at each MiB from `from` to `to`.
fn each_mib(path: &Path, from: u64, to: u64, write: bool) {
    let volume = Volume::open(path, &OpenOptions::default()).expect("it opens");
    let client = volume.connect();
    for mib in from..to {
        let mut expected = AlignedBuf::zeroed(16 * PAGE);
        expected.fill(mib as u8 + 1);
        if write {
            let op = IoOp::Write { offset: mib * MIB, buf: expected, fua: false };
            blocking(&*volume, client, op).expect("a write");
        } else {
            let op = IoOp::Read { offset: mib * MIB, buf: AlignedBuf::zeroed(16 * PAGE) };
            let found = blocking(&*volume, client, op).expect("a read").expect("its buffer");
            assert!(*found == *expected, "MiB {mib}");
        }
    }
    volume.shutdown().expect("a clean end");
}

fn resize(image: &Path, args: &[&str]) -> Output {
    vexfs_harness::command(env!("CARGO_BIN_EXE_vexctl"))
        .arg("resize")
        .arg(image)
        .args(args)
        .output()
        .expect("it runs")
}

fn len(image: &Path) -> u64 {
    std::fs::metadata(image).expect("the image").len()
}

#[test]
fn a_raw_volume_grows_with_its_image_and_shrinks_again_by_force() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    make(&image, VolumeKind::Raw, 48 * MIB, 32 * MIB);
    each_mib(&image, 0, 32, true);
    let output = resize(&image, &["--volume-size", "80M", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["new"]["volume_bytes"], 80 * MIB);
    assert!(len(&image) > 80 * MIB, "the image grew with it");
    assert_eq!(report["new"]["image_bytes"].as_u64(), Some(len(&image)));
    each_mib(&image, 0, 32, false);
    each_mib(&image, 32, 80, true);

    let refused = resize(&image, &["--volume-size", "40M"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"), "{refused:?}");
    let small = resize(&image, &["--size", "64M"]);
    assert!(String::from_utf8_lossy(&small.stderr).contains("does not hold a volume"), "{small:?}");
    each_mib(&image, 0, 80, false);

    let output = resize(&image, &["--volume-size", "40M", "--size", "64M", "--force"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(len(&image), 64 * MIB);
    each_mib(&image, 0, 40, false);
    let again = resize(&image, &[]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("already"), "{again:?}");
}

#[test]
fn a_vexfs_image_grows_to_its_file_and_refuses_what_it_has_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    make(&image, VolumeKind::VexFs, 16 * MIB, 0);
    let refused = resize(&image, &["--volume-size", "40M"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("fills its image"), "{refused:?}");
    std::fs::OpenOptions::new().write(true).open(&image).expect("it").set_len(40 * MIB).expect("longer");
    let output = resize(&image, &[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("16.00 MiB -> 40.00 MiB"), "{text}");
    let volume = Volume::open(&image, &OpenOptions::default()).expect("it opens");
    let busy = resize(&image, &["--size", "80M"]);
    assert!(String::from_utf8_lossy(&busy.stderr).contains("in use"), "{busy:?}");
    assert_eq!(len(&image), 40 * MIB, "an image in use is not touched");
    drop(volume);
    let tiny = resize(&image, &["--size", "1M"]);
    assert!(String::from_utf8_lossy(&tiny.stderr).contains("at least"), "{tiny:?}");
}
