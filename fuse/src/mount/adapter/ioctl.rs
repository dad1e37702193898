//! IOCTL: what lsattr(1), e2label-like tools and NFS servers ask of any file system (linux/fs.h).

use zerocopy::FromZeros;

use super::failure::{Done, Failure, stale};
use super::{Adapter, real};
use crate::wire::abi::{IoctlIn, IoctlOut};
use crate::wire::reply::Reply;
use crate::wire::request::Request;

/// FS_IOC_GETFLAGS: the flags of chattr(1), of which there are none.
const GET_FLAGS: u32 = 0x8008_6601;
/// FS_IOC_SETFLAGS.
const SET_FLAGS: u32 = 0x4008_6602;
/// FS_IOC_FSGETXATTR: the same flags in another form, with hints for extents and a project. Linux asks for it before it sets either.
const GET_XFLAGS: u32 = 0x801c_581f;
const XFLAGS_BYTES: usize = 28;
/// FS_IOC_GETVERSION: the inode's generation.
const GET_VERSION: u32 = 0x8008_7601;
/// FS_IOC_GETFSLABEL: 256 bytes, ended by NUL.
const GET_LABEL: u32 = 0x8100_9431;
const LABEL_BYTES: usize = 256;

impl Adapter {
    pub(super) fn ioctl(&self, rq: &mut Request<'_>, out: &mut Reply) -> Done {
        let args = rq.take::<IoctlIn>()?;
        let inode =
            self.mounted.inode(real(rq.header.nodeid).map_err(|_| Failure(libc::ENOTTY))?).map_err(stale)?;
        out.push(&IoctlOut::new_zeroed());
        match args.cmd {
            GET_FLAGS => out.push(&0_u32),
            SET_FLAGS if rq.take::<u32>()? == 0 => {}
            SET_FLAGS => return Err(Failure(libc::EOPNOTSUPP)),
            GET_XFLAGS => out.extend(&[0; XFLAGS_BYTES]),
            GET_VERSION => out.push(&inode.generation),
            GET_LABEL => {
                let mut label = [0; LABEL_BYTES];
                let own = self.mounted.label()?;
                label[..own.len()].copy_from_slice(&own);
                out.extend(&label);
            }
            _ => return Err(Failure(libc::ENOTTY)),
        }
        Ok(())
    }
}
