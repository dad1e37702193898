//! Options and their replies ("Option types", "Option reply types").
//!
//! ```text
//! client: 0 "IHAVEOPT" (8) | 8 option (4) | 12 data bytes (4) | 16 data
//! server: 0 reply magic (8) | 8 option (4) | 12 reply type (4) | 16 data bytes (4) | 20 data
//! ```

use super::greeting::OPTION_MAGIC;
use super::{take_bytes, take_u16, take_u32, take_u64};

/// Ends the negotiation with an export name, without an error reply.
pub const OPT_EXPORT_NAME: u32 = 1;
/// Ends the connection.
pub const OPT_ABORT: u32 = 2;
/// Asks for the names of all exports.
pub const OPT_LIST: u32 = 3;
/// Begins TLS; everything negotiated before is void.
pub const OPT_STARTTLS: u32 = 5;
/// Asks for an export's properties.
pub const OPT_INFO: u32 = 6;
/// As [`OPT_INFO`], and begins the transmission.
pub const OPT_GO: u32 = 7;
/// Has replies come as chunks, see [`super::chunk`].
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// Asks which metadata contexts there are, see [`super::meta`].
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Chooses the metadata contexts of NBD_CMD_BLOCK_STATUS.
pub const OPT_SET_META_CONTEXT: u32 = 10;
/// Has requests and replies carry 64-bit lengths; replies come as chunks.
pub const OPT_EXTENDED_HEADERS: u32 = 11;

/// Magic of an option reply.
pub const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Reply: done.
pub const REP_ACK: u32 = 1;
/// Reply: one export of a list.
pub const REP_SERVER: u32 = 2;
/// Reply: one item of information, see [`super::info`].
pub const REP_INFO: u32 = 3;
/// Reply: one metadata context, its number (4) and name.
pub const REP_META_CONTEXT: u32 = 4;
/// Replies with this bit are errors.
pub const REP_ERROR_BIT: u32 = 1 << 31;
/// Error: option unknown or not supported here.
pub const REP_ERR_UNSUP: u32 = REP_ERROR_BIT + 1;
/// Error: refused by the server's configuration.
pub const REP_ERR_POLICY: u32 = REP_ERROR_BIT + 2;
/// Error: the option's data is malformed.
pub const REP_ERR_INVALID: u32 = REP_ERROR_BIT + 3;
/// Error: only after [`OPT_STARTTLS`].
pub const REP_ERR_TLS_REQD: u32 = REP_ERROR_BIT + 5;
/// Error: no such export.
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR_BIT + 6;
/// Error: the server is being shut down.
pub const REP_ERR_SHUTDOWN: u32 = REP_ERROR_BIT + 7;
/// Error: the option's data is too long.
pub const REP_ERR_TOO_BIG: u32 = REP_ERROR_BIT + 9;
/// Error: extended headers were chosen, which include what is asked for.
pub const REP_ERR_EXT_HEADER_REQD: u32 = REP_ERROR_BIT + 10;

/// Bytes of an option's head.
pub const OPTION_HEAD_BYTES: usize = 16;
/// Bytes of an option reply's head.
pub const REPLY_HEAD_BYTES: usize = 20;

/// Head of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionHead {
    /// Which option.
    pub option: u32,
    /// Bytes of data that follow.
    pub data_bytes: u32,
}

impl OptionHead {
    /// Parses a head; `None` if the magic is wrong.
    pub fn decode(bytes: &[u8; OPTION_HEAD_BYTES]) -> Option<Self> {
        let mut rest = &bytes[..];
        if take_u64(&mut rest)? != OPTION_MAGIC {
            return None;
        }
        Some(OptionHead { option: take_u32(&mut rest)?, data_bytes: take_u32(&mut rest)? })
    }

    /// Appends an option with its data (at most 4 GiB).
    pub fn encode(option: u32, data: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&option.to_be_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
    }
}

/// Head of an option reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionReplyHead {
    /// The option that is answered.
    pub option: u32,
    /// One of the `REP_*`.
    pub kind: u32,
    /// Bytes of data that follow.
    pub data_bytes: u32,
}

impl OptionReplyHead {
    /// Parses a head; `None` if the magic is wrong.
    pub fn decode(bytes: &[u8; REPLY_HEAD_BYTES]) -> Option<Self> {
        let mut rest = &bytes[..];
        if take_u64(&mut rest)? != REPLY_MAGIC {
            return None;
        }
        Some(OptionReplyHead {
            option: take_u32(&mut rest)?,
            kind: take_u32(&mut rest)?,
            data_bytes: take_u32(&mut rest)?,
        })
    }

    /// Appends a reply with its data (at most 4 GiB).
    pub fn encode(option: u32, kind: u32, data: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
        out.extend_from_slice(&option.to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
    }
}

/// Data of NBD_OPT_INFO and NBD_OPT_GO.
///
/// ```text
/// 0 name bytes n (4) | 4 name (n) | count c (2) | information types (2 each)
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GoData<'a> {
    /// The export's name, not yet known to be UTF-8.
    pub name: &'a [u8],
    /// Big-endian information types that the client asks for.
    requests: &'a [u8],
}

impl<'a> GoData<'a> {
    /// Parses the data; `None` if a length does not fit.
    pub fn decode(data: &'a [u8]) -> Option<Self> {
        let mut rest = data;
        let name_bytes = take_u32(&mut rest)?;
        let name = take_bytes(&mut rest, usize::try_from(name_bytes).ok()?)?;
        let count = take_u16(&mut rest)?;
        let requests = take_bytes(&mut rest, usize::from(count) * 2)?;
        rest.is_empty().then_some(GoData { name, requests })
    }

    /// Whether the client asks for this information type.
    pub fn asks_for(&self, info: u16) -> bool {
        self.requests.chunks_exact(2).any(|pair| pair == info.to_be_bytes())
    }

    /// The data that asks for `infos` of the export `name`.
    pub fn encode(name: &str, infos: &[u16]) -> Vec<u8> {
        let mut out = Vec::with_capacity(name.len() + infos.len() * 2 + 6);
        out.extend_from_slice(&(name.len() as u32).to_be_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&(infos.len() as u16).to_be_bytes());
        for info in infos {
            out.extend_from_slice(&info.to_be_bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_round_trip_and_check_their_magic() {
        let mut out = Vec::new();
        OptionHead::encode(OPT_GO, b"abc", &mut out);
        let mut head: [u8; OPTION_HEAD_BYTES] = out[..16].try_into().unwrap();
        assert_eq!(OptionHead::decode(&head), Some(OptionHead { option: OPT_GO, data_bytes: 3 }));
        head[0] ^= 0x80;
        assert_eq!(OptionHead::decode(&head), None);

        let mut out = Vec::new();
        OptionReplyHead::encode(OPT_LIST, REP_ACK, b"", &mut out);
        let mut head: [u8; REPLY_HEAD_BYTES] = out[..].try_into().unwrap();
        let expected = OptionReplyHead { option: OPT_LIST, kind: REP_ACK, data_bytes: 0 };
        assert_eq!(OptionReplyHead::decode(&head), Some(expected));
        head[7] ^= 1;
        assert_eq!(OptionReplyHead::decode(&head), None);
    }

    #[test]
    fn go_data_refuses_every_truncation_and_any_excess() {
        let good = GoData::encode("disk", &[1, 3]);
        let parsed = GoData::decode(&good).unwrap();
        assert_eq!(parsed.name, b"disk");
        assert!(parsed.asks_for(1) && parsed.asks_for(3) && !parsed.asks_for(2));
        for n in 0..good.len() {
            assert_eq!(GoData::decode(&good[..n]), None, "{n} bytes");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(GoData::decode(&longer), None);
        assert_eq!(GoData::decode(&[0xff; 16]), None);
    }
}
