//! The tree to copy: its files with the names they get in the collection, and their bytes.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;
use globset::{Glob, GlobSet, GlobSetBuilder};
use walkdir::WalkDir;

use super::record::Stamp;
use super::tally::{Skip, Tally};
use super::{is_reserved, prepare::MAX_PATH_BYTES};
use std::os::unix::ffi::OsStrExt;

/// A file of the tree.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its name in the collection, relative to it: without `.gz`.
    pub target: PathBuf,
    /// Decompressed on the way.
    pub gzip: bool,
    /// Permission bits.
    pub mode: u32,
}

/// A walked tree.
pub struct SourceTree {
    /// Files to take, one for each target.
    pub files: Vec<SourceFile>,
    /// All targets that the tree has, taken or not: what is not in here is gone.
    pub targets: HashMap<PathBuf, ()>,
    /// Permission bits of the directories, by path relative to the tree.
    pub directory_modes: HashMap<PathBuf, u32>,
}

/// Which files to take. A glob without slash is matched with the file's name, another with its path below the tree.
pub struct Filter {
    names: GlobSet,
    paths: GlobSet,
    everything: bool,
}

impl Filter {
    /// From `--include`.
    ///
    /// # Errors
    /// A glob cannot be understood.
    pub fn new(globs: &[String]) -> Result<Self> {
        let (mut names, mut paths) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for glob in globs {
            let parsed = Glob::new(glob).with_context(|| format!("--include: `{glob}` is not a glob"))?;
            if glob.contains('/') {
                paths.add(parsed)
            } else {
                names.add(parsed)
            };
        }
        Ok(Self { names: names.build()?, paths: paths.build()?, everything: globs.is_empty() })
    }

    fn takes(&self, relative: &Path) -> bool {
        self.everything
            || self.paths.is_match(relative)
            || relative.file_name().is_some_and(|name| self.names.is_match(name))
    }
}

/// Walks the tree; what is not taken is counted in `tally`.
pub fn walk(root: &Path, filter: &Filter, tally: &Tally) -> SourceTree {
    let mut tree = SourceTree { files: Vec::new(), targets: HashMap::new(), directory_modes: HashMap::new() };
    // By target, so that of FILE and FILE.gz one is taken: the plain one.
    let mut by_target: BTreeMap<PathBuf, SourceFile> = BTreeMap::new();
    for entry in WalkDir::new(root) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let path = error.path().unwrap_or(root).to_owned();
                tally.unreadable(&path, &error);
                continue;
            }
        };
        let Ok(relative) = entry.path().strip_prefix(root).map(Path::to_owned) else { continue };
        let kind = entry.file_type();
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) => {
                tally.unreadable(entry.path(), &error);
                continue;
            }
        };
        let mode = metadata.mode() & 0o777;
        if kind.is_dir() {
            tree.directory_modes.insert(relative, mode);
            continue;
        }
        if !kind.is_file() {
            tally.skip(if kind.is_symlink() { Skip::Symlink } else { Skip::Special });
            continue;
        }
        let gzip = relative.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
        let target = if gzip { relative.with_extension("") } else { relative.clone() };
        tree.targets.insert(target.clone(), ());
        if !filter.takes(&relative) && !filter.takes(&target) {
            tally.skip(Skip::NotIncluded);
        } else if relative.iter().any(is_reserved) || target.as_os_str().as_bytes().len() > MAX_PATH_BYTES {
            tally.skip(Skip::Name);
        } else {
            let file = SourceFile { path: entry.path().to_owned(), target: target.clone(), gzip, mode };
            match by_target.entry(target) {
                std::collections::btree_map::Entry::Vacant(free) => {
                    free.insert(file);
                }
                std::collections::btree_map::Entry::Occupied(mut taken) => {
                    tally.skip(Skip::Twin);
                    if !gzip {
                        taken.insert(file);
                    }
                }
            }
        }
    }
    tree.files = by_target.into_values().collect();
    tree
}

/// Why a file's bytes were not got.
#[derive(Debug)]
pub enum ReadError {
    TooLarge,
    /// The name says gzip, the bytes don't.
    BadGzip,
    Io(io::Error),
}

/// A file's bytes (decompressed), and the stamp that it had before they were read.
///
/// # Errors
/// See [`ReadError`].
pub fn read(path: &Path, gzip: bool, bytes_max: u64) -> Result<(Stamp, Vec<u8>), ReadError> {
    // NOFOLLOW, NONBLOCK: what was a file in the walk may be a link or a fifo by now.
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let file =
        File::options().read(true).custom_flags(flags.cast_signed()).open(path).map_err(ReadError::Io)?;
    let metadata = file.metadata().map_err(ReadError::Io)?;
    if !metadata.is_file() {
        return Err(ReadError::Io(io::Error::other("is not a regular file any more")));
    }
    if metadata.len() > bytes_max {
        return Err(ReadError::TooLarge);
    }
    let mut bytes = Vec::new();
    if gzip {
        MultiGzDecoder::new(io::BufReader::new(file)).take(bytes_max + 1).read_to_end(&mut bytes).map_err(
            |error| match error.raw_os_error() {
                Some(_) => ReadError::Io(error),
                None => ReadError::BadGzip,
            },
        )?;
    } else {
        file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(ReadError::Io)?;
    }
    if bytes.len() as u64 > bytes_max {
        return Err(ReadError::TooLarge);
    }
    Ok((Stamp::of(&metadata), bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn files_links_and_twins() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("p")).unwrap();
        fs::write(root.join("p/a"), "plain").unwrap();
        fs::write(root.join("p/a.gz"), gzip(b"packed")).unwrap();
        fs::write(root.join("p/b.txt.gz"), gzip(b"packed")).unwrap();
        fs::write(root.join("p/.vexfs-embedder"), "x").unwrap();
        std::os::unix::fs::symlink("a", root.join("p/link")).unwrap();
        let tally = Tally::default();
        let tree = walk(root, &Filter::new(&[]).unwrap(), &tally);
        let targets: Vec<_> = tree.files.iter().map(|f| (f.target.to_str().unwrap(), f.gzip)).collect();
        assert_eq!(targets, [("p/a", false), ("p/b.txt", true)]);
        assert_eq!(tally.skipped(), [(Skip::Symlink, 1), (Skip::Name, 1), (Skip::Twin, 1)]);
        assert!(tree.directory_modes.contains_key(Path::new("p")));
    }

    #[test]
    fn globs_match_names_or_paths() {
        let filter = Filter::new(&["*.md".into(), "doc/*".into()]).unwrap();
        assert!(filter.takes(Path::new("x/y.md")) && filter.takes(Path::new("doc/z")));
        assert!(!filter.takes(Path::new("x/z")));
        assert!(Filter::new(&["[".into()]).is_err());
    }

    #[test]
    fn bytes_are_bounded_also_when_they_inflate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bomb.gz");
        fs::write(&path, gzip(&vec![b'a'; 1 << 20])).unwrap();
        assert!(matches!(read(&path, true, 1 << 16), Err(ReadError::TooLarge)));
        assert_eq!(read(&path, true, 1 << 20).unwrap().1.len(), 1 << 20);
        fs::write(&path, "no gzip").unwrap();
        assert!(matches!(read(&path, true, 100), Err(ReadError::BadGzip)));
        assert!(matches!(read(&path, false, 3), Err(ReadError::TooLarge)));
        std::os::unix::fs::symlink("bomb.gz", dir.path().join("link")).unwrap();
        assert!(matches!(read(&dir.path().join("link"), false, 100), Err(ReadError::Io(_))));
    }
}
