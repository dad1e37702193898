//! Which embedder made a collection's vectors: the ordinary file [`EMBEDDER_FILE`] in the collection's directory.
//!
//! ```text
//! one line of JSON, then for the lexical embedder its table of rarities, deflated (zlib)
//! {"version":1,"kind":"lexical","dim":384,"lexical_version":1,"passages":81234,"table_crc32c":123}
//! {"version":1,"kind":"command","dim":768,"name":"my-model --half"}
//! ```
//! The file is replaced by rename, never changed in place. Its content is untrusted: any user who may write to the
//! collection may have written it, which is also why a command named in it is compared with the user's, never run.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde::{Deserialize, Serialize};

use super::hash::hash_bytes;
use super::idf::BUCKETS;
use super::lexical::LEXICAL_VERSION;
use super::{EmbedError, IdfTable, LEXICAL_DIM};

/// Name of the file in the collection's directory.
pub const EMBEDDER_FILE: &str = ".vexfs-embedder";

const VERSION: u32 = 1;
const DIM_MAX: usize = 16384;
/// A file is read no further: a table deflates to less than it is.
const FILE_BYTES_MAX: u64 = 2 * BUCKETS as u64;

/// Who made a collection's vectors.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Elements of each vector.
    pub dim: usize,
    /// The embedder.
    pub kind: Kind,
}

/// The embedders a collection can have.
#[derive(Clone, PartialEq, Eq)]
pub enum Kind {
    /// The built-in one with this table.
    Lexical(IdfTable),
    /// A command, known by this name (its command line, unless the user named it).
    Command {
        /// The name.
        name: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    dim: usize,
    #[serde(flatten)]
    kind: KindHeader,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum KindHeader {
    Lexical { lexical_version: u32, passages: u64, table_crc32c: u32 },
    Command { name: String },
}

impl Identity {
    /// The built-in embedder with `table`.
    pub fn lexical(table: IdfTable) -> Self {
        Self { dim: LEXICAL_DIM, kind: Kind::Lexical(table) }
    }

    /// Equal numbers mean comparable vectors.
    pub fn fingerprint(&self) -> u64 {
        match &self.kind {
            Kind::Lexical(table) => {
                hash_bytes(u64::from(LEXICAL_VERSION) << 32 | self.dim as u64, table.bytes())
            }
            Kind::Command { name } => hash_bytes(u64::MAX - self.dim as u64, name.as_bytes()),
        }
    }

    /// For messages.
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Lexical(table) => {
                format!("the built-in lexical embedder (rarities from {} passages)", table.passages())
            }
            Kind::Command { name } => format!("the embedding command `{name}`"),
        }
    }

    /// Reads the identity of the collection at `dir`; `None` if it has none.
    ///
    /// # Errors
    /// The file cannot be read, or is not one of this version.
    pub fn load(dir: &Path) -> Result<Option<Self>, EmbedError> {
        let path = dir.join(EMBEDDER_FILE);
        let read = |path: &Path| -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read(&path) {
            Ok(bytes) => Self::decode(&bytes)
                .map(Some)
                .map_err(|problem| EmbedError::BadFile { path: path.display().to_string(), problem }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(EmbedError::Io { path: path.display().to_string(), action: "read", source }),
        }
    }

    /// Makes this the identity of the collection at `dir`, atomically; `temporary` is a free name in `dir`.
    ///
    /// # Errors
    /// The file system refused it; the old identity still stands then.
    pub fn store(&self, dir: &Path, temporary: &str) -> Result<(), EmbedError> {
        let temporary = dir.join(temporary);
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&self.encode()?)?;
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
            file.sync_all()?;
            fs::rename(&temporary, dir.join(EMBEDDER_FILE))
        };
        write().map_err(|source| {
            // The write's own error is what the user must see; a left-over is removed by the next ingest.
            let _ = fs::remove_file(&temporary);
            EmbedError::Io { path: dir.join(EMBEDDER_FILE).display().to_string(), action: "written", source }
        })
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let (kind, table) = match &self.kind {
            Kind::Lexical(table) => (
                KindHeader::Lexical {
                    lexical_version: LEXICAL_VERSION,
                    passages: table.passages(),
                    table_crc32c: crc32c::crc32c(table.bytes()),
                },
                Some(table),
            ),
            Kind::Command { name } => (KindHeader::Command { name: name.clone() }, None),
        };
        let mut bytes = serde_json::to_vec(&Header { version: VERSION, dim: self.dim, kind })?;
        bytes.push(b'\n');
        if let Some(table) = table {
            let mut encoder = ZlibEncoder::new(&mut bytes, Compression::default());
            encoder.write_all(table.bytes())?;
            encoder.finish()?;
        }
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let line_end =
            bytes.iter().position(|&b| b == b'\n').ok_or("it is not an embedder file (no header line)")?;
        let header: Header = serde_json::from_slice(&bytes[..line_end])
            .map_err(|error| format!("it is not an embedder file of this version ({error})"))?;
        if header.version != VERSION {
            return Err(format!("it has version {}, this vexctl knows {VERSION}", header.version));
        }
        if !(1..=DIM_MAX).contains(&header.dim) {
            return Err(format!("it names the dimension {}, possible are 1 to {DIM_MAX}", header.dim));
        }
        let kind = match header.kind {
            KindHeader::Command { name } => Kind::Command { name },
            KindHeader::Lexical { lexical_version, passages, table_crc32c } => {
                if lexical_version != LEXICAL_VERSION || header.dim != LEXICAL_DIM {
                    return Err(format!(
                        "it was made by version {lexical_version} of the lexical embedder with {} dimensions, this is version {LEXICAL_VERSION} with {LEXICAL_DIM}",
                        header.dim
                    ));
                }
                let mut table = Vec::with_capacity(BUCKETS);
                ZlibDecoder::new(&bytes[line_end + 1..])
                    .take(BUCKETS as u64 + 1)
                    .read_to_end(&mut table)
                    .map_err(|error| format!("its table is damaged ({error})"))?;
                let found = crc32c::crc32c(&table);
                if found != table_crc32c {
                    return Err(format!(
                        "its table is damaged (checksum {found:#010x}, expected {table_crc32c:#010x})"
                    ));
                }
                Kind::Lexical(IdfTable::from_bytes(passages, table).ok_or("its table has a wrong size")?)
            }
        };
        Ok(Self { dim: header.dim, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::{Passage, Trainer};

    fn lexical() -> Identity {
        let trainer = Trainer::new();
        trainer.add(Passage { title: "", text: "a log-structured file system" });
        trainer.add(Passage { title: "", text: "a file" });
        Identity::lexical(trainer.finish())
    }

    #[test]
    fn survives_the_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Identity::load(dir.path()).unwrap().is_none());
        for identity in [lexical(), Identity { dim: 7, kind: Kind::Command { name: "x \"y\"\n".into() } }] {
            identity.store(dir.path(), ".tmp").unwrap();
            let loaded = Identity::load(dir.path()).unwrap().unwrap();
            assert!(loaded == identity);
            assert_eq!(loaded.fingerprint(), identity.fingerprint());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn fingerprints_tell_embedders_apart() {
        let command =
            |name: &str, dim| Identity { dim, kind: Kind::Command { name: name.into() } }.fingerprint();
        let prints = [lexical().fingerprint(), command("a", 3), command("b", 3), command("a", 4)];
        for (i, a) in prints.iter().enumerate() {
            assert!(prints[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn every_damage_is_refused_or_harmless() {
        let identity = lexical();
        let bytes = identity.encode().unwrap();
        for i in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[i] ^= 0x10;
            if let Ok(decoded) = Identity::decode(&damaged) {
                // Only the count of passages in the header is not covered; it is shown, not computed with.
                assert_eq!(decoded.fingerprint(), identity.fingerprint(), "byte {i}");
            }
        }
        for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            assert!(Identity::decode(&bytes[..cut]).is_err() || cut == bytes.len() - 1);
        }
    }

    #[test]
    fn a_table_that_inflates_beyond_bounds_is_refused() {
        let zeros = vec![0u8; 64 << 20];
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&zeros).unwrap();
        let crc = crc32c::crc32c(&zeros[..BUCKETS + 1]);
        let mut bytes = format!(
            "{{\"version\":1,\"dim\":384,\"kind\":\"lexical\",\"lexical_version\":{LEXICAL_VERSION},\"passages\":1,\"table_crc32c\":{crc}}}\n"
        )
        .into_bytes();
        bytes.extend(encoder.finish().unwrap());
        assert_eq!(Identity::decode(&bytes).err().unwrap(), "its table has a wrong size");
    }
}
