//! What is mounted: an image with the store in this process, a block device, or a daemon over NBD.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockd::device::{Device, VolumeKind};
use blockd::nbd::client::{ConnectOptions, NbdClient, Target};
use blockd::report::one_line;
use blockd::session::{GrantCell, reconnect_hook};
use blockd::volume::{OpenOptions, Volume};

use super::lifecycle::MountError;

/// A source as given on the command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// An image file: the store runs in this process.
    Image(PathBuf),
    /// A daemon's export.
    Nbd(Target),
}

/// An opened source.
pub struct Opened {
    /// The volume.
    pub device: Arc<dyn Device>,
    /// Where the session's grant goes, for reconnects.
    pub cell: GrantCell,
    /// The store, where it runs in this process.
    volume: Option<Arc<Volume>>,
}

impl Opened {
    /// After the mount: the store writes its checkpoint and gives the image free.
    pub fn shutdown(&self) {
        if let Some(volume) = &self.volume
            && let Err(error) = volume.shutdown()
        {
            tracing::error!(
                "the store could not write its checkpoint; the next start replays its log: {error}"
            );
        }
    }
}

impl Source {
    /// Tells by its form what a source is.
    ///
    /// # Errors
    /// An NBD address that can't be read, or a file that is not there.
    pub fn parse(text: &str) -> Result<Self, MountError> {
        if Target::looks_like(text) {
            let target = text.parse::<Target>().map_err(|e| MountError::Source(e.to_string()))?;
            return Ok(Source::Nbd(target));
        }
        let path = Path::new(text);
        std::fs::metadata(path).map_err(|e| {
            MountError::Source(format!(
                "{text}: {e}; the source is an image made by mkfs.vexfs, a block device, or nbd+unix:///?socket=PATH"
            ))
        })?;
        Ok(Source::Image(path.into()))
    }

    /// Opens it as a VexFS volume, or one of its snapshots.
    ///
    /// # Errors
    /// Why it can't be used.
    pub fn open(&self, read_only: bool, snapshot: Option<&str>) -> Result<Opened, MountError> {
        let cell = GrantCell::default();
        let mut store = None;
        let device: Arc<dyn Device> = match self {
            Source::Image(path) => {
                let options = OpenOptions { read_only, ..OpenOptions::default() };
                let volume = Volume::open(path, &options)
                    .map_err(|e| MountError::Source(with_causes(&path.display().to_string(), &e)))?;
                store = Some(Arc::clone(&volume));
                match snapshot.map(|name| volume.open_snapshot(name)).transpose() {
                    Ok(Some(snapshot)) => snapshot,
                    Ok(None) => volume,
                    Err(error) => {
                        Opened { device: volume, cell, volume: store }.shutdown();
                        return Err(MountError::Source(with_causes(&path.display().to_string(), &error)));
                    }
                }
            }
            Source::Nbd(target) => {
                let options =
                    ConnectOptions { hook: Some(reconnect_hook(cell.clone())), ..ConnectOptions::default() };
                let target = &match snapshot {
                    // As vexfs-blockd names the snapshots beside a volume.
                    Some(name) => Target { export: format!("{}@{name}", target.export), ..target.clone() },
                    None => target.clone(),
                };
                let client = NbdClient::connect(target, options).map_err(|e| {
                    let what = with_causes(&target.to_string(), &e);
                    MountError::Source(what)
                })?;
                Arc::new(client)
            }
        };
        let opened = Opened { device, cell, volume: store };
        if opened.device.info().kind != VolumeKind::VexFs {
            opened.shutdown();
            return Err(MountError::Source(format!(
                "{self}: a raw volume, which has no VexFS file system; make one with mkfs.vexfs without --raw"
            )));
        }
        Ok(opened)
    }
}

/// An error with its sources, behind what it is about (unless the error names that itself).
fn with_causes(about: &str, error: &(dyn std::error::Error + 'static)) -> String {
    let text = one_line(error);
    if text.contains(about) { text } else { format!("{about}: {text}") }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Image(path) => path.display().fmt(f),
            Source::Nbd(target) => target.fmt(f),
        }
    }
}
