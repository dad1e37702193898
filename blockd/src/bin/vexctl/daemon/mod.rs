//! Daemons: found by name, and asked through their control sockets.

pub mod jobs;
pub mod of_image;
pub mod stats;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use blockd::control::client::ControlClient;
use blockd::control::paths;

use crate::cli::DaemonArgs;

/// The control sockets meant: the one named, or all there are.
///
/// # Errors
/// The directory of sockets cannot be read.
pub fn sockets(args: &DaemonArgs) -> Result<Vec<PathBuf>> {
    match &args.daemon {
        Some(path) if path.contains('/') => Ok(vec![path.into()]),
        Some(name) => {
            paths::check_name(name).map_err(anyhow::Error::msg)?;
            Ok(vec![paths::socket(&directory()?, name)])
        }
        None => {
            let directory = directory()?;
            let found = paths::list(&directory)
                .with_context(|| format!("cannot look for daemons in {}", directory.display()))?;
            Ok(found.into_iter().map(|(_, path)| path).collect())
        }
    }
}

fn directory() -> Result<PathBuf> {
    paths::directory()
        .context("there is no directory of control sockets: set XDG_RUNTIME_DIR, or give --daemon PATH")
}

/// Connects to the one daemon meant.
///
/// # Errors
/// There is none, or more than one, or it does not answer.
pub fn connect(args: &DaemonArgs) -> Result<ControlClient> {
    let sockets = sockets(args)?;
    match &sockets[..] {
        [one] => Ok(ControlClient::connect(one)?),
        [] => bail!("no daemon is running: there is no control socket in {}", directory()?.display()),
        many => {
            // A killed daemon leaves its socket behind.
            let mut living: Vec<_> =
                many.iter().filter_map(|path| Some((path, ControlClient::connect(path).ok()?))).collect();
            match (living.len(), living.pop()) {
                (1, Some((_, client))) => Ok(client),
                (0, _) => bail!("no daemon is running: nobody answers at {}", many[0].display()),
                (_, _) => {
                    let names: Vec<_> = many.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
                    bail!("there are several daemons; say which by --daemon: {}", names.join(", "))
                }
            }
        }
    }
}
