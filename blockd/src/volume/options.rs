//! How a volume is made and opened.

use std::fs::OpenOptions as FsOpenOptions;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use layout::addr::PAGE;

use super::used::{refuse_busy, refuse_used};
use crate::buf::AlignedBuf;
use crate::device::VolumeKind;
use crate::storage::file::{FileStorage, OpenError};
use crate::storage::{Cache, IoEngine, Storage};
use crate::store::StoreError;
use crate::store::create::{self, NewStore};

/// Bytes written at once to all of an image.
const PART_BYTES: usize = 4 << 20;

/// How a volume is made.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Raw or VexFS; fixed from then on.
    pub kind: VolumeKind,
    /// The volume's uuid.
    pub uuid: uuid::Uuid,
    /// Size of the image in bytes, for a file that does not exist or is empty; 0 keeps the size it has.
    pub size_bytes: u64,
    /// Size of a raw volume in bytes; rounded up to whole pages. 0 for VexFS.
    pub raw_size_bytes: u64,
    /// Bytes of a segment; 0 chooses.
    pub segment_bytes: u64,
    /// Overwrite whatever is there.
    pub force: bool,
}

/// How a volume is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Take no writes; the image is not changed at all.
    pub read_only: bool,
    /// How the backing is read and written.
    pub io: IoEngine,
    /// What stands between the volume and its backing.
    pub cache: Cache,
    /// This machine's boot id; see [`boot_id`].
    pub boot_id: [u8; 16],
    /// Bytes of log between checkpoints, see [`Tuning::checkpoint_bytes`](crate::store::clean::Tuning); 0 chooses.
    pub checkpoint_bytes: u64,
    /// Memory for the map, about; what is not kept is read again when it is needed.
    pub map_bytes_max: u64,
    /// Give the space of freed segments back to the file system or device (slower writes, smaller files).
    pub discard: bool,
    /// Whether the cleaner runs.
    pub cleaner: bool,
    /// Most bytes a second the cleaner moves while there is still free space; 0 = no limit.
    pub cleaner_bytes_per_s: u64,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            read_only: false,
            io: IoEngine::Auto,
            cache: Cache::Direct,
            boot_id: boot_id(),
            checkpoint_bytes: 0,
            map_bytes_max: 1 << 30,
            discard: false,
            cleaner: true,
            cleaner_bytes_per_s: 200 << 20,
        }
    }
}

/// The running kernel's boot id; zeros where it can't be read (then no session survives a restart).
pub fn boot_id() -> [u8; 16] {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .and_then(|text| uuid::Uuid::try_parse(text.trim()).ok())
        .map_or([0; 16], uuid::Uuid::into_bytes)
}

pub(super) fn create(path: &Path, options: &CreateOptions) -> Result<(), StoreError> {
    let io = |action| move |source| OpenError::Io { action, path: path.to_owned(), source };
    if options.kind == VolumeKind::Raw && options.raw_size_bytes == 0 {
        return Err(StoreError::BadSize("a raw volume needs a size".into()));
    }
    let existing = std::fs::metadata(path).ok();
    let is_device = existing.as_ref().is_some_and(|m| m.file_type().is_block_device());
    let made = existing.is_none();
    let mut size_bytes = options.size_bytes;
    if let Some(meta) = &existing {
        refuse_busy(path, is_device)?;
        if !options.force {
            refuse_used(path, meta.len(), is_device)?;
        } else if !is_device && size_bytes == 0 {
            size_bytes = meta.len();
        }
    }
    // Sizes are checked before anything is touched.
    if !is_device {
        let len =
            if size_bytes == 0 { existing.as_ref().map_or(0, std::fs::Metadata::len) } else { size_bytes };
        create::geometry(len, options.segment_bytes)?;
    }
    if made {
        FsOpenOptions::new().write(true).create_new(true).open(path).map_err(io("create"))?;
    }
    let result = make(path, options, size_bytes, is_device);
    if made && result.is_err() {
        // Leave nothing half-made behind; the first error is the one to report.
        let _ = std::fs::remove_file(path);
    }
    result
}

fn make(path: &Path, options: &CreateOptions, size_bytes: u64, is_device: bool) -> Result<(), StoreError> {
    let io = |action| move |source| OpenError::Io { action, path: path.to_owned(), source };
    // Locked first: an image in use is not resized under its daemon.
    let mut locked = FileStorage::open(path, false, IoEngine::Sync)?;
    if !is_device && size_bytes != 0 && size_bytes != locked.len_bytes() {
        locked.resize(size_bytes).map_err(io("resize"))?;
    }
    let storage: Arc<dyn Storage> = Arc::new(locked);
    create::create(
        storage,
        NewStore {
            kind: options.kind,
            uuid: options.uuid.into_bytes(),
            raw_bytes: options.raw_size_bytes.next_multiple_of(PAGE as u64),
            segment_bytes: options.segment_bytes,
        },
    )
}

/// Writes every part of an image file once, with what stands there, so that no hole is left. Where a place was only
/// reserved, or not even that, the first write to it changes the file system's metadata, and a sync has to write that too.
pub(super) fn preallocate(path: &Path) -> Result<(), StoreError> {
    let storage = FileStorage::open(path, false, IoEngine::Sync)?;
    let end = storage.len_bytes() & !(PAGE as u64 - 1);
    let mut part = AlignedBuf::zeroed(PART_BYTES);
    let mut offset = 0;
    while offset < end {
        let part = &mut part[..(end - offset).min(PART_BYTES as u64) as usize];
        storage
            .read_exact(offset, part)
            .and_then(|()| storage.write_all(offset, part))
            .map_err(|source| StoreError::Io { action: "writing all of the image once", offset, source })?;
        offset += part.len() as u64;
    }
    storage.sync().map_err(|source| StoreError::Io {
        action: "writing all of the image once",
        offset,
        source,
    })
}
