//! The table of snapshots in a checkpoint's payload (FORMAT.md section 4.7).
//!
//! ```text
//! entry: | number 8 | time 8 | epoch 8 | held pages 8 | size 8 | state 4 | name bytes 4 | name |
//! ```

use layout::addr::PAGE;

use super::{Cursor, Malformed, check_counter, is_raw_size};
use crate::store::snapshot::{SNAPSHOTS_MAX, check_name};

/// State of a snapshot that can be read.
const LIVE: u32 = 1;
/// State of one that is being deleted.
const DELETING: u32 = 2;

/// One snapshot; its delta stands in the table of maps under the same number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotEntry {
    /// Number, above those before it.
    pub number: u64,
    /// When it was taken: nanoseconds since 1970.
    pub time_ns: u64,
    /// Commits before it.
    pub epoch: u64,
    /// Pages that its delta owns.
    pub held_pages: u64,
    /// Size of a raw volume then, in bytes; 0 for VexFS.
    pub raw_bytes: u64,
    /// It can't be read any more.
    pub deleting: bool,
    /// Its name.
    pub name: String,
}

impl SnapshotEntry {
    /// Bytes of an entry before the name.
    pub const HEAD: usize = 48;

    /// Bytes that [`SnapshotEntry::encode`] appends.
    pub fn encoded_bytes(&self) -> usize {
        Self::HEAD + self.name.len()
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for word in [self.number, self.time_ns, self.epoch, self.held_pages, self.raw_bytes] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&(if self.deleting { DELETING } else { LIVE }).to_le_bytes());
        out.extend_from_slice(&(self.name.len() as u32).to_le_bytes());
        out.extend_from_slice(self.name.as_bytes());
    }
}

/// Decodes a table of `count` entries; no number is above `last_number`.
///
/// # Errors
/// [`Malformed`] names the field.
pub(crate) fn decode(
    cursor: &mut Cursor<'_>,
    count: u32,
    last_number: u64,
) -> Result<Vec<SnapshotEntry>, Malformed> {
    if count as usize > SNAPSHOTS_MAX {
        let (expected, found) = (SNAPSHOTS_MAX as u64, u64::from(count));
        return Err(Malformed { what: "snapshots", expected, found });
    }
    check_counter("number of the last snapshot", last_number)?;
    let mut table: Vec<SnapshotEntry> = Vec::new();
    for _ in 0..count {
        let (number, time_ns) = (cursor.u64()?, cursor.u64()?);
        let (epoch, held_pages) = (cursor.u64()?, cursor.u64()?);
        let before = table.last().map_or(0, |s| s.number);
        if number <= before || number > last_number {
            return Err(Malformed { what: "number of a snapshot", expected: before + 1, found: number });
        }
        let raw_bytes = cursor.u64()?;
        if raw_bytes != 0 && !is_raw_size(raw_bytes) {
            let expected = raw_bytes / PAGE as u64 * PAGE as u64;
            return Err(Malformed { what: "size of a snapshot", expected, found: raw_bytes });
        }
        let deleting = match cursor.u32()? {
            LIVE => false,
            DELETING => true,
            found => {
                return Err(Malformed { what: "state of a snapshot", expected: 1, found: u64::from(found) });
            }
        };
        let len = cursor.u32()?;
        let bytes = cursor.take(len as usize)?;
        let malformed = Malformed { what: "name of a snapshot", expected: 1, found: u64::from(len) };
        let name = std::str::from_utf8(bytes).map_err(|_| malformed.clone())?;
        check_name(name).map_err(|_| malformed.clone())?;
        if !deleting && table.iter().any(|s| !s.deleting && s.name == name) {
            return Err(malformed);
        }
        let name = name.to_owned();
        table.push(SnapshotEntry { number, time_ns, epoch, held_pages, raw_bytes, deleting, name });
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::super::tests as common;
    use super::*;

    fn entry(number: u64, deleting: bool, name: &str) -> SnapshotEntry {
        let raw_bytes = number << 12;
        SnapshotEntry { number, time_ns: 5, epoch: 6, held_pages: 7, raw_bytes, deleting, name: name.into() }
    }

    fn bytes(table: &[SnapshotEntry]) -> Vec<u8> {
        let mut out = Vec::new();
        table.iter().for_each(|s| s.encode(&mut out));
        assert_eq!(out.len(), table.iter().map(SnapshotEntry::encoded_bytes).sum::<usize>());
        out
    }

    fn read(bytes: &[u8], count: u32) -> Result<Vec<SnapshotEntry>, Malformed> {
        decode(&mut Cursor::new(bytes, "snapshots"), count, 9)
    }

    #[test]
    fn a_table_comes_back_as_it_was_written() {
        let table = vec![entry(2, true, "a"), entry(3, false, "a"), entry(9, false, "\u{fc}ber")];
        assert_eq!(read(&bytes(&table), 3), Ok(table));
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let bad = [
            vec![entry(3, false, "a"), entry(2, false, "b")],
            vec![entry(3, false, "a"), entry(3, false, "b")],
            vec![entry(0, false, "a")],
            vec![entry(10, false, "a")],
            vec![entry(1, false, "a"), entry(2, false, "a")],
            vec![entry(1, false, "")],
            vec![entry(1, false, "a/b")],
            vec![entry(1, false, &"x".repeat(256))],
        ];
        for table in bad {
            assert!(read(&bytes(&table), table.len() as u32).is_err(), "{table:?}");
        }
        let good = bytes(&[entry(1, false, "abc")]);
        for len in 0..good.len() {
            assert!(read(&good[..len], 1).is_err(), "{len} bytes");
        }
        assert!(read(&good, u32::MAX).is_err());
        let mut state = good.clone();
        state[40] = 3;
        assert!(read(&state, 1).is_err());
        let mut size = good.clone();
        size[32] = 1;
        assert!(read(&size, 1).is_err(), "not whole pages");
        let mut name = good;
        name[48] = 0xff;
        assert!(read(&name, 1).is_err(), "not UTF-8");
    }

    #[test]
    fn the_bytes_are_those_of_version_1() {
        common::golden(&bytes(&[entry(2, true, "a"), entry(3, false, "\u{fc}ber")]), 0x8953_f031);
    }
}
