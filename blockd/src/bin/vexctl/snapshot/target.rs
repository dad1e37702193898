//! The volume that a command is about: in an image that nobody has open.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use blockd::report::one_line;
use blockd::volume::backup::Progress;
use blockd::volume::snapshot::SnapshotList;
use blockd::volume::{OpenOptions, Volume};

/// An open volume.
pub struct Target {
    volume: Arc<Volume>,
}

impl Target {
    /// Opens the image.
    ///
    /// # Errors
    /// With cause and remedy.
    pub fn open(image: &Path, read_only: bool) -> Result<Self> {
        Ok(Target { volume: open(image, read_only)? })
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// The volume refuses.
    pub fn create(self, name: &str) -> Result<()> {
        self.volume.snapshot_create(name)?;
        Ok(self.volume.shutdown()?)
    }

    /// The snapshots.
    ///
    /// # Errors
    /// The volume cannot be asked.
    pub fn list(self) -> Result<SnapshotList> {
        Ok(self.volume.snapshots())
    }

    /// Deletes a snapshot; tells of pages left to look at.
    ///
    /// # Errors
    /// The volume refuses.
    pub fn delete(self, name: &str, progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.volume.snapshot_delete(name)?;
        self.volume.snapshot_settle(progress)?;
        Ok(self.volume.shutdown()?)
    }

    /// Goes back to a snapshot; tells of pages left to look at.
    ///
    /// # Errors
    /// The volume refuses.
    pub fn rollback(self, name: &str, progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.volume.snapshot_rollback(name, progress)?;
        Ok(self.volume.shutdown()?)
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
        Ok(self.volume.send(from, to, out, progress)?)
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
