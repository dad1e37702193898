//! Extended attributes of an inode (FORMAT.md section 5.4): the header of the overflow area, every entry, no name twice, ACLs that are
//! valid and that the mode shows.

use std::collections::HashSet;

use layout::acl::{Acl, AclKind};
use layout::addr::{PAGE, PageRange};
use layout::inode::{INLINE_BYTES, Inline, Inode, InodeFlags, Kind};
use layout::superblock::INCOMPAT_ACL;
use layout::xattr::{RawXattr, RawXattrHeader, XATTR_ENTRY_BYTES, XATTR_HEADER_BYTES};
use zerocopy::{FromBytes, IntoBytes};

use super::context::{Check, xattr_range};
use super::finding::{Code, Finding};
use super::pool::Run;

/// What is left of permission bits when an access ACL is lost: the group's were its mask, and would admit more than it did.
const WITHOUT_ACL: u16 = !0o070;

/// Where entries are and what is wrong with them.
struct Walked {
    /// Entries to keep, one after the other.
    kept: Vec<u8>,
    /// Byte of the first damaged entry.
    damaged: Option<usize>,
    /// A name that stands twice.
    twice: Option<String>,
}

fn walk(entries: &[u8]) -> Walked {
    let mut walked = Walked { kept: Vec::with_capacity(entries.len()), damaged: None, twice: None };
    let mut names = HashSet::new();
    let mut at = 0;
    while at < entries.len() {
        let Some((head, _)) = entries.get(at..).and_then(|b| RawXattr::ref_from_prefix(b).ok()) else {
            walked.damaged = Some(at);
            break;
        };
        let name_end = at + XATTR_ENTRY_BYTES + usize::from(head.name_len);
        let end = name_end + usize::from(head.value_len.get());
        let name = entries.get(at + XATTR_ENTRY_BYTES..name_end).filter(|name| !name.is_empty());
        let (Some(name), Some(entry)) = (name, entries.get(at..end)) else {
            walked.damaged = Some(at);
            break;
        };
        if head.reserved != 0 || name.contains(&0) {
            walked.damaged = Some(at);
            break;
        }
        if names.insert(name) {
            walked.kept.extend_from_slice(entry);
        } else {
            walked.twice = Some(String::from_utf8_lossy(name).into_owned());
        }
        at = end;
    }
    walked
}

impl Check<'_> {
    /// Checks the attributes of an inode that has some.
    pub(super) fn xattrs(&mut self, ino: u64) -> Run<()> {
        let Some(inode) = self.inode(ino)? else { return Ok(()) };
        let overflow = inode.flags.contains(InodeFlags::XATTR_OVERFLOW);
        let mut lost = false;
        let entries = if overflow {
            match self.overflow_entries(&inode)? {
                Ok(entries) => entries,
                Err(finding) => {
                    self.find(finding)?;
                    lost = true;
                    Vec::new()
                }
            }
        } else {
            self.raw_slot(ino)?.inline_bytes().to_vec()
        };
        let walked = walk(&entries);
        if let Some(at) = walked.damaged {
            self.find(Finding::new(Code::XattrEntry).ino(ino).values(entries.len() as u64, at as u64))?;
            lost = true;
        }
        if let Some(name) = walked.twice.clone() {
            self.find_in(Code::XattrTwice, ino, &name)?;
        }
        let (mut inode, kept, has_acl) = self.acls(inode, &walked.kept)?;
        if lost && !has_acl {
            inode.perm &= self.perm_without_acl(inode.kind);
        }
        if lost || kept != entries {
            self.put_xattrs(inode, &kept)?;
        }
        Ok(())
    }

    /// What is left of permission bits where extended attributes were lost that may have had an access ACL among them.
    pub(super) fn perm_without_acl(&self, kind: Kind) -> u16 {
        let may_have = kind != Kind::Symlink && self.superblock.incompat & INCOMPAT_ACL != 0;
        if may_have { WITHOUT_ACL } else { !0 }
    }

    /// Checks the ACLs among the entries; gives the inode with the mode that they say, the entries to keep, and whether an
    /// access ACL was among them.
    fn acls(&mut self, mut inode: Inode, entries: &[u8]) -> Run<(Inode, Vec<u8>, bool)> {
        let ino = inode.ino.0;
        let mut has_acl = false;
        let mut kept = Vec::with_capacity(entries.len());
        let mut rest = entries;
        while let Ok((head, _)) = RawXattr::ref_from_prefix(rest) {
            let name_end = XATTR_ENTRY_BYTES + usize::from(head.name_len);
            let end = name_end + usize::from(head.value_len.get());
            let (Some(entry), Some(name), Some(value)) =
                (rest.get(..end), rest.get(XATTR_ENTRY_BYTES..name_end), rest.get(name_end..end))
            else {
                break;
            };
            rest = &rest[end..];
            has_acl |= AclKind::of_name(name) == Some(AclKind::Access);
            if match AclKind::of_name(name) {
                Some(kind) => self.acl(&mut inode, kind, value)?,
                None => true,
            } {
                kept.extend_from_slice(entry);
            }
        }
        if inode.perm != self.raw_slot(ino)?.perm.get() {
            self.put_inode(&inode)?;
        }
        Ok((inode, kept, has_acl))
    }

    /// Whether an ACL is to be kept.
    fn acl(&mut self, inode: &mut Inode, kind: AclKind, value: &[u8]) -> Run<bool> {
        let ino = inode.ino.0;
        let name = String::from_utf8_lossy(kind.name());
        let may_have = inode.kind != Kind::Symlink && (kind == AclKind::Access || inode.kind == Kind::Dir);
        let Some(acl) = Acl::parse(value).ok().flatten().filter(|_| may_have) else {
            self.find_in(Code::Acl, ino, &name)?;
            if kind == AclKind::Access {
                inode.perm &= WITHOUT_ACL;
            }
            return Ok(false);
        };
        if self.superblock.incompat & INCOMPAT_ACL == 0 {
            self.find(Finding::new(Code::SbAcl).page(0))?;
            self.superblock.incompat |= INCOMPAT_ACL;
            self.superblock_changed = true;
        }
        if kind == AclKind::Default {
            return Ok(true);
        }
        let (said, perm) = (acl.mode(), inode.perm & 0o777);
        if said != perm {
            self.find(Finding::new(Code::AclMode).ino(ino).values(said.into(), perm.into()))?;
            inode.perm = inode.perm & !0o777 | said;
        }
        if acl.is_mode() {
            self.find_in(Code::AclPlain, ino, &name)?;
        }
        Ok(!acl.is_mode())
    }

    fn overflow_entries(&mut self, inode: &Inode) -> Run<Result<Vec<u8>, Finding>> {
        let first = xattr_range(inode.ino.0).first;
        let finding = Finding::new(Code::XattrArea).ino(inode.ino.0).page(first.0);
        let bytes = match self.pool.read(first)? {
            Ok(bytes) => bytes,
            Err(why) => return Ok(Err(finding.detail(why.0))),
        };
        let Ok((header, _)) = RawXattrHeader::ref_from_prefix(&bytes[..]) else { return Ok(Err(finding)) };
        let len = match header.check(first, inode) {
            Ok(len) => len,
            Err(error) => return Ok(Err(finding.of(&error))),
        };
        let mut area = bytes.to_vec();
        for page in 1..(XATTR_HEADER_BYTES + len).div_ceil(PAGE) as u64 {
            match self.pool.read(first.add(page))? {
                Ok(bytes) => area.extend_from_slice(&bytes[..]),
                // The entries on it and behind it are lost, those before it are not.
                Err(_) => area.resize(area.len() + PAGE, 0),
            }
        }
        area.truncate(XATTR_HEADER_BYTES + len);
        Ok(Ok(area.split_off(XATTR_HEADER_BYTES)))
    }

    /// Writes the entries anew, where they stood; none are no area.
    fn put_xattrs(&mut self, mut inode: Inode, entries: &[u8]) -> Run<()> {
        let ino = inode.ino.0;
        let range = xattr_range(ino);
        if !inode.flags.contains(InodeFlags::XATTR_OVERFLOW) {
            if entries.is_empty() {
                (inode.inline, inode.inline_len) = (Inline::Nothing, 0);
            } else {
                inode.inline_len = entries.len().min(INLINE_BYTES) as u16;
            }
            return self.change_slot(ino, |raw| {
                inode.encode(raw);
                raw.inline.fill(0);
                raw.inline[..entries.len()].copy_from_slice(entries);
            });
        }
        if entries.is_empty() {
            inode.flags.remove(InodeFlags::XATTR_OVERFLOW);
            self.pool.free(range)?;
            return self.put_inode(&inode);
        }
        let mut area = RawXattrHeader::new(&inode, entries.len()).as_bytes().to_vec();
        area.extend_from_slice(entries);
        area.resize(area.len().next_multiple_of(PAGE), 0);
        let mut used = 0;
        for bytes in area.as_chunks::<PAGE>().0 {
            self.pool.write(range.first.add(used), bytes)?;
            used += 1;
        }
        self.pool.free(PageRange { first: range.first.add(used), count: range.count - used })
    }

    /// Pages of the overflow area that are in use.
    pub(super) fn xattr_pages_used(&mut self, inode: &Inode) -> Run<u64> {
        if !inode.flags.contains(InodeFlags::XATTR_OVERFLOW) {
            return Ok(0);
        }
        let first = xattr_range(inode.ino.0).first;
        let Ok(bytes) = self.pool.read(first)? else { return Ok(0) };
        let header = RawXattrHeader::ref_from_prefix(&bytes[..]).ok();
        let len = header.and_then(|(header, _)| header.check(first, inode).ok());
        Ok(len.map_or(0, |len| (XATTR_HEADER_BYTES + len).div_ceil(PAGE) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, value: &[u8]) -> Vec<u8> {
        let head =
            RawXattr { name_len: name.len() as u8, reserved: 0, value_len: (value.len() as u16).into() };
        [head.as_bytes(), name.as_bytes(), value].concat()
    }

    #[test]
    fn good_entries_are_kept_up_to_the_damage_and_names_once() {
        let (a, b) = (entry("user.a", b"1"), entry("user.b", b"22"));
        let all = [a.clone(), b.clone(), a.clone()].concat();
        let walked = walk(&all);
        assert_eq!((walked.kept, walked.twice.as_deref()), ([a.clone(), b.clone()].concat(), Some("user.a")));
        let walked = walk(&all[..a.len() + b.len() - 1]);
        assert_eq!((walked.kept, walked.damaged), (a.clone(), Some(a.len())));
        assert_eq!(walk(&[a, vec![0; 9]].concat()).kept.len(), 11);
    }
}
