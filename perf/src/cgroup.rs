//! A control group with a memory limit, in which servers are started: page cache that they cause counts against it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{CWD, Mode, mkdirat};

const ROOT: &str = "/sys/fs/cgroup";

/// A group below another one; removed when dropped, once it is empty.
pub struct Group {
    directory: PathBuf,
    limit_file: &'static str,
}

/// How each server's memory is to be limited.
#[derive(Clone)]
pub struct Limit {
    /// Below which group; `None`: this process's own of cgroup v2.
    pub parent: Option<PathBuf>,
    pub bytes: u64,
}

impl Group {
    /// Makes a group with a limit, for one server.
    ///
    /// # Errors
    /// A sentence: there is no memory controller, or no permission.
    pub fn new(limit: &Limit) -> Result<Self, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let parent = match &limit.parent {
            Some(parent) => parent.clone(),
            None => own_group().ok_or("no cgroup v2 with a memory controller is mounted")?,
        };
        if parent.join("cgroup.subtree_control").exists() {
            // May be on already; what counts is whether the group has the limit's file.
            let _ = std::fs::write(parent.join("cgroup.subtree_control"), "+memory");
        }
        let directory = parent.join(format!(
            "vexfs-perf-{}-{}",
            std::process::id(),
            MADE.fetch_add(1, Ordering::Relaxed)
        ));
        let fail = |e: std::io::Error| format!("no group can be made in {}: {e}", parent.display());
        mkdirat(CWD, &directory, Mode::from_bits_truncate(0o755)).map_err(|e| fail(e.into()))?;
        let limits = ["memory.max", "memory.limit_in_bytes"];
        let Some(limit_file) = limits.into_iter().find(|name| directory.join(name).exists()) else {
            let _ = std::fs::remove_dir(&directory);
            return Err(format!("{} does not control memory", parent.display()));
        };
        let group = Group { directory, limit_file };
        std::fs::write(group.directory.join(limit_file), limit.bytes.to_string()).map_err(fail)?;
        Ok(group)
    }

    /// The file into which a process writes its number to join.
    pub fn procs(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    /// How the limit is set.
    pub fn describe(&self) -> String {
        format!("{} of a control group", self.limit_file)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir(&self.directory) {
            eprintln!("vexfs-perf: {} is left behind: {e}", self.directory.display());
        }
    }
}

/// This process's group of cgroup v2, if that controls memory.
fn own_group() -> Option<PathBuf> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group = Path::new(ROOT).join(path);
    let controllers = std::fs::read_to_string(group.join("cgroup.controllers")).ok()?;
    controllers.split_whitespace().any(|name| name == "memory").then_some(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_controls_nothing_is_refused_and_left_clean() {
        let parent = tempfile::tempdir().unwrap();
        let Err(why) = Group::new(&Limit { parent: Some(parent.path().to_path_buf()), bytes: 1 << 20 })
        else {
            panic!("it is no control group")
        };
        assert!(why.contains("does not control memory"), "{why}");
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
