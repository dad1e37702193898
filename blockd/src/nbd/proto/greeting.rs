//! The first bytes of a connection ("Newstyle negotiation").
//!
//! ```text
//! server: 0 "NBDMAGIC" (8) | 8 "IHAVEOPT" (8) | 16 handshake flags (2)
//! client: 0 client flags (4)
//! ```

use super::{take_u16, take_u64};

/// "NBDMAGIC": every NBD server begins with it.
pub const NBD_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// "IHAVEOPT": newstyle negotiation, and the head of each option.
pub const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Bytes of the server's greeting.
pub const GREETING_BYTES: usize = 18;

/// The server's greeting with these handshake flags.
pub fn encode(handshake_flags: u16) -> [u8; GREETING_BYTES] {
    let mut out = [0; GREETING_BYTES];
    out[..8].copy_from_slice(&NBD_MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..].copy_from_slice(&handshake_flags.to_be_bytes());
    out
}

/// The handshake flags of a server's greeting; `None` if it is not a newstyle NBD server.
pub fn decode(bytes: &[u8; GREETING_BYTES]) -> Option<u16> {
    let mut rest = &bytes[..];
    let newstyle = take_u64(&mut rest)? == NBD_MAGIC && take_u64(&mut rest)? == OPTION_MAGIC;
    let flags = take_u16(&mut rest)?;
    newstyle.then_some(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_magic_byte_matters() {
        let good = encode(3);
        assert_eq!(decode(&good), Some(3));
        for i in 0..16 {
            let mut bad = good;
            bad[i] ^= 1;
            assert_eq!(decode(&bad), None, "byte {i}");
        }
    }
}
