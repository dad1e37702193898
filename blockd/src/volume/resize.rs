//! Making an image larger or smaller, and a raw volume in it; nothing else has it open.

use std::path::Path;
use std::sync::Arc;

use layout::addr::PAGE;

use super::options::OpenOptions;
use super::recover_options;
use crate::device::VolumeKind;
use crate::storage::Storage;
use crate::storage::file::{FileStorage, OpenError};
use crate::store::create::{geometry, holds_raw};
use crate::store::recover::read_superblock;
use crate::store::resize::{self, Progress, Sizes};
use crate::store::{StoreError, create};

/// What is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResizeOptions {
    /// Bytes of the image; `None`: what the file or device has, or, where a raw volume grows, what it needs.
    pub image_bytes: Option<u64>,
    /// Bytes of a raw volume; `None` leaves them.
    pub volume_bytes: Option<u64>,
    /// Cut a raw volume, and what is in the part cut off; or make an image that does not hold its raw volume whole.
    pub force: bool,
}

/// What a resize did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resized {
    /// Kind of volume.
    pub kind: VolumeKind,
    /// Before.
    pub old: Sizes,
    /// After.
    pub new: Sizes,
}

/// Resizes the image at `path`, crash-safely: whatever breaks it off leaves the old sizes or the new ones, and all data.
/// A file is made longer before, and shorter after.
///
/// # Errors
/// [`StoreError`]; `BadSize` with figures for what is refused.
pub fn resize(
    path: &Path,
    options: &ResizeOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Resized, StoreError> {
    let open = OpenOptions::default();
    let mut file = FileStorage::open(path, false, open.io)?;
    let now = read_superblock(&file)?;
    let old = Sizes { backing_bytes: now.backing_bytes, raw_bytes: now.raw_bytes };
    let new = wanted(options, now.kind, old, now.geometry.segment_bytes(), &file)?;
    let fail = |source| OpenError::Io { action: "resize", path: path.to_owned(), source };
    if new.backing_bytes > file.len_bytes() {
        file.resize(new.backing_bytes).map_err(fail)?;
    }
    // The lock stays until the file has its new length.
    let file = Arc::new(file);
    if new != old {
        let storage: Arc<dyn Storage> = Arc::<FileStorage>::clone(&file);
        resize::resize(&storage, &recover_options(&open), new, progress)?;
    }
    if !file.is_device() && new.backing_bytes < file.len_bytes() {
        file.cut(new.backing_bytes).map_err(fail)?;
    }
    Ok(Resized { kind: now.kind, old, new })
}

/// The sizes asked for, if they are possible.
fn wanted(
    options: &ResizeOptions,
    kind: VolumeKind,
    old: Sizes,
    segment_bytes: u64,
    file: &FileStorage,
) -> Result<Sizes, StoreError> {
    let refuse = |text: String| Err(StoreError::BadSize(text));
    let raw_bytes = match (kind, options.volume_bytes) {
        (_, None) => old.raw_bytes,
        (VolumeKind::VexFs, Some(_)) => {
            return refuse("a VexFS volume has no size of its own: it fills its image; resize that".into());
        }
        (VolumeKind::Raw, Some(0)) => return refuse("a raw volume of no bytes is of no use".into()),
        (VolumeKind::Raw, Some(bytes)) => bytes.next_multiple_of(PAGE as u64),
    };
    if raw_bytes < old.raw_bytes && !options.force {
        return refuse(format!(
            "the volume has {} bytes: what lies beyond {raw_bytes} would be lost; shrink what is on it first, then use --force",
            old.raw_bytes
        ));
    }
    let backing_bytes = match options.image_bytes {
        Some(bytes) if file.is_device() && bytes > file.len_bytes() => {
            return refuse(format!("the device has {} bytes only", file.len_bytes()));
        }
        Some(bytes) => bytes / PAGE as u64 * PAGE as u64,
        None if raw_bytes > old.raw_bytes && !file.is_device() => {
            file.len_bytes().max(create::backing_for_raw(raw_bytes)?)
        }
        None => file.len_bytes(),
    };
    let new = geometry(backing_bytes, segment_bytes)?;
    let held_before = geometry(old.backing_bytes, segment_bytes).is_ok_and(|g| holds_raw(g, old.raw_bytes));
    if kind == VolumeKind::Raw && held_before && !holds_raw(new, raw_bytes) && !options.force {
        return refuse(format!(
            "an image of {backing_bytes} bytes does not hold a volume of {raw_bytes} whole: writes would fail when it is full; choose a \
             larger size ({} do), or use --force",
            create::backing_for_raw(raw_bytes)?
        ));
    }
    Ok(Sizes { backing_bytes, raw_bytes })
}
