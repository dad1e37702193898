//! The listening unix socket and its file: mode 0600 from its first moment, never taken from a
//! server that lives, removed at the end if it is still ours.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Someone serves it.
    #[error("another server is listening on {0}; stop it, or choose another socket path")]
    InUse(PathBuf),
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

/// A listening socket; dropping it removes the file.
pub struct Socket {
    listener: Arc<UnixListener>,
    path: PathBuf,
    identity: (u64, u64),
}

impl Socket {
    /// Binds and listens. A stale file is replaced.
    ///
    /// # Errors
    /// When someone listens there, something else stands there, or it cannot be made.
    pub fn bind(path: &Path) -> Result<Socket, BindError> {
        let address = SocketAddrUnix::new(path).map_err(|_| BindError::Path(path.into()))?;
        let system = |what| move |source: io::Error| BindError::System { what, path: path.into(), source };
        remove_stale(path)?;
        let fd = open_listener(&address).map_err(|e| match e {
            rustix::io::Errno::ADDRINUSE => BindError::InUse(path.into()),
            e => system("listen on")(e.into()),
        })?;
        let file = std::fs::symlink_metadata(path).map_err(system("inspect"))?;
        Ok(Socket {
            listener: Arc::new(UnixListener::from(fd)),
            path: path.into(),
            identity: (file.dev(), file.ino()),
        })
    }

    /// The socket.
    pub fn listener(&self) -> Arc<UnixListener> {
        Arc::clone(&self.listener)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
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

fn open_listener(address: &SocketAddrUnix) -> rustix::io::Result<OwnedFd> {
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Linux gives the socket file the mode of the socket's own inode (unix(7): fchmod before bind),
    // so at no moment can anyone else connect.
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&fd, address)?;
    rustix::net::listen(&fd, 128)?;
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_is_private_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_server_is_left_alone_and_a_stale_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let live = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(BindError::InUse(_))));
        assert!(path.exists());
        drop(live);
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard listener leaves its file behind");
        let socket = Socket::bind(&path).unwrap();
        // Somebody else's file at the same path is not removed by us.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"x").unwrap();
        drop(socket);
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
        assert!(matches!(Socket::bind(&path), Err(BindError::NotASocket(_))));
    }

    #[test]
    fn paths_that_do_not_fit_are_refused_clearly() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        let message = Socket::bind(&long).err().unwrap().to_string();
        assert!(message.contains("107 bytes"), "{message}");
        let missing = Socket::bind(Path::new("/nonexistent-dir/s")).err().unwrap().to_string();
        assert!(missing.contains("/nonexistent-dir/s"), "{missing}");
    }
}
