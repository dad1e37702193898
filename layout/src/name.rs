//! Names in directories, and their keys (FORMAT.md section 5.3).

use siphasher::sip::SipHasher24;

use crate::error::{Error, Result};

/// Most bytes of a name.
pub const NAME_MAX: usize = 255;
/// The name of the session directory that every directory has without storing it (FORMAT.md 6.5).
pub const SESSION_DIR: &[u8] = b".vexfs";

/// A name that may stand in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Checks a name: 1..=255 bytes, no `/`, no NUL, not `.` or `..`.
    ///
    /// # Errors
    /// [`Error::NameTooLong`]; [`Error::Invalid`] for the rest.
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() > NAME_MAX {
            return Err(Error::NameTooLong);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." {
            return Err(Error::Invalid("a name must not be empty, . or .."));
        }
        if bytes.iter().any(|&b| b == b'/' || b == 0) {
            return Err(Error::Invalid("a name must not contain / or NUL"));
        }
        Ok(Name(bytes))
    }

    /// The bytes.
    pub const fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// The name is that of the session directory, which can't be changed.
    pub fn is_session_dir(self) -> bool {
        self.0 == SESSION_DIR
    }

    /// The key with ordinal 0; the ordinals of names with equal hash follow it.
    pub fn first_key(self, hash_key: &[u8; 16]) -> u64 {
        key_of_hash(siphash(hash_key, self.0))
    }
}

fn siphash(key: &[u8; 16], bytes: &[u8]) -> u64 {
    SipHasher24::new_with_key(key).hash(bytes)
}

/// The key of a name hash with ordinal 0: 59 bits, never 0, over 4 bits.
fn key_of_hash(hash: u64) -> u64 {
    (hash & ((1 << 59) - 1)).max(1) << 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_siphash_2_4() {
        // Test vector of the SipHash paper (Aumasson, Bernstein, appendix A).
        let key: [u8; 16] = core::array::from_fn(|i| i as u8);
        let text: [u8; 15] = core::array::from_fn(|i| i as u8);
        assert_eq!(siphash(&key, &text), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn keys_leave_room_for_dots_and_ordinals_and_fit_a_cookie() {
        assert_eq!(key_of_hash(0), 16);
        assert_eq!(key_of_hash(1 << 59), 16);
        assert_eq!(key_of_hash(u64::MAX), i64::MAX as u64 & !15);
        assert_eq!(key_of_hash(0xa129_ca61_49be_45e5), 0x129c_a614_9be4_5e50);
    }
}
