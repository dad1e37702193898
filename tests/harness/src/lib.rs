//! Processes that tests and measurements start.
//!
//! However a test ends, by a panic, a signal or a kill -9 of its runner, what it started ends too: each process is killed
//! when the *thread* that started it ends (PR_SET_PDEATHSIG, see prctl(2)). A test has its thread until its end, so does
//! `main`; who starts processes in a helper thread must keep that thread.
//!
//! What such a process starts itself is not reached. So fio runs its jobs as threads here, not as processes, which would go on
//! without it; and nothing that it writes, its logs included, can fill the disk.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{
    Resource, Rlimit, Signal, getpid, getppid, set_parent_process_death_signal, setrlimit,
};

/// Most bytes of a file that a [`bounded`] process writes, its output included; it is killed (SIGXFSZ) when it wants to
/// write more.
pub const FILE_BYTES_MAX: u64 = 2 << 30;

/// A program whose process is killed when the thread that starts it ends.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let parent = getpid();
    let mut command = Command::new(program);
    let tie = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have died before it was to be told of.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    // SAFETY: between fork and exec only what is async-signal-safe may be done: `tie` makes two system calls, allocates
    // nothing and takes no lock.
    unsafe { command.pre_exec(tie) };
    command
}

/// As [`command`], for a program that can't fill the disk, whatever befalls it.
pub fn bounded(program: impl AsRef<OsStr>) -> Command {
    let mut command = command(program);
    let limit = || {
        let most = Some(FILE_BYTES_MAX);
        Ok(setrlimit(Resource::Fsize, Rlimit { current: most, maximum: most })?)
    };
    // SAFETY: as above, one system call.
    unsafe { command.pre_exec(limit) };
    command
}

/// fio, which stands at `path`.
pub fn fio(path: impl AsRef<OsStr>) -> Command {
    let mut command = bounded(path);
    command.arg("--thread=1");
    command
}

/// Options that tests mount with beside their own (`VEXFS_TEST_MOUNT_OPTIONS`): whole suites run over another transport so.
pub fn mount_options() -> Option<String> {
    std::env::var("VEXFS_TEST_MOUNT_OPTIONS").ok().filter(|options| !options.is_empty())
}

/// The kernel's switch for FUSE over io_uring (Linux 6.14), on; put back in the end.
pub struct FuseRings(String);

impl FuseRings {
    const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

    /// Turns it on.
    ///
    /// # Errors
    /// The kernel has none, or this is not root.
    pub fn enable() -> io::Result<Self> {
        let before = std::fs::read_to_string(Self::SWITCH)?;
        std::fs::write(Self::SWITCH, "Y")?;
        Ok(FuseRings(before))
    }
}

impl Drop for FuseRings {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::SWITCH, self.0.trim());
    }
}
