//! The volume that a command is about: in an image that nobody has open, or served by a daemon, which is asked then.

use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use blockd::control::client::ControlClient;
use blockd::control::paths;
use blockd::control::protocol::{Request, Status};
use blockd::report::one_line;
use blockd::volume::backup::Progress;
use blockd::volume::snapshot::SnapshotList;
use blockd::volume::{OpenOptions, Volume};
use serde_json::Value;

/// Between two looks whether the daemon has connected.
const LOOK: Duration = Duration::from_millis(5);

/// A volume.
pub enum Target {
    /// Opened here.
    Image(Arc<Volume>),
    /// Served by a daemon, as the export of this name.
    Daemon(Box<ControlClient>, String),
}

impl Target {
    /// Finds the daemon that serves the image, or opens it.
    ///
    /// # Errors
    /// With cause and remedy.
    pub fn open(image: &Path, read_only: bool) -> Result<Self> {
        match daemon_of(image) {
            Some((client, export)) => Ok(Target::Daemon(Box::new(client), export)),
            None => Ok(Target::Image(open(image, read_only)?)),
        }
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// The volume refuses.
    pub fn create(self, name: &str) -> Result<()> {
        match self {
            Target::Image(volume) => {
                volume.snapshot_create(name)?;
                Ok(volume.shutdown()?)
            }
            Target::Daemon(mut client, export) => {
                let _: Value =
                    client.ask(&Request::SnapshotCreate { export: Some(export), name: name.to_owned() })?;
                Ok(())
            }
        }
    }

    /// The snapshots.
    ///
    /// # Errors
    /// The volume cannot be asked.
    pub fn list(self) -> Result<SnapshotList> {
        match self {
            Target::Image(volume) => Ok(volume.snapshots()),
            Target::Daemon(mut client, export) => {
                Ok(client.ask(&Request::SnapshotList { export: Some(export) })?)
            }
        }
    }

    /// Deletes a snapshot; tells of pages left to look at.
    ///
    /// # Errors
    /// The volume refuses.
    pub fn delete(self, name: &str, progress: &mut dyn FnMut(u64)) -> Result<()> {
        match self {
            Target::Image(volume) => {
                volume.snapshot_delete(name)?;
                volume.snapshot_settle(progress)?;
                Ok(volume.shutdown()?)
            }
            Target::Daemon(mut client, export) => {
                let request = Request::SnapshotDelete { export: Some(export), name: name.to_owned() };
                let _: Value = client.ask_with_progress(&request, |p| progress(number(&p, "pages_left")))?;
                Ok(())
            }
        }
    }

    /// Goes back to a snapshot; tells of pages left to look at.
    ///
    /// # Errors
    /// The volume refuses.
    pub fn rollback(self, name: &str, progress: &mut dyn FnMut(u64)) -> Result<()> {
        match self {
            Target::Image(volume) => {
                volume.snapshot_rollback(name, progress)?;
                Ok(volume.shutdown()?)
            }
            Target::Daemon(mut client, export) => {
                let request = Request::SnapshotRollback { export: Some(export), name: name.to_owned() };
                let _: Value = client.ask_with_progress(&request, |p| progress(number(&p, "pages_left")))?;
                Ok(())
            }
        }
    }

    /// Writes a stream.
    ///
    /// # Errors
    /// The volume refuses, or the stream cannot be written.
    pub fn send(
        self,
        from: Option<&str>,
        to: &str,
        out: &mut dyn Write,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        match self {
            Target::Image(volume) => Ok(volume.send(from, to, out, progress)?),
            Target::Daemon(client, export) => {
                let socket = Socket::new().context("there can be no socket for the stream")?;
                let request = Request::Send {
                    export: Some(export),
                    from: from.map(str::to_owned),
                    to: to.to_owned(),
                    into: socket.path.clone(),
                };
                take_stream(&socket, *client, request, out, progress)
            }
        }
    }
}

/// Opens the volume in an image.
///
/// # Errors
/// With cause and remedy.
pub fn open(image: &Path, read_only: bool) -> Result<Arc<Volume>> {
    Volume::open(image, &OpenOptions { read_only, ..OpenOptions::default() })
        .map_err(|e| anyhow!("{}: {}", image.display(), one_line(&e)))
}

/// The daemon that serves an image, and its export's name.
fn daemon_of(image: &Path) -> Option<(ControlClient, String)> {
    let image = image.canonicalize().ok()?;
    let sockets = paths::list(&paths::directory()?).ok()?;
    sockets.into_iter().find_map(|(_, socket)| {
        // A killed daemon leaves its socket behind.
        let mut client = ControlClient::connect(&socket).ok()?;
        let status: Status = client.ask(&Request::Status {}).ok()?;
        let serves = |path: &str| Path::new(path).canonicalize().is_ok_and(|path| path == image);
        let export = status.exports.into_iter().find(|export| serves(&export.image))?;
        Some((client, export.name))
    })
}

fn number(progress: &Value, key: &str) -> u64 {
    progress.get(key).and_then(Value::as_u64).unwrap_or(0)
}

/// A socket in a directory of its own, both gone when it is dropped.
struct Socket {
    directory: PathBuf,
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    fn new() -> io::Result<Self> {
        let name = format!("vexctl-{}-{:016x}", std::process::id(), rand::random::<u64>());
        let directory = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&directory)?;
        let path = directory.join("stream");
        match UnixListener::bind(&path).and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        {
            Ok(listener) => Ok(Socket { directory, path, listener }),
            Err(e) => {
                // The first error is the one to report.
                let _ = std::fs::remove_dir_all(&directory);
                Err(e)
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.directory) {
            eprintln!("vexctl: {} cannot be removed: {e}", self.directory.display());
        }
    }
}

/// Has a daemon send to the socket, and passes on what comes.
fn take_stream(
    socket: &Socket,
    mut client: ControlClient,
    request: Request,
    out: &mut dyn Write,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let (tell, told) = mpsc::channel();
    let asking = std::thread::spawn(move || {
        let asked = client.ask_with_progress::<Value>(&request, |p| {
            let of = |key| number(&p, key);
            // Who does not listen any more has an error to tell.
            let _ = tell.send(Progress { done_bytes: of("done_bytes"), total_bytes: of("total_bytes") });
        });
        asked.map(|_| ())
    });
    let mut copied = Ok(());
    loop {
        match socket.listener.accept() {
            Ok((stream, _)) => {
                copied = copy(stream, out, || told.try_iter().for_each(&mut *progress));
                break;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && !asking.is_finished() => {
                std::thread::sleep(LOOK);
            }
            // Refused before it connected: the daemon's sentence says why.
            Err(_) => break,
        }
    }
    match asking.join() {
        Ok(asked) if copied.is_ok() => Ok(asked?),
        Ok(_) => copied.context("writing the stream failed"),
        Err(_) => Err(anyhow!("asking the daemon failed")),
    }
}

fn copy(mut stream: UnixStream, out: &mut dyn Write, mut between: impl FnMut()) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut buf = vec![0; 256 << 10];
    loop {
        between();
        match io::Read::read(&mut stream, &mut buf) {
            Ok(0) => return Ok(()),
            Ok(n) => out.write_all(&buf[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
