//! A device under a name, as clients see it.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::device::{Device, DeviceInfo, VolumeKind};
use crate::nbd::proto::info::BlockSizes;
use crate::nbd::proto::{PAYLOAD_BYTES_MAX, STRING_BYTES_MAX, flags};

/// Largest minimum block size that NBD can say, in bytes ("Block size constraints").
const BLOCK_BYTES_MAX: u32 = 65536;

/// A device under a name.
#[derive(Clone)]
pub struct Export {
    name: String,
    device: Arc<dyn Device>,
    info: DeviceInfo,
}

/// Why a device cannot be exported like this.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExportError {
    /// Names are strings of the protocol.
    #[error(
        "an export's name has {0} bytes; at most {STRING_BYTES_MAX} are possible, so choose a shorter one"
    )]
    NameTooLong(usize),
    /// The block size is no power of two, or does not fit the device.
    #[error(
        "a block size of {asked} bytes does not fit the volume; it must be a power of two from {min} to {max} \
         that divides the volume's size of {size_bytes} bytes"
    )]
    BlockSize {
        /// The size that was asked for, in bytes.
        asked: u32,
        /// The smallest that the device takes, in bytes.
        min: u32,
        /// The largest that NBD knows, in bytes.
        max: u32,
        /// Size of the device in bytes.
        size_bytes: u64,
    },
}

impl Export {
    /// Block sizes that clients can be told, in bytes, of which powers of two are possible.
    pub const BLOCK_BYTES: RangeInclusive<u32> = 1..=BLOCK_BYTES_MAX;

    /// The device as it is.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn new(name: impl Into<String>, device: Arc<dyn Device>) -> Result<Export, ExportError> {
        let name = name.into();
        if name.len() > STRING_BYTES_MAX {
            return Err(ExportError::NameTooLong(name.len()));
        }
        let info = device.info();
        let min = info.block_bytes_min;
        Export { name, device, info }.with_block_size(min)
    }

    /// Takes no writes, whatever the device takes.
    #[must_use]
    pub fn read_only(mut self) -> Export {
        self.info.read_only = true;
        self
    }

    /// Says, and takes, no smaller blocks than `bytes`: the size of a logical block for clients that make a
    /// disk of it (512 or 4096).
    ///
    /// # Errors
    /// [`ExportError::BlockSize`].
    pub fn with_block_size(mut self, bytes: u32) -> Result<Export, ExportError> {
        let DeviceInfo { block_bytes_min: min, size_bytes, .. } = self.device.info();
        let fits = bytes.is_power_of_two()
            && (min..=BLOCK_BYTES_MAX).contains(&bytes)
            && size_bytes.is_multiple_of(u64::from(bytes));
        if !fits {
            return Err(ExportError::BlockSize { asked: bytes, min, max: BLOCK_BYTES_MAX, size_bytes });
        }
        self.info.block_bytes_min = bytes;
        Ok(self)
    }

    /// The name; unique among the exports of a server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is served.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// What clients are told of it, and what holds for their requests.
    pub fn info(&self) -> DeviceInfo {
        // A rollback may have changed the size since. A part of a block cannot be asked for.
        let size_bytes = self.device.info().size_bytes;
        let size_bytes = size_bytes - size_bytes % u64::from(self.info.block_bytes_min);
        DeviceInfo { size_bytes, ..self.info.clone() }
    }

    /// The flags for a client whose replies do, or do not, come in chunks.
    pub(super) fn flags(&self, chunks: bool) -> u16 {
        let mut out = flags::EXPORT_HAS_FLAGS
            | flags::EXPORT_SEND_FLUSH
            | flags::EXPORT_SEND_FUA
            | flags::EXPORT_SEND_TRIM
            | flags::EXPORT_SEND_WRITE_ZEROES
            | flags::EXPORT_SEND_FAST_ZERO
            | flags::EXPORT_SEND_CACHE;
        if chunks {
            out |= flags::EXPORT_SEND_DF;
        }
        if self.info.read_only {
            out |= flags::EXPORT_READ_ONLY;
        }
        // The rule of multi-conn: what any connection was acknowledged is made durable by a flush, or by a
        // FUA write that follows, on any other. It holds because all connections of an export share one device,
        // whose flush covers what it has acknowledged to anyone. But on a VexFS volume each connection that
        // writes would have to attach to the session, which no generic client does.
        if self.info.kind == VolumeKind::Raw || self.info.read_only {
            out |= flags::EXPORT_CAN_MULTI_CONN;
        }
        out
    }

    pub(super) fn block_sizes(&self) -> BlockSizes {
        let min = self.info.block_bytes_min;
        BlockSizes { min, preferred: min.max(4096), payload_max: PAYLOAD_BYTES_MAX }
    }

    pub(super) fn description(&self) -> String {
        describe(&self.info)
    }
}

/// The sentence that the server says of a device, and from which [`crate::nbd::client`] learns the uuid.
pub(in crate::nbd) fn describe(info: &DeviceInfo) -> String {
    format!("vexfs-blockd {} volume {}", info.kind.name(), info.uuid)
}
