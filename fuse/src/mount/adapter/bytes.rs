//! READ, WRITE and what else concerns a file's bytes: LSEEK, FALLOCATE, COPY_FILE_RANGE, FSYNC.

use std::io;

use layout::error::Error;
use layout::fs::Ino;
use zerocopy::IntoBytes;

use super::failure::{Done, Failure, stale};
use super::{Adapter, node, real};
use crate::mount::holes::Seek;
use crate::mount::node::Node;
use crate::wire::abi::{
    CopyFileRangeIn, CopyFileRangeOut, FallocateIn, LseekIn, LseekOut, NOTIFY_INVAL_INODE,
    NotifyInvalInodeOut, ReadIn, WRITE_CACHE, WRITE_KILL_SUIDGID, WriteIn, WriteOut,
};
use crate::wire::reply::Reply;
use crate::wire::request::Request;

/// CAP_FSETID, as far as a request tells.
fn has_fsetid(rq: &Request<'_>) -> bool {
    rq.header.uid == 0
}

/// O_SYNC or O_DSYNC: by a handle that goes past its cache the kernel asks for no fsync after a write.
fn is_synchronous(write: &WriteIn) -> bool {
    write.write_flags & WRITE_CACHE == 0 && write.flags.cast_signed() & libc::O_DSYNC != 0
}

/// Whether a WRITE waits for a commit.
pub(super) fn write_commits(mut rq: Request<'_>) -> bool {
    rq.take().is_ok_and(|write| is_synchronous(&write))
}

impl Adapter {
    /// Has the kernel hand over what it holds back of a file: it asks for holes without doing so by itself. The WRITEs come on
    /// other threads while this one waits.
    fn have_written_back(&self, ino: Ino) -> Done {
        if !self.writers.is_open(ino) {
            return Ok(());
        }
        // From the first byte on, without end.
        let all = NotifyInvalInodeOut { ino: Node::Real(ino).id(), off: 0, len: 0 };
        match self.kernel.notify(NOTIFY_INVAL_INODE, [all.as_bytes(), &[]]) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("the kernel keeps bytes of inode {} to itself: {error}", ino.0);
                Err(Failure(error.raw_os_error().unwrap_or(libc::EIO)))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn read(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let args = rq.take::<ReadIn>()?;
        match node(rq)? {
            Node::Real(ino) => {
                let bytes = self.mounted.read(ino, args.offset, args.size as usize).map_err(stale)?;
                out.data(Box::new(bytes));
            }
            Node::SessionFile(kind, _) => {
                out.extend(&self.sessions.read(kind, args.fh, args.offset, args.size as usize)?);
            }
            Node::SessionDir(_) => return Err(Failure(libc::EISDIR)),
        }
        Ok(())
    }

    pub(super) fn write(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let args = rq.take::<WriteIn>()?;
        let data = rq.bytes(args.size as usize)?;
        match node(rq)? {
            Node::Real(ino) => {
                let keep_suid = args.write_flags & WRITE_KILL_SUIDGID == 0;
                let done = if args.write_flags & WRITE_CACHE != 0 {
                    self.mounted.write_late(ino, args.offset, data, keep_suid)
                } else {
                    self.mounted.write(ino, args.offset, data, keep_suid)
                };
                done.map_err(stale)?;
                if is_synchronous(&args) {
                    self.mounted.sync()?;
                }
            }
            // What a mapping changed comes by a handle that the kernel guesses: it may be somebody else's.
            Node::SessionFile(..) if args.write_flags & WRITE_CACHE != 0 => return Err(Failure(libc::EIO)),
            Node::SessionFile(kind, _) => {
                self.sessions.write(kind, args.fh, args.offset, data)?;
            }
            Node::SessionDir(_) => return Err(Failure(libc::EISDIR)),
        }
        out.push(&WriteOut { size: args.size, padding: 0 });
        Ok(())
    }

    pub(super) fn lseek(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let args = rq.take::<LseekIn>()?;
        let what = match args.whence.cast_signed() {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(Failure(libc::EINVAL)),
        };
        let ino = real(rq.header.nodeid)?;
        self.have_written_back(ino)?;
        let found = self.mounted.seek(ino, args.offset, what).map_err(stale)?;
        out.push(&LseekOut { offset: found.ok_or(Failure(libc::ENXIO))? });
        Ok(())
    }

    pub(super) fn fallocate(&self, rq: &mut Request<'_>) -> Done {
        let args = rq.take::<FallocateIn>()?;
        let ino = real(rq.header.nodeid)?;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let FallocateIn { offset, length: len, .. } = args;
        let keep_suid = has_fsetid(rq);
        let done = match args.mode.cast_signed() {
            0 => self.mounted.allocate(ino, offset, len, false, keep_suid),
            libc::FALLOC_FL_KEEP_SIZE => self.mounted.allocate(ino, offset, len, true, keep_suid),
            libc::FALLOC_FL_ZERO_RANGE => self.mounted.zero_range(ino, offset, len, false, keep_suid),
            ZERO_KEEP => self.mounted.zero_range(ino, offset, len, true, keep_suid),
            PUNCH => self.mounted.punch_hole(ino, offset, len, keep_suid),
            _ => Err(Error::Unsupported),
        };
        done.map_err(stale)
    }

    /// The newer request has a 64-bit answer (Linux 6.18).
    pub(super) fn copy_file_range(&self, rq: &mut Request<'_>, out: &mut Reply, wide: bool) -> Done {
        let args = rq.take::<CopyFileRangeIn>()?;
        let (from, to) = (real(rq.header.nodeid)?, real(args.nodeid_out)?);
        if args.flags != 0 {
            return Err(Failure(libc::EINVAL));
        }
        let copied = self
            .mounted
            .copy((from, args.off_in), (to, args.off_out), args.len, has_fsetid(rq))
            .map_err(stale)?;
        if wide {
            out.push(&CopyFileRangeOut { bytes_copied: copied });
        } else {
            out.push(&WriteOut { size: u32::try_from(copied).unwrap_or(u32::MAX), padding: 0 });
        }
        Ok(())
    }

    pub(super) fn sync(&self, rq: &Request<'_>) -> Done {
        match node(rq)? {
            Node::Real(_) => Ok(self.mounted.sync()?),
            _ => Err(Failure(libc::EINVAL)),
        }
    }
}
