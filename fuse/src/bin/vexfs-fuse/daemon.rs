//! Going to the background, once the mount is live.
//!
//! The first process starts itself again with `--background-child` and waits for one line on the
//! child's standard output, so that its exit status tells whether the mount was made.

use std::io::Read;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::logging::Background;

const READY: &str = "ready\n";

/// The background process failed, and has told why on the standard error that we share.
#[derive(Debug, thiserror::Error)]
#[error("the background process ended with status {0}")]
pub struct ChildFailed(i32);

/// In the first process: starts the second one, and returns when the mount is live.
///
/// # Errors
/// [`ChildFailed`], or what kept it from being started.
pub fn start(args: &Args) -> Result<()> {
    let program = std::env::current_exe().context("cannot find the program itself in /proc")?;
    let mut child = Command::new(program)
        .args(args.of_background_child())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the background process")?;
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said).context("cannot hear from the background process")?;
    }
    if said == READY {
        return Ok(());
    }
    let status = child.wait().context("cannot wait for the background process")?;
    match status.code() {
        Some(0) => bail!("the background process ended before the mount was live"),
        Some(code) => Err(ChildFailed(code).into()),
        None => bail!("the background process was killed: {status}"),
    }
}

/// In the second process, once the mount is live: tells the first one, and leaves the terminal. Its
/// failures are warnings, since a mount that is in use must not end for them.
pub fn detach(log: Background) {
    let _ = rustix::process::setsid();
    // Relative paths were opened; a daemon must not keep a directory busy.
    if let Err(error) = std::env::set_current_dir("/") {
        tracing::warn!("cannot change to /: {error}");
    }
    if let Err(error) = rustix::io::write(rustix::stdio::stdout(), READY.as_bytes()) {
        tracing::warn!("cannot tell that the mount is live: {error}");
    }
    if let Err(error) = log.enter() {
        tracing::warn!("cannot leave the terminal: {error}");
    }
}
