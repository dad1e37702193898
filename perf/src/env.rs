//! Where things are: our programs, the rivals, scratch space.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};

/// Where tmpfs is mounted everywhere.
const SHM: &str = "/dev/shm";
/// `f_type` of tmpfs (linux/magic.h).
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Paths that the workloads use.
pub struct Env {
    /// Directory of our programs: that of this executable.
    programs: PathBuf,
    /// What perf/rivals/prepare.sh built.
    rivals: PathBuf,
    /// Scratch space on a real file system, removed at the end.
    scratch: tempfile::TempDir,
    /// Scratch space in memory, made when it is wanted.
    memory: OnceLock<tempfile::TempDir>,
    memory_group: Option<PathBuf>,
}

impl Env {
    /// `scratch_parent` must be on the file system that is to be measured; `memory_group` is where groups with
    /// little memory are made.
    ///
    /// # Errors
    /// No scratch directory can be made there.
    pub fn new(scratch_parent: Option<&Path>, memory_group: Option<&Path>) -> Result<Self> {
        let exe = std::env::current_exe().context("cannot tell where this program stands")?;
        let programs = exe.parent().context("this program stands nowhere")?.to_path_buf();
        let target = programs.parent().unwrap_or(&programs);
        let rivals = target.join("perf");
        let parent = scratch_parent.map_or_else(|| rivals.join("scratch"), Path::to_path_buf);
        std::fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let scratch = tempfile::Builder::new()
            .prefix("perf-")
            .tempdir_in(&parent)
            .with_context(|| format!("cannot make a scratch directory in {}", parent.display()))?;
        let memory_group = memory_group.map(Path::to_path_buf);
        Ok(Self { programs, rivals, scratch, memory: OnceLock::new(), memory_group })
    }

    /// Scratch space.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The control group given on the command line.
    pub fn memory_group(&self) -> Option<&Path> {
        self.memory_group.as_deref()
    }

    /// Scratch space on tmpfs with room for `bytes`, or what to do about its absence.
    pub fn memory_scratch(&self, bytes: u64) -> std::result::Result<PathBuf, String> {
        let shm = Path::new(SHM);
        let stat = rustix::fs::statfs(shm).map_err(|e| format!("{SHM}: {e}"))?;
        if stat.f_type != TMPFS_MAGIC {
            return Err(format!("{SHM} is not tmpfs: mount one there"));
        }
        let free = stat.f_bavail * u64::try_from(stat.f_bsize).unwrap_or(0);
        if free < bytes {
            return Err(format!("{SHM} has {} MiB free, {} are needed", free >> 20, bytes >> 20));
        }
        if self.memory.get().is_none() {
            let made = tempfile::Builder::new().prefix("vexfs-perf-").tempdir_in(shm);
            let _ = self.memory.set(made.map_err(|e| format!("no directory can be made in {SHM}: {e}"))?);
        }
        self.memory.get().map(|dir| dir.path().to_path_buf()).ok_or_else(|| format!("{SHM} cannot be used"))
    }

    /// One of our programs, or what to do about its absence.
    pub fn program(&self, name: &str) -> std::result::Result<PathBuf, String> {
        // A binary's name can't hold a dot in cargo: mkfs.vexfs is built as mkfs-vexfs.
        let path = self.programs.join(name.replace('.', "-"));
        if path.is_file() {
            Ok(path)
        } else {
            Err(format!("{} is not there: run `make build`", path.display()))
        }
    }

    /// A rival that perf/rivals/prepare.sh builds, or what to do about its absence.
    pub fn rival(&self, name: &str) -> std::result::Result<PathBuf, String> {
        let path = self.rivals.join(name);
        if path.exists() {
            Ok(path)
        } else {
            Err(format!("{} is not there: run perf/rivals/prepare.sh", path.display()))
        }
    }

    /// A program of the system, by PATH.
    pub fn tool(&self, name: &str) -> std::result::Result<PathBuf, String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|directory| directory.join(name))
            .find(|candidate| candidate.is_file())
            .ok_or_else(|| format!("{name} is not installed: run tests/scripts/deps.sh --perf"))
    }
}
