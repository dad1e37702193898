//! Where things are: our programs, the rivals, scratch space.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Paths that the workloads use.
pub struct Env {
    /// Directory of our programs: that of this executable.
    programs: PathBuf,
    /// What perf/rivals/prepare.sh built.
    rivals: PathBuf,
    /// Scratch space on a real file system, removed at the end.
    scratch: tempfile::TempDir,
}

impl Env {
    /// `scratch_parent` must be on the file system that is to be measured.
    ///
    /// # Errors
    /// No scratch directory can be made there.
    pub fn new(scratch_parent: Option<&Path>) -> Result<Self> {
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
        Ok(Self { programs, rivals, scratch })
    }

    /// Scratch space.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
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
