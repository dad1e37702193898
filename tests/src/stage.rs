//! Images, daemons and mounts in a scratch directory.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::process::{self, Background};
use crate::{programs, wait};

/// How a daemon says that it serves.
const READY: &[u8] = b"vexfs-blockd: serving ";

/// A scratch directory with an image, and names for what goes with it.
pub struct Stage {
    directory: tempfile::TempDir,
}

impl Stage {
    /// Without an image.
    pub fn empty() -> Self {
        Self { directory: programs::scratch() }
    }

    /// With a VexFS image of `size_mib`.
    pub fn vexfs(size_mib: u64) -> Self {
        let stage = Self::empty();
        process::ok(
            programs::ours("mkfs.vexfs").arg(stage.image()).args(["--size", &format!("{size_mib}M")]),
        );
        stage
    }

    /// With a raw volume of `size_mib`.
    pub fn raw(size_mib: u64) -> Self {
        let stage = Self::empty();
        process::ok(programs::ours("mkfs.vexfs").arg(stage.image()).args([
            "--raw",
            "--size",
            &format!("{size_mib}M"),
        ]));
        stage
    }

    /// The image's path.
    pub fn image(&self) -> PathBuf {
        self.path("image")
    }

    /// A path in the scratch directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// URI of the daemon.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }

    /// Where its daemons have their control sockets.
    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// `vexctl`, for its daemons.
    pub fn vexctl(&self) -> Command {
        let mut command = programs::ours("vexctl");
        command.env("VEXFS_RUN_DIR", self.run_dir());
        command
    }

    /// The daemon's NBD socket.
    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// Starts a daemon on the image and waits until it serves.
    pub fn daemon(&self) -> Daemon {
        self.daemon_by(&mut self.daemon_command())
    }

    /// Starts a daemon of the given command, which listens where [`Self::daemon`] does.
    pub fn daemon_by(&self, command: &mut Command) -> Daemon {
        let log = self.path("daemon.log");
        let before = std::fs::read(&log).map_or(0, |text| text.len());
        let mut process = Background::spawn(command, &log);
        // The line comes when its control socket is there too.
        process.wait_until("serving", || {
            std::fs::read(&log)
                .is_ok_and(|text| text[before..].windows(READY.len()).any(|part| part == READY))
        });
        Daemon { process }
    }

    /// The command that [`Self::daemon`] starts.
    pub fn daemon_command(&self) -> Command {
        let mut command = programs::ours("vexfs-blockd");
        command.arg("serve").arg(self.image()).arg("--nbd").arg(format!("unix:{}", self.socket().display()));
        command.env("VEXFS_RUN_DIR", self.run_dir());
        command
    }

    /// Mounts the image with the store in the mount's process.
    pub fn mount(&self) -> Mount {
        self.mount_at(&self.path("mnt"))
    }

    /// The same, at a mount point of choice.
    pub fn mount_at(&self, point: &Path) -> Mount {
        self.mount_source(self.image().to_str().expect("scratch paths are UTF-8"), point)
    }

    /// The same as [`Self::mount`], with options as after `-o`.
    pub fn mount_with(&self, options: &str) -> Mount {
        let point = self.path("mnt");
        let mut command = self.mount_command(self.image().to_str().expect("scratch paths are UTF-8"), &point);
        self.mount_by(command.args(["-o", options]), &point)
    }

    /// A number of what the store says of the volume in the image, which must not be in use (`vexfs-dump IMAGE status`).
    pub fn status(&self, name: &str) -> u64 {
        let text = process::ok(programs::ours("vexfs-dump").arg("--json").arg(self.image()).arg("status"));
        let status: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        status[name].as_u64().expect("a number")
    }

    /// Mounts through the daemon.
    pub fn mount_daemon(&self) -> Mount {
        self.mount_source(&self.uri(), &self.path("mnt"))
    }

    /// Mounts a snapshot through the daemon.
    pub fn mount_snapshot_of_daemon(&self, snapshot: &str, point: &Path) -> Mount {
        let mut command = self.mount_command(&self.uri(), point);
        command.arg("-o").arg(format!("snapshot={snapshot}"));
        self.mount_by(&mut command, point)
    }

    fn mount_source(&self, source: &str, point: &Path) -> Mount {
        self.mount_by(&mut self.mount_command(source, point), point)
    }

    fn mount_by(&self, command: &mut Command, point: &Path) -> Mount {
        std::fs::create_dir_all(point).expect("a mount point can be made");
        let mut process = Background::spawn(command, &self.path("fuse.log"));
        process.wait_until("mounting", || is_mounted(point));
        Mount { point: point.to_path_buf(), process }
    }

    /// The command that mounts `source` at `point`, in the foreground.
    pub fn mount_command(&self, source: &str, point: &Path) -> Command {
        let mut command = programs::ours("vexfs-fuse");
        command.arg(source).arg(point).arg("-f");
        if let Some(options) = vexfs_harness::mount_options() {
            command.arg("-o").arg(options);
        }
        command
    }
}

/// A running `vexfs-blockd serve`; killed when dropped.
pub struct Daemon {
    process: Background,
}

impl Daemon {
    /// SIGTERM; it must end well.
    ///
    /// # Panics
    /// It does not.
    pub fn stop(mut self) {
        self.process.terminate();
        let status = self.process.wait();
        assert!(status.success(), "the daemon ended with {status}:\n{}", self.process.log());
        self.process.assert_no_panic();
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.process.assert_no_panic();
        self.process.kill();
    }

    /// Waits for its end, which something else brings about; it must end well.
    ///
    /// # Panics
    /// It does not.
    pub fn ends(mut self) -> String {
        let status = self.process.wait();
        assert!(status.success(), "the daemon ended with {status}:\n{}", self.process.log());
        self.process.assert_no_panic();
        self.process.log()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl From<Background> for Daemon {
    fn from(process: Background) -> Self {
        Daemon { process }
    }
}

/// A mounted file system; killed and unmounted when dropped.
pub struct Mount {
    point: PathBuf,
    process: Background,
}

impl Mount {
    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// A path in the mount.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.point.join(name)
    }

    /// Unmounts; the process must commit and end well.
    ///
    /// A test beside this one, in the same process, may hold copies of our descriptors between its
    /// fork and exec: a mount that is busy is tried again.
    ///
    /// # Panics
    /// It does not.
    pub fn unmount(mut self) {
        wait::until("the mount to be idle", || {
            let output = process::output(programs::tool("fusermount3").arg("-u").arg(&self.point));
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() || stderr.contains("busy"), "fusermount3 -u: {stderr}");
            output.status.success().then_some(())
        });
        self.assert_good_end();
    }

    /// SIGTERM; the process must unmount, commit and end well.
    ///
    /// # Panics
    /// It does not.
    pub fn terminate(mut self) {
        self.process.terminate();
        self.assert_good_end();
        assert!(!is_mounted(&self.point), "still mounted after SIGTERM");
    }

    /// kill -9, then detaches what is left of the mount.
    pub fn kill(mut self) {
        self.die();
        // Dropping detaches.
    }

    /// kill -9; what is left of the mount gives errors.
    pub fn die(&mut self) {
        self.process.assert_no_panic();
        self.process.kill();
        // The system gives back io_uring's part of a process behind its end, and only then is nobody there.
        wait::until("the mount to be dead", || {
            statx(CWD, &self.point, AtFlags::STATX_FORCE_SYNC, StatxFlags::SIZE).is_err().then_some(())
        });
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Whether and how its process ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    fn assert_good_end(&mut self) {
        let status = self.process.wait();
        assert!(status.success(), "vexfs-fuse ended with {status}:\n{}", self.process.log());
        self.process.assert_no_panic();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if is_mounted(&self.point) {
            let _ = self.process.ended().is_none().then(|| self.process.kill());
            let _ = programs::tool("fusermount3").args(["-u", "-z"]).arg(&self.point).output();
            wait::until("the mount to be gone", || (!is_mounted(&self.point)).then_some(()));
        }
    }
}

/// Whether something is mounted at `point`.
pub fn is_mounted(point: &Path) -> bool {
    // Not canonicalize(point): that fails on a mount whose server is dead.
    let parent = point.parent().and_then(|parent| parent.canonicalize().ok());
    let Some(path) = parent.zip(point.file_name()).map(|(parent, name)| parent.join(name)) else {
        return false;
    };
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}
