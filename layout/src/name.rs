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
        let hash = SipHasher24::new_with_key(hash_key).hash(self.0) & ((1 << 59) - 1);
        hash.max(1) << 4
    }
}
