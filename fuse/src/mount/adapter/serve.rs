//! Each FUSE request, given to the operation it asks for.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use layout::addr::PAGE;
use layout::error::{Error, Result};
use layout::fs::{Ino, Inode, NewInode, SetAttr, XattrFlags};
use layout::inode::Kind;

use super::Adapter;
use super::convert::{
    attributes, errno, file_type, kind_of_mode, listed, negative, session_attributes, session_errno, timespec,
};
use crate::mount::holes::Seek;
use crate::mount::node::Node;
use crate::mount::volume::now;
use crate::session::{Caller, SESSION_DIR, SessionKind, VECTOR_XATTR};

/// How long the kernel may keep names and attributes: we are the only writer.
const TTL: Duration = Duration::from_secs(3600);
/// Most bytes of one write request.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Most requests that the kernel sends in the background (read-ahead, asynchronous direct I/O).
const BACKGROUND_MAX: u16 = 64;
/// Most bytes of a name in a listing (statfs, NAME_MAX).
const NAME_BYTES_MAX: u32 = 255;

/// A file page cache of the kernel stays valid over opens: nobody else writes. Errors of writes are
/// given at the write, so close(2) needs no request.
const FILE_FLAGS: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);
const SESSION_FLAGS: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_NOFLUSH);

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

/// The inode of a node, where only real inodes will do.
fn real(node: INodeNo) -> std::result::Result<Ino, Errno> {
    match Node::from_id(node.0) {
        Some(Node::Real(ino)) => Ok(ino),
        Some(_) => Err(Errno::EPERM),
        None => Err(Errno::ESTALE),
    }
}

/// What open and access need: a freed inode means that the kernel's knowledge is out of date.
fn stale(error: Error) -> Errno {
    if error == Error::NotFound { Errno::ESTALE } else { errno(error) }
}

/// What a request asks to create.
fn new_inode(req: &Request, kind: Kind, mode: u32, umask: u32, rdev: u32) -> NewInode {
    let (perm, umask) = ((mode & 0o7777) as u16, (umask & 0o777) as u16);
    NewInode { kind, perm, umask, uid: req.uid(), gid: req.gid(), rdev }
}

/// CAP_FSETID, as far as a request tells.
fn may_keep_suid(req: &Request) -> bool {
    req.uid() == 0
}

impl Adapter {
    fn attributes(&self, inode: &Inode) -> Result<fuser::FileAttr> {
        Ok(attributes(inode, self.mounted.blocks(inode)?))
    }

    fn entry(&self, result: Result<Inode>, reply: ReplyEntry) {
        match result.and_then(|inode| Ok((self.attributes(&inode)?, inode.generation))) {
            Ok((attr, generation)) => reply.entry(&TTL, &attr, Generation(u64::from(generation))),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn empty(result: Result<()>, reply: ReplyEmpty) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn lookup_virtual(&self, parent: Node, name: &[u8]) -> Result<Option<fuser::FileAttr>> {
        let (dir, kind) = match parent {
            Node::Real(dir) if name == SESSION_DIR.as_bytes() => (dir, None),
            Node::SessionDir(dir) => match SessionKind::from_name(name) {
                Some(kind) => (dir, Some(kind)),
                None => return Err(Error::NotFound),
            },
            Node::Real(_) => return Ok(None),
            Node::SessionFile(..) => return Err(Error::NotDir),
        };
        let inode = self.mounted.inode(dir)?;
        if inode.kind != Kind::Dir {
            return Err(Error::NotDir);
        }
        Ok(Some(session_attributes(&inode, kind)))
    }

    fn node_attributes(&self, node: INodeNo) -> Result<fuser::FileAttr> {
        match Node::from_id(node.0).ok_or(Error::NotFound)? {
            Node::Real(ino) => self.attributes(&self.mounted.inode(ino)?),
            Node::SessionDir(dir) => Ok(session_attributes(&self.mounted.inode(dir)?, None)),
            Node::SessionFile(kind, dir) => Ok(session_attributes(&self.mounted.inode(dir)?, Some(kind))),
        }
    }

    /// What an open with O_TRUNC does.
    fn truncate(&self, req: &Request, ino: Ino) -> Result<()> {
        let set = SetAttr { size: Some(0), ..SetAttr::default() };
        self.mounted.setattr(ino, set, may_keep_suid(req)).map(drop)
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // The kernel checks ACLs; umask is for creations without a default ACL (Fs::create).
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DONT_MASK,
            // Answered as the protocol wants: see Mounted::write, Mounted::setattr.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for flag in wanted {
            // An older kernel without one of these works too, only slower.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes();
        let found = Node::from_id(parent.0).ok_or(Error::NotFound).and_then(|parent| {
            match (self.lookup_virtual(parent, name)?, parent) {
                (Some(attr), _) => Ok((attr, 0)),
                (None, Node::Real(dir)) => {
                    let inode = self.mounted.lookup(dir, name)?;
                    Ok((self.attributes(&inode)?, inode.generation))
                }
                (None, _) => Err(Error::NotFound),
            }
        });
        match found {
            Ok((attr, generation)) => reply.entry(&TTL, &attr, Generation(u64::from(generation))),
            Err(Error::NotFound) => reply.entry(&TTL, &negative(), Generation(0)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.node_attributes(ino) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(stale(error)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let ino = match Node::from_id(node.0) {
            Some(Node::Real(ino)) => ino,
            // `echo ... > DIR/.vexfs/schema` truncates first; there is nothing to truncate.
            Some(_) if mode.is_none() && uid.is_none() && gid.is_none() => {
                return match self.node_attributes(node) {
                    Ok(attr) => reply.attr(&TTL, &attr),
                    Err(error) => reply.error(stale(error)),
                };
            }
            Some(_) => return reply.error(Errno::EPERM),
            None => return reply.error(Errno::ESTALE),
        };
        let present = now();
        let set = SetAttr {
            perm: mode.map(|m| (m & 0o7777) as u16),
            uid,
            gid,
            size,
            atime: atime.map(|t| timespec(t, present)),
            mtime: mtime.map(|t| timespec(t, present)),
            ctime: ctime.map(|t| timespec(TimeOrNow::SpecificTime(t), present)),
            btime: None,
        };
        let done = self.mounted.setattr(ino, set, may_keep_suid(req));
        match done.and_then(|inode| self.attributes(&inode)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(stale(error)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match real(ino).and_then(|ino| self.mounted.readlink(ino).map_err(errno)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (dir, kind) = match (real(parent), kind_of_mode(mode)) {
            (Ok(dir), Some(kind)) => (dir, kind),
            (Err(error), _) => return reply.error(error),
            (_, None) => return reply.error(Errno::EINVAL),
        };
        let new = new_inode(req, kind, mode, umask, rdev);
        self.entry(self.mounted.create(dir, name.as_bytes(), new, false), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let dir = match real(parent) {
            Ok(dir) => dir,
            Err(error) => return reply.error(error),
        };
        let new = new_inode(req, Kind::Dir, mode, umask, 0);
        self.entry(self.mounted.create(dir, name.as_bytes(), new, false), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match real(parent) {
            Ok(dir) => Self::empty(self.mounted.unlink(dir, name.as_bytes()), reply),
            Err(error) => reply.error(error),
        }
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match real(parent) {
            Ok(dir) => Self::empty(self.mounted.rmdir(dir, name.as_bytes()), reply),
            Err(error) => reply.error(error),
        }
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let owner = (req.uid(), req.gid());
        match real(parent) {
            Ok(dir) => {
                let target = target.as_os_str().as_bytes();
                self.entry(self.mounted.symlink(dir, name.as_bytes(), target, owner), reply);
            }
            Err(error) => reply.error(error),
        }
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let known = layout::fs::RenameFlags::from_bits(flags.bits());
        match (real(parent), real(newparent), known) {
            (Ok(from), Ok(to), Some(flags)) => {
                let done = self.mounted.rename((from, name.as_bytes()), (to, newname.as_bytes()), flags);
                Self::empty(done, reply);
            }
            (_, _, None) => reply.error(Errno::EINVAL),
            (Err(error), ..) | (_, Err(error), _) => reply.error(error),
        }
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        match (real(ino), real(newparent)) {
            (Ok(ino), Ok(dir)) => self.entry(self.mounted.link(ino, dir, newname.as_bytes()), reply),
            (Err(error), _) | (_, Err(error)) => reply.error(error),
        }
    }

    fn open(&self, req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match Node::from_id(node.0) {
            Some(Node::Real(ino)) => {
                let opened = self.mounted.open(ino).and_then(|_| {
                    if flags.0 & libc::O_TRUNC == 0 {
                        return Ok(());
                    }
                    self.truncate(req, ino).inspect_err(|_| self.mounted.release(ino))
                });
                match opened {
                    Ok(()) => reply.opened(FileHandle(0), FILE_FLAGS),
                    Err(error) => reply.error(stale(error)),
                }
            }
            Some(Node::SessionFile(kind, dir)) => match self.sessions.open(kind, dir, &caller(req)) {
                Ok(handle) => reply.opened(FileHandle(handle), SESSION_FLAGS),
                Err(error) => reply.error(session_errno(&error)),
            },
            Some(Node::SessionDir(_)) => reply.error(Errno::EISDIR),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn read(
        &self,
        _req: &Request,
        node: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match Node::from_id(node.0) {
            Some(Node::Real(ino)) => match self.mounted.read(ino, offset, size as usize) {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(stale(error)),
            },
            Some(Node::SessionFile(kind, _)) => match self.sessions.read(kind, fh.0, offset, size as usize) {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(session_errno(&error)),
            },
            _ => reply.error(Errno::EISDIR),
        }
    }

    fn write(
        &self,
        _req: &Request,
        node: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = data.len() as u32;
        match Node::from_id(node.0) {
            Some(Node::Real(ino)) => {
                let keep_suid = !write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
                match self.mounted.write(ino, offset, data, keep_suid) {
                    Ok(()) => reply.written(written),
                    Err(error) => reply.error(stale(error)),
                }
            }
            Some(Node::SessionFile(kind, _)) => match self.sessions.write(kind, fh.0, offset, data) {
                Ok(_) => reply.written(written),
                Err(error) => reply.error(session_errno(&error)),
            },
            _ => reply.error(Errno::EISDIR),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        match Node::from_id(node.0) {
            Some(Node::Real(ino)) => self.mounted.release(ino),
            Some(Node::SessionFile(..)) => self.sessions.release(fh.0),
            _ => {}
        }
        reply.ok();
    }

    fn fsync(&self, _req: &Request, node: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        match real(node) {
            Ok(_) => Self::empty(self.mounted.sync(), reply),
            Err(_) => reply.error(Errno::EINVAL),
        }
    }

    fn opendir(&self, _req: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match Node::from_id(node.0) {
            Some(Node::Real(dir)) => match self.mounted.open(dir) {
                Ok(_) => reply.opened(FileHandle(0), FopenFlags::empty()),
                Err(error) => reply.error(stale(error)),
            },
            Some(Node::SessionDir(_)) => reply.opened(FileHandle(0), FopenFlags::empty()),
            _ => reply.error(Errno::ENOTDIR),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match Node::from_id(node.0) {
            Some(Node::Real(dir)) => {
                let mut added = false;
                let done = self.mounted.readdir(dir, offset, false, &mut |entry, _| {
                    let name = OsStr::from_bytes(entry.name);
                    let full = reply.add(listed(entry.ino), entry.cookie, file_type(entry.kind), name);
                    added |= !full;
                    !full
                });
                match done {
                    Err(error) if !added => reply.error(stale(error)),
                    _ => reply.ok(),
                }
            }
            Some(Node::SessionDir(dir)) => {
                let names = SessionKind::ALL.iter().enumerate().skip(usize::try_from(offset).unwrap_or(4));
                for (i, kind) in names {
                    let ino = INodeNo(Node::SessionFile(*kind, dir).id());
                    if reply.add(ino, i as u64 + 1, fuser::FileType::RegularFile, kind.name()) {
                        break;
                    }
                }
                reply.ok();
            }
            _ => reply.error(Errno::ENOTDIR),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        match Node::from_id(node.0) {
            Some(Node::Real(dir)) => {
                let mut added = false;
                let mut unknown = Ok(());
                let done = self.mounted.readdir(dir, offset, true, &mut |entry, inode| {
                    let (ino, name) = (listed(entry.ino), OsStr::from_bytes(entry.name));
                    let (attr, generation) = match &inode {
                        Some(inode) => match self.attributes(inode) {
                            Ok(attr) => (attr, inode.generation),
                            Err(error) => {
                                unknown = Err(error);
                                return false;
                            }
                        },
                        // The kernel takes no attributes for `.` and `..`, only number and type.
                        None => (fuser::FileAttr { ino, kind: fuser::FileType::Directory, ..negative() }, 0),
                    };
                    let generation = Generation(u64::from(generation));
                    let full = reply.add(ino, entry.cookie, name, &TTL, &attr, generation);
                    added |= !full;
                    !full
                });
                match done.and(unknown) {
                    Err(error) if !added => reply.error(stale(error)),
                    _ => reply.ok(),
                }
            }
            Some(Node::SessionDir(dir)) => {
                let inode = match self.mounted.inode(dir) {
                    Ok(inode) => inode,
                    Err(error) => return reply.error(stale(error)),
                };
                let names = SessionKind::ALL.iter().enumerate().skip(usize::try_from(offset).unwrap_or(4));
                for (i, kind) in names {
                    let attr = session_attributes(&inode, Some(*kind));
                    if reply.add(attr.ino, i as u64 + 1, kind.name(), &TTL, &attr, Generation(0)) {
                        break;
                    }
                }
                reply.ok();
            }
            _ => reply.error(Errno::ENOTDIR),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        if let Some(Node::Real(dir)) = Node::from_id(node.0) {
            self.mounted.release(dir);
        }
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        Self::empty(self.mounted.sync(), reply);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.mounted.space() {
            Ok(s) => {
                let page = PAGE as u32;
                reply.statfs(s.pages, s.free, s.usable, s.inodes, s.inodes_free, page, NAME_BYTES_MAX, page);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let ino = match real(node) {
            Ok(ino) => ino,
            Err(error) => return reply.error(error),
        };
        if name.as_bytes() == VECTOR_XATTR.as_bytes() {
            let exists = match flags {
                libc::XATTR_CREATE => Some(false),
                libc::XATTR_REPLACE => Some(true),
                _ => None,
            };
            let done = self.mounted.engine().reserve(crate::engine::Cost::Pages(8)).map_err(errno).and_then(
                |_space| {
                    let set = self.sessions.files().set_vector(ino, value, exists, &caller(req));
                    set.map_err(|e| session_errno(&e))
                },
            );
            return match done {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error),
            };
        }
        // The kernel has refused other bits.
        let flags = XattrFlags::from_bits_truncate(flags as u32);
        let kill_sgid = !may_keep_suid(req);
        Self::empty(self.mounted.setxattr(ino, name.as_bytes(), value, flags, kill_sgid), reply);
    }

    fn getxattr(&self, req: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = real(node).map_err(|_| Errno::ENODATA).and_then(|ino| {
            if name.as_bytes() == VECTOR_XATTR.as_bytes() {
                self.sessions.files().vector(ino, &caller(req)).map_err(|e| session_errno(&e))
            } else {
                self.mounted.getxattr(ino, name.as_bytes()).map_err(errno)
            }
        });
        sized(value, size, reply);
    }

    fn listxattr(&self, _req: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let names = match Node::from_id(node.0) {
            Some(Node::Real(ino)) => self.mounted.listxattr(ino).map_err(errno),
            _ => Ok(Vec::new()),
        };
        sized(names, size, reply);
    }

    fn removexattr(&self, req: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let ino = match real(node) {
            Ok(ino) => ino,
            Err(error) => return reply.error(error),
        };
        if name.as_bytes() == VECTOR_XATTR.as_bytes() {
            return match self.sessions.files().remove_vector(ino, &caller(req)) {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(session_errno(&error)),
            };
        }
        Self::empty(self.mounted.removexattr(ino, name.as_bytes()), reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let created = real(parent).and_then(|dir| {
            let new = new_inode(req, Kind::File, mode, umask, 0);
            self.mounted.create(dir, name.as_bytes(), new, true).map_err(errno)
        });
        match created {
            Ok(inode) => {
                let generation = Generation(u64::from(inode.generation));
                reply.created(&TTL, &attributes(&inode, 0), generation, FileHandle(0), FILE_FLAGS);
            }
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let ino = match real(node) {
            Ok(ino) => ino,
            Err(error) => return reply.error(error),
        };
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let done = match mode {
            0 => self.mounted.allocate(ino, offset, length, false),
            libc::FALLOC_FL_KEEP_SIZE => self.mounted.allocate(ino, offset, length, true),
            libc::FALLOC_FL_ZERO_RANGE => self.mounted.zero_range(ino, offset, length, false),
            ZERO_KEEP => self.mounted.zero_range(ino, offset, length, true),
            PUNCH => self.mounted.punch_hole(ino, offset, length),
            _ => Err(Error::Unsupported),
        };
        Self::empty(done, reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let found = real(node).and_then(|ino| {
            let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
            self.mounted.seek(ino, offset, what).map_err(errno)
        });
        match found {
            Ok(Some(at)) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(error),
        }
    }
}

/// Replies with a value, or with its size when the caller asked for that.
fn sized(value: std::result::Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(error),
    }
}
