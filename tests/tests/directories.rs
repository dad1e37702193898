//! Large directories that are listed while they change, the longest names, and trees deeper than a path can say.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, RenameFlags, SeekFrom, linkat, mkdirat, mknodat, openat,
    renameat, renameat_with, seek, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use vexfs_tests::stage::Stage;
use vexfs_tests::{process, programs, settings, wait};

fn directory(path: &Path) -> File {
    File::open(path).expect("a directory can be opened")
}

/// An empty file, by one request.
fn make(dir: &File, name: &[u8]) -> Result<(), Errno> {
    mknodat(dir, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
}

/// Up to `most` names behind a cookie (0: from the start), each with the cookie behind it, without `.` and `..`.
fn list(dir: &File, after: u64, most: usize) -> Vec<(Vec<u8>, u64)> {
    seek(dir, SeekFrom::Start(after)).expect("a cookie is a place to seek to");
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while names.len() < most
        && let Some(entry) = entries.next()
    {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), entry.next_entry_cookie()));
        }
    }
    names
}

/// What becomes of a name in the large directory: one in ten goes, all others stay.
fn name(number: usize) -> Vec<u8> {
    let what = if number % 10 == 7 { "go" } else { "stay" };
    format!("{what} {number} {}", "n".repeat(number * 31 % 50)).into_bytes()
}

/// Names that stay of the first ones behind a cookie.
fn staying(dir: &File, after: u64) -> Vec<Vec<u8>> {
    let mut names: Vec<_> = list(dir, after, 100).into_iter().map(|(name, _)| name).collect();
    names.retain(|name| name.starts_with(b"stay"));
    names.truncate(20);
    names
}

#[test]
fn a_large_directory_keeps_its_cookies_while_it_changes() {
    let entries = settings::entries(20_000);
    let stage = Stage::vexfs(256 + entries as u64 / 400);
    let mount = stage.mount();
    fs::create_dir(mount.join("large")).unwrap();
    let dir = directory(&mount.join("large"));
    for number in 0..entries {
        make(&dir, &name(number)).expect("a new name");
    }

    // Listed in batches of all sizes; between two of them names go, come, and get other names.
    let (mut after, mut seen, mut marks) = (0, BTreeSet::new(), BTreeMap::new());
    for batch in 1.. {
        let found = list(&dir, after, 1 + batch * 7919 % 300);
        let Some((_, last)) = found.last() else { break };
        after = *last;
        for (name, _) in found {
            assert!(seen.insert(name.clone()), "{} is given twice", String::from_utf8_lossy(&name));
        }
        for step in 0..8 {
            let number = batch * 8 + step;
            let (going, coming) = (name(number * 10 % entries / 10 * 10 + 7), format!("came {number}"));
            // Some are gone already.
            let _ = match step % 4 {
                0 => unlinkat(&dir, &*going, AtFlags::empty()),
                1 => renameat(&dir, &*going, &dir, format!("renamed {number}")),
                _ => make(&dir, coming.as_bytes()),
            };
        }
        if batch % 20 == 3 {
            marks.insert(after, staying(&dir, after));
        }
    }
    let missed = (0..entries).map(name).find(|name| name.starts_with(b"stay") && !seen.contains(name));
    assert_eq!(
        missed.map(|name| String::from_utf8_lossy(&name).into_owned()),
        None,
        "it was there all the time"
    );
    assert!(seen.iter().any(|name| name.starts_with(b"came")), "nothing came while it was read");

    // A cookie leads to the same place at any later time, after a remount too.
    assert!(marks.len() >= entries / 5000, "only {} cookies were kept", marks.len());
    let check = |dir: &File| {
        for (cookie, names) in &marks {
            assert!(staying(dir, *cookie) == *names, "cookie {cookie:#x} leads elsewhere");
        }
    };
    check(&dir);
    drop(dir);
    mount.unmount();
    let mount = stage.mount();
    let dir = directory(&mount.join("large"));
    check(&dir);

    // Emptied, and gone with all its inodes.
    let inodes = || rustix::fs::statvfs(mount.path()).map(|space| space.f_files - space.f_ffree).unwrap();
    let (mut removed, before) = (0, inodes());
    loop {
        let found = list(&dir, 0, usize::MAX);
        for (name, _) in &found {
            unlinkat(&dir, &**name, AtFlags::empty()).expect("what is listed can be removed");
        }
        removed += found.len() as u64;
        if found.is_empty() {
            break;
        }
    }
    drop(dir);
    fs::remove_dir(mount.join("large")).expect("it is empty");
    wait::until("all inodes are free", || (before - inodes() == removed + 1).then_some(()));
    mount.unmount();
}

#[test]
fn names_have_255_bytes_of_any_value_and_not_more() {
    let stage = Stage::vexfs(64);
    let mount = stage.mount();
    // Every byte but the two that no name can have; names that differ in their last byte alone.
    let all: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let names: BTreeSet<Vec<u8>> = all.iter().map(|last| [&all[..254], &[*last]].concat()).collect();
    assert!(names.len() == 254 && names.iter().all(|name| name.len() == 255));
    let long = [&all[..], b"xx"].concat();
    assert_eq!(long.len(), 256);

    let root = directory(mount.path());
    for name in &names {
        make(&root, name).expect("a name of 255 bytes");
    }
    let some = names.first().expect("names");
    fs::write(mount.join(OsStr::from_bytes(some)), b"content").unwrap();
    let empty = AtFlags::empty();
    let refusals = [
        ("mknod", make(&root, &long)),
        ("mkdir", mkdirat(&root, &*long, Mode::from_raw_mode(0o755))),
        ("symlink", symlinkat("target", &root, &*long)),
        ("link", linkat(&root, &**some, &root, &*long, empty)),
        ("rename", renameat(&root, &**some, &root, &*long)),
        ("rename from", renameat(&root, &*long, &root, "short")),
        ("unlink", unlinkat(&root, &*long, empty)),
        ("rmdir", unlinkat(&root, &*long, AtFlags::REMOVEDIR)),
        ("stat", statat(&root, &*long, empty).map(drop)),
        (
            "open",
            openat(&root, &*long, OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o644)).map(drop),
        ),
    ];
    for (what, refusal) in refusals {
        assert_eq!(refusal, Err(Errno::NAMETOOLONG), "{what}");
    }
    let listed =
        |root: &File| list(root, 0, usize::MAX).into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>();
    assert!(listed(&root) == names, "a refusal left something behind, or a name is not as it was given");
    // Exchanged and moved, they stay as long as they are.
    let last = names.last().expect("names");
    renameat_with(&root, &**some, &root, &**last, RenameFlags::EXCHANGE).expect("two long names");
    drop(root);
    mount.unmount();
    let mount = stage.mount();
    assert!(listed(&directory(mount.path())) == names, "other names after a remount");
    assert_eq!(fs::read(mount.join(OsStr::from_bytes(last))).unwrap(), b"content");
    mount.unmount();
}

#[test]
fn a_tree_may_be_deeper_than_a_path_is_long() {
    const LEVELS: usize = 500;
    const CONTENT: &[u8] = b"at the bottom";
    let name = |level: usize| format!("{level:0>250}");
    let below = |dir: &File, level: usize| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        File::from(openat(dir, name(level), flags, Mode::empty()).expect("the next level"))
    };
    let stage = Stage::vexfs(64);
    let mount = stage.mount();
    let mut dir = directory(mount.path());
    for level in 0..LEVELS {
        mkdirat(&dir, name(level), Mode::from_raw_mode(0o755)).expect("one level more");
        dir = below(&dir, level);
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let mut file = File::from(openat(&dir, "file", flags, Mode::from_raw_mode(0o644)).unwrap());
    file.write_all(CONTENT).unwrap();
    drop((file, dir));
    mount.unmount();

    let mount = stage.mount();
    let mut way = vec![directory(mount.path())];
    for level in 0..LEVELS {
        way.push(below(&way[level], level));
    }
    let bottom = way.last().expect("a directory");
    let file = openat(bottom, "file", OFlags::RDONLY, Mode::empty()).expect("the file at the bottom");
    assert_eq!(std::io::read_to_string(File::from(file)).unwrap().as_bytes(), CONTENT);
    for pair in way.windows(2) {
        let up = statat(&pair[1], "..", AtFlags::empty()).expect("the way up");
        assert_eq!(up.st_ino, pair[0].metadata().unwrap().ino());
        assert_eq!(pair[0].metadata().unwrap().nlink(), 3);
    }
    // Its root does not go below itself; what is at the bottom can come up.
    assert_eq!(renameat(CWD, mount.join(name(0)), bottom, "inside"), Err(Errno::INVAL));
    renameat(bottom, "file", CWD, mount.join("up")).expect("a rename over all levels");
    drop(way);
    process::ok(programs::tool("rm").arg("-r").arg(mount.join(name(0))));
    assert_eq!(fs::read(mount.join("up")).unwrap(), CONTENT);
    mount.unmount();
}
