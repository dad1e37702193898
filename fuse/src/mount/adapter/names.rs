//! LOOKUP and FORGET, and what makes, links, renames and removes names.

use layout::error::{Error, Result};
use layout::fs::{Inode, NewInode, RenameFlags};
use layout::inode::Kind;

use super::answer::{entry, kind_of_mode, negative, session_attributes};
use super::failure::{Done, Failure};
use super::{Adapter, node, real};
use crate::mount::node::Node;
use crate::session::{SESSION_DIR, SessionKind};
use crate::wire::abi::{
    Attr, BatchForgetIn, ForgetIn, ForgetOne, LinkIn, MkdirIn, MknodIn, Rename2In, RenameIn,
};
use crate::wire::reply::{Outcome, Reply};
use crate::wire::request::Request;

/// What a request asks to create.
pub(super) fn new_inode(rq: &Request<'_>, kind: Kind, mode: u32, umask: u32, rdev: u32) -> NewInode {
    let (perm, umask) = ((mode & 0o7777) as u16, (umask & 0o777) as u16);
    NewInode { kind, perm, umask, uid: rq.header.uid, gid: rq.header.gid, rdev }
}

impl Adapter {
    pub(super) fn lookup(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let name = rq.name()?;
        let found = match (node(rq)?, self.lookup_session(node(rq)?, name)?) {
            (_, Some(attr)) => Ok(entry(attr, 0)),
            (Node::Real(dir), None) => self.mounted.lookup(dir, name).and_then(|inode| self.given(&inode)),
            (_, None) => Err(Error::NotFound),
        };
        match found {
            Ok(entry) => out.push(&entry),
            Err(Error::NotFound) => out.push(&negative()),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// What a name is that only session files have.
    fn lookup_session(&self, parent: Node, name: &[u8]) -> Result<Option<Attr>> {
        let (dir, kind) = match parent {
            Node::Real(dir) if name == SESSION_DIR.as_bytes() => (dir, None),
            Node::SessionDir(dir) => match SessionKind::from_name(name) {
                Some(kind) => (dir, Some(kind)),
                None => return Ok(None),
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

    /// The entry of an inode that was counted as given to the kernel; counted back if it can't be told.
    pub(super) fn given(&self, inode: &Inode) -> Result<crate::wire::abi::EntryOut> {
        let told = self.attributes(inode).map(|attr| entry(attr, inode.generation));
        told.inspect_err(|_| self.mounted.forget(inode.ino, 1))
    }

    pub(super) fn forget(&self, rq: &mut Request<'_>) -> Outcome {
        if let (Ok(one), Some(Node::Real(ino))) = (rq.take::<ForgetIn>(), Node::from_id(rq.header.nodeid)) {
            self.mounted.forget(ino, one.nlookup);
        }
        Outcome::Silent
    }

    pub(super) fn batch_forget(&self, rq: &mut Request<'_>) -> Outcome {
        let count = rq.take::<BatchForgetIn>().map_or(0, |args| args.count);
        for _ in 0..count {
            let Ok(one) = rq.take::<ForgetOne>() else { break };
            if let Some(Node::Real(ino)) = Node::from_id(one.nodeid) {
                self.mounted.forget(ino, one.nlookup);
            }
        }
        Outcome::Silent
    }

    pub(super) fn readlink(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        out.extend(&self.mounted.readlink(real(rq.header.nodeid)?)?);
        Ok(())
    }

    pub(super) fn symlink(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let (name, target) = (rq.name()?, rq.name()?);
        let owner = (rq.header.uid, rq.header.gid);
        let inode = self.mounted.symlink(real(rq.header.nodeid)?, name, target, owner)?;
        out.push(&self.given(&inode)?);
        Ok(())
    }

    pub(super) fn mknod(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let args = rq.take::<MknodIn>()?;
        let kind = kind_of_mode(args.mode).ok_or(Failure(libc::EINVAL))?;
        self.make(rq, out, new_inode(rq, kind, args.mode, args.umask, args.rdev))
    }

    pub(super) fn mkdir(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let args = rq.take::<MkdirIn>()?;
        self.make(rq, out, new_inode(rq, Kind::Dir, args.mode, args.umask, 0))
    }

    fn make(&self, rq: &mut Request<'_>, out: &mut Reply, new: NewInode) -> Done {
        let inode = self.mounted.create(real(rq.header.nodeid)?, rq.name()?, new, false)?;
        out.push(&self.given(&inode)?);
        Ok(())
    }

    pub(super) fn unlink(&self, rq: &mut Request<'_>) -> Done {
        Ok(self.mounted.unlink(real(rq.header.nodeid)?, rq.name()?)?)
    }

    pub(super) fn rmdir(&self, rq: &mut Request<'_>) -> Done {
        Ok(self.mounted.rmdir(real(rq.header.nodeid)?, rq.name()?)?)
    }

    pub(super) fn rename(&self, rq: &mut Request<'_>) -> Done {
        let to = rq.take::<RenameIn>()?.newdir;
        self.move_name(rq, to, 0)
    }

    pub(super) fn rename2(&self, rq: &mut Request<'_>) -> Done {
        let args = rq.take::<Rename2In>()?;
        self.move_name(rq, args.newdir, args.flags)
    }

    fn move_name(&self, rq: &mut Request<'_>, to: u64, flags: u32) -> Done {
        let flags = RenameFlags::from_bits(flags).ok_or(Failure(libc::EINVAL))?;
        let (old, new) = (rq.name()?, rq.name()?);
        Ok(self.mounted.rename((real(rq.header.nodeid)?, old), (real(to)?, new), flags)?)
    }

    pub(super) fn link(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let ino = real(rq.take::<LinkIn>()?.oldnodeid)?;
        let inode = self.mounted.link(ino, real(rq.header.nodeid)?, rq.name()?)?;
        out.push(&self.given(&inode)?);
        Ok(())
    }
}
