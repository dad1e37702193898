//! The configuration file: TOML, every key checked.

use std::path::{Path, PathBuf};

use anyhow::Context;
use blockd::nbd::server::{Address, MODE};
use blockd::storage::IoEngine;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::args::{Cache, Io, LogFormat};
use crate::nbd;

/// The whole file. Flags override what stands in it.
#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The daemon's name.
    pub name: Option<String>,
    /// What is logged.
    pub log: Option<String>,
    /// How it is logged.
    pub log_format: Option<LogFormat>,
    /// "none", or "unix:PATH".
    pub control: Option<String>,
    /// Addresses of metrics.
    #[serde(default)]
    pub metrics: Vec<String>,
    /// Time for clients at the end.
    pub drain_timeout_s: Option<u64>,
    /// NBD clients served at a time.
    pub connections: Option<u32>,
    /// Where NBD clients connect.
    #[serde(default)]
    pub listen: Vec<Listen>,
    /// What is served.
    #[serde(default)]
    pub export: Vec<Export>,
}

/// One place where NBD clients connect, and how it is protected.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// "unix:PATH" or "tcp:HOST[:PORT]".
    #[serde(deserialize_with = "address")]
    pub address: Address,
    /// Permissions of a unix socket, octal digits.
    #[serde(default = "default_mode", deserialize_with = "mode")]
    pub mode: u32,
    /// Certificate for TLS on TCP.
    pub tls_cert: Option<PathBuf>,
    /// Its key.
    pub tls_key: Option<PathBuf>,
    /// Who signs clients' certificates.
    pub tls_client_ca: Option<PathBuf>,
    /// TCP without TLS.
    #[serde(default)]
    pub insecure: bool,
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Address, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

fn mode<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    nbd::mode(&String::deserialize(from)?).map_err(D::Error::custom)
}

fn default_mode() -> u32 {
    MODE
}

/// One image and how it is served.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// The image.
    pub image: PathBuf,
    /// The export's name.
    #[serde(default)]
    pub name: String,
    /// Take no writes.
    #[serde(default)]
    pub read_only: bool,
    /// Serve this snapshot, read-only, and not the live volume.
    pub snapshot: Option<String>,
    /// Size of a logical block that clients are told.
    pub block_size: Option<u32>,
    /// How the image is read and written.
    #[serde(default)]
    pub io: Io,
    /// What stands between the volume and its image.
    #[serde(default)]
    pub cache: Cache,
    /// Log between checkpoints; chosen if not given.
    pub checkpoint_mib: Option<u64>,
    /// Memory for the map.
    pub map_mib: Option<u64>,
    /// Give freed space back to the file system.
    #[serde(default)]
    pub discard: bool,
    /// What the cleaner moves at most; 0 for no limit.
    pub cleaner_mib_per_s: Option<u64>,
}

impl Export {
    /// How the volume is opened.
    pub fn options(&self, boot_id: [u8; 16]) -> blockd::volume::OpenOptions {
        let default = blockd::volume::OpenOptions::default();
        let bytes = |mib: Option<u64>, default| mib.map_or(default, |mib| mib.saturating_mul(1 << 20));
        blockd::volume::OpenOptions {
            read_only: self.read_only || self.snapshot.is_some(),
            io: match self.io {
                Io::Auto => IoEngine::Auto,
                Io::Uring => IoEngine::Uring,
                Io::Sync => IoEngine::Sync,
            },
            cache: match self.cache {
                Cache::Direct => blockd::storage::Cache::Direct,
                Cache::Writeback => blockd::storage::Cache::Writeback,
            },
            boot_id,
            checkpoint_bytes: bytes(self.checkpoint_mib, default.checkpoint_bytes),
            map_bytes_max: bytes(self.map_mib, default.map_bytes_max),
            discard: self.discard,
            cleaner_bytes_per_s: bytes(self.cleaner_mib_per_s, default.cleaner_bytes_per_s),
            ..default
        }
    }
}

/// Reads a file.
///
/// # Errors
/// It cannot be read, or a line of it is wrong; the text shows the line.
pub fn read(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration {}", path.display()))?;
    parse(&text).with_context(|| format!("the configuration {} is wrong", path.display()))
}

fn parse(text: &str) -> anyhow::Result<File> {
    let file: File =
        toml::from_str(text).map_err(|error| anyhow::anyhow!("{}", error.to_string().trim_end()))?;
    anyhow::ensure!(
        file.connections.is_none_or(|n| (1..=65536).contains(&n)),
        "connections is a number from 1 to 65536"
    );
    for export in &file.export {
        for (key, value) in [("checkpoint_mib", export.checkpoint_mib), ("map_mib", export.map_mib)] {
            anyhow::ensure!(value != Some(0), "{key} of {} is at least 1", export.image.display());
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "disks"
log_format = "json"
metrics = ["tcp:127.0.0.1:9151"]

[[listen]]
address = "unix:/run/vexfs/disks.nbd"

[[export]]
image = "/srv/a.img"
name = "a"
io = "sync"
cleaner_mib_per_s = 0

[[export]]
image = "/srv/b.img"
name = "b"
read_only = true
"#;

    #[test]
    fn a_good_file_says_it_all() {
        let file = parse(GOOD).unwrap();
        assert_eq!(file.log_format, Some(LogFormat::Json));
        let options = file.export[0].options([1; 16]);
        assert_eq!((options.io, options.cleaner_bytes_per_s, options.read_only), (IoEngine::Sync, 0, false));
        assert_eq!(options.checkpoint_bytes, blockd::volume::OpenOptions::default().checkpoint_bytes);
        assert!(file.export[1].options([1; 16]).read_only);
    }

    #[test]
    fn what_is_unknown_is_refused_with_its_line() {
        for (bad, line, word) in [
            ("name = \"x\"\nnmae = \"y\"\n", "line 2", "nmae"),
            ("[[export]]\nimage = \"a\"\nreadonly = true\n", "line 3", "readonly"),
            ("[[export]]\nname = \"a\"\n", "line 1", "image"),
            ("drain_timeout_s = \"long\"\n", "line 1", "drain_timeout_s"),
            ("log = [\n", "line", "log"),
            ("[[listen]]\naddress = \"x\"\n", "line 2", "unix:PATH"),
            ("[[listen]]\naddress = \"unix:/x\"\nmode = \"999\"\n", "line 3", "octal"),
        ] {
            let message = format!("{:#}", parse(bad).unwrap_err());
            assert!(message.contains(line) && message.contains(word), "{message}");
        }
        let zero = parse("[[export]]\nimage = \"a\"\nmap_mib = 0\n").unwrap_err().to_string();
        assert!(zero.contains("at least 1"), "{zero}");
        for n in ["0", "65537"] {
            let wrong = parse(&format!("connections = {n}\n")).unwrap_err().to_string();
            assert!(wrong.contains("from 1 to 65536"), "{wrong}");
        }
    }
}
