//! From a source to a live mount, and back: open, take the session, mount, serve, last commit,
//! end the session.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockd::device::Device;
use blockd::session::{GrantCell, OpenMode, Session, boot_id};
use rustix::fs::{Mode, OFlags};

use super::adapter::Adapter;
use super::options::MountSettings;
use super::volume::Mounted;
use crate::engine::{Engine, EngineOptions, EpochSource, Flusher};
use crate::wire::mount::unmount;
use crate::wire::server::Connection;

/// How long a busy mount may take to end after a signal before it is left behind.
const DETACH_WAIT_MAX: Duration = Duration::from_secs(3);
/// Bytes that the kernel reads ahead, in KiB: one request of the largest size.
const READ_AHEAD_KIB: u32 = 1024;
const POLL: Duration = Duration::from_millis(20);

/// Why a volume can't be mounted; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The source can't be used.
    #[error("{0}")]
    Source(String),
    /// The session was refused.
    #[error("cannot take the volume: {0}")]
    Session(#[from] blockd::session::SessionError),
    /// The file system in it can't be used.
    #[error("cannot mount the file system: {0}")]
    FileSystem(layout::error::Error),
    /// The mount point or the kernel.
    #[error("cannot mount on {at}: {source}{hint}")]
    Kernel {
        /// The mount point.
        at: String,
        /// What the system says.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// A thread can't be started, /proc is missing, and the like.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
}

/// A live mount.
pub struct Running {
    mounted: Arc<Mounted>,
    connection: Connection,
    flusher: Option<Flusher>,
    settings: MountSettings,
    /// The device number that the kernel gave the mount.
    number: Option<u64>,
}

/// Mounts a device that holds a VexFS volume. The device outlives the mount: shut it down after
/// [`Running::finish`].
///
/// # Errors
/// [`MountError`].
pub fn mount(
    device: Arc<dyn Device>,
    cell: &GrantCell,
    fsname: &str,
    settings: MountSettings,
) -> Result<Running, MountError> {
    check_mountpoint(&settings.mountpoint)?;
    let client = device.connect();
    let session = match (settings.read_only, device.info().read_only) {
        // Nothing can be sent to it, and nobody can change it.
        (true, true) => None,
        (false, true) => {
            return Err(MountError::Source(format!("{fsname} is read-only; mount it with -o ro")));
        }
        (read_only, false) => {
            let mode = if read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
            Some(Session::open(Arc::clone(&device), client, mode, boot_id()?, cell)?)
        }
    };
    let number = session.as_ref().map_or(0, Session::number);
    let options = EngineOptions {
        cache_bytes: settings.cache_bytes,
        read_only: settings.read_only,
        ..EngineOptions::default()
    };
    let engine = Engine::new(device, client, session, options)?;
    let running = start(&engine, number, fsname, settings);
    if running.is_err()
        && let Err(error) = engine.close_session()
    {
        tracing::warn!("the session could not be closed; the next mount does it: {error}");
    }
    running
}

/// Mounts what the engine has the session of.
fn start(
    engine: &Arc<Engine>,
    session: u64,
    fsname: &str,
    settings: MountSettings,
) -> Result<Running, MountError> {
    let mounted = Mounted::new(Arc::clone(engine), session, settings.read_only);
    let mounted = mounted.map_err(MountError::FileSystem)?;
    let flusher = if settings.read_only {
        None
    } else {
        let source: Arc<dyn EpochSource + Send + Sync> = Arc::clone(&mounted) as _;
        Some(Flusher::start(Arc::clone(engine), source, settings.commit_interval)?)
    };
    let fsname = settings.fsname.as_deref().unwrap_or(fsname);
    let failed = |source| kernel_error(&settings.mountpoint, source);
    let channel = Adapter::mount(&settings, fsname).map_err(failed)?;
    // Before anybody can find it and put something else there.
    let number = mounted_at(&settings.mountpoint);
    let connection = Adapter::serve(Arc::clone(&mounted), &settings, channel).map_err(|source| {
        // Nobody would answer there.
        let _ = unmount(&settings.mountpoint, true);
        failed(source)
    })?;
    if let Some(number) = number {
        raise_read_ahead(number);
    }
    Ok(Running { mounted, connection, flusher, settings, number })
}

/// The device number of what is mounted there. Answered from the kernel's memory, so that it
/// never waits for this process.
fn mounted_at(mountpoint: &Path) -> Option<u64> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = statx(CWD, mountpoint, flags, StatxFlags::TYPE).ok()?;
    Some(makedev(found.stx_dev_major, found.stx_dev_minor))
}

/// Lets the kernel read ahead as far as one request reaches; its default for FUSE is 128 KiB. Only
/// root may, and it only makes sequential reads faster.
fn raise_read_ahead(device: u64) {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let knob = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&knob, READ_AHEAD_KIB.to_string()) {
        tracing::debug!("{knob}: {error}");
    }
}

fn check_mountpoint(path: &Path) -> Result<(), MountError> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(kernel_error(path, io::Error::from(io::ErrorKind::NotADirectory))),
        Err(source) => Err(kernel_error(path, source)),
    }
}

fn kernel_error(path: &Path, source: io::Error) -> MountError {
    let hint = if !Path::new("/dev/fuse").exists() {
        "; /dev/fuse is missing: load the fuse module (modprobe fuse), or give the container that device"
    } else {
        match source.kind() {
            io::ErrorKind::NotFound => "; create the mount point first (mkdir -p)",
            io::ErrorKind::NotADirectory => "; the mount point must be a directory",
            io::ErrorKind::NotConnected => {
                "; a dead mount is there: detach it first (fusermount3 -u, or umount -l)"
            }
            io::ErrorKind::PermissionDenied => "; mounting needs root, or fusermount3 with /etc/fuse.conf",
            _ => "",
        }
    };
    MountError::Kernel { at: path.display().to_string(), source, hint }
}

impl Running {
    /// The operations of the mount.
    pub fn mounted(&self) -> &Arc<Mounted> {
        &self.mounted
    }

    /// Waits until someone unmounts, or `stop` says so; then unmounts if needed, makes the last
    /// commit and ends the session.
    ///
    /// # Errors
    /// When the last commit failed: what was written after the commit before is lost.
    pub fn serve(self, stop: impl Fn() -> bool) -> Result<(), layout::error::Error> {
        while !self.connection.has_ended() && !stop() {
            std::thread::sleep(POLL);
        }
        self.finish()
    }

    /// Unmounts if that has not happened, makes the last commit and ends the session. A mount in
    /// use is detached: its users get errors once this process ends.
    ///
    /// # Errors
    /// As [`Running::serve`].
    pub fn finish(self) -> Result<(), layout::error::Error> {
        let Running { mounted, connection, flusher, settings, number } = self;
        let in_use = !end_connection(&connection, &settings.mountpoint, number);
        if in_use {
            tracing::warn!(
                "{} is still in use; it was detached, and its users get errors from now on",
                settings.mountpoint.display()
            );
        }
        if !in_use && !settings.read_only {
            mounted.forget_all();
        }
        drop(flusher);
        if settings.read_only {
            return Ok(());
        }
        let engine = Arc::clone(mounted.engine());
        let committed = engine.commit_clean(&*mounted);
        engine.health().end();
        if committed.is_ok()
            && let Err(error) = engine.close_session()
        {
            tracing::warn!("the session could not be closed; the next mount does it: {error}");
        }
        committed
    }
}

/// Unmounts; false if the mount stays in use. What stands at the mount point is left alone if it is
/// not ours: we were detached (umount -l), and somebody mounted something else there.
fn end_connection(connection: &Connection, mountpoint: &Path, number: Option<u64>) -> bool {
    if connection.has_ended() {
        return true;
    }
    let found = mounted_at(mountpoint);
    if number.is_some() && found == number {
        // A mount in use is not written back when it is detached.
        let root = rustix::fs::open(mountpoint, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        if let Err(error) = root.and_then(rustix::fs::syncfs) {
            tracing::warn!("cannot write back {}: {error}", mountpoint.display());
        }
    }
    if (number.is_none() || found.is_none() || found == number)
        && unmount(mountpoint, false).is_err()
        && let Err(error) = unmount(mountpoint, true)
    {
        tracing::warn!("cannot unmount {}: {error}", mountpoint.display());
    }
    connection.wait(DETACH_WAIT_MAX)
}
