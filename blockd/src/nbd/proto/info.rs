//! Items of information about an export (data of NBD_REP_INFO), each headed by its type (2 bytes).

use super::{STRING_BYTES_MAX, take_u16, take_u32, take_u64};

/// Size and transmission flags; mandatory.
pub const INFO_EXPORT: u16 = 0;
/// The export's canonical name.
pub const INFO_NAME: u16 = 1;
/// A sentence for people.
pub const INFO_DESCRIPTION: u16 = 2;
/// Block size constraints.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Block size constraints of an export, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this; a power of two.
    pub min: u32,
    /// The server works best with multiples of this; a power of two.
    pub preferred: u32,
    /// Longest payload of one request.
    pub payload_max: u32,
}

/// One item; types that we do not know are `Other`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Info {
    /// [`INFO_EXPORT`].
    Export {
        /// Size in bytes.
        size_bytes: u64,
        /// The `EXPORT_*` of [`super::flags`].
        flags: u16,
    },
    /// [`INFO_NAME`].
    Name(String),
    /// [`INFO_DESCRIPTION`].
    Description(String),
    /// [`INFO_BLOCK_SIZE`].
    BlockSizes(BlockSizes),
    /// Any other type.
    Other(u16),
}

impl Info {
    /// The data of the NBD_REP_INFO reply.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(14);
        match self {
            Info::Export { size_bytes, flags } => {
                out.extend_from_slice(&INFO_EXPORT.to_be_bytes());
                out.extend_from_slice(&size_bytes.to_be_bytes());
                out.extend_from_slice(&flags.to_be_bytes());
            }
            Info::Name(text) => {
                out.extend_from_slice(&INFO_NAME.to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
            Info::Description(text) => {
                out.extend_from_slice(&INFO_DESCRIPTION.to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
            Info::BlockSizes(sizes) => {
                out.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
                for value in [sizes.min, sizes.preferred, sizes.payload_max] {
                    out.extend_from_slice(&value.to_be_bytes());
                }
            }
            Info::Other(kind) => out.extend_from_slice(&kind.to_be_bytes()),
        }
        out
    }

    /// Parses an item; `None` if it is malformed.
    pub fn decode(data: &[u8]) -> Option<Self> {
        let mut rest = data;
        let kind = take_u16(&mut rest)?;
        let text = |bytes: &[u8]| {
            (bytes.len() <= STRING_BYTES_MAX).then(|| String::from_utf8_lossy(bytes).into_owned())
        };
        let info = match kind {
            INFO_EXPORT => Info::Export { size_bytes: take_u64(&mut rest)?, flags: take_u16(&mut rest)? },
            INFO_NAME => return text(rest).map(Info::Name),
            INFO_DESCRIPTION => return text(rest).map(Info::Description),
            INFO_BLOCK_SIZE => {
                let [min, preferred, payload_max] =
                    [take_u32(&mut rest)?, take_u32(&mut rest)?, take_u32(&mut rest)?];
                if !min.is_power_of_two() || min > 65536 || payload_max < min {
                    return None;
                }
                Info::BlockSizes(BlockSizes { min, preferred, payload_max })
            }
            other => return Some(Info::Other(other)),
        };
        rest.is_empty().then_some(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_round_trip() {
        for info in [
            Info::Export { size_bytes: 1 << 62, flags: 0x16d },
            Info::Name("disk".into()),
            Info::Description("a disk".into()),
            Info::BlockSizes(BlockSizes { min: 512, preferred: 4096, payload_max: 32 << 20 }),
            Info::Other(77),
        ] {
            assert_eq!(Info::decode(&info.encode()), Some(info));
        }
    }

    #[test]
    fn nonsense_block_sizes_and_lengths_are_refused() {
        let sizes = |min, payload_max| {
            Info::decode(&Info::BlockSizes(BlockSizes { min, preferred: 4096, payload_max }).encode())
        };
        assert_eq!(sizes(0, 4096), None);
        assert_eq!(sizes(3, 4096), None);
        assert_eq!(sizes(1 << 17, 1 << 25), None);
        assert_eq!(sizes(4096, 512), None);
        assert_eq!(Info::decode(&[0]), None);
        assert_eq!(Info::decode(&[0, 0, 1]), None);
    }
}
