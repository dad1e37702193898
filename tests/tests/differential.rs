//! The same random operations, valid and invalid, on the mount and on a directory of the machine's own file system:
//! every errno and the trees at the end must be equal.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, XattrFlags, renameat_with, utimensat};
use vexfs_tests::stage::Stage;
use vexfs_tests::{settings, tree};
use walkdir::WalkDir;

const OPERATIONS: usize = 6000;

#[derive(Debug)]
enum Operation {
    Create { path: String, mode: u32, exclusive: bool },
    Write { path: String, offset: u64, len: usize, append: bool },
    Truncate { path: String, len: u64 },
    Mkdir { path: String, mode: u32 },
    Unlink { path: String },
    Rmdir { path: String },
    Rename { from: String, to: String, flags: RenameFlags },
    Link { from: String, to: String },
    Symlink { path: String, target: String },
    Chmod { path: String, mode: u32 },
    Chown { path: String, uid: u32, gid: u32 },
    SetXattr { path: String, name: String, len: usize, flags: XattrFlags },
    RemoveXattr { path: String, name: String },
    Read { path: String, offset: u64, len: usize },
    ReadDirectory { path: String },
}

/// From few names, so that they meet often; some are of no use at all.
fn path(rng: &mut StdRng) -> String {
    let depth = *[1, 1, 2, 2, 2, 3].choose(rng).unwrap();
    let mut parts: Vec<String> =
        (0..depth).map(|_| ["a", "b", "c", "d"].choose(rng).unwrap().to_string()).collect();
    match rng.random_range(0..60) {
        0 => parts.push("n".repeat(256)),
        1 => parts.push("n".repeat(255)),
        2 => parts.push("..".to_owned()),
        3 => parts.push(".".to_owned()),
        4 => parts.push(String::new()),
        _ => {}
    }
    parts.join("/")
}

fn operation(rng: &mut StdRng) -> Operation {
    let mode = |rng: &mut StdRng| *[0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777].choose(rng).unwrap();
    let xattr_name =
        |rng: &mut StdRng| ["user.one", "user.two", "user.three"].choose(rng).unwrap().to_string();
    let reach =
        |rng: &mut StdRng| *[0u64, 1, 100, 4095, 4096, 5000, 70_000, 1 << 20, 3 << 20].choose(rng).unwrap();
    match rng.random_range(0..23) {
        0..3 => Operation::Create { path: path(rng), mode: mode(rng), exclusive: rng.random() },
        3..6 => Operation::Write {
            path: path(rng),
            offset: reach(rng),
            len: *[0, 1, 17, 4096, 10_000, 200_000].choose(rng).unwrap(),
            append: rng.random_ratio(1, 4),
        },
        6 => Operation::Truncate { path: path(rng), len: reach(rng) },
        7..9 => Operation::Mkdir { path: path(rng), mode: mode(rng) & 0o777 },
        9 => Operation::Unlink { path: path(rng) },
        10 => Operation::Rmdir { path: path(rng) },
        11..14 => {
            let flags =
                [RenameFlags::empty(), RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE];
            Operation::Rename { from: path(rng), to: path(rng), flags: *flags.choose(rng).unwrap() }
        }
        14 => Operation::Link { from: path(rng), to: path(rng) },
        15 => {
            let len = *[1, 59, 60, 320, 321, 1000].choose(rng).unwrap();
            Operation::Symlink { path: path(rng), target: "t".repeat(len) }
        }
        16 => Operation::Chmod { path: path(rng), mode: mode(rng) },
        17 => Operation::Chown { path: path(rng), uid: rng.random_range(0..3), gid: rng.random_range(0..3) },
        18 | 19 => {
            let flags = [XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE];
            let len = *[0, 1, 50, 300, 900].choose(rng).unwrap();
            Operation::SetXattr {
                path: path(rng),
                name: xattr_name(rng),
                len,
                flags: *flags.choose(rng).unwrap(),
            }
        }
        20 => Operation::RemoveXattr { path: path(rng), name: xattr_name(rng) },
        21 => Operation::Read {
            path: path(rng),
            offset: reach(rng),
            len: *[1, 4096, 100_000].choose(rng).unwrap(),
        },
        _ => Operation::ReadDirectory { path: path(rng) },
    }
}

/// Carries an operation out below `root`; what it gives is compared as well.
fn execute(root: &Path, operation: &Operation) -> io::Result<Vec<u8>> {
    let nothing = |()| Vec::new();
    let at = |path: &String| root.join(path);
    match operation {
        Operation::Create { path, mode, exclusive } => {
            let mut options = OpenOptions::new();
            options.write(true).mode(*mode).create(!exclusive).create_new(*exclusive);
            options.open(at(path)).map(|_| Vec::new())
        }
        Operation::Write { path, offset, len, append } => {
            let content: Vec<u8> = (0..*len).map(|index| (index as u64 ^ offset) as u8).collect();
            let mut options = OpenOptions::new();
            let file = if *append { options.append(true) } else { options.write(true) }.open(at(path))?;
            if *append {
                io::Write::write_all(&mut &file, &content).map(nothing)
            } else {
                file.write_all_at(&content, *offset).map(nothing)
            }
        }
        Operation::Truncate { path, len } => {
            OpenOptions::new().write(true).open(at(path))?.set_len(*len).map(nothing)
        }
        Operation::Mkdir { path, mode } => {
            std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), *mode)
                .create(at(path))
                .map(nothing)
        }
        Operation::Unlink { path } => fs::remove_file(at(path)).map(nothing),
        Operation::Rmdir { path } => fs::remove_dir(at(path)).map(nothing),
        Operation::Rename { from, to, flags } => {
            Ok(renameat_with(CWD, at(from), CWD, at(to), *flags).map(nothing)?)
        }
        Operation::Link { from, to } => fs::hard_link(at(from), at(to)).map(nothing),
        Operation::Symlink { path, target } => std::os::unix::fs::symlink(target, at(path)).map(nothing),
        Operation::Chmod { path, mode } => {
            fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)).map(nothing)
        }
        Operation::Chown { path, uid, gid } => {
            std::os::unix::fs::lchown(at(path), Some(*uid), Some(*gid)).map(nothing)
        }
        Operation::SetXattr { path, name, len, flags } => {
            Ok(rustix::fs::setxattr(at(path), name.as_str(), &vec![3; *len], *flags).map(nothing)?)
        }
        Operation::RemoveXattr { path, name } => {
            Ok(rustix::fs::removexattr(at(path), name.as_str()).map(nothing)?)
        }
        Operation::Read { path, offset, len } => {
            let mut bytes = vec![0; *len];
            let count = File::open(at(path))?.read_at(&mut bytes, *offset)?;
            bytes.truncate(count);
            Ok(bytes)
        }
        Operation::ReadDirectory { path } => {
            let mut names: Vec<_> = fs::read_dir(at(path))?
                .map(|entry| Ok(entry?.file_name().into_encoded_bytes()))
                .collect::<io::Result<_>>()?;
            names.sort();
            Ok(names.join(&b'/'))
        }
    }
}

/// Times differ; made equal, so that the trees can be compared.
fn equalise_times(root: &Path) {
    let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    for entry in WalkDir::new(root).contents_first(true) {
        utimensat(CWD, entry.unwrap().path(), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

#[test]
fn the_mount_answers_as_the_machines_own_file_system() {
    let stage = Stage::vexfs(512);
    let reference = stage.path("reference");
    fs::create_dir(&reference).unwrap();
    fs::set_permissions(&reference, fs::Permissions::from_mode(0o755)).unwrap();
    let mut rng = StdRng::seed_from_u64(settings::seed());
    let mut mount = stage.mount();
    fs::create_dir(mount.join("tree")).unwrap();
    let mut succeeded = 0;
    for number in 0..OPERATIONS {
        let operation = operation(&mut rng);
        let [ours, theirs] = [mount.join("tree"), reference.clone()].map(|root| execute(&root, &operation));
        let errno = |result: &io::Result<Vec<u8>>| result.as_ref().err().and_then(io::Error::raw_os_error);
        assert_eq!(
            errno(&ours),
            errno(&theirs),
            "operation {number}: {operation:?}, ours {ours:?}, theirs {theirs:?}"
        );
        assert_eq!(ours.as_ref().ok(), theirs.as_ref().ok(), "operation {number}: {operation:?}");
        succeeded += usize::from(ours.is_ok());
        if number % 1500 == 1499 {
            for root in [&mount.join("tree"), &reference] {
                equalise_times(root);
            }
            tree::assert_equal(&reference, &mount.join("tree"));
            mount.unmount();
            mount = stage.mount();
            tree::assert_equal(&reference, &mount.join("tree"));
        }
    }
    assert!(succeeded > OPERATIONS / 10, "only {succeeded} operations made sense");
    mount.unmount();
}
