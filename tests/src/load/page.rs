//! Pages that say what they are. Every word depends on file, page number and version, so a page that is a mixture
//! of two is seen as well.

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// What a page of a test file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// The file's number in its worker's history.
    pub file: u64,
    /// Page of the file.
    pub page: u64,
    /// Step that wrote it; 0 is "never written": a page of zeros.
    pub version: u64,
}

impl Stamp {
    /// The page's bytes.
    pub fn bytes(self) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        if self.version == 0 {
            return bytes;
        }
        let words = [self.file, self.page, self.version];
        for (at, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            let word = words.get(at).copied().unwrap_or_else(|| self.filler(at as u64));
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn filler(self, at: u64) -> u64 {
        let mut x = at;
        for part in [self.file, self.page, self.version] {
            x = (x ^ part).wrapping_add(0x9E37_79B9_7F4A_7C15).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x ^= x >> 29;
        }
        x
    }

    /// What the page `page` says, or what is wrong with it. A page of zeros has version 0 and any file.
    ///
    /// # Errors
    /// It is no page of ours, of another place, or torn.
    pub fn read(bytes: &[u8; PAGE], page: u64) -> Result<Self, String> {
        let word = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("8 bytes"));
        let stamp = Self { file: word(0), page: word(1), version: word(2) };
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Self { file: 0, page, version: 0 });
        }
        if stamp.page != page {
            return Err(format!("page {page} holds {stamp:?}"));
        }
        let expected = stamp.bytes();
        match (0..PAGE).find(|at| bytes[*at] != expected[*at]) {
            Some(at) => Err(format!("page {page} says {stamp:?} but is torn or damaged from byte {at}")),
            None => Ok(stamp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { file: 3, page: 9, version: 12 };

    #[test]
    fn a_page_says_what_it_is() {
        assert_eq!(Stamp::read(&STAMP.bytes(), 9), Ok(STAMP));
        assert_eq!(Stamp::read(&[0; PAGE], 9), Ok(Stamp { file: 0, page: 9, version: 0 }));
    }

    #[test]
    fn another_place_a_mixture_and_a_flip_are_seen() {
        assert!(Stamp::read(&STAMP.bytes(), 8).is_err());
        let mut torn = STAMP.bytes();
        torn[512..].copy_from_slice(&Stamp { version: 13, ..STAMP }.bytes()[512..]);
        assert!(Stamp::read(&torn, 9).unwrap_err().contains("byte 512"));
        for at in (0..PAGE).step_by(97) {
            let mut flipped = STAMP.bytes();
            flipped[at] ^= 1;
            assert!(Stamp::read(&flipped, 9).is_err(), "flip at {at}");
        }
    }
}
