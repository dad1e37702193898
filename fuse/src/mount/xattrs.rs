//! Extended attributes. `user.vexfs.vector` is the file's row and goes to the session part; `user.vexfs.rows` are all
//! of its rows ([`super::row_sets`]).

use layout::acl::AclKind;
use layout::error::{Error, Result};
use layout::fs::{Fs, Ino, Inode, XattrFlags};

use layout::rows::set::part_of_name;

use super::volume::{Mounted, now};
use crate::engine::{Cost, Pages};

/// Most bytes of a value, and of a list of names (Linux limits.h, XATTR_SIZE_MAX).
pub const VALUE_BYTES_MAX: usize = 64 << 10;
const CAPABILITY_XATTR: &[u8] = b"security.capability";
const TRUSTED_PREFIX: &[u8] = b"trusted.";

/// Of `system.*` only POSIX ACLs are kept.
fn supported(name: &[u8]) -> Result<()> {
    let known: [&[u8]; 3] = [b"user.", TRUSTED_PREFIX, b"security."];
    let is_known = AclKind::of_name(name).is_some() || known.iter().any(|prefix| name.starts_with(prefix));
    if is_known { Ok(()) } else { Err(Error::Unsupported) }
}

impl Mounted {
    /// The value of an attribute.
    ///
    /// # Errors
    /// [`Error::NoAttr`].
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        supported(name)?;
        let fs = self.reading()?;
        if let Some(part) = part_of_name(name)
            && let Some(value) = self.rows_part(&fs, ino, part)?
        {
            return Ok(value);
        }
        if !fs.inode(ino)?.has_xattrs() {
            return Err(Error::NoAttr);
        }
        let mut value = vec![0; VALUE_BYTES_MAX];
        let len = fs.getxattr(ino, name, &mut value)?;
        value.truncate(len);
        Ok(value)
    }

    /// The names, each ended by NUL; those of `trusted.*` only for the administrator (xattr(7)).
    ///
    /// # Errors
    /// As [`Fs::listxattr`].
    pub fn listxattr(&self, ino: Ino, is_admin: bool) -> Result<Vec<u8>> {
        let mut names = Vec::new();
        let mut add = |name: &[u8]| {
            if is_admin || !name.starts_with(TRUSTED_PREFIX) {
                names.extend_from_slice(name);
                names.push(0);
            }
        };
        let fs = self.reading()?;
        let live = Self::rows_names(&fs, ino, &mut add)?;
        // Live rows hide kept ones.
        fs.listxattr(ino, &mut |name| {
            if !live || part_of_name(name).is_none() {
                add(name);
            }
        })?;
        Ok(names)
    }

    /// Sets an attribute, or an ACL by its attribute's name. `kill_sgid`: see [`Fs::set_acl`].
    ///
    /// # Errors
    /// As [`Fs::setxattr`] and [`Fs::set_acl`].
    pub fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        kill_sgid: bool,
    ) -> Result<()> {
        supported(name)?;
        if part_of_name(name).is_some() {
            return self.set_rows_part(ino, name, value, flags);
        }
        self.change(Cost::Pages(16), |fs| match AclKind::of_name(name) {
            Some(kind) => fs.set_acl(ino, kind, value, kill_sgid, now()).map(drop),
            None => fs.setxattr(ino, name, value, flags, now()).map(drop),
        })
    }

    /// # Errors
    /// As [`Fs::removexattr`].
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        supported(name)?;
        if part_of_name(name).is_some() {
            return self.remove_rows_part(ino, name);
        }
        self.change(Cost::Freeing, |fs| fs.removexattr(ino, name, now()).map(drop))
    }

    /// A change of a file's bytes takes its capabilities away (FUSE_HANDLE_KILLPRIV_V2).
    pub(super) fn drop_capabilities(&self, fs: &mut Fs<Pages>, inode: &Inode) -> Result<()> {
        if !inode.has_xattrs() {
            return Ok(());
        }
        match fs.removexattr(inode.ino, CAPABILITY_XATTR, now()) {
            Err(Error::NoAttr) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
