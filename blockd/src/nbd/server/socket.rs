//! The listening unix socket and its file: never more open than its mode, from its first moment; never taken from
//! a server that lives; removed at the end if it is still ours.

use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that wait to be accepted.
pub const BACKLOG: i32 = 1024;

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
    identity: (u64, u64),
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
        remove_stale(path)?;
        let fd = open_listener(&address, mode).map_err(|e| match e {
            rustix::io::Errno::ADDRINUSE => BindError::InUse(path.into()),
            e => system("listen on")(e.into()),
        })?;
        let file = std::fs::symlink_metadata(path).map_err(system("inspect"))?;
        let socket = SocketFile { path: path.into(), identity: (file.dev(), file.ino()), keep: false };
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
        let file = std::fs::symlink_metadata(path).ok().filter(|file| file.file_type().is_socket())?;
        Some(SocketFile { path: path.into(), identity: (file.dev(), file.ino()), keep: true })
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
        match std::fs::symlink_metadata(&self.path) {
            Ok(file) if (file.dev(), file.ino()) == self.identity => {
                if let Err(error) = std::fs::remove_file(&self.path) {
                    tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
                }
            }
            _ => tracing::debug!(path = %self.path.display(), "the socket file is not ours any more"),
        }
    }
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

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let system = |what| move |source| BindError::System { what, path: path.into(), source };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(system("inspect")(e)),
        Ok(file) if !file.file_type().is_socket() => return Err(BindError::NotASocket(path.into())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse(path.into())),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing a socket file that nobody listens on");
            std::fs::remove_file(path).map_err(system("remove the stale"))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(system("probe")(e)),
    }
}

#[cfg(test)]
mod tests {
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
    fn paths_that_do_not_fit_are_refused_clearly() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        let message = bind(&long).err().unwrap().to_string();
        assert!(message.contains("107 bytes"), "{message}");
        let missing = bind(Path::new("/nonexistent-dir/s")).err().unwrap().to_string();
        assert!(missing.contains("/nonexistent-dir/s"), "{missing}");
    }
}
