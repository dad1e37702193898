//! Threads that change one tree together, all operations at random; afterwards everything in it must fit together, be the same after
//! a remount, and give its space back.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{
    DirBuilderExt, DirEntryExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, XattrFlags, copy_file_range,
    fallocate, linkat, mknodat, renameat_with, setxattr, statvfs,
};
use rustix::io::Errno;
use vexfs_tests::settings;
use vexfs_tests::stage::{Mount, Stage};
use walkdir::WalkDir;

const THREADS: u64 = 8;
/// Steps of each thread.
const STEPS: usize = 1500;
/// Names in a directory: few, so that threads meet.
const NAMES: u32 = 12;
const DIRECTORIES: u32 = 5;
const XATTR: &str = "user.color";

/// What an operation may say when others were there before it.
fn expected(error: Errno) -> bool {
    [
        Errno::NOENT,
        Errno::EXIST,
        Errno::NOTEMPTY,
        Errno::ISDIR,
        Errno::NOTDIR,
        // A directory into itself.
        Errno::INVAL,
        // A hard link to a directory, or a fifo where a file is wanted.
        Errno::PERM,
        Errno::NXIO,
        Errno::LOOP,
        Errno::NODATA,
        Errno::OPNOTSUPP,
        Errno::SPIPE,
        Errno::NODEV,
        Errno::TXTBSY,
    ]
    .contains(&error)
}

struct Member {
    root: PathBuf,
    rng: StdRng,
    /// Files that stay open, whatever becomes of their names.
    held: Vec<File>,
}

impl Member {
    fn dir(&mut self) -> PathBuf {
        let mut dir = self.root.clone();
        for _ in 0..self.rng.random_range(0..3) {
            dir.push(format!("d{}", self.rng.random_range(0..DIRECTORIES)));
        }
        dir
    }

    fn path(&mut self) -> PathBuf {
        let name = match self.rng.random_range(0..10) {
            0..2 => format!("d{}", self.rng.random_range(0..DIRECTORIES)),
            _ => format!("name {}", self.rng.random_range(0..NAMES)),
        };
        self.dir().join(name)
    }

    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; self.rng.random_range(1..30_000)];
        self.rng.fill(&mut bytes[..]);
        bytes
    }

    /// Not a fifo or device: opening one may wait.
    fn file(&mut self, create: bool) -> io::Result<File> {
        let path = self.path();
        let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .custom_flags(flags.bits().cast_signed())
            .open(path)?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(Errno::SPIPE.into()) }
    }

    fn step(&mut self) -> io::Result<()> {
        match self.rng.random_range(0..100) {
            0..18 => {
                let (bytes, at) = (self.bytes(), self.rng.random_range(0..50_000));
                self.file(true)?.write_all_at(&bytes, at)?;
            }
            18..24 => {
                let bytes = self.bytes();
                let file = self.file(false)?;
                (&file).write_all(&bytes)?;
                file.sync_data()?;
            }
            24..30 => self.file(false)?.set_len(self.rng.random_range(0..60_000))?,
            30..35 => {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(self.file(false)?, punch, self.rng.random_range(0..20_000), 9000)?;
            }
            35..40 => {
                let (from, to) = (self.file(false)?, self.file(true)?);
                // 0 at the end of the source; a file into itself may overlap (EINVAL).
                copy_file_range(&from, None, &to, None, self.rng.random_range(1..40_000))?;
            }
            40..47 => {
                let path = self.path();
                DirBuilder::new().mode(0o755).create(path)?;
            }
            47..52 => fs::remove_dir(self.path())?,
            52..62 => fs::remove_file(self.path())?,
            62..72 => fs::rename(self.path(), self.path())?,
            72..76 => renameat_with(CWD, self.path(), CWD, self.path(), RenameFlags::EXCHANGE)?,
            76..79 => renameat_with(CWD, self.path(), CWD, self.path(), RenameFlags::NOREPLACE)?,
            79..84 => fs::hard_link(self.path(), self.path())?,
            84..87 => symlink("name 1", self.path())?,
            87..89 => {
                let kind = [FileType::Fifo, FileType::Socket, FileType::CharacterDevice]
                    [self.rng.random_range(0..3)];
                mknodat(CWD, self.path(), kind, Mode::from_raw_mode(0o600), rustix::fs::makedev(1, 3))?;
            }
            89..92 => {
                let value = vec![b'x'; self.rng.random_range(0..600)];
                setxattr(self.path(), XATTR, &value, XattrFlags::empty())?;
            }
            92..94 => fs::set_permissions(self.path(), Permissions::from_mode(0o755))?,
            94..96 => {
                // Listed while others change it.
                let mut names = BTreeSet::new();
                for entry in fs::read_dir(self.dir())? {
                    let name = entry?.file_name();
                    assert!(names.insert(name.clone()), "{name:?} is listed twice");
                }
            }
            96..98 => {
                // Without a name, and then maybe with one.
                let mut options = OpenOptions::new();
                options.read(true).write(true).custom_flags(OFlags::TMPFILE.bits().cast_signed());
                let mut file = options.open(self.dir())?;
                file.write_all(&self.bytes())?;
                if self.rng.random_bool(0.5) {
                    linkat(&file, "", CWD, self.path(), AtFlags::EMPTY_PATH)?;
                }
            }
            _ => {
                let file = self.file(true)?;
                self.held.push(file);
                if self.held.len() > 5 {
                    let mut byte = [0];
                    let first = self.held.remove(0);
                    first.write_all_at(b"still here", 5)?;
                    first.read_exact_at(&mut byte, 5)?;
                }
            }
        }
        Ok(())
    }

    fn run(mut self) {
        let mut done = 0;
        for number in 0..STEPS {
            match self.step() {
                Ok(()) => done += 1,
                Err(error) if error.raw_os_error().is_some_and(|e| expected(Errno::from_raw_os_error(e))) => {
                }
                Err(error) => panic!("step {number}: {error}"),
            }
        }
        assert!(done > STEPS / 8, "only {done} steps did something");
    }
}

/// All that can be seen of an entry.
struct Seen {
    mode: u32,
    links: u64,
    size: Option<u64>,
    device: u64,
    mtime: (i64, i64),
    target: Option<PathBuf>,
    xattr: Option<Vec<u8>>,
    content: Option<Vec<u8>>,
    /// The least path of the same inode.
    inode: PathBuf,
}

impl Seen {
    /// All but the content.
    fn head(&self) -> String {
        let Seen { mode, links, size, device, mtime, target, xattr, inode, .. } = self;
        let xattr = xattr.as_ref().map(Vec::len);
        format!(
            "mode {mode:o}, {links} links, size {size:?}, device {device}, mtime {mtime:?}, target {target:?}, xattr {xattr:?}, as {inode:?}"
        )
    }
}

/// Walks the tree and checks that names, types, inode numbers and link counts fit together.
fn survey(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut names: BTreeMap<u64, (u64, u64, PathBuf)> = BTreeMap::new();
    for entry in WalkDir::new(root).sort_by_file_name() {
        let entry = entry.expect("all can be listed");
        let path = entry.path();
        let meta = fs::symlink_metadata(path).expect("each name has an inode");
        let kind = meta.file_type();
        let short = path.strip_prefix(root).unwrap().to_path_buf();
        if kind.is_dir() {
            let (mut below, mut listed) = (0, BTreeSet::<OsString>::new());
            for child in fs::read_dir(path).unwrap() {
                let child = child.unwrap();
                let inode = fs::symlink_metadata(child.path()).expect("what is listed can be found");
                assert_eq!(child.ino(), inode.ino(), "{:?}", child.path());
                assert_eq!(child.file_type().unwrap(), inode.file_type(), "{:?}", child.path());
                below += u64::from(inode.is_dir());
                assert!(listed.insert(child.file_name()), "{:?} is listed twice", child.path());
            }
            assert_eq!(meta.nlink(), 2 + below, "links of {short:?}");
        } else {
            let known = names.entry(meta.ino()).or_insert((meta.nlink(), 0, short.clone()));
            known.1 += 1;
        }
        let content = kind.is_file().then(|| {
            let mut bytes = Vec::new();
            File::open(path)
                .and_then(|mut file| file.read_to_end(&mut bytes))
                .expect("each file can be read");
            assert_eq!(bytes.len() as u64, meta.len(), "{short:?}");
            bytes
        });
        let inode = names.get(&meta.ino()).map_or_else(|| short.clone(), |known| known.2.clone());
        assert!(!kind.is_block_device(), "{short:?}: nobody made one");
        let one = Seen {
            mode: meta.mode(),
            links: meta.nlink(),
            size: (!kind.is_dir()).then_some(meta.len()),
            device: meta.rdev(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            target: kind.is_symlink().then(|| fs::read_link(path).unwrap()),
            xattr: if kind.is_symlink() { None } else { xattr::get(path, XATTR).unwrap() },
            content,
            inode,
        };
        seen.insert(short, one);
    }
    for (links, found, path) in names.values() {
        assert_eq!(links, found, "links of {path:?}, and its names");
    }
    seen
}

fn assert_same(before: &BTreeMap<PathBuf, Seen>, after: &BTreeMap<PathBuf, Seen>) {
    for (path, seen) in before {
        let now = after.get(path).unwrap_or_else(|| panic!("{path:?} is gone after the remount"));
        let contents = (&seen.content, &now.content);
        assert!(contents.0 == contents.1, "{path:?} has other bytes after the remount");
        let heads = [seen, now].map(Seen::head);
        assert!(
            heads[0] == heads[1],
            "{path:?} is not the same after the remount:\n{}\n{}",
            heads[0],
            heads[1]
        );
    }
    assert_eq!(before.len(), after.len(), "names came with the remount");
}

fn free(mount: &Mount) -> u64 {
    File::open(mount.path()).and_then(|root| root.sync_all()).unwrap();
    statvfs(mount.path()).unwrap().f_bfree
}

#[test]
fn a_tree_changed_by_a_crowd_fits_together() {
    let stage = Stage::vexfs(256);
    let mut mount = stage.mount();
    let empty = free(&mount);
    let seed = settings::seed();
    for round in 0..2 {
        let root = mount.join("tree");
        fs::create_dir_all(&root).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let rng = StdRng::seed_from_u64(seed + round * 100 + thread);
                let member = Member { root: root.clone(), rng, held: Vec::new() };
                scope.spawn(move || member.run());
            }
        });
        let before = survey(&root);
        assert!(before.len() > 40, "a tree of {} names shows little", before.len());
        // Half of the rounds are carried on through a remount.
        mount.unmount();
        mount = stage.mount();
        assert_same(&before, &survey(&mount.join("tree")));
    }
    fs::remove_dir_all(mount.join("tree")).unwrap();
    let left = free(&mount);
    // Inodes and free stacks keep a few pages.
    assert!(left + 200 >= empty, "{left} pages are free, after {empty} at the beginning");
    mount.unmount();
}
