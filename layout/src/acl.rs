//! POSIX access control lists, in the form in which Linux hands them over as extended attributes
//! (uapi/linux/posix_acl_xattr.h, version 2) and in which they are stored (FORMAT.md section 5.4). The
//! rules are those of acl(5), POSIX.1e draft 17.
//!
//! ```text
//! 0 version, 2 (4) | for each entry: 0 tag (2) | 2 permissions, rwx (2) | 4 uid or gid (4)
//! ```
//!
//! Entries stand in the order of their tags: one USER_OBJ, any USER, one GROUP_OBJ, any GROUP, a MASK
//! (needed with USER or GROUP), one OTHER. The mode of an inode with an ACL has USER_OBJ's, MASK's
//! (without one GROUP_OBJ's) and OTHER's permissions.

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::access::{Access, Credentials};
use crate::error::{Error, Result};

/// The attribute that is an access ACL.
pub const ACCESS_XATTR: &[u8] = b"system.posix_acl_access";
/// The attribute that is a directory's default ACL.
pub const DEFAULT_XATTR: &[u8] = b"system.posix_acl_default";
/// Most entries of an ACL.
pub const ACL_ENTRIES_MAX: usize = 125;

/// Most bytes of an ACL.
pub const ACL_BYTES_MAX: usize = HEADER_BYTES + ENTRY_BYTES * ACL_ENTRIES_MAX;

const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
/// The id of entries that name nobody.
const NO_ID: u32 = u32::MAX;

/// Which ACL of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AclKind {
    /// Who may access the inode.
    Access,
    /// What is made in the directory begins with it.
    Default,
}

impl AclKind {
    /// The ACL that an attribute's name stands for.
    pub fn of_name(name: &[u8]) -> Option<AclKind> {
        [AclKind::Access, AclKind::Default].into_iter().find(|kind| kind.name() == name)
    }

    /// The attribute's name.
    pub const fn name(self) -> &'static [u8] {
        match self {
            AclKind::Access => ACCESS_XATTR,
            AclKind::Default => DEFAULT_XATTR,
        }
    }
}

/// Whom an entry is for (uapi/linux/posix_acl.h).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Tag {
    UserObj = 0x01,
    User = 0x02,
    GroupObj = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

impl Tag {
    const fn from_code(code: u16) -> Option<Tag> {
        Some(match code {
            0x01 => Tag::UserObj,
            0x02 => Tag::User,
            0x04 => Tag::GroupObj,
            0x08 => Tag::Group,
            0x10 => Tag::Mask,
            0x20 => Tag::Other,
            _ => return None,
        })
    }

    const fn is_named(self) -> bool {
        matches!(self, Tag::User | Tag::Group)
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
struct RawEntry {
    tag: U16,
    perm: U16,
    id: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
struct RawAcl {
    version: U32,
    entries: [RawEntry; ACL_ENTRIES_MAX],
}

const _: () = {
    assert!(size_of::<RawEntry>() == ENTRY_BYTES);
    assert!(offset_of!(RawEntry, tag) == 0);
    assert!(offset_of!(RawEntry, perm) == 2);
    assert!(offset_of!(RawEntry, id) == 4);
    assert!(offset_of!(RawAcl, entries) == HEADER_BYTES);
    assert!(size_of::<RawAcl>() == ACL_BYTES_MAX);
};

/// A valid ACL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acl {
    raw: RawAcl,
    len: usize,
}

impl Acl {
    /// Checks the value of an attribute; none if it has no entries, which means to remove the ACL.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another version, [`Error::NoSpace`] beyond [`ACL_ENTRIES_MAX`] entries,
    /// [`Error::Invalid`].
    pub fn parse(value: &[u8]) -> Result<Option<Acl>> {
        let bad = Error::Invalid("not a POSIX ACL (see acl(5), VALID ACLs)");
        let (version, entries) = U32::ref_from_prefix(value).map_err(|_| bad)?;
        if version.get() != VERSION {
            return Err(Error::Unsupported);
        }
        let entries = <[RawEntry]>::ref_from_bytes(entries).map_err(|_| bad)?;
        if entries.is_empty() {
            return Ok(None);
        }
        let mut acl = Acl {
            raw: RawAcl {
                version: *version,
                entries: [RawEntry { tag: U16::ZERO, perm: U16::ZERO, id: U32::ZERO }; ACL_ENTRIES_MAX],
            },
            len: entries.len(),
        };
        acl.raw.entries.get_mut(..entries.len()).ok_or(Error::NoSpace)?.copy_from_slice(entries);
        acl.check().ok_or(bad)?;
        Ok(Some(acl))
    }

    /// Checks the order and number of the tags; gives nobody's entries the one id that they may have.
    fn check(&mut self) -> Option<()> {
        let mut last = None;
        let mut named = false;
        let mut seen = 0;
        for entry in self.raw.entries.get_mut(..self.len)? {
            let tag = Tag::from_code(entry.tag.get())?;
            let in_order = last.is_none_or(|last| last < tag || (last == tag && tag.is_named()));
            if !in_order || entry.perm.get() > 7 || (tag.is_named() && entry.id.get() == NO_ID) {
                return None;
            }
            if !tag.is_named() {
                entry.id = NO_ID.into();
            }
            named |= tag.is_named();
            seen |= tag as u16;
            last = Some(tag);
        }
        let needed = [Tag::UserObj, Tag::GroupObj, Tag::Other];
        let complete = needed.iter().all(|tag| seen & *tag as u16 != 0);
        (complete && (!named || seen & Tag::Mask as u16 != 0)).then_some(())
    }

    /// The attribute's value.
    pub fn bytes(&self) -> &[u8] {
        self.raw.as_bytes().get(..HEADER_BYTES + ENTRY_BYTES * self.len).unwrap_or_default()
    }

    fn entries(&self) -> &[RawEntry] {
        self.raw.entries.get(..self.len).unwrap_or_default()
    }

    fn perm(&self, tag: Tag) -> Option<u16> {
        self.entries().iter().find(|entry| entry.tag.get() == tag as u16).map(|entry| entry.perm.get())
    }

    fn set_perm(&mut self, tag: Tag, perm: u16) {
        let entries = self.raw.entries.get_mut(..self.len).unwrap_or_default();
        if let Some(entry) = entries.iter_mut().find(|entry| entry.tag.get() == tag as u16) {
            entry.perm = (perm & 7).into();
        }
    }

    /// Whose permissions the group's bits of the mode are.
    fn group_class(&self) -> Tag {
        if self.perm(Tag::Mask).is_some() { Tag::Mask } else { Tag::GroupObj }
    }

    /// The `rwxrwxrwx` of an inode with this ACL.
    pub fn mode(&self) -> u16 {
        let perm = |tag| self.perm(tag).unwrap_or(0);
        perm(Tag::UserObj) << 6 | perm(self.group_class()) << 3 | perm(Tag::Other)
    }

    /// Whether the mode says all that the ACL says.
    pub fn is_mode(&self) -> bool {
        self.len == 3
    }

    /// As chmod(2) changes the ACL: sets what the mode shows.
    pub fn chmod(&mut self, mode: u16) {
        self.set_perm(Tag::UserObj, mode >> 6);
        self.set_perm(self.group_class(), mode >> 3);
        self.set_perm(Tag::Other, mode);
    }

    /// Makes the access ACL of a new inode out of a default ACL: what `mode` does not ask for is taken
    /// away. The inode's mode is then [`Acl::mode`].
    pub fn create(&mut self, mode: u16) {
        self.chmod(self.mode() & mode);
    }

    /// Whether the caller, who does not own the inode, may. The kernel does not look at an ACL whose
    /// MASK is empty, and lets those it names have OTHER's permissions; here they have none, as acl(5) says.
    pub fn permits(&self, who: &Credentials<'_>, group: u32, access: Access) -> bool {
        let want = access as u16;
        let mask = self.perm(Tag::Mask).unwrap_or(7);
        let mut member = false;
        for entry in self.entries() {
            let grants = entry.perm.get() & mask & want != 0;
            match Tag::from_code(entry.tag.get()) {
                Some(Tag::User) if entry.id.get() == who.uid => return grants,
                Some(Tag::GroupObj) if who.in_group(group) => member = true,
                Some(Tag::Group) if who.in_group(entry.id.get()) => member = true,
                Some(Tag::Other) => return !member && entry.perm.get() & want != 0,
                _ => continue,
            }
            if grants {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::vec::Vec;

    pub(crate) use crate::testing::model::value;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl::parse(&value(entries)).expect("valid").expect("with entries")
    }

    const NOBODY: u32 = u32::MAX;

    #[test]
    fn only_lists_that_acl_5_calls_valid_are_taken() {
        let plain = [(1, 6, 0), (4, 4, 0), (0x20, 4, 0)];
        assert_eq!(acl(&plain).bytes(), value(&[(1, 6, NOBODY), (4, 4, NOBODY), (0x20, 4, NOBODY)]));
        let long = [(1, 7, 0), (2, 6, 5), (2, 0, 4), (4, 4, 0), (8, 1, 9), (0x10, 5, 0), (0x20, 0, 0)];
        assert_eq!(acl(&long).entries().len(), 7);
        let bad: [&[(u16, u16, u32)]; 12] = [
            &plain[..2],
            &plain[1..],
            &[plain[0], plain[2]],
            &[plain[1], plain[0], plain[2]],
            &[plain[0], plain[0], plain[1], plain[2]],
            &[plain[0], (2, 4, 5), plain[1], plain[2]],
            &[plain[0], plain[1], (8, 4, 5), plain[2]],
            &[plain[0], (2, 4, NOBODY), plain[1], (0x10, 7, 0), plain[2]],
            &[plain[0], plain[1], (0x10, 7, 0), (0x10, 7, 0), plain[2]],
            &[plain[0], plain[1], (0x10, 8, 0), plain[2]],
            &[plain[0], plain[1], (0, 4, 0), plain[2]],
            &[plain[0], plain[1], plain[2], (0x40, 4, 0)],
        ];
        for entries in bad {
            assert!(matches!(Acl::parse(&value(entries)), Err(Error::Invalid(_))), "{entries:?}");
        }
        assert_eq!(Acl::parse(&value(&[])), Ok(None));
        assert_eq!(Acl::parse(&1u32.to_le_bytes()), Err(Error::Unsupported));
        assert!(matches!(Acl::parse(&[2, 0, 0]), Err(Error::Invalid(_))));
        assert!(matches!(Acl::parse(&value(&plain)[..27]), Err(Error::Invalid(_))));
        let most: Vec<_> = (0..ACL_ENTRIES_MAX as u32 - 4).map(|id| (2, 4, id)).collect();
        let of = |most: &[_]| [&plain[..1], most, &plain[1..2], &[(0x10, 7, 0)], &plain[2..]].concat();
        assert_eq!(acl(&of(&most)).bytes().len(), ACL_BYTES_MAX);
        assert_eq!(Acl::parse(&value(&of(&[&most[..], &[(2, 4, 999)]].concat()))), Err(Error::NoSpace));
    }

    #[test]
    fn mode_chmod_and_create_show_the_mask_as_the_group() {
        let plain = acl(&[(1, 6, 0), (4, 5, 0), (0x20, 3, 0)]);
        assert_eq!((plain.mode(), plain.is_mode()), (0o653, true));
        let masked = acl(&[(1, 7, 0), (2, 6, 5), (4, 7, 0), (0x10, 5, 0), (0x20, 1, 0)]);
        assert_eq!((masked.mode(), masked.is_mode()), (0o751, false));
        let mut changed = masked;
        changed.chmod(0o4642);
        assert_eq!(changed, acl(&[(1, 6, 0), (2, 6, 5), (4, 7, 0), (0x10, 4, 0), (0x20, 2, 0)]));
        let mut made = masked;
        made.create(0o646);
        assert_eq!(made, acl(&[(1, 6, 0), (2, 6, 5), (4, 7, 0), (0x10, 4, 0), (0x20, 0, 0)]));
        let mut made = plain;
        made.create(0o777);
        assert_eq!(made, plain);
    }

    #[test]
    fn the_first_user_or_any_group_that_matches_decides() {
        let list = acl(&[
            (1, 0, 0),
            (2, 4, 10),
            (2, 7, 11),
            (4, 4, 0),
            (8, 2, 20),
            (8, 0, 30),
            (0x10, 6, 0),
            (0x20, 7, 0),
        ]);
        let (r, w, x) = (Access::Read, Access::Write, Access::Search);
        let cases: [(u32, u32, &[u32], Access, bool); 12] = [
            (10, 0, &[], r, true),
            (10, 20, &[0], w, false),
            (11, 0, &[], w, true),
            (11, 0, &[], x, false),
            (1, 100, &[], r, true),
            (1, 100, &[], w, false),
            (1, 100, &[20], w, true),
            (1, 30, &[20], w, true),
            (1, 30, &[], r, false),
            (1, 30, &[], x, false),
            (1, 1, &[], x, true),
            (1, 1, &[2, 3], r, true),
        ];
        for (uid, gid, groups, access, may) in cases {
            let who = Credentials { uid, gid, groups };
            assert_eq!(list.permits(&who, 100, access), may, "{uid} {gid} {groups:?} {access:?}");
        }
        let closed = acl(&[(1, 7, 0), (2, 7, 10), (4, 7, 0), (0x10, 0, 0), (0x20, 7, 0)]);
        let who = |uid, gid| Credentials { uid, gid, groups: &[] };
        assert!(!closed.permits(&who(10, 1), 100, r), "an empty mask denies whom the list names");
        assert!(!closed.permits(&who(1, 100), 100, r));
        assert!(closed.permits(&who(1, 1), 100, r));
    }
}
