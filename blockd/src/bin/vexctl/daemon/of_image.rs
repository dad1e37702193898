//! Which daemon serves an image.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, bail};
use blockd::control::client::{ClientError, ControlClient};
use blockd::control::paths;
use blockd::control::protocol::{Request, Status};
use blockd::storage::identity::Identity;
use blockd::store::format::superblock::{SLOTS, Superblock};
use layout::addr::PAGE;
use uuid::Uuid;

/// The daemon that has this very file or block device open, and its export's name.
///
/// Paths say nothing: the daemon has a working directory and perhaps a view of the file system of its own, and the file
/// at a path may be another one than when the daemon opened it.
///
/// # Errors
/// There is one, but the file holds another volume by now.
pub fn find(image: &Path) -> Result<Option<(ControlClient, String)>> {
    // One that is not there is said to be so when it is opened.
    let Ok(identity) = Identity::at(image) else { return Ok(None) };
    let Some(sockets) = paths::directory().and_then(|directory| paths::list(&directory).ok()) else {
        return Ok(None);
    };
    for (_, socket) in sockets {
        let (client, status) = match ask(&socket) {
            Ok(answer) => answer,
            Err(error) => {
                if !error.is_nobody() {
                    eprintln!("vexctl: leaving one daemon out: {error}");
                }
                continue;
            }
        };
        let Some(export) = status.exports.into_iter().find(|export| export.identity == Some(identity)) else {
            continue;
        };
        if uuid(image).is_some_and(|uuid| uuid != export.volume.uuid) {
            bail!(
                "{} was overwritten while the daemon {} had it open: it holds another volume than the one that is \
                 served; stop the daemon first",
                image.display(),
                status.name
            );
        }
        return Ok(Some((client, export.name)));
    }
    Ok(None)
}

fn ask(socket: &Path) -> Result<(ControlClient, Status), ClientError> {
    let mut client = ControlClient::connect(socket)?;
    let status = client.ask_at_once(&Request::Status {})?;
    Ok((client, status))
}

/// The uuid in an image's superblock; none if it cannot be read, which is the daemon's matter.
fn uuid(image: &Path) -> Option<Uuid> {
    let file = File::open(image).ok()?;
    SLOTS.into_iter().find_map(|slot| {
        let mut page = vec![0; PAGE];
        file.read_exact_at(&mut page, slot).ok()?;
        Some(Uuid::from_bytes(Superblock::decode(&page).ok()?.uuid))
    })
}
