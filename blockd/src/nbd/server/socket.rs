//! The listening unix socket and its file: never more open than its mode, from its first moment; never taken from
//! a server that lives; removed at the end if it is still ours.
//!
//! Whether a file is stale, or still ours, is looked at and acted upon under a lock of its directory: of two servers that
//! start at once, or one that starts while another ends, neither removes the other's file.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that wait to be accepted.
pub const BACKLOG: i32 = 1024;

/// How long the lock of a directory is waited for; it is held for some system calls that do not block.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Time between two tries.
const LOCK_AGAIN: Duration = Duration::from_millis(2);

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Someone serves it.
    #[error("another server is listening on {0}; stop it, or choose another socket path")]
    InUse(PathBuf),
    /// Nothing listens for clients.
    #[error("no socket is given to serve on; give at least one, such as unix:/run/disk.sock")]
    Nowhere,
    /// An address that cannot be bound.
    #[error(
        "cannot listen on {address}: {source}; choose an address of this machine and a port that is free"
    )]
    Tcp {
        /// The address.
        address: String,
        /// The reason.
        source: io::Error,
    },
    /// TCP would let everyone in.
    #[error(
        "{0} without TLS lets everyone who can reach it read and change the volume; \
         give a certificate and key (--tls-cert, --tls-key), or say --insecure"
    )]
    Unprotected(String),
    /// A descriptor that was handed over.
    #[error(
        "the socket that was handed over cannot be listened on: {0}; it must be a listening stream socket"
    )]
    Inherited(io::Error),
    /// The event loop cannot be set up.
    #[error("cannot start the threads that accept connections: {0}")]
    Runtime(io::Error),
    /// It is not ours to remove.
    #[error("{0} exists and is not a socket; remove it, or choose another socket path")]
    NotASocket(PathBuf),
    /// The path does not fit a socket address.
    #[error("the socket path {0} cannot be used (at most 107 bytes, no NUL); choose a shorter one")]
    Path(PathBuf),
    /// The system refused.
    #[error(
        "cannot {what} {path}: {source}; choose a socket path in a directory that exists and that you may write to"
    )]
    System {
        /// What was tried.
        what: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// The file of a listening socket; dropping it removes the file, if it is ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// The file itself, without access to it: while it is held, its inode number is no other file's.
    inode: OwnedFd,
    keep: bool,
}

impl SocketFile {
    /// Binds and listens; the file gets the permissions `mode`. A stale file is replaced.
    ///
    /// # Errors
    /// When someone listens there, something else stands there, or it cannot be made.
    pub fn bind(path: &Path, mode: u32) -> Result<(UnixListener, SocketFile), BindError> {
        let address = SocketAddrUnix::new(path).map_err(|_| BindError::Path(path.into()))?;
        let system = |what| move |source: io::Error| BindError::System { what, path: path.into(), source };
        let _lock = lock_directory(path, LOCK_WAIT);
        remove_stale(path, &address)?;
        let fd = open_listener(&address, mode).map_err(|e| match e {
            Errno::ADDRINUSE => BindError::InUse(path.into()),
            e => system("listen on")(e.into()),
        })?;
        let inode = inode_of(path).map_err(|e| system("inspect")(e.into()))?;
        let socket = SocketFile { path: path.into(), inode, keep: false };
        let file = std::fs::symlink_metadata(path).map_err(system("inspect"))?;
        if file.permissions().mode() & 0o777 != mode {
            // The umask took some away.
            std::fs::set_permissions(path, Permissions::from_mode(mode))
                .map_err(system("set the mode of"))?;
        }
        Ok((UnixListener::from(fd), socket))
    }

    /// The file of a socket that a predecessor has bound, which may yet need it: see [`SocketFile::own`]. `None` if there is no
    /// socket there any more.
    pub fn adopt(path: &Path) -> Option<SocketFile> {
        let inode = inode_of(path).ok()?;
        let mode = rustix::fs::fstat(&inode).ok()?.st_mode;
        let is_socket = FileType::from_raw_mode(mode) == FileType::Socket;
        is_socket.then(|| SocketFile { path: path.into(), inode, keep: true })
    }

    fn is(&self, file: &std::fs::Metadata) -> bool {
        rustix::fs::fstat(&self.inode)
            .is_ok_and(|ours| (ours.st_dev, ours.st_ino) == (file.dev(), file.ino()))
    }

    /// The predecessor is out of it: dropping this removes the file.
    pub fn own(&mut self) {
        self.keep = false;
    }

    /// The file stays: a successor listens on the same socket.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let _lock = lock_directory(&self.path, LOCK_WAIT);
        match std::fs::symlink_metadata(&self.path) {
            Ok(file) if self.is(&file) => {
                if let Err(error) = std::fs::remove_file(&self.path) {
                    tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
                }
            }
            _ => tracing::debug!(path = %self.path.display(), "the socket file is not ours any more"),
        }
    }
}

fn inode_of(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn open_listener(address: &SocketAddrUnix, mode: u32) -> rustix::io::Result<OwnedFd> {
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Linux gives the socket file the mode of the socket's own inode (unix(7): fchmod before bind),
    // less the umask, so at no moment can anyone else connect.
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
    rustix::net::bind(&fd, address)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd)
}

/// Locks the directory of a socket against others of this module; dropping the descriptor unlocks it. `None` where that is not
/// possible: a directory that may not be listed, a file system without locks; or if somebody keeps it locked, since that
/// may be anyone who can open it, and is no reason not to serve.
fn lock_directory(path: &Path, wait: Duration) -> Option<OwnedFd> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Why it cannot be opened is better said by what comes next.
    let fd = rustix::fs::open(directory, flags, Mode::empty()).ok()?;
    let until = Instant::now() + wait;
    loop {
        match rustix::fs::flock(fd.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(fd),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOCK_AGAIN),
            Err(Errno::WOULDBLOCK) => {
                tracing::warn!(directory = %directory.display(), "another process keeps the directory of a socket locked; going on");
                return None;
            }
            Err(_) => return None,
        }
    }
}

fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), BindError> {
    let system = |what| move |source| BindError::System { what, path: path.into(), source };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(system("inspect")(e)),
        Ok(file) if !file.file_type().is_socket() => return Err(BindError::NotASocket(path.into())),
        Ok(_) => {}
    }
    // One that is too busy to accept must not keep us waiting.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    match probe.and_then(|probe| rustix::net::connect(&probe, address)) {
        Ok(()) | Err(Errno::AGAIN) => Err(BindError::InUse(path.into())),
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %path.display(), "removing a socket file that nobody listens on");
            std::fs::remove_file(path).map_err(system("remove the stale"))
        }
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(system("probe")(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn bind(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
        SocketFile::bind(path, 0o600)
    }

    #[test]
    fn the_file_is_private_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let socket = bind(&path).unwrap();
        assert_eq!(mode(), 0o600);
        drop(socket);
        assert!(!path.exists());
        let (_, file) = SocketFile::bind(&path, 0o666).unwrap();
        assert_eq!(mode(), 0o666, "whatever the umask is");
        file.keep();
        assert!(path.exists());
        let mut adopted = SocketFile::adopt(&path).unwrap();
        drop(SocketFile::adopt(&path));
        assert!(path.exists(), "its predecessor may still need it");
        adopted.own();
        drop(adopted);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_server_is_left_alone_and_a_stale_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let live = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::InUse(_))));
        assert!(path.exists());
        drop(live);
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard listener leaves its file behind");
        let socket = bind(&path).unwrap();
        // Somebody else's file at the same path is not removed by us.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"x").unwrap();
        drop(socket);
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
        assert!(matches!(bind(&path), Err(BindError::NotASocket(_))));
    }

    #[test]
    fn of_several_that_start_at_once_one_gets_the_path_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        for round in 0..300 {
            if round % 2 == 0 {
                // Left behind by a server that was killed.
                drop(UnixListener::bind(&path).unwrap());
            }
            let before = (round % 3 == 0 && !path.exists()).then(|| bind(&path).unwrap());
            let barrier = std::sync::Barrier::new(4);
            let results: Vec<_> = std::thread::scope(|scope| {
                let start = || {
                    barrier.wait();
                    bind(&path)
                };
                let starting: Vec<_> = (0..3).map(|_| scope.spawn(start)).collect();
                barrier.wait();
                // And one goes just now.
                drop(before);
                starting.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let lost = |result: &Result<_, BindError>| matches!(result, Err(BindError::InUse(_)));
            let others = results.iter().filter(|result| lost(result)).count();
            let mut bound = results.into_iter().filter_map(Result::ok);
            let Some((listener, file)) = bound.next() else {
                assert_eq!(others, 3, "round {round}: all found the one that was about to go");
                assert!(!path.exists(), "round {round}");
                continue;
            };
            assert!(bound.next().is_none() && others == 2, "round {round}: {others} were refused");
            drop(UnixStream::connect(&path).unwrap_or_else(|e| panic!("round {round}: {e}")));
            listener.set_nonblocking(true).unwrap();
            listener.accept().unwrap_or_else(|e| panic!("round {round}: it came to another one: {e}"));
            drop((listener, file));
            assert!(!path.exists(), "round {round}");
        }
    }

    #[test]
    fn a_server_that_is_too_busy_to_accept_is_alive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let fd = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&fd, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&fd, 0).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::InUse(_))));
        assert!(path.exists());
    }

    #[test]
    fn a_directory_that_stays_locked_keeps_nobody_from_serving() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let locked = lock_directory(&path, LOCK_WAIT).unwrap();
        assert!(lock_directory(&path, Duration::from_millis(20)).is_none());
        let (_listener, file) = bind(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        drop(locked);
        assert!(lock_directory(&path, Duration::ZERO).is_some());
        drop(file);
        assert!(!path.exists());
        assert!(lock_directory(Path::new("s"), Duration::ZERO).is_some(), "of the working directory");
    }

    #[test]
    fn paths_that_do_not_fit_are_refused_clearly() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        let message = bind(&long).err().unwrap().to_string();
        assert!(message.contains("107 bytes"), "{message}");
        let missing = bind(Path::new("/nonexistent-dir/s")).err().unwrap().to_string();
        assert!(missing.contains("/nonexistent-dir/s"), "{missing}");
    }
}
