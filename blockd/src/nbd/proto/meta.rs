//! Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT ("Metadata querying").
//!
//! ```text
//! 0 name bytes n (4) | 4 name (n) | count c (4) | c times: query bytes q (4), query (q)
//! ```

use super::{STRING_BYTES_MAX, take_bytes, take_u32};

/// The context that tells holes from data.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// The query for all contexts of the namespace; in a list only.
pub const BASE_ALL: &str = "base:";

/// Parsed and in bounds; the queries are not yet known to be UTF-8.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetaData<'a> {
    /// The export's name.
    pub name: &'a [u8],
    /// What the client asks for, in order.
    pub queries: Vec<&'a [u8]>,
}

impl<'a> MetaData<'a> {
    /// Parses the data; `None` if a length does not fit.
    pub fn decode(data: &'a [u8]) -> Option<Self> {
        let mut rest = data;
        let string = |rest: &mut &'a [u8]| {
            let len = usize::try_from(take_u32(rest)?).ok()?;
            (len <= STRING_BYTES_MAX).then(|| take_bytes(rest, len))?
        };
        let name = string(&mut rest)?;
        let count = take_u32(&mut rest)?;
        let mut queries = Vec::new();
        // Each takes at least four bytes, so a count that lies ends with the data.
        for _ in 0..count {
            queries.push(string(&mut rest)?);
        }
        rest.is_empty().then_some(MetaData { name, queries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(name: &str, queries: &[&str]) -> Vec<u8> {
        let string = |s: &str| [&(s.len() as u32).to_be_bytes()[..], s.as_bytes()].concat();
        let mut out = string(name);
        out.extend((queries.len() as u32).to_be_bytes());
        queries.iter().for_each(|q| out.extend(string(q)));
        out
    }

    #[test]
    fn every_truncation_any_excess_and_lying_counts_are_refused() {
        let good = encode("disk", &["base:allocation", "", "x:y"]);
        let parsed = MetaData::decode(&good).unwrap();
        assert_eq!(parsed.name, b"disk");
        assert_eq!(parsed.queries, [&b"base:allocation"[..], b"", b"x:y"]);
        for n in 0..good.len() {
            assert_eq!(MetaData::decode(&good[..n]), None, "{n} bytes");
        }
        assert_eq!(MetaData::decode(&[&good[..], b"x"].concat()), None);
        let mut lying = encode("", &[]);
        lying[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(MetaData::decode(&lying), None);
        assert_eq!(MetaData::decode(&[0xff; 64]), None);
        assert_eq!(MetaData::decode(&encode("", &[&"q".repeat(STRING_BYTES_MAX + 1)])), None);
        assert!(MetaData::decode(&encode("", &[&"q".repeat(STRING_BYTES_MAX)])).is_some());
    }
}
