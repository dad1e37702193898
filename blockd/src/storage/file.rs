//! A file or block device as backing, locked while it is open.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::plain::{PlainQueue, read_rest};
use super::ring::{ReadRings, RingQueue};
use super::{IoEngine, Read, ReadCache, Storage, WriteQueue};
use crate::buf::AlignedBuf;

/// How long a lock is waited for. Its holder may be about to end: umount(8) returns before a mount has written its
/// last commit; and the kernel finishes the I/O of a killed process after its death (io_uring does it in the
/// background), and only then drops the lock.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);

/// Why a backing cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// open(2) and the like.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file's owner or mode forbids it.
    #[error("not permitted to {action} {path}; run as its owner or as root")]
    NotPermitted {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// Another process holds the lock.
    #[error("{path}: image is in use by another process{holder}; stop it first, or use another image")]
    InUse {
        /// The image.
        path: PathBuf,
        /// " (pid N)" where known.
        holder: String,
    },
    /// Neither a regular file nor a block device.
    #[error("{path} is neither a regular file nor a block device")]
    WrongType {
        /// The path given.
        path: PathBuf,
    },
    /// [`IoEngine::Uring`] was asked for.
    #[error("io_uring is not available here; use the automatic or the plain engine")]
    NoUring(#[source] io::Error),
}

/// A locked file or block device.
///
/// The lock is a flock(2) on the descriptor that does the I/O, so it lasts until the kernel has
/// finished every request of this process, killed or not: a successor never overlaps them.
pub struct FileStorage {
    file: Arc<File>,
    /// For reads through the page cache.
    cached: Option<File>,
    len_bytes: u64,
    is_device: bool,
    rings: Option<ReadRings>,
}

impl FileStorage {
    /// Opens and locks `path`: exclusively, or shared when `read_only`.
    ///
    /// # Errors
    /// [`OpenError`]; `InUse` if another process has it.
    pub fn open(path: &Path, read_only: bool, engine: IoEngine) -> Result<Self, OpenError> {
        let fail = |action| {
            let path = path.to_owned();
            move |source: io::Error| match source.kind() {
                io::ErrorKind::PermissionDenied => OpenError::NotPermitted { action, path },
                _ => OpenError::Io { action, path, source },
            }
        };
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only);
        let file = options.open(path).map_err(fail("open"))?;
        let meta = file.metadata().map_err(fail("inspect"))?;
        let is_device = meta.file_type().is_block_device();
        if !is_device && !meta.is_file() {
            return Err(OpenError::WrongType { path: path.to_owned() });
        }
        // The lock must stand on the descriptor that is used, so O_DIRECT is settled before.
        let direct = options.custom_flags(libc::O_DIRECT).open(path);
        let mut is_direct = true;
        let file = match direct {
            Ok(direct) if takes_direct(&direct, meta.len(), is_device) => direct,
            _ => {
                is_direct = false;
                tracing::info!(
                    "{}: no O_DIRECT here, reading and writing through the page cache",
                    path.display()
                );
                file
            }
        };
        let mode = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        let until = Instant::now() + LOCK_WAIT_MAX;
        loop {
            match rustix::fs::flock(&file, mode) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(fail("lock")(errno.into())),
            }
            let holder = holder(meta.ino());
            if holder == Some(std::process::id()) || Instant::now() >= until {
                let holder = holder.map_or_else(String::new, |pid| format!(" (pid {pid})"));
                return Err(OpenError::InUse { path: path.to_owned(), holder });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let len_bytes = if is_device {
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|e| fail("measure")(e.into()))?
        } else {
            meta.len()
        };
        let rings = match engine {
            IoEngine::Sync => None,
            IoEngine::Uring => Some(ReadRings::new().map_err(OpenError::NoUring)?),
            // Where a request cannot be started without waiting, io_uring hands each one to a thread of its own.
            IoEngine::Auto if !is_direct || !starts_without_waiting(&file) => None,
            IoEngine::Auto => match ReadRings::new() {
                Ok(rings) => Some(rings),
                Err(e) => {
                    tracing::warn!("io_uring is not permitted here ({e}); using plain reads and writes");
                    None
                }
            },
        };
        Ok(FileStorage { file: Arc::new(file), cached: None, len_bytes, is_device, rings })
    }

    /// Has [`Storage::read_cached`] read as `cache` says, if the system lets it.
    pub fn set_read_cache(&mut self, cache: ReadCache) {
        self.cached = None;
        if cache == ReadCache::Direct {
            return;
        }
        // The same inode in any case, whatever has become of the path.
        match File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd())) {
            Ok(file) => self.cached = Some(file),
            Err(e) => tracing::warn!("reads go past the page cache, since /proc is not to be had: {e}"),
        }
    }

    /// Sets the length of a regular file, durably; the new part reads as zeros.
    ///
    /// # Errors
    /// What ftruncate(2) and fsync(2) say.
    pub fn resize(&mut self, len_bytes: u64) -> io::Result<()> {
        self.cut(len_bytes)?;
        self.len_bytes = len_bytes;
        Ok(())
    }

    /// As [`FileStorage::resize`], at the end: nothing is read or written past the new length any more, though
    /// [`Storage::len_bytes`] still says the old one.
    ///
    /// # Errors
    /// What ftruncate(2) and fsync(2) say.
    pub fn cut(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes)?;
        self.file.sync_all()
    }

    /// Whether it is a block device, whose length is what it is.
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// The engine in use.
    pub fn engine(&self) -> IoEngine {
        if self.rings.is_some() { IoEngine::Uring } else { IoEngine::Sync }
    }
}

/// Whether a read with O_DIRECT works (some file systems accept the flag and refuse the I/O).
fn takes_direct(file: &File, len_bytes: u64, is_device: bool) -> bool {
    if !is_device && len_bytes < 4096 {
        return true;
    }
    file.read_at(&mut AlignedBuf::zeroed(4096), 0).is_ok()
}

/// Whether reads and writes of the file can be started without waiting for it (tmpfs has no such requests).
fn starts_without_waiting(file: &File) -> bool {
    let mut page = AlignedBuf::zeroed(4096);
    let read = preadv2(file, &mut [IoSliceMut::new(&mut page)], 0, ReadWriteFlags::NOWAIT);
    !matches!(read, Err(Errno::OPNOTSUPP))
}

/// The process that has a flock on this inode, from /proc/locks; processes that do not exist any
/// more, and those of other pid namespaces, are not listed there.
fn holder(ino: u64) -> Option<u32> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let suffix = format!(":{ino}");
    locks
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .find(|f| f.len() > 5 && f[1] == "FLOCK" && f[5].ends_with(&suffix))
        .and_then(|f| f[4].parse().ok())
        .filter(|&pid| pid != 0)
}

fn read_each(file: &File, reads: &mut [Read<'_>]) {
    for read in reads {
        read.result = read_rest(file, read.offset, read.buf, 0);
    }
}

/// Copies what the page cache has; what it lacks is read in one batch.
fn read_from_cache(file: &File, rings: &ReadRings, reads: &mut [Read<'_>]) {
    let mut missed = Vec::new();
    for read in reads {
        let whole = read.buf.len();
        match preadv2(file, &mut [IoSliceMut::new(read.buf)], read.offset, ReadWriteFlags::NOWAIT) {
            Ok(got) if got == whole => {}
            _ => missed.push(read),
        }
    }
    match missed.as_mut_slice() {
        [] => {}
        [one] => one.result = read_rest(file, one.offset, one.buf, 0),
        several => rings.read_batch(file, several),
    }
}

impl Storage for FileStorage {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_batch(&self, reads: &mut [Read<'_>]) {
        match &self.rings {
            Some(rings) if reads.len() > 1 => rings.read_batch(&self.file, reads),
            _ => read_each(&self.file, reads),
        }
    }

    fn read_cached(&self, reads: &mut [Read<'_>]) {
        match (&self.cached, &self.rings) {
            (None, _) => self.read_batch(reads),
            (Some(cached), None) => read_each(cached, reads),
            (Some(cached), Some(rings)) => read_from_cache(cached, rings, reads),
        }
    }

    fn write_all(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len_bytes: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(e) = rustix::fs::fallocate(&*self.file, flags, offset, len_bytes) {
            // Only thriftiness is lost; a device or file system without holes is common.
            tracing::debug!(device = self.is_device, "cannot give back {len_bytes} bytes at {offset}: {e}");
        }
    }

    fn release(&self) {
        if let Err(error) = rustix::fs::flock(&*self.file, FlockOperation::Unlock) {
            tracing::warn!(%error, "the image cannot be unlocked; it is when this process ends");
        }
    }

    fn queue(&self) -> io::Result<Box<dyn WriteQueue>> {
        if self.rings.is_some() {
            return Ok(Box::new(RingQueue::new(Arc::clone(&self.file))?));
        }
        Ok(Box::new(PlainQueue::new(Arc::clone(&self.file))))
    }
}
