//! A file or block device as backing, locked while it is open.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::identity::Identity;
use super::plain::{PlainQueue, read_rest};
use super::ring::{ReadRings, RingQueue};
use super::{Cache, IoEngine, Read, ScatteredRead, Storage, WriteQueue};
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
    len_bytes: u64,
    is_device: bool,
    rings: Option<ReadRings>,
}

impl FileStorage {
    /// Opens and locks `path`, past the page cache: exclusively, or shared when `read_only`.
    ///
    /// # Errors
    /// [`OpenError`]; `InUse` if another process has it.
    pub fn open(path: &Path, read_only: bool, engine: IoEngine) -> Result<Self, OpenError> {
        Self::open_cached(path, read_only, engine, Cache::Direct)
    }

    /// As [`FileStorage::open`], with a cache.
    ///
    /// # Errors
    /// As [`FileStorage::open`].
    pub fn open_cached(
        path: &Path,
        read_only: bool,
        engine: IoEngine,
        cache: Cache,
    ) -> Result<Self, OpenError> {
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
        let direct = match cache {
            Cache::Direct => options.custom_flags(libc::O_DIRECT).open(path).ok(),
            Cache::Writeback => None,
        };
        let direct = direct.filter(|direct| takes_direct(direct, meta.len(), is_device));
        let is_direct = direct.is_some();
        if !is_direct && cache == Cache::Direct {
            tracing::info!(
                "{}: no O_DIRECT here, reading and writing through the page cache",
                path.display()
            );
        }
        let file = direct.unwrap_or(file);
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
        Ok(FileStorage { file: Arc::new(file), len_bytes, is_device, rings })
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

impl Storage for FileStorage {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn identity(&self) -> Option<Identity> {
        self.file.metadata().ok().map(|meta| Identity::of(&meta))
    }

    fn read_batch(&self, reads: &mut [Read<'_>]) {
        match &self.rings {
            Some(rings) if reads.len() > 1 => rings.read_batch(&self.file, reads),
            _ => read_each(&self.file, reads),
        }
    }

    fn read_each(&self, reads: Vec<ScatteredRead>, finished: &mut dyn FnMut(ScatteredRead)) {
        match &self.rings {
            Some(rings) if reads.iter().map(|read| read.parts.len()).sum::<usize>() > 1 => {
                rings.read_each(&self.file, reads, finished);
            }
            _ => {
                for mut read in reads {
                    read_each(&self.file, &mut read.split());
                    finished(read);
                }
            }
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::ReadPart;
    use super::*;

    const PAGE: usize = 4096;
    const PAGES: usize = 300;

    /// Read `tag`: every second page of the buffer, from all over the file; 0 has nothing to read.
    fn scattered(tag: usize) -> ScatteredRead {
        let parts = (0..tag % 7)
            .map(|i| ReadPart {
                offset: ((tag * 37 + i * 11) % PAGES * PAGE) as u64,
                start: 2 * i * PAGE,
                len: PAGE,
            })
            .collect();
        ScatteredRead { tag, buf: AlignedBuf::zeroed(14 * PAGE), parts }
    }

    #[test]
    fn scattered_reads_come_back_whole_and_once_with_every_engine() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        for page in 0..PAGES {
            file.write_all(&[page as u8 ^ 0x5a; PAGE]).expect("room for it");
        }
        for (engine, cache) in [
            (IoEngine::Uring, Cache::Direct),
            (IoEngine::Sync, Cache::Direct),
            (IoEngine::Auto, Cache::Writeback),
        ] {
            let storage = FileStorage::open_cached(file.path(), true, engine, cache).expect("it opens");
            let mut reads: Vec<_> = (0..100).map(scattered).collect();
            // Past the end: anything may be in it, and the others are whole all the same.
            reads[50].parts[0].offset = (2 * PAGES * PAGE) as u64;
            let mut seen = vec![0; reads.len()];
            storage.read_each(reads, &mut |read| {
                seen[read.tag] += 1;
                for part in read.parts.iter().skip(usize::from(read.tag == 50)) {
                    let wanted = (part.offset / PAGE as u64) as u8 ^ 0x5a;
                    let bytes = &read.buf[part.start..part.start + part.len];
                    assert!(bytes.iter().all(|&b| b == wanted), "{engine:?}: read {}", read.tag);
                }
                assert!(read.buf[13 * PAGE..].iter().all(|&b| b == 0), "what is between the parts is left");
            });
            assert!(seen.iter().all(|&n| n == 1), "{engine:?}: {seen:?}");

            // A completion that panics leaves nothing in flight: the ring is whole for the next reads.
            let reads = (0..100).map(scattered).collect();
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                storage.read_each(reads, &mut |read| assert!(read.tag < 3, "enough"));
            }));
            assert!(panicked.is_err());
            let mut count = 0;
            storage.read_each((0..20).map(scattered).collect(), &mut |_| count += 1);
            assert_eq!(count, 20);
        }
    }
}
