//! What the mount tests share: images, the program under test, and mounts that clean up.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use blockd::buf::AlignedBuf;
use blockd::device::{Device, IoOp, VolumeKind, blocking};
use blockd::session::{GrantCell, OpenMode, Session, boot_id};
use blockd::volume::{CreateOptions, OpenOptions, Volume};
use layout::fs::{FormatParams, format};
use layout::page_store::Timespec;

/// Longest wait for a process or a mount; only reached when something hangs.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Whether mounting is possible; says why not.
pub fn can_mount() -> bool {
    let possible = Path::new("/dev/fuse").exists() && rustix::process::geteuid().is_root();
    if !possible {
        eprintln!("skipped: mounting needs root and /dev/fuse");
    }
    possible
}

/// Waits until `holds`, or panics with `what`.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + WAIT_MAX;
    while !holds() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Makes an image of this size with an empty file system.
pub fn make_image(path: &Path, size_bytes: u64) {
    make_volume(path, size_bytes, VolumeKind::VexFs);
    let volume = Volume::open(path, &OpenOptions::default()).unwrap();
    let device = Arc::clone(&volume) as Arc<dyn Device>;
    let client = device.connect();
    let boot = boot_id().unwrap();
    let session =
        Session::open(Arc::clone(&device), client, OpenMode::ReadWrite, boot, &GrantCell::default()).unwrap();
    let params = FormatParams {
        uuid: device.info().uuid.into_bytes(),
        label: [0; 32],
        hash_key: [3; 16],
        now: Timespec { secs: 1_700_000_000, nanos: 0 },
        root_uid: 0,
        root_gid: 0,
        root_perm: 0o755,
    };
    format(params, &mut |page, bytes| {
        let op =
            IoOp::Write { offset: page.byte(), buf: AlignedBuf::from_slice(&bytes[..]), fua: page.0 == 0 };
        blocking(&*device, client, op).unwrap();
    });
    session.close().unwrap();
    volume.shutdown().unwrap();
}

/// Makes an empty volume.
pub fn make_volume(path: &Path, size_bytes: u64, kind: VolumeKind) {
    let raw = kind == VolumeKind::Raw;
    let options = CreateOptions {
        kind,
        uuid: uuid::Uuid::new_v4(),
        size_bytes,
        raw_size_bytes: if raw { size_bytes / 4 } else { 0 },
        segment_bytes: 0,
        force: false,
    };
    Volume::create(path, &options).unwrap();
}

/// A directory with an image and a mount point; nothing of it is left behind.
pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// With an empty VexFS image of this size.
    pub fn new(size_bytes: u64) -> Self {
        let bench = Self::bare();
        make_image(&bench.image(), size_bytes);
        bench
    }

    /// Without an image.
    pub fn bare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        Bench { dir }
    }

    pub fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// A path beside the image.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A path inside the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mountpoint().join(name)
    }

    /// Mounts the image with these options.
    pub fn mount(&self, options: &str) -> Mount {
        self.mount_source(self.image().to_str().unwrap(), options)
    }

    /// Mounts a source in the foreground of a child process.
    pub fn mount_source(&self, source: &str, options: &str) -> Mount {
        let at = self.mountpoint();
        let common = vexfs_harness::mount_options().unwrap_or_default();
        let mut child = program()
            .args(["-f", source])
            .arg(&at)
            .args(["-o", &common, "-o", options])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the mount is live", || {
            assert_eq!(child.try_wait().unwrap(), None, "vexfs-fuse ended instead of mounting");
            is_mounted(&at)
        });
        Mount { child: Some(child), at }
    }

    /// Runs the program to its end, expecting a failure; gives what it said.
    pub fn refused(&self, source: &str, mountpoint: &Path, options: &str) -> String {
        let output = run(program().args(["-f", source]).arg(mountpoint).args(["-o", options]));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(!is_mounted(mountpoint));
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if is_mounted(&self.mountpoint()) {
            let _ = vexfs_harness::command("umount").arg("-l").arg(self.mountpoint()).status();
        }
    }
}

/// The program under test.
pub fn program() -> Command {
    vexfs_harness::command(env!("CARGO_BIN_EXE_vexfs-fuse"))
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// Whether something is mounted at a path.
pub fn is_mounted(at: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == at.to_str())
}

/// A live mount; killed and detached if a test fails.
pub struct Mount {
    child: Option<Child>,
    at: PathBuf,
}

impl Mount {
    /// Unmounts as umount(8) does, and waits for the orderly end of the program.
    pub fn unmount(mut self) {
        let status = vexfs_harness::command("umount").arg(&self.at).status().unwrap();
        assert!(status.success(), "umount: {status}");
        let status = self.child.take().unwrap().wait().unwrap();
        assert!(status.success(), "vexfs-fuse: {status}");
    }

    /// The process.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.child.as_ref().unwrap())
    }

    /// kill -9, and removes the dead mount.
    pub fn kill(mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(vexfs_harness::command("umount").arg("-l").arg(&self.at).status().unwrap().success());
    }

    /// Sends a signal and waits for the orderly end.
    pub fn signal(mut self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
        let status = self.child.take().unwrap().wait().unwrap();
        assert!(status.success(), "vexfs-fuse: {status}");
        assert!(!is_mounted(&self.at));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            let _ = vexfs_harness::command("umount").arg("-l").arg(&self.at).status();
        }
    }
}
