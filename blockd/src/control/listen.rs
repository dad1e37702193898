//! Listening sockets of the side work: a unix socket that only its owner may open, or a TCP port of this machine.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::paths;
use crate::handover::{Handed, Kind, ListenerState};
use crate::nbd::server::{BindError, MODE, SocketFile};

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A loopback address; anyone on this machine may connect.
    Tcp(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str =
            "write unix:PATH or tcp:ADDRESS:PORT, such as unix:/run/vexfs/disk.metrics or tcp:127.0.0.1:9151";
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => {
                std::path::absolute(path).map(Address::Unix).map_err(|error| error.to_string())
            }
            Some(("tcp", address)) => match address.parse::<SocketAddr>() {
                Ok(address) if address.ip().is_loopback() => Ok(Address::Tcp(address)),
                Ok(_) => Err(format!(
                    "{text} could be reached from other machines; use a loopback address (127.0.0.1, [::1]) or a unix socket"
                )),
                Err(_) => Err(FORMS.into()),
            },
            _ => Err(FORMS.into()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// A bound socket; a unix socket's file goes away with it.
pub struct Listening {
    fd: Arc<OwnedFd>,
    address: Address,
    activated: bool,
    file: Option<SocketFile>,
}

impl Listening {
    /// Binds. A unix socket gets mode 0600; its directory, if it is missing, 0700.
    ///
    /// # Errors
    /// When someone listens there, or it cannot be made.
    pub fn bind(address: &Address) -> Result<Self, BindError> {
        let system =
            |what: &'static str, path: PathBuf| move |source| BindError::System { what, path, source };
        match address {
            Address::Unix(path) => {
                paths::make_directory(path).map_err(system("make the directory of", path.clone()))?;
                let (socket, file) = SocketFile::bind(path, MODE)?;
                Ok(Listening {
                    fd: Arc::new(socket.into()),
                    address: address.clone(),
                    activated: false,
                    file: Some(file),
                })
            }
            Address::Tcp(tcp) => {
                let listener = TcpListener::bind(tcp)
                    .map_err(system("listen on", PathBuf::from(address.to_string())))?;
                Ok(Listening {
                    fd: Arc::new(listener.into()),
                    address: address.clone(),
                    activated: false,
                    file: None,
                })
            }
        }
    }

    /// Goes on with a socket that a predecessor bound; see [`Listening::own`].
    pub fn adopt(address: &Address, socket: OwnedFd, activated: bool) -> Self {
        let file = match address {
            Address::Unix(path) if !activated => SocketFile::adopt(path),
            _ => None,
        };
        Listening { fd: Arc::new(socket), address: address.clone(), activated, file }
    }

    /// The predecessor is out of it: the file is ours from now on, unless it is somebody else's.
    pub fn own(&mut self) {
        if let Some(file) = &mut self.file {
            file.own();
        }
    }

    /// For a successor. The file of a unix socket stays.
    ///
    /// # Errors
    /// No more descriptors are to be had.
    pub fn hand_over(mut self, kind: Kind) -> std::io::Result<Handed> {
        if let Some(file) = self.file.take() {
            file.keep();
        }
        let state = ListenerState { kind, address: self.address.to_string(), activated: self.activated };
        Ok(Handed { socket: self.fd.try_clone()?, state })
    }

    /// The socket.
    pub fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_absolute_paths_or_loopback() {
        let parse = |text: &str| text.parse::<Address>();
        assert_eq!(parse("unix:/run/a"), Ok(Address::Unix("/run/a".into())));
        assert_eq!(parse("tcp:[::1]:80").unwrap().to_string(), "tcp:[::1]:80");
        assert!(parse("tcp:0.0.0.0:9151").unwrap_err().contains("other machines"));
        for bad in ["", "unix:", "/run/a", "tcp:localhost:1", "tcp:127.0.0.1", "tcp:127.0.0.1:99999", "udp:1"]
        {
            assert!(parse(bad).unwrap_err().contains("unix:PATH"), "{bad}");
        }
    }
}
