//! The files that the loops work on: the same on every contender.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise};

use super::super::files::{path_text, run};

/// Files to look at.
pub const STAT_FILES: usize = 2000;
/// Names in the directory that is listed.
pub const LISTED: usize = 10_000;
/// Pages of the file that is read and written: 64 MiB.
pub const DATA_PAGES: u64 = 16 << 10;
/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Directory of what loops make.
const MADE: &str = "made";

/// See the module's text.
pub struct Tree {
    root: PathBuf,
    /// 64 MiB, through the page cache.
    pub data: File,
    /// The same file with O_DIRECT.
    pub direct: File,
    /// A tree of source files as tools get it.
    pub sources: Sources,
}

/// A tar archive and a git repository of one tree, outside what is measured.
#[derive(Clone)]
pub struct Sources {
    /// The archive.
    pub archive: PathBuf,
    /// The repository.
    pub repository: PathBuf,
}

impl Tree {
    /// Makes it in a mounted file system; the sources in `sources`, unless they are there.
    pub fn new(root: PathBuf, sources: &Path) -> Result<Self> {
        let sources = Sources::at(sources)?;
        for (directory, count) in [("stat", STAT_FILES), ("list", LISTED)] {
            fs::create_dir(root.join(directory))?;
            for index in 0..count {
                File::create(root.join(directory).join(format!("file-{index}")))?;
            }
        }
        let path = root.join("data");
        let data = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        for page in 0..DATA_PAGES / 256 {
            data.write_all_at(&vec![page as u8; 256 * PAGE], page * 256 * PAGE as u64)?;
        }
        data.sync_all()?;
        fadvise(&data, 0, None, Advice::Random)?;
        let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let direct = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
        Ok(Self { root, data, direct: direct.context("cannot open with O_DIRECT")?, sources })
    }

    /// One of the files to look at.
    pub fn stat_path(&self, index: usize) -> PathBuf {
        self.root.join("stat").join(format!("file-{index}"))
    }

    /// The directory to list.
    pub fn listed(&self) -> PathBuf {
        self.root.join("list")
    }

    /// A directory for what a loop makes; it is there.
    pub fn made(&self) -> Result<PathBuf> {
        let made = self.root.join(MADE);
        match fs::create_dir(&made) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error.into()),
            _ => Ok(made),
        }
    }

    /// Removes what loops made.
    pub fn tidy(&self) -> Result<()> {
        match fs::remove_dir_all(self.root.join(MADE)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context("cannot remove what was made")
            }
            _ => Ok(()),
        }
    }

    /// Closes all; gives where it was.
    pub fn into_root(self) -> PathBuf {
        self.root
    }
}

impl Sources {
    fn at(path: &Path) -> Result<Self> {
        let sources = Sources { archive: path.join("tree.tar"), repository: path.join("tree") };
        if path.is_dir() {
            return Ok(sources);
        }
        fs::create_dir(path)?;
        make_tree(&sources.repository)?;
        let tree = path_text(path)?;
        run(
            "tar",
            vexfs_harness::command("tar").args(["-C", tree, "-cf", path_text(&sources.archive)?, "tree"]),
        )?;
        for args in [&["init", "-q"][..], &["add", "."], &["commit", "-q", "-m", "all"]] {
            run("git", git(&sources.repository).args(args))?;
        }
        Ok(sources)
    }
}

/// git in a directory, without the user's settings.
pub fn git(directory: &Path) -> std::process::Command {
    let mut command = vexfs_harness::command("git");
    command.arg("-C").arg(directory).args(["-c", "user.name=perf", "-c", "user.email=perf@localhost"]);
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    command
}

/// 1,200 files in 60 directories, most of them of a few KiB, as source files are.
fn make_tree(root: &Path) -> Result<()> {
    for directory in 0..60_u64 {
        let directory_path = root.join(format!("part{}", directory % 10)).join(format!("module{directory}"));
        fs::create_dir_all(&directory_path)?;
        for file in 0..20_u64 {
            let number = directory * 20 + file;
            // 0.3 to 60 KiB, half of them below 4.
            let len = 300 << (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 61);
            let line = |at: u64| {
                format!(
                    "line {at} of file {number} says {:016x}\n",
                    (at + number).wrapping_mul(0xD134_2543_DE82_EF95)
                )
            };
            let text: String = (0..len / 48 + 1).map(line).collect();
            fs::write(directory_path.join(format!("file{file}.rs")), text)?;
        }
    }
    Ok(())
}
