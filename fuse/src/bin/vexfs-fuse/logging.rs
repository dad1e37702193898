//! Log lines: to standard error, and once in the background to a file or the system log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use anyhow::{Context, Result};

/// Priority of a syslog line (RFC 3164): facility daemon (3), severity warning (4).
const SYSLOG_PRIORITY: u32 = 3 * 8 + 4;

const QUIET: &str = "warn";
const USUAL: &str = "info";

enum Target {
    File(File),
    System(UnixDatagram),
}

/// Where lines go in the background; unset in the foreground.
static BACKGROUND: OnceLock<Mutex<Target>> = OnceLock::new();

/// A writer of one line.
struct Line;

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(target) = BACKGROUND.get() else { return io::stderr().write(bytes) };
        match &mut *target.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Target::File(file) => file.write_all(bytes)?,
            Target::System(socket) => {
                let mut line =
                    format!("<{SYSLOG_PRIORITY}>vexfs-fuse[{}]: ", std::process::id()).into_bytes();
                line.extend_from_slice(bytes.trim_ascii_end());
                // A system log that is away must not stop the mount.
                let _ = socket.send(&line);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts logging; `VEXFS_LOG` chooses what (as RUST_LOG does), warnings by default.
pub fn start(background: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("VEXFS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(if background { QUIET } else { USUAL }));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(|| Line).init();
}

/// What is needed to leave the terminal, opened before the mount is made: what can't be opened must
/// be told while the mount can still be refused.
pub struct Background {
    target: Option<Target>,
    null: File,
}

impl Background {
    /// Lines will go to the file, or without one to the system log.
    pub fn open(log: Option<&Path>) -> Result<Self> {
        let target = match log {
            Some(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                Some(Target::File(file.with_context(|| format!("cannot open the log {}", path.display()))?))
            }
            None => system_log().ok().map(Target::System),
        };
        let null =
            OpenOptions::new().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?;
        Ok(Background { target, null })
    }

    /// Leaves the terminal; standard streams go to /dev/null.
    pub fn enter(self) -> Result<()> {
        if let Some(target) = self.target {
            let _ = BACKGROUND.set(Mutex::new(target));
        }
        rustix::stdio::dup2_stdin(&self.null)?;
        rustix::stdio::dup2_stdout(&self.null)?;
        rustix::stdio::dup2_stderr(&self.null)?;
        Ok(())
    }
}

fn system_log() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect("/dev/log")?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
