//! Damaged images: a clear error, never wrong data, never a panic.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use vexfs_tests::process::{self, Background};
use vexfs_tests::stage::{self, Stage};
use vexfs_tests::{programs, settings, wait};
use walkdir::WalkDir;

const FLIPS: u64 = 40;

/// An unmounted volume with a few hundred files, and their source.
fn filled() -> (Stage, PathBuf) {
    let stage = Stage::vexfs(256);
    let source = stage.path("source");
    fs::create_dir(&source).unwrap();
    for number in 0..300 {
        let directory = source.join(format!("directory-{}", number % 7));
        fs::create_dir_all(&directory).unwrap();
        let content = format!("content of {number}, ").repeat(number * 20);
        fs::write(directory.join(format!("file-{number}")), content).unwrap();
    }
    let mount = stage.mount();
    process::ok(programs::tool("cp").arg("-a").arg(&source).arg(mount.join("copy")));
    mount.unmount();
    (stage, source)
}

/// What came of mounting an image and reading everything.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// All there and equal.
    Sound,
    /// The mount was refused with a message, or some reads failed with an errno.
    Refused,
}

/// # Panics
/// Wrong data, missing names without an error, a panic or a death of the program.
fn examine(stage: &Stage, source: &Path, what: &str) -> Outcome {
    let (point, log) = (stage.path("mnt"), stage.path("damage.log"));
    let _ = fs::remove_file(&log);
    let mut command = stage.mount_command(stage.image().to_str().unwrap(), &point);
    let mut mount = Background::spawn(&mut command, &log);
    let up = wait::until("a mount or a refusal", || {
        if let Some(status) = mount.ended() {
            process::assert_refused(what, status, &mount.log());
            return Some(false);
        }
        stage::is_mounted(&point).then_some(true)
    });
    let outcome = if up { read_all(source, &point.join("copy"), what) } else { Outcome::Refused };
    if up {
        process::ok(programs::tool("fusermount3").arg("-u").arg(&point));
        let status = mount.wait();
        if status.success() {
            mount.assert_no_panic();
        } else {
            process::assert_refused(what, status, &mount.log());
        }
    }
    outcome
}

fn read_all(source: &Path, copy: &Path, what: &str) -> Outcome {
    let mut outcome = Outcome::Sound;
    let mut failed = |error: &io::Error| {
        // EIO, EUCLEAN: found to be damaged. Anything else, "no such file" above all, is a wrong answer.
        assert!(matches!(error.raw_os_error(), Some(5 | 117)), "{what}: {error} instead of EIO or EUCLEAN");
        outcome = Outcome::Refused;
    };
    for entry in WalkDir::new(source) {
        let entry = entry.unwrap();
        let path = copy.join(entry.path().strip_prefix(source).unwrap());
        if entry.file_type().is_file() {
            match fs::read(&path) {
                Ok(bytes) => assert!(
                    bytes == fs::read(entry.path()).unwrap(),
                    "{what}: wrong data in {}",
                    path.display()
                ),
                Err(error) => failed(&error),
            }
        } else {
            let names = |path: &Path| -> io::Result<Vec<_>> {
                let mut names: Vec<_> =
                    fs::read_dir(path)?.map(|e| Ok(e?.file_name())).collect::<io::Result<_>>()?;
                names.sort();
                Ok(names)
            };
            match names(&path) {
                Ok(found) => {
                    assert_eq!(
                        found,
                        names(entry.path()).unwrap(),
                        "{what}: wrong names in {}",
                        path.display()
                    );
                }
                Err(error) => failed(&error),
            }
        }
    }
    outcome
}

/// Numbers of the image's 4 KiB blocks that are not all zeros.
fn used_blocks(image: &Path) -> Vec<u64> {
    let bytes = fs::read(image).unwrap();
    let used = bytes.chunks(4096).zip(0..).filter(|(block, _)| block.iter().any(|byte| *byte != 0));
    used.map(|(_, number)| number).collect()
}

fn flip(image: &Path, at: u64, bit: u8) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at).unwrap();
}

#[test]
fn a_flipped_bit_is_never_wrong_data() {
    let (stage, source) = filled();
    let used = used_blocks(&stage.image());
    let pristine = stage.path("pristine");
    process::ok(programs::tool("cp").arg("--sparse=always").arg(stage.image()).arg(&pristine));
    let mut rng = StdRng::seed_from_u64(settings::seed());
    let mut refused = 0;
    for number in 0..FLIPS {
        process::ok(programs::tool("cp").arg("--sparse=always").arg(&pristine).arg(stage.image()));
        // Every other one near the beginning of a block, where headers are; the first blocks are the superblocks.
        let block = if number < 4 { used[number as usize] } else { used[rng.random_range(0..used.len())] };
        let byte = if number % 2 == 0 { rng.random_range(0..128) } else { rng.random_range(0..4096) };
        let (at, bit) = (block * 4096 + byte, rng.random_range(0..8));
        flip(&stage.image(), at, bit);
        let outcome = examine(&stage, &source, &format!("bit {bit} of byte {at} flipped"));
        refused += u64::from(outcome == Outcome::Refused);
    }
    // Much of the image is live data: were nothing refused, then nothing would be checked.
    assert!(refused > 0, "no flip of {FLIPS} was noticed");
}

#[test]
fn a_truncated_image_is_never_wrong_data() {
    let (stage, source) = filled();
    let full = fs::metadata(stage.image()).unwrap().len();
    let end = (used_blocks(&stage.image()).last().unwrap() + 1) * 4096;
    // Downwards, so that one image serves.
    let mut refused = 0;
    for length in [full - 1, end, end - 4096, end / 2 + 100, 16 << 20, 8192, 4096, 100, 0] {
        File::options().write(true).open(stage.image()).unwrap().set_len(length).unwrap();
        let outcome = examine(&stage, &source, &format!("truncated to {length} bytes"));
        refused += u64::from(outcome == Outcome::Refused);
    }
    assert!(refused >= 6, "only {refused} truncations were noticed");
}
