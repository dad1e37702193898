//! The volume that a command is about: in an image that nobody has open, or served by a daemon, which is asked then.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use anyhow::{Context, Result, anyhow};
use blockd::control::client::ControlClient;
use blockd::control::protocol::Request;
use blockd::report::one_line;
use blockd::volume::backup::Progress;
use blockd::volume::snapshot::SnapshotList;
use blockd::volume::{OpenOptions, Volume};
use serde_json::Value;

use crate::daemon;

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
        match daemon::of_image::find(image)? {
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
                let deleted = volume.snapshot_delete_and_settle(name, progress);
                volume.shutdown()?;
                Ok(deleted?)
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
                let request =
                    Request::Send { export: Some(export), from: from.map(str::to_owned), to: to.to_owned() };
                take_stream(*client, request, out, progress)
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

fn number(progress: &Value, key: &str) -> u64 {
    progress.get(key).and_then(Value::as_u64).unwrap_or(0)
}

/// Has a daemon send on a socket, and passes on what comes.
fn take_stream(
    mut client: ControlClient,
    request: Request,
    out: &mut dyn Write,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let (stream, theirs) = UnixStream::pair().context("there can be no socket for the stream")?;
    let (tell, told) = mpsc::channel();
    let asking = std::thread::spawn(move || {
        let asked = client.ask_with_stream::<Value>(&request, theirs.into(), |p| {
            let of = |key| number(&p, key);
            // Who does not listen any more has an error to tell.
            let _ = tell.send(Progress { done_bytes: of("done_bytes"), total_bytes: of("total_bytes") });
        });
        asked.map(|_| ())
    });
    // If the daemon refuses, its end is closed here, and nothing comes. Ours is closed before the answer is waited for.
    let copied = copy(stream, out, || told.try_iter().for_each(&mut *progress));
    match asking.join() {
        Ok(asked) if copied.is_ok() => Ok(asked?),
        Ok(_) => copied.context("writing the stream failed"),
        Err(_) => Err(anyhow!("asking the daemon failed")),
    }
}

fn copy(mut stream: UnixStream, out: &mut dyn Write, mut between: impl FnMut()) -> io::Result<()> {
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
