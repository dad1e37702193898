//! The configuration file: TOML, every key checked.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use blockd::storage::IoEngine;
use serde::Deserialize;

use crate::args::{Io, LogFormat};

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
    /// Where NBD clients connect.
    #[serde(default)]
    pub listen: Vec<Listen>,
    /// What is served.
    #[serde(default)]
    pub export: Vec<Export>,
}

/// One place where NBD clients connect.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Path of a unix socket.
    pub unix: PathBuf,
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
    /// How the image is read and written.
    #[serde(default)]
    pub io: Io,
    /// Log between checkpoints.
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
            read_only: self.read_only,
            io: match self.io {
                Io::Auto => IoEngine::Auto,
                Io::Uring => IoEngine::Uring,
                Io::Sync => IoEngine::Sync,
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
pub fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration {}", path.display()))?;
    parse(&text).with_context(|| format!("the configuration {} is wrong", path.display()))
}

fn parse(text: &str) -> Result<File> {
    let file: File =
        toml::from_str(text).map_err(|error| anyhow::anyhow!("{}", error.to_string().trim_end()))?;
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
unix = "/run/vexfs/disks.nbd"

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
        ] {
            let message = format!("{:#}", parse(bad).unwrap_err());
            assert!(message.contains(line) && message.contains(word), "{message}");
        }
        let zero = parse("[[export]]\nimage = \"a\"\nmap_mib = 0\n").unwrap_err().to_string();
        assert!(zero.contains("at least 1"), "{zero}");
    }
}
