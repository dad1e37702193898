//! POSIX ACLs: set, inherited by new inodes, changed by chmod, asked for permission
//! (FORMAT.md section 5.4). The lists themselves are the business of [`crate::acl`].

use zerocopy::IntoBytes;

use super::Fs;
use super::orphans::xattr_pages;
use super::xattrs::{Area, Span, page_count};
use crate::access::{Access, Credentials};
use crate::acl::{ACL_BYTES_MAX, Acl, AclKind};
use crate::error::{Error, Result, corrupt};
use crate::inode::{INLINE_BYTES, Inline, Ino, Inode, InodeFlags, Kind};
use crate::page_store::{PageStore, Timespec};
use crate::superblock::INCOMPAT_ACL;
use crate::xattr::{RawXattr, RawXattrHeader, XATTR_ENTRY_BYTES, XATTR_HEADER_BYTES};

const S_ISGID: u16 = 0o2000;

/// An ACL of an inode, and where it stands.
struct Found {
    area: Area,
    span: Span,
    acl: Acl,
}

/// The access ACL that a chmod changes.
pub(super) struct AclChange {
    area: Area,
    span: Span,
    acl: Acl,
}

/// What a new inode inherits from its directory's default ACL.
pub(super) struct Inherited {
    acl: Acl,
    /// Permission bits that were asked for.
    asked: u16,
    /// It becomes the access ACL; else the mode says all of it.
    access: bool,
    /// It becomes the default ACL of a new directory.
    default: bool,
}

impl Inherited {
    /// Bytes of the new inode's entries.
    fn len(&self) -> usize {
        let bytes = |kind: AclKind| XATTR_ENTRY_BYTES + kind.name().len() + self.acl.bytes().len();
        let of = |wanted, kind| if wanted { bytes(kind) } else { 0 };
        of(self.access, AclKind::Access) + of(self.default, AclKind::Default)
    }

    /// Gives the bytes of the entries, part by part.
    fn parts(&self, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut entry = |kind: AclKind, acl: &Acl| {
            let head = RawXattr {
                name_len: u8::try_from(kind.name().len()).map_err(|_| Error::Range)?,
                reserved: 0,
                value_len: u16::try_from(acl.bytes().len()).map_err(|_| Error::Range)?.into(),
            };
            put(head.as_bytes())?;
            put(kind.name())?;
            put(acl.bytes())
        };
        if self.access {
            let mut access = self.acl;
            access.create(self.asked);
            entry(AclKind::Access, &access)?;
        }
        if self.default { entry(AclKind::Default, &self.acl) } else { Ok(()) }
    }
}

impl<P: PageStore> Fs<P> {
    /// The ACL of an inode, if it has one beyond its mode.
    fn find_acl(&self, inode: &Inode, kind: AclKind) -> Result<Option<Found>> {
        if !inode.has_xattrs() {
            return Ok(None);
        }
        let area = self.xattr_area(inode)?;
        let Some(span) = self.xattr_find(&area, kind.name())? else { return Ok(None) };
        let page = if area.overflow { xattr_pages(inode.ino).first } else { self.inode_page(inode.ino)? };
        let bad = || corrupt(page, "stored ACL", inode.ino.0, span.value_len as u64);
        let mut value = [0; ACL_BYTES_MAX];
        let value = value.get_mut(..span.value_len).ok_or_else(bad)?;
        self.xattr_read(&area, span.value_at(), value)?;
        let acl = Acl::parse(value).map_err(|_| bad())?.ok_or_else(bad)?;
        Ok(Some(Found { area, span, acl }))
    }

    /// Sets an ACL from an attribute's value (uapi/linux/posix_acl_xattr.h); one without entries removes it. An
    /// access ACL sets the mode's permission bits, and is not stored if they say all of it. `kill_sgid`: the
    /// caller is not in the inode's group, so an access ACL takes setgid away (FUSE_SETXATTR_ACL_KILL_SGID).
    ///
    /// # Errors
    /// As [`Acl::parse`]; [`Error::Unsupported`] for a symbolic link, [`Error::Access`] for a default ACL of
    /// what is no directory, [`Error::NoSpace`].
    pub fn set_acl(
        &mut self,
        ino: Ino,
        kind: AclKind,
        value: &[u8],
        kill_sgid: bool,
        now: Timespec,
    ) -> Result<Inode> {
        self.writable()?;
        let mut inode = self.inode(ino)?;
        if inode.kind == Kind::Symlink {
            return Err(Error::Unsupported);
        }
        let acl = Acl::parse(value)?;
        if kind == AclKind::Default && inode.kind != Kind::Dir && acl.is_some() {
            return Err(Error::Access);
        }
        let mut stored = acl.as_ref();
        if let (AclKind::Access, Some(acl)) = (kind, &acl) {
            inode.perm = inode.perm & !0o777 | acl.mode();
            if kill_sgid {
                inode.perm &= !S_ISGID;
            }
            stored = stored.filter(|acl| !acl.is_mode());
        }
        let area = self.xattr_area(&inode)?;
        let old = self.xattr_find(&area, kind.name())?;
        if old.is_none() && stored.is_none() {
            inode.ctime = now;
            self.touch_inode(ino)?;
            return self.apply(|fs| fs.write_inode(&inode)).map(|()| inode);
        }
        let done = self.xattr_change(inode, area, old, stored.map(|acl| (kind.name(), acl.bytes())), now)?;
        if stored.is_some() {
            self.superblock.incompat |= INCOMPAT_ACL;
        }
        Ok(done)
    }

    /// Whether the caller may, by the inode's ACL and permission bits; uid 0 always.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Io`]: not decided, so not permitted.
    pub fn permits(&self, who: &Credentials<'_>, inode: &Inode, access: Access) -> Result<bool> {
        if who.uid == 0 {
            return Ok(true);
        }
        let class = if who.uid == inode.uid {
            inode.perm >> 6
        } else if let Some(found) = self.find_acl(inode, AclKind::Access)? {
            return Ok(found.acl.permits(who, inode.gid, access));
        } else if who.in_group(inode.gid) {
            inode.perm >> 3
        } else {
            inode.perm
        };
        Ok(class & access as u16 != 0)
    }

    /// Prepare: the change of an access ACL that goes with new permission bits.
    pub(super) fn plan_chmod(&self, inode: &Inode, perm: u16) -> Result<Option<AclChange>> {
        if (inode.perm ^ perm) & 0o777 == 0 {
            return Ok(None);
        }
        let Some(Found { area, span, mut acl }) = self.find_acl(inode, AclKind::Access)? else {
            return Ok(None);
        };
        acl.chmod(perm);
        self.xattr_touch(&area, span)?;
        Ok(Some(AclChange { area, span, acl }))
    }

    /// Apply: writes the changed ACL over the old one, which is as long.
    pub(super) fn write_acl(&self, change: &AclChange) -> Result<()> {
        self.xattr_overwrite(&change.area, change.span, change.acl.bytes())
    }

    /// Prepare: gives a new inode the permissions that it begins with: by the directory's default ACL, or
    /// without one by `umask`.
    pub(super) fn plan_inherit(
        &self,
        dir: &Inode,
        inode: &mut Inode,
        umask: u16,
    ) -> Result<Option<Inherited>> {
        if inode.kind == Kind::Symlink {
            return Ok(None);
        }
        let Some(Found { acl, .. }) = self.find_acl(dir, AclKind::Default)? else {
            inode.perm &= !(umask & 0o777);
            return Ok(None);
        };
        let inherited =
            Inherited { acl, asked: inode.perm, access: !acl.is_mode(), default: inode.kind == Kind::Dir };
        inode.perm &= !0o777 | acl.mode();
        let len = inherited.len();
        if len == 0 {
            return Ok(None);
        }
        if len <= INLINE_BYTES {
            inode.inline = Inline::Xattr;
            inode.inline_len = u16::try_from(len).map_err(|_| Error::Range)?;
        } else {
            inode.flags |= InodeFlags::XATTR_OVERFLOW;
            for i in 0..page_count(len) {
                drop(self.store.fresh(xattr_pages(inode.ino).first.add(i))?);
            }
        }
        Ok(Some(inherited))
    }

    /// Apply: writes what a new inode inherits.
    pub(super) fn write_inherited(&self, inode: &Inode, inherited: &Inherited) -> Result<()> {
        if inode.inline != Inline::Xattr {
            let header = RawXattrHeader::new(inode, inherited.len());
            self.overflow_write(inode.ino, 0, header.as_bytes())?;
            let mut at = XATTR_HEADER_BYTES;
            return inherited.parts(&mut |part| {
                self.overflow_write(inode.ino, at, part)?;
                at += part.len();
                Ok(())
            });
        }
        let mut entries = [0; INLINE_BYTES];
        let mut at = 0;
        inherited.parts(&mut |part| {
            entries.get_mut(at..at + part.len()).ok_or(Error::Range)?.copy_from_slice(part);
            at += part.len();
            Ok(())
        })?;
        self.write_inline(inode.ino, |inline| *inline = entries)
    }
}
