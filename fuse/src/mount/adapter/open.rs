//! OPEN, CREATE, TMPFILE, RELEASE.

use layout::error::Error;
use layout::fs::{Ino, Inode};
use layout::inode::Kind;

use super::failure::{Done, Failure, stale};
use super::names::new_inode;
use super::{Adapter, caller, node, real};
use crate::mount::node::Node;
use crate::wire::abi::{CreateIn, OPEN_KILL_SUIDGID, OpenIn, OpenOut, ReleaseIn, fopen};
use crate::wire::reply::Reply;
use crate::wire::request::Request;

/// Where a volume has less space left, in pages, files that are made or emptied are written through, so that a full volume is
/// told at write(2) and not at close(2), which few programs look at: a sixteenth of it, or this much (1 GiB). Not so others:
/// with a write-back cache the kernel believes nobody else about a file's times, and does not set them when it writes through, so
/// that a change would not show.
const NARROW_PAGES_MAX: u64 = 1 << 18;

/// The kernel's pages of a file stay valid over opens: nobody else writes.
const FILE_FLAGS: u32 = fopen::KEEP_CACHE | fopen::NOFLUSH | fopen::PARALLEL_DIRECT_WRITES;
const SESSION_FLAGS: u32 = fopen::DIRECT_IO | fopen::NOFLUSH;
const DIRECTORY_FLAGS: u32 = fopen::KEEP_CACHE | fopen::CACHE_DIR;

fn opened(out: &mut Reply, fh: u64, open_flags: u32) {
    out.push(&OpenOut { fh, open_flags, backing_id: 0 });
}

/// Whether one may write by a handle with these flags of open(2).
fn writes(flags: u32) -> bool {
    flags.cast_signed() & libc::O_ACCMODE != libc::O_RDONLY
}

impl Adapter {
    pub(super) fn open(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let args = rq.take::<OpenIn>()?;
        match node(rq)? {
            Node::Real(ino) => {
                self.mounted.open(ino).map_err(stale)?;
                let empties = args.flags.cast_signed() & libc::O_TRUNC != 0;
                if empties {
                    let keep_suid = args.open_flags & OPEN_KILL_SUIDGID == 0;
                    self.truncate(ino, keep_suid).inspect_err(|_| self.mounted.release(ino))?;
                }
                self.opened_file(ino, args.flags, empties, out);
            }
            Node::SessionFile(kind, dir) => {
                opened(out, self.sessions.open(kind, dir, &caller(rq))?, SESSION_FLAGS);
            }
            Node::SessionDir(_) => return Err(Failure(libc::EISDIR)),
        }
        Ok(())
    }

    /// Where the kernel insists on handles of directories: they have none, since it is known what it knows.
    pub(super) fn opendir(&self, out: &mut Reply) -> Done {
        opened(out, 0, DIRECTORY_FLAGS);
        Ok(())
    }

    pub(super) fn create(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let args = rq.take::<CreateIn>()?;
        let new = new_inode(rq, Kind::File, args.mode, args.umask, 0);
        let created = self.mounted.create(real(rq.header.nodeid)?, rq.name()?, new, true);
        let inode = created.map_err(|error| match error {
            // Made behind the kernel's back (a put that publishes): ESTALE has it look again.
            Error::Exists if args.flags.cast_signed() & libc::O_EXCL == 0 => Failure(libc::ESTALE),
            error => error.into(),
        })?;
        self.created(&inode, args.flags, out)
    }

    pub(super) fn tmpfile(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let args = rq.take::<CreateIn>()?;
        let new = new_inode(rq, Kind::File, args.mode, args.umask, 0);
        let inode = self.mounted.tmpfile(real(rq.header.nodeid)?, new)?;
        self.created(&inode, args.flags, out)
    }

    fn created(&self, inode: &Inode, flags: u32, out: &mut Reply) -> Done {
        out.push(&self.given(inode).inspect_err(|_| self.mounted.release(inode.ino))?);
        self.opened_file(inode.ino, flags, true, out);
        Ok(())
    }

    /// Answers the open of a file; `anew`: it was made or emptied by it.
    fn opened_file(&self, ino: Ino, flags: u32, anew: bool, out: &mut Reply) {
        let mut file_flags = FILE_FLAGS;
        if writes(flags) {
            self.writers.opened(ino);
            if anew && self.mounted.is_narrow(NARROW_PAGES_MAX) {
                file_flags |= fopen::DIRECT_IO;
            }
        }
        opened(out, 0, file_flags);
    }

    pub(super) fn release(&self, rq: &mut Request<'_>) -> Done {
        let args = rq.take::<ReleaseIn>()?;
        match node(rq)? {
            Node::Real(ino) => {
                if writes(args.flags) {
                    self.writers.closed(ino);
                }
                self.mounted.release(ino);
            }
            Node::SessionFile(..) => self.sessions.release(args.fh),
            Node::SessionDir(_) => {}
        }
        Ok(())
    }
}
