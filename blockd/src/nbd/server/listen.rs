//! Where a server listens, and how that is protected.

use std::fmt;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};

use super::socket::{BindError, SocketFile};
use super::tls::TlsConfig;

/// The port of NBD (IANA).
pub const NBD_PORT: u16 = 10809;
/// Permissions of a unix socket unless others are asked for: its owner's alone.
pub const MODE: u32 = 0o600;

/// An address, written `unix:PATH`, or `tcp:HOST:PORT` (`tcp:HOST` means port 10809).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// Every address of the host, a name or an IP address.
    Tcp {
        /// Without brackets.
        host: String,
        /// 0 lets the system choose.
        port: u16,
    },
}

/// Why a text is no address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is no address to serve on; write unix:PATH, tcp:HOST or tcp:HOST:PORT, such as tcp:[::1]:10809"
)]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.into());
        if let Some(path) = text.strip_prefix("unix:") {
            let absolute = std::path::absolute(path).map_err(|_| wrong())?;
            return if path.contains('\0') { Err(wrong()) } else { Ok(Address::Unix(absolute)) };
        }
        let rest = text.strip_prefix("tcp:").ok_or_else(wrong)?;
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(wrong)?) })
            }
            None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Ok(NBD_PORT), str::parse).map_err(|_| wrong())?;
        if host.is_empty() { Err(wrong()) } else { Ok(Address::Tcp { host: host.into(), port }) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

/// How connections are protected.
#[derive(Clone, Debug)]
pub enum Security {
    /// By the permissions of a unix socket; TCP is refused.
    Socket,
    /// TLS, and nothing is said without it ("FORCEDTLS mode").
    Tls(Arc<TlsConfig>),
    /// Not at all: TCP without TLS.
    Insecure,
}

#[derive(Debug)]
enum Place {
    Address {
        address: Address,
        mode: u32,
    },
    /// Bound and listening already, by systemd; its file is not ours.
    Inherited(OwnedFd),
    /// Bound and listening already, by a predecessor; its file is ours once that is out of it.
    Adopted(OwnedFd),
}

/// One way in; [`super::Server::bind`] takes several.
#[derive(Debug)]
pub struct Listener {
    place: Place,
    security: Security,
}

impl Listener {
    /// At an address; a unix socket has mode [`MODE`].
    pub fn at(address: Address, security: Security) -> Listener {
        Listener { place: Place::Address { address, mode: MODE }, security }
    }

    /// A unix socket with mode [`MODE`].
    pub fn unix(path: impl Into<PathBuf>) -> Listener {
        Self::at(Address::Unix(path.into()), Security::Socket)
    }

    /// On a listening socket, unix or TCP, that was handed over.
    pub fn inherited(socket: OwnedFd, security: Security) -> Listener {
        Listener { place: Place::Inherited(socket), security }
    }

    /// On a listening socket that a predecessor bound for itself.
    pub fn adopted(socket: OwnedFd, security: Security) -> Listener {
        Listener { place: Place::Adopted(socket), security }
    }

    /// Other permissions for a unix socket; the lowest nine bits count.
    #[must_use]
    pub fn mode(mut self, bits: u32) -> Listener {
        if let Place::Address { mode, .. } = &mut self.place {
            *mode = bits & 0o777;
        }
        self
    }
}

/// A listening socket of either kind.
#[derive(Debug)]
pub enum Socket {
    /// With its file, if it is ours.
    Unix(UnixListener, Option<SocketFile>),
    /// One address.
    Tcp(TcpListener),
}

/// A listening socket and what is asked of who comes.
#[derive(Debug)]
pub struct Bound {
    pub socket: Socket,
    pub security: Security,
}

impl Bound {
    /// A predecessor is out of it.
    pub fn own(&mut self) {
        if let Socket::Unix(_, Some(file)) = &mut self.socket {
            file.own();
        }
    }

    /// The address in the form of [`Address`], for people and tools.
    pub fn address(&self) -> String {
        match &self.socket {
            Socket::Unix(socket, _) => {
                let address = socket.local_addr().ok();
                let path = address.as_ref().and_then(std::os::unix::net::SocketAddr::as_pathname);
                path.map_or_else(|| "unix:".into(), |path| format!("unix:{}", path.display()))
            }
            Socket::Tcp(socket) => socket.local_addr().map_or_else(|_| "tcp:".into(), |a| format!("tcp:{a}")),
        }
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(socket, _) => socket.as_fd(),
            Socket::Tcp(socket) => socket.as_fd(),
        }
    }
}

/// Binds a listener: several sockets if a host has several addresses.
///
/// # Errors
/// [`BindError`].
pub fn bind(listener: Listener) -> Result<Vec<Bound>, BindError> {
    let Listener { place, security } = listener;
    let sockets = match place {
        Place::Address { address: Address::Unix(path), mode } => {
            let (socket, file) = SocketFile::bind(&path, mode)?;
            vec![Socket::Unix(socket, Some(file))]
        }
        Place::Address { address: Address::Tcp { host, port }, .. } => bind_tcp(&host, port)?,
        Place::Inherited(fd) => vec![inherit(fd)?],
        Place::Adopted(fd) => vec![match inherit(fd)? {
            Socket::Unix(socket, _) => {
                let path = socket.local_addr().ok().and_then(|a| a.as_pathname().map(PathBuf::from));
                let file = path.as_deref().and_then(SocketFile::adopt);
                Socket::Unix(socket, file)
            }
            tcp => tcp,
        }],
    };
    let bounds = sockets.into_iter().map(|socket| Bound { socket, security: security.clone() });
    bounds.map(protected).collect()
}

fn protected(bound: Bound) -> Result<Bound, BindError> {
    match (&bound.socket, &bound.security) {
        (Socket::Tcp(_), Security::Socket) => Err(BindError::Unprotected(bound.address())),
        (Socket::Tcp(_), Security::Insecure) => {
            tracing::warn!(
                address = bound.address(),
                "serving NBD without TLS: everyone who can reach it may use it"
            );
            Ok(bound)
        }
        (_, Security::Tls(config)) if !config.authenticates_clients() => {
            tracing::warn!(
                address = bound.address(),
                "no authority for clients is given: everyone who can reach it may use it, by TLS"
            );
            Ok(bound)
        }
        _ => Ok(bound),
    }
}

fn bind_tcp(host: &str, port: u16) -> Result<Vec<Socket>, BindError> {
    let failed = |source| {
        let address = Address::Tcp { host: host.into(), port };
        BindError::Tcp { address: address.to_string(), source }
    };
    let addresses = (host, port).to_socket_addrs().map_err(failed)?;
    // The standard library sets SO_REUSEADDR, so a restart need not wait for old connections' ends.
    let sockets = addresses.map(TcpListener::bind).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if sockets.is_empty() {
        return Err(failed(std::io::Error::other("the host has no address")));
    }
    Ok(sockets.into_iter().map(Socket::Tcp).collect())
}

fn inherit(fd: OwnedFd) -> Result<Socket, BindError> {
    let failed = |e: rustix::io::Errno| BindError::Inherited(e.into());
    if !socket_acceptconn(&fd).map_err(failed)? {
        return Err(BindError::Inherited(std::io::Error::other("it does not listen")));
    }
    match socket_domain(&fd).map_err(failed)? {
        AddressFamily::UNIX => Ok(Socket::Unix(UnixListener::from(fd), None)),
        AddressFamily::INET | AddressFamily::INET6 => Ok(Socket::Tcp(TcpListener::from(fd))),
        _ => Err(BindError::Inherited(std::io::Error::other("it is neither unix nor TCP"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let tcp = |host: &str, port| Ok(Address::Tcp { host: host.into(), port });
        assert_eq!("unix:/run/a".parse(), Ok(Address::Unix("/run/a".into())));
        assert_eq!("tcp:localhost".parse(), tcp("localhost", 10809));
        assert_eq!("tcp:0.0.0.0:0".parse(), tcp("0.0.0.0", 0));
        assert_eq!("tcp:[::1]:77".parse(), tcp("::1", 77));
        assert_eq!("tcp:[::]".parse(), tcp("::", 10809));
        for text in ["unix:/run/a", "tcp:localhost:10809", "tcp:[::1]:77"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in
            ["", "unix:", "/run/a", "tcp:", "tcp::10", "tcp:a:b", "tcp:a:70000", "tcp:[::1", "tcp:::1"]
        {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("unix:PATH"), "{error}");
        }
    }

    #[test]
    fn tcp_is_protected_or_said_to_be_insecure() {
        let at = |security| bind(Listener::at("tcp:127.0.0.1:0".parse().unwrap(), security));
        let refused = at(Security::Socket).unwrap_err().to_string();
        assert!(refused.contains("--tls-cert") && refused.contains("--insecure"), "{refused}");
        let bound = at(Security::Insecure).unwrap();
        assert!(bound[0].address().starts_with("tcp:127.0.0.1:"), "{}", bound[0].address());
        let taken = bind(Listener::at(bound[0].address().parse().unwrap(), Security::Insecure));
        assert!(matches!(taken, Err(BindError::Tcp { .. })));
        let nobody = bind(Listener::at("tcp:no-such-host.invalid".parse().unwrap(), Security::Insecure));
        assert!(nobody.unwrap_err().to_string().contains("no-such-host.invalid"));
    }

    #[test]
    fn only_listening_sockets_are_inherited() {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixListener::bind(dir.path().join("s")).unwrap();
        let bound = bind(Listener::inherited(socket.into(), Security::Socket)).unwrap();
        assert!(bound[0].address().ends_with("/s"));
        drop(bound);
        assert!(dir.path().join("s").exists(), "not ours to remove");
        let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(bind(Listener::inherited(one.into(), Security::Socket)).is_err());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = bind(Listener::inherited(tcp.into(), Security::Socket)).unwrap_err();
        assert!(matches!(refused, BindError::Unprotected(_)));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(bind(Listener::inherited(file.into(), Security::Socket)).is_err());
    }
}
