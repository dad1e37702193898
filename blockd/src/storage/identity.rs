//! Which file or block device a backing is, whatever path leads to it.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The same for every path, working directory and mount namespace; holds while the file is open.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Identity {
    /// Number of the device that the file is on (`st_dev`); of a block device its own (`st_rdev`).
    pub device: u64,
    /// The file's inode; 0 for a block device, which may have several nodes.
    pub inode: u64,
}

impl Identity {
    /// Of an open file.
    pub fn of(meta: &Metadata) -> Self {
        if meta.file_type().is_block_device() {
            Identity { device: meta.rdev(), inode: 0 }
        } else {
            Identity { device: meta.dev(), inode: meta.ino() }
        }
    }

    /// Of what a path leads to.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&std::fs::metadata(path)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_to_one_file_are_one_and_copies_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link, hard, copy] = ["file", "link", "hard", "copy"].map(|name| dir.path().join(name));
        std::fs::write(&file, b"x").unwrap();
        std::fs::copy(&file, &copy).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        std::fs::hard_link(&file, &hard).unwrap();
        let of = |path| Identity::at(path).unwrap();
        assert_eq!((of(&file), of(&file)), (of(&link), of(&hard)));
        assert_ne!(of(&file), of(&copy));
        assert!(Identity::at(&dir.path().join("none")).is_err());
    }
}
