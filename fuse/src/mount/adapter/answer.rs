//! Inodes as the kernel wants them.

use layout::addr::PAGE;
use layout::error::Result;
use layout::fs::{Ino, Inode};
use layout::inode::Kind;
use layout::page_store::Timespec;
use zerocopy::FromZeros;

use super::Adapter;
use crate::mount::node::Node;
use crate::session::SessionKind;
use crate::wire::abi::{Attr, AttrOut, EntryOut, Statx, StatxOut, SxTime};

/// How long the kernel may keep names and attributes, in seconds: as long as it wants, since we are the only writer.
pub const VALID_SECONDS: u64 = 1 << 30;

/// STATX_BASIC_STATS | STATX_BTIME (linux/stat.h).
const STATX_KNOWN: u32 = 0x7FF | 0x800;

/// The kind that `S_IFMT` bits of a mode ask for; mknod(2) takes no bits as a regular file.
pub fn kind_of_mode(mode: u32) -> Option<Kind> {
    Some(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Kind::File,
        libc::S_IFDIR => Kind::Dir,
        libc::S_IFCHR => Kind::CharDevice,
        libc::S_IFBLK => Kind::BlockDevice,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        _ => return None,
    })
}

/// Attributes; `blocks` of 512 bytes.
pub fn attributes(inode: &Inode, blocks: u64) -> Attr {
    Attr {
        ino: Node::Real(inode.ino).id(),
        size: inode.size,
        blocks,
        atime: inode.atime.secs.cast_unsigned(),
        mtime: inode.mtime.secs.cast_unsigned(),
        ctime: inode.ctime.secs.cast_unsigned(),
        atimensec: inode.atime.nanos,
        mtimensec: inode.mtime.nanos,
        ctimensec: inode.ctime.nanos,
        mode: inode.kind.mode_bits() | u32::from(inode.perm),
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        blksize: PAGE as u32,
        flags: 0,
    }
}

/// Attributes of the session directory of `dir` (`kind` none) or one of its files. The session part
/// checks who may do what; these bits only let a request get there.
pub fn session_attributes(dir: &Inode, kind: Option<SessionKind>) -> Attr {
    let (node, mode) = match kind {
        None => (Node::SessionDir(dir.ino), libc::S_IFDIR | 0o555),
        Some(kind) => {
            let perm = if kind.is_writable() { 0o666 } else { 0o444 };
            (Node::SessionFile(kind, dir.ino), libc::S_IFREG | perm)
        }
    };
    let nlink = if kind.is_none() { 2 } else { 1 };
    Attr { ino: node.id(), size: 0, blocks: 0, mode, nlink, rdev: 0, ..attributes(dir, 0) }
}

/// A name's answer.
pub fn entry(attr: Attr, generation: u32) -> EntryOut {
    EntryOut {
        nodeid: attr.ino,
        generation: u64::from(generation),
        entry_valid: VALID_SECONDS,
        attr_valid: VALID_SECONDS,
        entry_valid_nsec: 0,
        attr_valid_nsec: 0,
        attr,
    }
}

/// The answer "no such name" that the kernel may keep: node 0.
pub fn negative() -> EntryOut {
    EntryOut { entry_valid: VALID_SECONDS, ..EntryOut::new_zeroed() }
}

/// A GETATTR's answer.
pub fn attr_out(attr: Attr) -> AttrOut {
    AttrOut { attr_valid: VALID_SECONDS, attr_valid_nsec: 0, dummy: 0, attr }
}

/// A STATX's answer: with the time of creation.
pub fn statx_out(attr: &Attr, btime: Timespec) -> StatxOut {
    let time =
        |seconds: u64, nanos: u32| SxTime { tv_sec: seconds.cast_signed(), tv_nsec: nanos, reserved: 0 };
    let stat = Statx {
        mask: STATX_KNOWN,
        blksize: attr.blksize,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        mode: attr.mode as u16,
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime, attr.atimensec),
        btime: SxTime { tv_sec: btime.secs, tv_nsec: btime.nanos, reserved: 0 },
        ctime: time(attr.ctime, attr.ctimensec),
        mtime: time(attr.mtime, attr.mtimensec),
        rdev_major: rustix::fs::major(u64::from(attr.rdev)),
        rdev_minor: rustix::fs::minor(u64::from(attr.rdev)),
        ..Statx::new_zeroed()
    };
    StatxOut { attr_valid: VALID_SECONDS, stat, ..StatxOut::new_zeroed() }
}

/// The inode number as listings show it.
pub fn listed(ino: Ino) -> u64 {
    Node::Real(ino).id()
}

/// `d_type` of a listing: the file type's bits of a mode, shifted (DT_*, dirent.h).
pub fn dirent_type(mode: u32) -> u32 {
    (mode & libc::S_IFMT) >> 12
}

impl Adapter {
    /// Attributes of a real inode.
    pub(super) fn attributes(&self, inode: &Inode) -> Result<Attr> {
        Ok(attributes(inode, self.mounted.blocks(inode)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_name_their_kinds() {
        for kind in [Kind::File, Kind::Dir, Kind::CharDevice, Kind::BlockDevice, Kind::Fifo, Kind::Socket] {
            assert_eq!(kind_of_mode(kind.mode_bits() | 0o644), Some(kind));
        }
        assert_eq!(kind_of_mode(libc::S_IFLNK), None);
    }
}
