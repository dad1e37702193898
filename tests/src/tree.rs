//! Comparing two trees: everything that a careful copy keeps.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use walkdir::WalkDir;

/// All of an entry but its content.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    mode: u32,
    owner: (u32, u32),
    /// Not of directories, whose size is the file system's affair.
    size: Option<u64>,
    device: u64,
    mtime: (i64, i64),
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode, for files with several links.
    linked_to: Option<PathBuf>,
}

/// Reads a tree, without contents. Paths are relative to `root`; hard links are known by their first path.
///
/// # Errors
/// Something in it cannot be read.
pub fn read(root: &Path) -> Result<BTreeMap<PathBuf, Entry>> {
    let mut first_links: HashMap<u64, PathBuf> = HashMap::new();
    let mut entries = BTreeMap::new();
    for found in WalkDir::new(root).sort_by_file_name() {
        let found = found?;
        let path = found.path().strip_prefix(root)?.to_path_buf();
        let meta = found.metadata()?;
        let kind = meta.file_type();
        let linked_to = (!kind.is_dir() && meta.nlink() > 1)
            .then(|| first_links.entry(meta.ino()).or_insert_with(|| path.clone()).clone());
        let entry = Entry {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            size: (!kind.is_dir()).then_some(meta.len()),
            device: meta.rdev(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            target: kind.is_symlink().then(|| fs::read_link(found.path())).transpose()?,
            xattrs: xattrs(found.path()).with_context(|| format!("xattrs of {}", found.path().display()))?,
            linked_to,
        };
        entries.insert(path, entry);
    }
    Ok(entries)
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for name in xattr::list(path)? {
        let value = xattr::get(path, &name)?.unwrap_or_default();
        all.insert(name.into_encoded_bytes(), value);
    }
    Ok(all)
}

/// The differences between two trees as sentences: metadata of every entry, content of every file. At most 20.
///
/// # Errors
/// Something in them cannot be read.
pub fn differences(left: &Path, right: &Path) -> Result<Vec<String>> {
    let (a, b) = (read(left)?, read(right)?);
    let mut found = Vec::new();
    for path in a.keys().chain(b.keys().filter(|path| !a.contains_key(*path))) {
        if found.len() >= 20 {
            break;
        }
        match (a.get(path), b.get(path)) {
            (Some(x), Some(y)) if x != y => found.push(format!("{}: {x:?} is not {y:?}", path.display())),
            (Some(x), Some(_)) if x.mode & 0o170_000 == 0o100_000 => {
                if fs::read(left.join(path))? != fs::read(right.join(path))? {
                    found.push(format!("{}: contents differ", path.display()));
                }
            }
            (Some(_), Some(_)) => {}
            (present, _) => {
                let side = if present.is_some() { left } else { right };
                found.push(format!("{}: only in {}", path.display(), side.display()));
            }
        }
    }
    Ok(found)
}

/// Asserts that two trees are equal.
///
/// # Panics
/// They are not, or cannot be read.
pub fn assert_equal(left: &Path, right: &Path) {
    let differences = differences(left, right).expect("both trees can be read");
    assert!(differences.is_empty(), "the trees differ:\n{}", differences.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&Path);

    fn sample(root: &Path) {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/file"), b"content").unwrap();
        fs::hard_link(root.join("d/file"), root.join("d/link")).unwrap();
        std::os::unix::fs::symlink("d/file", root.join("symlink")).unwrap();
        for name in ["d/file", "d", "symlink", "."] {
            set_time(&root.join(name), 1_000_000);
        }
    }

    fn set_time(path: &Path, seconds: i64) {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 5 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    #[test]
    fn each_kind_of_difference_is_found() {
        let changes: [(&str, Change); 5] = [
            ("content", |root| {
                fs::write(root.join("d/file"), b"CONTENT").unwrap();
                set_time(&root.join("d/file"), 1_000_000);
            }),
            ("time", |root| set_time(&root.join("symlink"), 0)),
            ("mode", |root| {
                fs::set_permissions(root.join("d"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
                    .unwrap();
            }),
            ("an entry more", |root| fs::write(root.join("more"), b"").unwrap()),
            ("links", |root| {
                fs::remove_file(root.join("d/link")).unwrap();
                fs::copy(root.join("d/file"), root.join("d/link")).unwrap();
            }),
        ];
        for (what, change) in changes {
            let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            sample(a.path());
            sample(b.path());
            assert_equal(a.path(), b.path());
            change(b.path());
            assert!(!differences(a.path(), b.path()).unwrap().is_empty(), "{what} was not seen");
        }
    }
}
