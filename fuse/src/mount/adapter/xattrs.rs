//! GETXATTR, LISTXATTR, SETXATTR, REMOVEXATTR. `user.vexfs.vector` is the session part's.

use layout::fs::XattrFlags;
use zerocopy::FromZeros;

use super::failure::{Done, Failure};
use super::{Adapter, caller, node, real};
use crate::engine::Cost;
use crate::mount::node::Node;
use crate::session::VECTOR_XATTR;
use crate::wire::abi::{GetxattrIn, GetxattrOut, SETXATTR_ACL_KILL_SGID, SetxattrCompatIn, SetxattrIn, init};
use crate::wire::reply::Reply;
use crate::wire::request::Request;

/// Answers with a value, or with its size when the caller asked for that.
fn sized(value: &[u8], size: u32, out: &mut Reply) -> Done {
    if size == 0 {
        out.push(&GetxattrOut { size: value.len() as u32, padding: 0 });
    } else if value.len() > size as usize {
        return Err(Failure(libc::ERANGE));
    } else {
        out.extend(value);
    }
    Ok(())
}

impl Adapter {
    pub(super) fn getxattr(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let size = rq.take::<GetxattrIn>()?.size;
        let name = rq.name()?;
        let Node::Real(ino) = node(rq)? else { return Err(Failure(libc::ENODATA)) };
        if name == VECTOR_XATTR.as_bytes() {
            return sized(&self.sessions.files().vector(ino, &caller(rq))?, size, out);
        }
        sized(&self.mounted.getxattr(ino, name)?, size, out)
    }

    pub(super) fn listxattr(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let size = rq.take::<GetxattrIn>()?.size;
        match node(rq)? {
            // CAP_SYS_ADMIN, as far as a request tells.
            Node::Real(ino) => sized(&self.mounted.listxattr(ino, rq.header.uid == 0)?, size, out),
            _ => sized(&[], size, out),
        }
    }

    pub(super) fn setxattr(&self, rq: &mut Request<'_>) -> Done {
        let args = if self.has(init::SETXATTR_EXT) {
            rq.take::<SetxattrIn>()?
        } else {
            let SetxattrCompatIn { size, flags } = rq.take()?;
            SetxattrIn { size, flags, ..SetxattrIn::new_zeroed() }
        };
        let ino = real(rq.header.nodeid)?;
        let name = rq.name()?;
        let value = rq.bytes(args.size as usize)?;
        if name == VECTOR_XATTR.as_bytes() {
            let exists = match args.flags.cast_signed() {
                libc::XATTR_CREATE => Some(false),
                libc::XATTR_REPLACE => Some(true),
                _ => None,
            };
            let _space = self.mounted.reserve(Cost::Pages(8))?;
            return Ok(self.sessions.files().set_vector(ino, value, exists, &caller(rq))?);
        }
        let kill_sgid = args.setxattr_flags & SETXATTR_ACL_KILL_SGID != 0;
        // The kernel has refused other bits.
        let flags = XattrFlags::from_bits_truncate(args.flags);
        Ok(self.mounted.setxattr(ino, name, value, flags, kill_sgid)?)
    }

    pub(super) fn removexattr(&self, rq: &mut Request<'_>) -> Done {
        let ino = real(rq.header.nodeid)?;
        let name = rq.name()?;
        if name == VECTOR_XATTR.as_bytes() {
            let _space = self.mounted.reserve(Cost::Freeing)?;
            return Ok(self.sessions.files().remove_vector(ino, &caller(rq))?);
        }
        Ok(self.mounted.removexattr(ino, name)?)
    }
}
