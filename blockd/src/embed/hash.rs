//! The hash behind features and fingerprints: FNV-1a, 64 bits, with a finalizer that spreads every input bit.
//!
//! It is part of the lexical embedder's format: vectors made on one machine must equal those made on another.
//! Sources: FNV-1a, <http://www.isthe.com/chongo/tech/comp/fnv/>; the finalizer is SplitMix64's (Steele, Lea and
//! Flood, OOPSLA 2014).

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// The hash of `bytes` in the family member `seed`.
pub fn hash_bytes(seed: u64, bytes: &[u8]) -> u64 {
    mix(bytes
        .iter()
        .fold(FNV_OFFSET ^ seed, |state, &byte| (state ^ u64::from(byte)).wrapping_mul(FNV_PRIME)))
}

/// SplitMix64's finalizer: a bijection in which each input bit moves about half of the output bits.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_fixed_for_all_machines() {
        assert_eq!(hash_bytes(0, b""), mix(FNV_OFFSET));
        // FNV-1a's published value for "a" is af63dc4c8601ec8c.
        assert_eq!(hash_bytes(0, b"a"), mix(0xaf63_dc4c_8601_ec8c));
        assert_ne!(hash_bytes(1, b"a"), hash_bytes(0, b"a"));
    }
}
