//! Between FUSE requests and the operations of [`Mounted`]: arguments out of requests, answers into replies.
//!
//! The kernel checks permissions (`default_permissions`), writes back file pages when it sees fit, and caches names, attributes,
//! listings and file pages for long, since this process is the only writer of the volume.

mod answer;
mod attributes;
mod bytes;
mod failure;
mod invalidate;
mod ioctl;
mod listing;
mod names;
mod open;
mod xattrs;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use layout::fs::Ino;

use self::failure::{Done, Failure};
use super::node::Node;
use super::open_files::OpenFiles;
use super::options::MountSettings;
use super::session_files::Sessions;
use super::volume::Mounted;
use crate::session::{Caller, SessionSettings};
use crate::wire::abi::{init, op};
use crate::wire::channel::Channel;
use crate::wire::mount::MountRequest;
use crate::wire::reply::{Outcome, Reply};
use crate::wire::request::Request;
use crate::wire::server::{Connection, Handler, Threads, WaitsFor};

/// Serves the requests of one mount.
pub struct Adapter {
    mounted: Arc<Mounted>,
    sessions: Sessions,
    /// For notifications.
    kernel: Channel,
    /// Files with handles to write by.
    writers: OpenFiles,
    /// Requests may come by rings.
    rings: bool,
    /// The INIT flags in use.
    negotiated: AtomicU64,
}

/// Threads that wait for requests: one to take the next while another one is at work.
const IDLE_THREADS_MAX: usize = 10;

/// What can be honoured.
const FLAGS: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::EXPORT_SUPPORT
    // The umask is for creations without a default ACL.
    | init::DONT_MASK
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::WRITEBACK_CACHE
    | init::PARALLEL_DIROPS
    // The kernel checks them.
    | init::POSIX_ACL
    | init::CACHE_SYMLINKS
    | init::NO_OPENDIR_SUPPORT
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::DIRECT_IO_ALLOW_MMAP;

impl Adapter {
    /// Mounts; nothing is answered yet.
    ///
    /// # Errors
    /// What mount(2) or /dev/fuse say.
    pub fn mount(settings: &MountSettings, fsname: &str) -> io::Result<Channel> {
        let request = MountRequest {
            mountpoint: settings.mountpoint.clone(),
            fsname: fsname.to_owned(),
            subtype: "vexfs",
            allow_other: settings.allow_other,
            read_only: settings.read_only,
            flags: settings.kernel_flags.clone(),
        };
        crate::wire::mount::mount(&request).map(Channel::new)
    }

    /// Starts serving what was mounted.
    ///
    /// # Errors
    /// As [`Connection::start`].
    pub fn serve(
        mounted: Arc<Mounted>,
        settings: &MountSettings,
        channel: Channel,
    ) -> io::Result<Connection> {
        let sessions = Sessions::new(Arc::clone(&mounted), SessionSettings::default());
        mounted.known.track();
        // What notifies the kernel is there before the first request.
        invalidate::install(&mounted, channel.another()?)?;
        let adapter = Adapter {
            mounted,
            sessions,
            kernel: channel.another()?,
            writers: OpenFiles::default(),
            rings: settings.rings,
            negotiated: AtomicU64::new(0),
        };
        let threads = Threads { idle_max: IDLE_THREADS_MAX, max: settings.threads.max(2) };
        Connection::start(channel, Arc::new(adapter), threads)
    }

    fn has(&self, flag: u64) -> bool {
        self.negotiated.load(Ordering::Relaxed) & flag != 0
    }

    fn carry_out(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        match rq.header.opcode {
            op::LOOKUP => self.lookup(rq, out),
            op::GETATTR => self.getattr(rq, out),
            op::STATX => self.statx(rq, out),
            op::SETATTR => self.setattr(rq, out),
            op::READLINK => self.readlink(rq, out),
            op::SYMLINK => self.symlink(rq, out),
            op::MKNOD => self.mknod(rq, out),
            op::MKDIR => self.mkdir(rq, out),
            op::UNLINK => self.unlink(rq),
            op::RMDIR => self.rmdir(rq),
            op::RENAME => self.rename(rq),
            op::RENAME2 => self.rename2(rq),
            op::LINK => self.link(rq, out),
            op::OPEN => self.open(rq, out),
            op::CREATE => self.create(rq, out),
            op::TMPFILE => self.tmpfile(rq, out),
            op::RELEASE => self.release(rq),
            op::READ => self.read(rq, out),
            op::WRITE => self.write(rq, out),
            op::LSEEK => self.lseek(rq, out),
            op::FALLOCATE => self.fallocate(rq),
            op::COPY_FILE_RANGE => self.copy_file_range(rq, out, false),
            op::COPY_FILE_RANGE_64 => self.copy_file_range(rq, out, true),
            op::FSYNC | op::FSYNCDIR | op::SYNCFS => self.sync(rq),
            op::READDIR => self.readdir(rq, out),
            op::READDIRPLUS => self.readdirplus(rq, out),
            op::STATFS => self.statfs(out),
            op::GETXATTR => self.getxattr(rq, out),
            op::LISTXATTR => self.listxattr(rq, out),
            op::SETXATTR => self.setxattr(rq),
            op::REMOVEXATTR => self.removexattr(rq),
            op::IOCTL => self.ioctl(rq, out),
            op::DESTROY => Ok(()),
            // Nothing to do, which the kernel remembers. Directories: no handle is needed (NO_OPENDIR_SUPPORT). FLUSH: pages were
            // written before it, and their errors are the kernel's to tell at close(2). INTERRUPT: every operation ends.
            op::OPENDIR if !self.has(init::NO_OPENDIR_SUPPORT) => self.opendir(out),
            op::RELEASEDIR => Ok(()),
            _ => Err(Failure(libc::ENOSYS)),
        }
    }
}

impl Handler for Adapter {
    fn flags(&self) -> u64 {
        if self.rings { FLAGS | init::OVER_IO_URING } else { FLAGS }
    }

    fn waits_for(&self, rq: &Request<'_>) -> WaitsFor {
        match rq.header.opcode {
            // The kernel has to write back first.
            op::LSEEK => WaitsFor::Kernel,
            op::FSYNC
            | op::FSYNCDIR
            | op::SYNCFS
            | op::FALLOCATE
            | op::COPY_FILE_RANGE
            | op::COPY_FILE_RANGE_64 => WaitsFor::Volume,
            op::WRITE if bytes::write_commits(*rq) => WaitsFor::Volume,
            // A search, a put.
            op::READ | op::WRITE | op::SETXATTR if !matches!(node(rq), Ok(Node::Real(_))) => WaitsFor::Volume,
            _ if self.mounted.engine().is_crowded() => WaitsFor::Volume,
            _ => WaitsFor::Nothing,
        }
    }

    fn negotiated(&self, flags: u64) {
        self.negotiated.store(flags, Ordering::Relaxed);
        if flags & init::WRITEBACK_CACHE != 0 {
            self.mounted.leave_times_to_kernel();
        }
    }

    fn handle(&self, mut rq: Request<'_>, out: &mut Reply) -> Outcome {
        match rq.header.opcode {
            op::FORGET => self.forget(&mut rq),
            op::BATCH_FORGET => self.batch_forget(&mut rq),
            _ => match self.carry_out(&mut rq, out) {
                Ok(()) => Outcome::Done,
                Err(Failure(errno)) => Outcome::Failed(errno),
            },
        }
    }

    fn broken(&self, why: &str) {
        self.mounted.engine().health().stop_writes(&format!("an operation failed inside ({why})"));
    }
}

fn caller(rq: &Request<'_>) -> Caller {
    Caller { uid: rq.header.uid, gid: rq.header.gid, pid: rq.header.pid }
}

/// The inode of a node, where only real inodes will do.
fn real(node: u64) -> Result<Ino, Failure> {
    match Node::from_id(node) {
        Some(Node::Real(ino)) => Ok(ino),
        Some(_) => Err(Failure(libc::EPERM)),
        None => Err(Failure(libc::ESTALE)),
    }
}

/// The node of a request.
fn node(rq: &Request<'_>) -> Result<Node, Failure> {
    Node::from_id(rq.header.nodeid).ok_or(Failure(libc::ESTALE))
}
