//! The collection's side: what is there, and how files and rows get in.
//!
//! A file is written under a temporary name (mode 0600, then the source's), gets its record, and is put under its own name
//! together with its rows in one commit. So no reader, and no crash, ever finds a file of ours half written or without its rows.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow, bail};
use walkdir::WalkDir;

use super::decide::Stored;
use super::prepare::Embedded;
use super::record::{RECORD_XATTR, Record, Stamp};
use super::{TEMPORARY_PREFIX, TEMPORARY_SUFFIX, is_temporary_name};
use crate::remedy::failed;
use crate::session::{Put, SessionDir};

const VECTOR_XATTR: &str = "user.vexfs.vector";

/// A collection that files go into.
pub struct Target {
    session: SessionDir,
    dim: usize,
    /// Source's permission bits for directories that must be made.
    directory_modes: HashMap<PathBuf, u32>,
    next_temporary: AtomicU64,
}

/// What the collection has.
pub struct Scan {
    /// By path relative to the collection.
    pub files: HashMap<PathBuf, Stored>,
    /// Temporary files that were removed.
    pub leftovers: u64,
}

/// A new version of a file.
pub struct NewFile<'a> {
    /// Relative to the collection.
    pub target: &'a Path,
    pub bytes: &'a [u8],
    /// The source's permission bits.
    pub mode: u32,
    pub embedded: &'a Embedded,
    /// `stored` and `passages` are filled in here.
    pub record: Record,
}

impl Target {
    /// Files and rows of `dim` elements go through `session`, which is of the collection's root.
    pub fn new(session: SessionDir, dim: usize, directory_modes: HashMap<PathBuf, u32>) -> Self {
        Self { session, dim, directory_modes, next_temporary: AtomicU64::new(0) }
    }

    /// The collection's directory.
    pub fn dir(&self) -> &Path {
        self.session.dir()
    }

    /// A name that no other run uses.
    pub fn temporary_name(&self) -> String {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        format!("{TEMPORARY_PREFIX}{}-{number}{TEMPORARY_SUFFIX}", std::process::id())
    }

    /// Lists the collection and removes what crashed runs left. Only one run at a time may be in the collection.
    ///
    /// # Errors
    /// The collection cannot be read.
    pub fn scan(&self) -> Result<Scan> {
        let mut scan = Scan { files: HashMap::new(), leftovers: 0 };
        for entry in WalkDir::new(self.dir()).same_file_system(true) {
            let entry =
                entry.map_err(|error| anyhow!("{}: cannot be listed: {error}", self.dir().display()))?;
            if !entry.file_type().is_file() {
                continue;
            }
            if is_temporary_name(entry.file_name()) {
                fs::remove_file(entry.path()).map_err(|error| failed(entry.path().display(), &error))?;
                scan.leftovers += 1;
                continue;
            }
            let Ok(relative) = entry.path().strip_prefix(self.dir()) else { continue };
            let metadata =
                fs::symlink_metadata(entry.path()).map_err(|error| failed(entry.path().display(), &error))?;
            let record = read_record(entry.path())?;
            let has_rows = record.is_some() && has_rows(entry.path())?;
            scan.files.insert(relative.to_owned(), Stored { stamp: Stamp::of(&metadata), record, has_rows });
        }
        Ok(scan)
    }

    /// Stores a file with its rows in one commit, replacing what has its name.
    ///
    /// # Errors
    /// The volume is full, read-only, …; the old version still stands then.
    pub fn publish(&self, new: &NewFile<'_>) -> Result<()> {
        let Some(name) = new.target.file_name() else { bail!("{}: has no name", new.target.display()) };
        let parent = new.target.parent().unwrap_or(Path::new(""));
        self.make_directories(parent)?;
        let temporary = parent.join(self.temporary_name());
        let result = self.write_temporary(&temporary, new).and_then(|()| {
            self.session.put(&Put {
                file: &temporary,
                rows: &new.embedded.rows,
                vectors: &new.embedded.vectors,
                dim: self.dim,
                append: false,
                publish_as: Some(Path::new(name)),
            })
        });
        let path = self.dir().join(new.target);
        if let Err(error) = result {
            // Not there if it never came to be; the first error is the one to show.
            let _ = fs::remove_file(self.dir().join(&temporary));
            return Err(error.context(format!("{}: cannot be stored", path.display())));
        }
        if needs_owner_write(new.mode) {
            fs::set_permissions(&path, Permissions::from_mode(new.mode))
                .map_err(|error| failed(path.display(), &error))?;
        }
        Ok(())
    }

    fn write_temporary(&self, temporary: &Path, new: &NewFile<'_>) -> Result<()> {
        let path = self.dir().join(temporary);
        let write = || -> io::Result<()> {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(new.bytes)?;
            file.set_modified(system_time(new.record.source.mtime_ns))?;
            let stored = Stamp::of(&file.metadata()?);
            let passages = u32::try_from(new.embedded.rows.len()).map_err(io::Error::other)?;
            xattr::set(&path, RECORD_XATTR, Record { stored, passages, ..new.record }.encode().as_bytes())?;
            // A put needs the right to write, which the source's mode may not give to its owner.
            let owner_write = if needs_owner_write(new.mode) { 0o200 } else { 0 };
            file.set_permissions(Permissions::from_mode(new.mode | owner_write))
        };
        write().map_err(|error| failed(path.display(), &error))
    }

    /// Gives a file that is there new rows; its text stays. Returns whether it stayed the same meanwhile.
    ///
    /// # Errors
    /// As [`Target::publish`].
    pub fn refresh(
        &self,
        target: &Path,
        read_at: Stamp,
        embedded: &Embedded,
        record: Record,
    ) -> Result<bool> {
        let path = self.dir().join(target);
        let look = || fs::symlink_metadata(&path).map_err(|error| failed(path.display(), &error));
        let before = look()?;
        let locked = needs_owner_write(before.mode() & 0o777);
        let set_mode = |mode| {
            fs::set_permissions(&path, Permissions::from_mode(mode))
                .map_err(|error| failed(path.display(), &error))
        };
        if locked {
            set_mode(before.mode() & 0o7777 | 0o200)?;
        }
        let refreshed = self.refresh_writable(target, &path, read_at, embedded, record, &look);
        if locked {
            set_mode(before.mode() & 0o7777)?;
        }
        refreshed
    }

    fn refresh_writable(
        &self,
        target: &Path,
        path: &Path,
        read_at: Stamp,
        embedded: &Embedded,
        record: Record,
        look: &dyn Fn() -> Result<Metadata>,
    ) -> Result<bool> {
        self.session.put(&Put {
            file: target,
            rows: &embedded.rows,
            vectors: &embedded.vectors,
            dim: self.dim,
            append: false,
            publish_as: None,
        })?;
        // If the file changed since it was read, the old record stays, and the next run does it again.
        if Stamp::of(&look()?) != read_at {
            return Ok(false);
        }
        let passages = u32::try_from(embedded.rows.len())?;
        xattr::set(path, RECORD_XATTR, Record { stored: read_at, passages, ..record }.encode().as_bytes())
            .map_err(|error| failed(path.display(), &error))?;
        Ok(true)
    }

    /// Removes a file, and directories that are empty then.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, target: &Path) -> Result<()> {
        let path = self.dir().join(target);
        fs::remove_file(&path).map_err(|error| failed(path.display(), &error))?;
        for parent in target.ancestors().skip(1).take_while(|p| !p.as_os_str().is_empty()) {
            if fs::remove_dir(self.dir().join(parent)).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Is there something that is no regular file under the name of `target`?
    pub fn is_occupied(&self, target: &Path) -> bool {
        fs::symlink_metadata(self.dir().join(target)).is_ok_and(|metadata| !metadata.is_file())
    }

    /// Makes the directories on the way, with the source's modes. Links are not followed: who may write to
    /// the collection could have put one there to lead us out of it.
    fn make_directories(&self, relative: &Path) -> Result<()> {
        let mut below = PathBuf::new();
        for name in relative {
            below.push(name);
            let path = self.dir().join(&below);
            match fs::create_dir(&path) {
                Ok(()) => {
                    let mode = self.directory_modes.get(&below).map_or(0o755, |mode| mode | 0o700);
                    fs::set_permissions(&path, Permissions::from_mode(mode))
                        .map_err(|error| failed(path.display(), &error))?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                        bail!(
                            "{}: is not a directory, but the source has one there; remove or rename it",
                            path.display()
                        );
                    }
                }
                Err(error) => return Err(failed(path.display(), &error)),
            }
        }
        Ok(())
    }
}

fn read_record(path: &Path) -> Result<Option<Record>> {
    match xattr::get(path, RECORD_XATTR) {
        Ok(value) => Ok(value.as_deref().and_then(Record::decode)),
        // What we may not read was not ours, or is not any more.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(failed(format_args!("{}: {RECORD_XATTR}", path.display()), &error)),
    }
}

fn has_rows(path: &Path) -> Result<bool> {
    match xattr::get(path, OsStr::new(VECTOR_XATTR)) {
        Ok(value) => Ok(value.is_some()),
        Err(error) => Err(failed(format_args!("{}: {VECTOR_XATTR}", path.display()), &error)),
    }
}

/// Root writes whatever the mode says.
fn needs_owner_write(mode: u32) -> bool {
    mode & 0o200 == 0 && !rustix::process::geteuid().is_root()
}

fn system_time(mtime_ns: i128) -> SystemTime {
    let distance = Duration::from_nanos_u128(mtime_ns.unsigned_abs());
    let time = if mtime_ns < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_1970() {
        for ns in [0i128, 1, -1, 1_700_000_000_123_456_789, -5_000_000_000] {
            let time = system_time(ns);
            let back = match time.duration_since(SystemTime::UNIX_EPOCH) {
                Ok(after) => after.as_nanos().cast_signed(),
                Err(before) => -before.duration().as_nanos().cast_signed(),
            };
            assert_eq!(back, ns);
        }
    }
}
