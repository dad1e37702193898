//! How a running daemon becomes another process, without its clients noticing more than a pause.
//!
//! The successor asks over the control socket (`{"cmd":"takeover"}`). Then the old process accepts nothing any more, answers
//! what is under way, writes a checkpoint, lets the image go, and sends over the same socket what it served: the
//! listening sockets and the live connections as descriptors (SCM_RIGHTS, unix(7)), with the state of each. The
//! successor opens the image, and when nothing can fail any more says so: from that word on it alone reads from the connections,
//! and the old process ends. If the successor dies or gives up before, the old process opens the image again and goes on
//! itself: nothing was lost, since both have the descriptors, and no request was carried out by both.
//! A successor that exports another volume under a name of the old one gives up.
//!
//! On the wire: [`MAGIC`], the length of a JSON text as 8 bytes little-endian, the text ([`Manifest`]), then one byte with a
//! descriptor for each listener and each connection, in order; back comes [`DONE`].

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::protocol::{Reply, Request};
use crate::descriptor;
use crate::nbd::server::{Parked, ParkedState};
use uuid::Uuid;

/// What the old process says first; a refusal is a reply in JSON instead.
const MAGIC: [u8; 8] = *b"VEXFSHO1";
/// What the successor says when all is its.
const DONE: [u8; 4] = *b"done";
/// Longest manifest: unread bytes of many connections, as numbers in JSON.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;
/// Most descriptors.
const DESCRIPTORS_MAX: usize = 4096;
/// Time for the old process to drain, on top of what it is given for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a listening socket is for.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// NBD clients.
    Nbd,
    /// `vexctl`.
    Control,
    /// Prometheus.
    Metrics,
}

/// What is known of a listening socket.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ListenerState {
    /// What it is for.
    pub kind: Kind,
    /// "unix:PATH" or "tcp:ADDRESS:PORT".
    pub address: String,
    /// It belongs to somebody else (systemd): its file stays at the end.
    pub activated: bool,
}

/// A listening socket on its way.
#[derive(Debug)]
pub struct Handed {
    /// The socket.
    pub socket: OwnedFd,
    /// What is known of it.
    pub state: ListenerState,
}

/// What is exported under a name.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Exported {
    /// Name of the export.
    pub name: String,
    /// The volume's uuid.
    pub volume: Uuid,
}

/// All that goes from one process to the other.
#[derive(Default, Debug)]
pub struct Estate {
    /// What the old process exports.
    pub exports: Vec<Exported>,
    /// Where clients come in.
    pub listeners: Vec<Handed>,
    /// Those who are in.
    pub connections: Vec<Parked>,
}

/// [`Estate`] without the descriptors.
#[derive(Serialize, Deserialize)]
struct Manifest {
    exports: Vec<Exported>,
    listeners: Vec<ListenerState>,
    connections: Vec<ParkedState>,
}

/// Why there is no hand-over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The old process said no.
    #[error("the running daemon refuses to hand over: {0}")]
    Refused(String),
    /// The same name, another image.
    #[error(
        "the running daemon's export {name:?} is volume {old}, this one's is {new}; stop that daemon first, or give \
         this one another --name and other addresses"
    )]
    OtherVolume {
        /// Name of the export.
        name: String,
        /// The running daemon's volume.
        old: Uuid,
        /// This process's volume.
        new: Uuid,
    },
    /// It has given up.
    #[error(
        "the running daemon did not wait for this process to be ready, and goes on itself: {0}; try again"
    )]
    TooLate(io::Error),
    /// It cannot be reached, or broke off.
    #[error("cannot take over from the daemon at {path}: {source}; is it running, and of the same version?")]
    Broken {
        /// Its control socket.
        path: std::path::PathBuf,
        /// What is wrong.
        source: io::Error,
    },
}

/// The old process, waiting for word that all is well.
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// From now on all is this process's, and the old one may end. Before, no byte may be read from a connection.
    ///
    /// # Errors
    /// The old process does not wait any more, and may be serving again: nothing is this process's.
    pub fn done(mut self) -> Result<(), HandOverError> {
        self.0.write_all(&DONE).map_err(HandOverError::TooLate)
    }
}

impl Estate {
    /// Whether a process with these exports may have it: a name that both have must be one volume.
    ///
    /// # Errors
    /// [`HandOverError::OtherVolume`].
    pub fn check(&self, exports: &[Exported]) -> Result<(), HandOverError> {
        for ours in exports {
            if let Some(old) =
                self.exports.iter().find(|old| old.name == ours.name && old.volume != ours.volume)
            {
                let (name, old, new) = (ours.name.clone(), old.volume, ours.volume);
                return Err(HandOverError::OtherVolume { name, old, new });
            }
        }
        Ok(())
    }
}

/// Asks the daemon at a control socket for all it has, and waits for it; `drain` is what it gives its clients.
///
/// # Errors
/// [`HandOverError`].
pub fn take_over(control: &Path, drain: Duration) -> Result<(Estate, Predecessor), HandOverError> {
    let broken = |source| HandOverError::Broken { path: control.into(), source };
    let mut stream = UnixStream::connect(control).map_err(broken)?;
    stream.set_read_timeout(Some(PATIENCE.saturating_add(drain))).map_err(broken)?;
    let mut line = serde_json::to_vec(&Request::Takeover {}).map_err(|e| broken(e.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(broken)?;
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic).map_err(broken)?;
    if magic != MAGIC {
        let mut text = magic.to_vec();
        (&stream).take(64 << 10).read_to_end(&mut text).map_err(broken)?;
        return Err(match serde_json::from_slice(&text) {
            Ok(Reply::Error(why)) => HandOverError::Refused(why),
            _ => broken(io::Error::other("it said something else")),
        });
    }
    let estate = receive(&mut stream).map_err(broken)?;
    Ok((estate, Predecessor(stream)))
}

fn receive(stream: &mut UnixStream) -> io::Result<Estate> {
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MANIFEST_BYTES_MAX {
        return Err(io::Error::other(format!("a manifest of {length} bytes is too long")));
    }
    // Not all at once: the other side need not send what it announced.
    let mut text = Vec::new();
    if stream.take(length).read_to_end(&mut text)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let manifest: Manifest = serde_json::from_slice(&text)?;
    if manifest.listeners.len() + manifest.connections.len() > DESCRIPTORS_MAX {
        return Err(io::Error::other("the manifest names too many descriptors"));
    }
    let mut estate = Estate { exports: manifest.exports, ..Estate::default() };
    for state in manifest.listeners {
        estate.listeners.push(Handed { socket: descriptor::receive(&*stream)?, state });
    }
    for state in manifest.connections {
        estate.connections.push(Parked { socket: descriptor::receive(&*stream)?, state });
    }
    Ok(estate)
}

/// Gives a successor all there is, and waits until it serves.
///
/// # Errors
/// It did not; the estate is still good.
pub fn give(estate: &Estate, mut successor: &UnixStream) -> io::Result<()> {
    successor.set_nonblocking(false)?;
    successor.set_read_timeout(Some(PATIENCE))?;
    successor.set_write_timeout(Some(PATIENCE))?;
    let manifest = Manifest {
        exports: estate.exports.clone(),
        listeners: estate.listeners.iter().map(|handed| handed.state.clone()).collect(),
        connections: estate.connections.iter().map(|parked| parked.state.clone()).collect(),
    };
    let text = serde_json::to_vec(&manifest)?;
    successor.write_all(&MAGIC)?;
    successor.write_all(&(text.len() as u64).to_le_bytes())?;
    successor.write_all(&text)?;
    for handed in &estate.listeners {
        descriptor::send(successor, &handed.socket)?;
    }
    for parked in &estate.connections {
        descriptor::send(successor, &parked.socket)?;
    }
    let mut word = [0; DONE.len()];
    successor.read_exact(&mut word)?;
    if word != DONE {
        return Err(io::Error::other("the successor said something else than that it is done"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estate(dir: &Path) -> Estate {
        let listener = std::os::unix::net::UnixListener::bind(dir.join("s")).unwrap();
        let state = ListenerState {
            kind: Kind::Nbd,
            address: format!("unix:{}", dir.join("s").display()),
            activated: false,
        };
        let exports = vec![Exported { name: "disk".into(), volume: Uuid::from_u128(7) }];
        Estate {
            exports,
            listeners: vec![Handed { socket: listener.into(), state }],
            connections: Vec::new(),
        }
    }

    #[test]
    fn the_estate_arrives_with_living_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let (old, mut new) = UnixStream::pair().unwrap();
        let estate = estate(dir.path());
        std::thread::scope(|scope| {
            let giving = scope.spawn(|| give(&estate, &old));
            let mut magic = [0; 8];
            new.read_exact(&mut magic).unwrap();
            assert_eq!(magic, MAGIC);
            let got = receive(&mut new).unwrap();
            assert_eq!(got.listeners[0].state, estate.listeners[0].state);
            let listener =
                std::os::unix::net::UnixListener::from(got.listeners.into_iter().next().unwrap().socket);
            let _client = UnixStream::connect(dir.path().join("s")).unwrap();
            listener.accept().unwrap();
            Predecessor(new).done().unwrap();
            giving.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_successor_that_dies_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = UnixStream::pair().unwrap();
        drop(new);
        assert!(give(&estate(dir.path()), &old).is_err());
        let (old, mut new) = UnixStream::pair().unwrap();
        let estate = estate_in(dir.path());
        std::thread::scope(|scope| {
            let giving = scope.spawn(|| give(&estate, &old));
            new.read_exact(&mut [0; 8]).unwrap();
            receive(&mut new).unwrap();
            drop(new);
            assert!(giving.join().unwrap().is_err());
        });
    }

    #[test]
    fn who_is_not_waited_for_any_more_has_nothing() {
        let (old, new) = UnixStream::pair().unwrap();
        drop(old);
        assert!(matches!(Predecessor(new).done(), Err(HandOverError::TooLate(_))));
    }

    #[test]
    fn a_name_that_both_have_is_one_volume() {
        let dir = tempfile::tempdir().unwrap();
        let estate = estate(dir.path());
        let exported = |name: &str, volume| Exported { name: name.into(), volume: Uuid::from_u128(volume) };
        estate.check(&[exported("disk", 7), exported("new", 8)]).unwrap();
        let refused = estate.check(&[exported("new", 8), exported("disk", 8)]).unwrap_err();
        assert!(matches!(refused, HandOverError::OtherVolume { .. }), "{refused}");
    }

    fn estate_in(dir: &Path) -> Estate {
        let dir = dir.join("other");
        std::fs::create_dir(&dir).unwrap();
        estate(&dir)
    }

    #[test]
    fn nonsense_is_not_taken_for_an_estate() {
        for bytes in [&b""[..], &[0xff; 8], b"\x05\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0{}"] {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(bytes).unwrap();
            drop(theirs);
            assert!(receive(&mut ours).is_err());
        }
        // A descriptor is announced, and a plain byte comes.
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let text = br#"{"exports":[],"listeners":[{"kind":"nbd","address":"x","activated":false}],"connections":[]}"#;
        theirs.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
        theirs.write_all(text).unwrap();
        theirs.write_all(b"x").unwrap();
        assert!(receive(&mut ours).is_err());
    }
}
