//! `vexctl send` and `vexctl receive`.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use blockd::volume::backup::{BackupError, Receiver, create_target};

use super::cli::{ReceiveArgs, SendArgs};
use super::meter::Meter;
use super::target::{Target, open};

/// Bytes of the stream that are written at once.
const PIECE_BYTES: usize = 1 << 20;

/// Writes a stream to standard output.
///
/// # Errors
/// The image cannot be opened, the volume refuses, or nobody reads.
pub fn send(args: &SendArgs) -> Result<ExitCode> {
    if io::stdout().is_terminal() {
        bail!("standard output is a terminal: write the stream to a file or a pipe (vexctl send … > FILE)");
    }
    let mut meter = Meter::bytes("send");
    let mut out = BufWriter::with_capacity(PIECE_BYTES, io::stdout().lock());
    let target = Target::open(&args.image, true)?;
    target
        .send(args.from.as_deref(), &args.to, &mut out, &mut |p| meter.show(p.done_bytes, p.total_bytes))?;
    out.flush().context("writing the stream failed")?;
    Ok(ExitCode::SUCCESS)
}

/// Takes a stream in from standard input.
///
/// # Errors
/// The stream is no good or does not fit; the image is as before then.
pub fn receive(args: &ReceiveArgs) -> Result<ExitCode> {
    if io::stdin().is_terminal() {
        bail!("standard input is a terminal: give it a stream (vexctl receive IMAGE < FILE)");
    }
    let receiver = Receiver::new(io::stdin().lock())?;
    let made = !args.image.exists();
    if made {
        create_target(&args.image, receiver.header(), args.size.unwrap_or(0))?;
    } else if args.size.is_some() {
        bail!("{} exists: --size is for a new image", args.image.display());
    }
    let result = take(args, receiver);
    if result.is_err() && made {
        // Nothing half-made is left behind; the first error is the one to report.
        let _ = std::fs::remove_file(&args.image);
    }
    result.map(|()| ExitCode::SUCCESS)
}

fn take(args: &ReceiveArgs, receiver: Receiver<io::StdinLock<'_>>) -> Result<()> {
    let mut meter = Meter::bytes("receive");
    let volume = open(&args.image, false)?;
    let received = volume.receive(receiver, |p| meter.show(p.done_bytes, p.total_bytes));
    let closed = volume.shutdown();
    if let Err(BackupError::Pipe { source, .. }) = &received
        && source.kind() == io::ErrorKind::Interrupted
    {
        bail!("interrupted; the volume is as before");
    }
    received?;
    Ok(closed?)
}
