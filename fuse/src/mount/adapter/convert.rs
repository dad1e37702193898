//! Between the file system logic's types and the FUSE crate's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use layout::error::Error;
use layout::fs::{Ino, Inode};
use layout::inode::Kind;
use layout::page_store::Timespec;

use crate::mount::node::Node;
use crate::session::{SessionError, SessionKind};

/// The errno of a failed operation; the place where corruption and I/O errors reach the log.
pub fn errno(error: Error) -> Errno {
    match error {
        Error::Corrupt(_) => tracing::error!("{error}"),
        // Seen from an application, a mount that lost its volume is an I/O error.
        Error::Fenced => return Errno::EIO,
        _ => {}
    }
    Errno::from_i32(error.errno())
}

/// The errno of a failed session file operation.
pub fn session_errno(error: &SessionError) -> Errno {
    tracing::debug!("session file: {error}");
    Errno::from_i32(if error.errno == libc::ESHUTDOWN { libc::EIO } else { error.errno })
}

/// The file type of a kind.
pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File | Kind::Rows => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

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

/// Attributes for the kernel; `blocks` of 512 bytes.
pub fn attributes(inode: &Inode, blocks: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(Node::Real(inode.ino).id()),
        size: inode.size,
        blocks,
        atime: system_time(inode.atime),
        mtime: system_time(inode.mtime),
        ctime: system_time(inode.ctime),
        crtime: system_time(inode.btime),
        kind: file_type(inode.kind),
        perm: inode.perm,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// Attributes of the session directory of `dir` (`kind` none) or one of its files. The session part
/// checks who may do what; these bits only let a request get there.
pub fn session_attributes(dir: &Inode, kind: Option<SessionKind>) -> FileAttr {
    let node = match kind {
        None => Node::SessionDir(dir.ino),
        Some(kind) => Node::SessionFile(kind, dir.ino),
    };
    let perm = match kind {
        None => 0o555,
        Some(SessionKind::Stats) => 0o444,
        Some(_) => 0o666,
    };
    FileAttr {
        ino: INodeNo(node.id()),
        size: 0,
        blocks: 0,
        kind: if kind.is_none() { FileType::Directory } else { FileType::RegularFile },
        perm,
        nlink: if kind.is_none() { 2 } else { 1 },
        rdev: 0,
        ..attributes(dir, 0)
    }
}

/// The answer "no such name" that the kernel may keep: node id 0.
pub fn negative() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The inode number as listings show it.
pub fn listed(ino: Ino) -> INodeNo {
    INodeNo(Node::Real(ino).id())
}

fn system_time(time: Timespec) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let seconds = if time.secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    seconds.and_then(|t| t.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time to set. The FUSE crate 0.18 turns (-2 s, 0.8e9 ns), which is -1.2 s, into -2.8 s; for
/// times before 1970 this undoes it.
pub fn timespec(time: TimeOrNow, now: Timespec) -> Timespec {
    let TimeOrNow::SpecificTime(time) = time else { return now };
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => {
            Timespec { secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
        }
        Err(before) => Timespec {
            secs: i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
            nanos: before.duration().subsec_nanos(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip_also_before_1970() {
        for (secs, nanos) in [(0, 0), (1, 5), (1_700_000_000, 999_999_999), (-1, 0), (-2, 800_000_000)] {
            let time = Timespec { secs, nanos };
            let shown = system_time(time);
            let exact = if secs >= 0 {
                UNIX_EPOCH + Duration::new(secs.unsigned_abs(), nanos)
            } else {
                UNIX_EPOCH - Duration::from_secs(secs.unsigned_abs()) + Duration::from_nanos(u64::from(nanos))
            };
            assert_eq!(shown, exact);
            // As the FUSE crate gives a time from the kernel.
            let given =
                if secs >= 0 { shown } else { UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos) };
            assert_eq!(timespec(TimeOrNow::SpecificTime(given), Timespec::default()), time);
        }
    }

    #[test]
    fn modes_name_their_kinds() {
        for kind in [Kind::File, Kind::Dir, Kind::CharDevice, Kind::BlockDevice, Kind::Fifo, Kind::Socket] {
            assert_eq!(kind_of_mode(kind.mode_bits() | 0o644), Some(kind));
        }
        assert_eq!(kind_of_mode(libc::S_IFLNK), None);
    }
}
