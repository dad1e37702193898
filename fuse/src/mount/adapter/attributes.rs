//! GETATTR, STATX, SETATTR and STATFS.

use layout::addr::PAGE;
use layout::fs::{Ino, InodeFlags, SetAttr};
use layout::page_store::Timespec;
use zerocopy::FromZeros;

use super::answer::{attr_out, attributes, session_attributes, statx_out};
use super::failure::{Done, Failure, stale};
use super::{Adapter, node};
use crate::mount::node::Node;
use crate::mount::volume::now;
use crate::wire::abi::{Attr, AttrOut, SetattrIn, StatfsOut, fattr};
use crate::wire::reply::Reply;
use crate::wire::request::Request;

/// Most bytes of a name in a listing (statfs, NAME_MAX).
const NAME_BYTES_MAX: u32 = 255;

impl Adapter {
    /// Attributes and time of creation of any node.
    fn node_attributes(&self, node: Node) -> Result<(Attr, Timespec), Failure> {
        let (Node::Real(ino) | Node::SessionDir(ino) | Node::SessionFile(_, ino)) = node;
        let inode = self.mounted.inode(ino).map_err(stale)?;
        let attr = match node {
            Node::Real(_) => self.attributes(&inode)?,
            Node::SessionDir(_) => session_attributes(&inode, None),
            Node::SessionFile(kind, _) => session_attributes(&inode, Some(kind)),
        };
        Ok((attr, inode.btime))
    }

    pub(super) fn getattr(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        out.push(&attr_out(self.node_attributes(node(rq)?)?.0));
        Ok(())
    }

    pub(super) fn statx(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let (attr, btime) = self.node_attributes(node(rq)?)?;
        out.push(&statx_out(&attr, btime));
        Ok(())
    }

    pub(super) fn setattr(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let args = rq.take::<SetattrIn>()?;
        let has = |bit| args.valid & bit != 0;
        let ino = match node(rq)? {
            Node::Real(ino) => ino,
            // `echo ... > DIR/.vexfs/schema` truncates first; there is nothing to truncate.
            _ if !has(fattr::MODE | fattr::UID | fattr::GID) => return self.getattr(rq, out),
            _ => return Err(Failure(libc::EPERM)),
        };
        let present = now();
        let time = |set, at_present, seconds: u64, nanos| {
            let given = Timespec { secs: seconds.cast_signed(), nanos };
            has(set).then_some(if has(at_present) { present } else { given })
        };
        let set = SetAttr {
            perm: has(fattr::MODE).then_some((args.mode & 0o7777) as u16),
            uid: has(fattr::UID).then_some(args.uid),
            gid: has(fattr::GID).then_some(args.gid),
            size: has(fattr::SIZE).then_some(args.size),
            atime: time(fattr::ATIME, fattr::ATIME_NOW, args.atime, args.atimensec),
            mtime: time(fattr::MTIME, fattr::MTIME_NOW, args.mtime, args.mtimensec),
            ctime: time(fattr::CTIME, 0, args.ctime, args.ctimensec),
            btime: None,
        };
        let inode = self.mounted.setattr(ino, set, !has(fattr::KILL_SUIDGID)).map_err(stale)?;
        if args.valid & !fattr::FH == fattr::MTIME | fattr::CTIME && inode.flags.contains(InodeFlags::SPARSE)
        {
            // Before an fsync the kernel tells the times that it keeps, and does not look at the answer (fuse_flush_times): the
            // blocks need not be counted. A program that sets an mtime alone looks the same; its next stat(2) asks again.
            let uncounted = attributes(&inode, inode.size.div_ceil(512));
            out.push(&AttrOut { attr_valid: 0, ..attr_out(uncounted) });
            return Ok(());
        }
        out.push(&attr_out(self.attributes(&inode)?));
        Ok(())
    }

    /// What an open with O_TRUNC does.
    pub(super) fn truncate(&self, ino: Ino, keep_suid: bool) -> Done {
        let set = SetAttr { size: Some(0), ..SetAttr::default() };
        self.mounted.setattr(ino, set, keep_suid).map(drop).map_err(stale)
    }

    pub(super) fn statfs(&self, out: &mut Reply) -> Done {
        let space = self.mounted.space()?;
        out.push(&StatfsOut {
            blocks: space.pages,
            bfree: space.free,
            bavail: space.usable,
            files: space.inodes,
            ffree: space.inodes_free,
            bsize: PAGE as u32,
            namelen: NAME_BYTES_MAX,
            frsize: PAGE as u32,
            ..StatfsOut::new_zeroed()
        });
        Ok(())
    }
}
