//! READDIR and READDIRPLUS.

use zerocopy::{FromZeros, IntoBytes};

use super::answer::{dirent_type, entry, listed, session_attributes};
use super::failure::{Done, Failure, stale};
use super::{Adapter, node};
use crate::mount::node::Node;
use crate::session::SessionKind;
use crate::wire::abi::{Dirent, EntryOut, ReadIn};
use crate::wire::reply::Reply;
use crate::wire::request::Request;

/// A listing that grows up to the size that the kernel asked for.
struct Listing<'a> {
    out: &'a mut Reply,
    bytes_max: usize,
}

impl Listing<'_> {
    /// Adds a name, with its entry in a READDIRPLUS; false if it does not fit.
    fn add(&mut self, plus: Option<&EntryOut>, dirent: Dirent, name: &[u8]) -> bool {
        let plus = plus.map_or(&[][..], |entry| entry.as_bytes());
        let bytes = (plus.len() + size_of::<Dirent>() + name.len()).next_multiple_of(8);
        if self.out.len() + bytes > self.bytes_max {
            return false;
        }
        self.out.extend(plus);
        self.out.push(&dirent);
        self.out.extend(name);
        self.out.align();
        true
    }
}

impl Adapter {
    pub(super) fn readdir(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        self.list(rq, out, false)
    }

    pub(super) fn readdirplus(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        self.list(rq, out, true)
    }

    fn list(&self, rq: &mut Request<'_>, out: &mut Reply, plus: bool) -> Done {
        let args = rq.take::<ReadIn>()?;
        let mut listing = Listing { out, bytes_max: args.size as usize };
        let dir = match node(rq)? {
            Node::Real(dir) => dir,
            Node::SessionDir(dir) => return self.list_session(dir, args.offset, plus, &mut listing),
            Node::SessionFile(..) => return Err(Failure(libc::ENOTDIR)),
        };
        let mut unknown = Ok(());
        let done = self.mounted.readdir(dir, args.offset, plus, &mut |found, inode| {
            let kind = dirent_type(found.kind.mode_bits());
            let dirent =
                Dirent { ino: listed(found.ino), off: found.cookie, namelen: found.name.len() as u32, kind };
            if !plus {
                return listing.add(None, dirent, found.name);
            }
            let told = match inode.map(|inode| Ok(entry(self.attributes(&inode)?, inode.generation))) {
                // The kernel takes no node for `.` and `..`, and asks by itself for what is not told.
                None => EntryOut::new_zeroed(),
                Some(Ok(told)) => told,
                Some(Err(error)) => {
                    unknown = Err(error);
                    return false;
                }
            };
            listing.add(Some(&told), dirent, found.name)
        });
        match done.and(unknown) {
            // What was added is told first; the error comes again at the next name.
            Err(error) if out.is_empty() => Err(stale(error)),
            _ => Ok(()),
        }
    }

    fn list_session(&self, dir: layout::fs::Ino, offset: u64, plus: bool, listing: &mut Listing<'_>) -> Done {
        let inode = self.mounted.inode(dir).map_err(stale)?;
        for (i, kind) in
            SessionKind::ALL.iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            let told = entry(session_attributes(&inode, Some(*kind)), 0);
            let name = kind.name().as_bytes();
            let kind = dirent_type(told.attr.mode);
            let dirent = Dirent { ino: told.nodeid, off: i as u64 + 1, namelen: name.len() as u32, kind };
            if !listing.add(plus.then_some(&told), dirent, name) {
                break;
            }
        }
        Ok(())
    }
}
