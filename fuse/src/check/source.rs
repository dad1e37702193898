//! Opening a source for a check: an image or block device that nobody else uses, or a daemon's export that nobody has
//! mounted.

use std::sync::Arc;

use blockd::device::VolumeKind;
use blockd::session::{DevicePort, OpenMode, Session, boot_id, status};
use layout::addr::SUPERBLOCK_PAGE;
use layout::superblock::Superblock;

use super::mapped::{MapReader, Walker};
use super::pool::{Pool, Stop};
use crate::mount::{MountError, Source};

/// Bit 1 of the status page's flags: a session is live.
const SESSION_LIVE: u32 = 2;

/// A source that was opened.
pub struct Checked {
    opened: crate::mount::Opened,
    /// The pages of the volume.
    pub pool: Pool,
}

/// Why a source can't be checked.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It can't be opened, or is in use.
    #[error(transparent)]
    Source(#[from] MountError),
    /// Its session can't be taken.
    #[error("cannot take the volume: {0}")]
    Session(#[from] blockd::session::SessionError),
    /// It is mounted.
    #[error("{0}")]
    InUse(String),
    /// /proc is missing, and the like.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

impl Checked {
    /// Opens a source; for writing it takes a session, as a mounter does. With `fence` a session that is live is ended;
    /// only right when its mounter is dead. A snapshot can only be looked at.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        source: &Source,
        snapshot: Option<&str>,
        write: bool,
        fence: bool,
    ) -> Result<Self, OpenError> {
        let opened = source.open(!write, snapshot)?;
        match Self::take(source, &opened, write, fence) {
            Ok(pool) => Ok(Checked { opened, pool }),
            Err(error) => {
                opened.shutdown();
                Err(error)
            }
        }
    }

    fn take(
        source: &Source,
        opened: &crate::mount::Opened,
        write: bool,
        fence: bool,
    ) -> Result<Pool, OpenError> {
        let device = Arc::clone(&opened.device);
        assert_eq!(device.info().kind, VolumeKind::VexFs, "Source::open gives nothing else");
        let client = device.connect();
        let walker = match source {
            Source::Image(_) => Walker::Native,
            Source::Nbd(_) => {
                let status = status(&mut DevicePort { device: &*device, client })?;
                if status.flags.get() & SESSION_LIVE != 0 && !fence {
                    return Err(OpenError::InUse(format!(
                        "{source} is mounted (session {}); unmount it first. If its mounter is dead, --fence ends its session",
                        status.session.get()
                    )));
                }
                Walker::Map(MapReader::default())
            }
        };
        let session = if write {
            let mode = OpenMode::ReadWrite;
            Some(Session::open(Arc::clone(&device), client, mode, boot_id()?, &opened.cell)?)
        } else {
            None
        };
        Ok(Pool::new(device, client, session, walker))
    }

    /// Whether the last mounter unmounted in order and left nothing behind.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn is_clean(&mut self) -> Result<bool, Stop> {
        let Ok(page) = self.pool.read(SUPERBLOCK_PAGE)? else { return Ok(false) };
        Ok(Superblock::decode(&page, true).is_ok_and(|found| found.clean && found.orphan_head == 0))
    }

    /// Ends the session and gives the source free.
    ///
    /// # Errors
    /// What could not be ended in order; what was committed is.
    pub fn close(self) -> Result<(), Stop> {
        let result = self.pool.close();
        self.opened.shutdown();
        result
    }
}
