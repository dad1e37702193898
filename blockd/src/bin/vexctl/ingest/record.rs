//! What ingest remembers of a file: the xattr `user.vexfs.ingest` of the stored file.
//!
//! It travels with the file through renames and is set before the file is published, so it can never describe another version.
//! Text, fields divided by single spaces:
//!
//! ```text
//! 1 <cutter version> <source root, 16 hex> <source size> <source mtime, ns> <stored size> <stored mtime, ns>
//!   <embedder's fingerprint, 16 hex> <passages> <edited: 0 or 1>
//! ```

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Name of the extended attribute.
pub const RECORD_XATTR: &str = "user.vexfs.ingest";

const VERSION: &str = "1";

/// Size and time by which a change is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub size_bytes: u64,
    pub mtime_ns: i128,
}

impl Stamp {
    /// Of a file with this metadata.
    pub fn of(metadata: &Metadata) -> Self {
        let mtime_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self { size_bytes: metadata.len(), mtime_ns }
    }
}

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub cutter_version: u32,
    /// Hash of the source tree's path: files of two trees may lie in one collection.
    pub root: u64,
    /// The file in the source tree (compressed, if it is).
    pub source: Stamp,
    /// The file in the collection.
    pub stored: Stamp,
    pub embedder: u64,
    pub passages: u32,
    /// The stored text is not the source's: the user changed it in the collection.
    pub edited: bool,
}

impl Record {
    /// The xattr's value.
    pub fn encode(&self) -> String {
        format!(
            "{VERSION} {} {:016x} {} {} {} {} {:016x} {} {}",
            self.cutter_version,
            self.root,
            self.source.size_bytes,
            self.source.mtime_ns,
            self.stored.size_bytes,
            self.stored.mtime_ns,
            self.embedder,
            self.passages,
            u8::from(self.edited)
        )
    }

    /// From an xattr's value, which any user may have written; `None` if it is not a record of this version.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let fields: Vec<&str> = text.split(' ').collect();
        let [
            VERSION,
            cutter,
            root,
            source_size,
            source_mtime,
            stored_size,
            stored_mtime,
            embedder,
            passages,
            edited,
        ] = fields[..]
        else {
            return None;
        };
        Some(Self {
            cutter_version: cutter.parse().ok()?,
            root: u64::from_str_radix(root, 16).ok()?,
            source: Stamp { size_bytes: source_size.parse().ok()?, mtime_ns: source_mtime.parse().ok()? },
            stored: Stamp { size_bytes: stored_size.parse().ok()?, mtime_ns: stored_mtime.parse().ok()? },
            embedder: u64::from_str_radix(embedder, 16).ok()?,
            passages: passages.parse().ok()?,
            edited: match edited {
                "0" => false,
                "1" => true,
                _ => return None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn survives_the_xattr(
            (cutter_version, root, embedder, passages, edited) in any::<(u32, u64, u64, u32, bool)>(),
            sizes in any::<[u64; 2]>(), mtimes in any::<[i64; 2]>(),
        ) {
            let stamp = |i: usize| Stamp { size_bytes: sizes[i], mtime_ns: i128::from(mtimes[i]) };
            let record = Record { cutter_version, root, source: stamp(0), stored: stamp(1), embedder, passages, edited };
            prop_assert!(record.encode().len() <= 200);
            prop_assert_eq!(Record::decode(record.encode().as_bytes()), Some(record));
        }

        #[test]
        fn other_values_are_no_record(value in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(Record::decode(&value), None);
        }
    }

    #[test]
    fn other_versions_and_cuts_are_no_record() {
        let good = "1 1 00000000000000ff 1 2 3 4 00000000000000aa 5 0";
        assert!(Record::decode(good.as_bytes()).is_some());
        assert!(Record::decode(good.replacen('1', "2", 1).as_bytes()).is_none());
        assert!(Record::decode(format!("{good} 0").as_bytes()).is_none());
        assert!(Record::decode(&good.as_bytes()[..good.len() - 2]).is_none());
    }
}
