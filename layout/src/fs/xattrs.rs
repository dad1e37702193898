//! Extended attributes: inline while they fit, else all in the overflow area.

use bitflags::bitflags;
use zerocopy::{FromBytes, IntoBytes};

use super::Fs;
use super::orphans::xattr_pages;
use crate::acl::AclKind;
use crate::addr::{PAGE, PageNo, PageRange};
use crate::error::{Error, Result, corrupt};
use crate::inode::{INLINE_BYTES, Inline, Ino, Inode, InodeFlags, slot};
use crate::page_store::{PageStore, Timespec};
use crate::xattr::{
    RawXattr, RawXattrHeader, VECTOR_XATTR, XATTR_ENTRIES_MAX, XATTR_ENTRY_BYTES, XATTR_HEADER_BYTES,
    XATTR_NAME_MAX,
};

bitflags! {
    /// As `XATTR_*` of setxattr(2), with the same values.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct XattrFlags: u32 {
        /// Fail if the attribute exists.
        const CREATE = 1;
        /// Fail if it does not.
        const REPLACE = 2;
    }
}

/// Where an inode's entries stand.
#[derive(Clone, Copy)]
pub(super) struct Area {
    pub(super) ino: Ino,
    pub(super) overflow: bool,
    /// Bytes of entries.
    len: usize,
}

/// An entry: where it begins among the entries, and its lengths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    at: usize,
    name_len: usize,
    pub(super) value_len: usize,
}

impl Span {
    pub(super) const fn value_at(&self) -> usize {
        self.at + XATTR_ENTRY_BYTES + self.name_len
    }

    const fn end(&self) -> usize {
        self.value_at() + self.value_len
    }
}

/// Pages that hold `len` bytes of entries behind the header.
pub(super) const fn page_count(len: usize) -> u64 {
    (XATTR_HEADER_BYTES + len).div_ceil(PAGE) as u64
}

impl<P: PageStore> Fs<P> {
    /// Page of byte `at` of the overflow area, the header counted.
    fn overflow_page(ino: Ino, at: usize) -> PageNo {
        xattr_pages(ino).first.add((at / PAGE) as u64)
    }

    /// Opens the entries of an inode.
    pub(super) fn xattr_area(&self, inode: &Inode) -> Result<Area> {
        let ino = inode.ino;
        if inode.flags.contains(InodeFlags::XATTR_OVERFLOW) {
            let page_no = Self::overflow_page(ino, 0);
            let page = self.store.read(page_no)?;
            let bad = || corrupt(page_no, "header of overflowed xattrs", 0, 0);
            let (header, _) = RawXattrHeader::ref_from_prefix(&page[..]).map_err(|_| bad())?;
            return Ok(Area { ino, overflow: true, len: header.check(page_no, inode)? });
        }
        let len = if inode.inline == Inline::Xattr { usize::from(inode.inline_len) } else { 0 };
        Ok(Area { ino, overflow: false, len })
    }

    /// Copies entry bytes from `at` on.
    pub(super) fn xattr_read(&self, area: &Area, at: usize, out: &mut [u8]) -> Result<()> {
        let bad = |page, found: usize| corrupt(page, "xattr entries", area.len as u64, found as u64);
        if !area.overflow {
            let page_no = self.inode_page(area.ino)?;
            let page = self.store.read(page_no)?;
            let bytes =
                slot(&page, area.ino).inline.get(at..at + out.len()).ok_or_else(|| bad(page_no, at))?;
            out.copy_from_slice(bytes);
            return Ok(());
        }
        let mut done = 0;
        while done < out.len() {
            let byte = XATTR_HEADER_BYTES + at + done;
            let page_no = Self::overflow_page(area.ino, byte);
            let page = self.store.read(page_no)?;
            let part = (PAGE - byte % PAGE).min(out.len() - done);
            let bytes = page.get(byte % PAGE..byte % PAGE + part).ok_or_else(|| bad(page_no, byte))?;
            out.get_mut(done..done + part).ok_or_else(|| bad(page_no, byte))?.copy_from_slice(bytes);
            done += part;
        }
        Ok(())
    }

    /// Apply: writes bytes of the overflow area, `at` counted from its first byte.
    pub(super) fn overflow_write(&self, ino: Ino, at: usize, bytes: &[u8]) -> Result<()> {
        let (mut at, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let (part, after) = rest.split_at((PAGE - at % PAGE).min(rest.len()));
            let mut page = self.store.write(Self::overflow_page(ino, at))?;
            if let Some(place) = page.get_mut(at % PAGE..at % PAGE + part.len()) {
                place.copy_from_slice(part);
            }
            at += part.len();
            rest = after;
        }
        Ok(())
    }

    /// Gives each entry and its name until `each` says false.
    fn xattr_walk(&self, area: &Area, each: &mut dyn FnMut(Span, &[u8]) -> bool) -> Result<()> {
        let mut buffer = [0; XATTR_NAME_MAX];
        let mut at = 0;
        while at < area.len {
            let mut head = [0; XATTR_ENTRY_BYTES];
            let page_no = if area.overflow {
                Self::overflow_page(area.ino, XATTR_HEADER_BYTES + at)
            } else {
                self.inode_page(area.ino)?
            };
            let bad = |found: usize| corrupt(page_no, "xattr entry", area.len as u64, found as u64);
            if at + XATTR_ENTRY_BYTES > area.len {
                return Err(bad(at));
            }
            self.xattr_read(area, at, &mut head)?;
            let raw: RawXattr = zerocopy::transmute!(head);
            let span =
                Span { at, name_len: usize::from(raw.name_len), value_len: usize::from(raw.value_len.get()) };
            if span.name_len == 0 || raw.reserved != 0 || span.end() > area.len {
                return Err(bad(span.end()));
            }
            let name = buffer.get_mut(..span.name_len).ok_or_else(|| bad(span.name_len))?;
            self.xattr_read(area, at + XATTR_ENTRY_BYTES, name)?;
            if !each(span, name) {
                return Ok(());
            }
            at = span.end();
        }
        Ok(())
    }

    pub(super) fn xattr_find(&self, area: &Area, name: &[u8]) -> Result<Option<Span>> {
        let mut found = None;
        self.xattr_walk(area, &mut |span, its_name| {
            if its_name == name {
                found = Some(span);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// Puts an attribute's value into `out`; gives its length. An empty `out` asks for the length only.
    ///
    /// # Errors
    /// [`Error::NoAttr`]; [`Error::Range`] if `out` is too short.
    pub fn getxattr(&self, ino: Ino, name: &[u8], out: &mut [u8]) -> Result<usize> {
        let inode = self.inode(ino)?;
        let area = self.xattr_area(&inode)?;
        let span = self.xattr_find(&area, name)?.ok_or(Error::NoAttr)?;
        if !out.is_empty() {
            let out = out.get_mut(..span.value_len).ok_or(Error::Range)?;
            self.xattr_read(&area, span.value_at(), out)?;
        }
        Ok(span.value_len)
    }

    /// Gives the name of each attribute.
    ///
    /// # Errors
    /// [`Error::NotFound`]; what reading gives.
    pub fn listxattr(&self, ino: Ino, each: &mut dyn FnMut(&[u8])) -> Result<()> {
        let inode = self.inode(ino)?;
        let area = self.xattr_area(&inode)?;
        self.xattr_walk(&area, &mut |_, name| {
            each(name);
            true
        })
    }

    /// Sets an attribute. `user.vexfs.vector` is a row, ACLs have rules of their own ([`Fs::set_acl`]): they
    /// are not for this function.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for these, [`Error::Exists`] with CREATE, [`Error::NoAttr`] with REPLACE, [`Error::Range`] for a bad length of the
    /// name, [`Error::NoSpace`] when the attributes together exceed 65,512 bytes.
    pub fn setxattr(
        &mut self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        now: Timespec,
    ) -> Result<Inode> {
        self.writable()?;
        if !(1..=XATTR_NAME_MAX).contains(&name.len()) {
            return Err(Error::Range);
        }
        if name == VECTOR_XATTR || AclKind::of_name(name).is_some() {
            return Err(Error::Unsupported);
        }
        if value.len() > usize::from(u16::MAX) {
            return Err(Error::NoSpace);
        }
        let inode = self.inode(ino)?;
        let area = self.xattr_area(&inode)?;
        let old = self.xattr_find(&area, name)?;
        if old.is_some() && flags.contains(XattrFlags::CREATE) {
            return Err(Error::Exists);
        }
        if old.is_none() && flags.contains(XattrFlags::REPLACE) {
            return Err(Error::NoAttr);
        }
        self.xattr_change(inode, area, old, Some((name, value)), now)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// [`Error::NoAttr`].
    pub fn removexattr(&mut self, ino: Ino, name: &[u8], now: Timespec) -> Result<Inode> {
        self.writable()?;
        let inode = self.inode(ino)?;
        let area = self.xattr_area(&inode)?;
        let old = self.xattr_find(&area, name)?.ok_or(Error::NoAttr)?;
        self.xattr_change(inode, area, Some(old), None, now)
    }

    /// Takes entry `old` out and puts `new` at the end, moving between the areas as it fits.
    pub(super) fn xattr_change(
        &mut self,
        mut inode: Inode,
        area: Area,
        old: Option<Span>,
        new: Option<(&[u8], &[u8])>,
        now: Timespec,
    ) -> Result<Inode> {
        let (name, value) = new.unwrap_or((&[], &[]));
        let added = if new.is_some() { XATTR_ENTRY_BYTES + name.len() + value.len() } else { 0 };
        let kept = area.len - old.map_or(0, |old| old.end() - old.at);
        let len = kept + added;
        if len > XATTR_ENTRIES_MAX {
            return Err(Error::NoSpace);
        }
        let head = RawXattr {
            name_len: u8::try_from(name.len()).map_err(|_| Error::Range)?,
            reserved: 0,
            value_len: u16::try_from(value.len()).map_err(|_| Error::NoSpace)?.into(),
        };
        let parts: [&[u8]; 3] = if new.is_some() { [head.as_bytes(), name, value] } else { [&[]; 3] };
        inode.ctime = now;
        self.touch_inode(inode.ino)?;
        if len == 0 {
            return self.xattr_clear(inode, area);
        }
        let goes_inline = len <= INLINE_BYTES && inode.inline != Inline::Symlink;
        if !area.overflow || goes_inline {
            let mut entries = [0; INLINE_BYTES];
            self.xattr_gather(&area, old, kept, &mut entries)?;
            if goes_inline {
                return self.xattr_to_inline(inode, area, entries, kept, len, parts);
            }
            return self.xattr_to_overflow(inode, &entries, kept, len, parts);
        }
        self.xattr_in_overflow(inode, area, old, len, parts)
    }

    /// Prepare: copies the entries but `old` into a buffer, where they fit.
    fn xattr_gather(
        &self,
        area: &Area,
        old: Option<Span>,
        kept: usize,
        out: &mut [u8; INLINE_BYTES],
    ) -> Result<()> {
        let (before, after) = old.map_or((area.len, area.len), |old| (old.at, old.end()));
        let short = Error::Range;
        let out = out.get_mut(..kept).ok_or(short)?;
        let (first, second) = out.split_at_mut_checked(before).ok_or(short)?;
        self.xattr_read(area, 0, first)?;
        self.xattr_read(area, after, second)
    }

    /// The last attribute goes.
    fn xattr_clear(&mut self, mut inode: Inode, area: Area) -> Result<Inode> {
        inode.flags.remove(InodeFlags::XATTR_OVERFLOW);
        let was_inline = inode.inline == Inline::Xattr;
        if was_inline {
            inode.inline = Inline::Nothing;
            inode.inline_len = 0;
        }
        self.apply(|fs| {
            if area.overflow {
                fs.store.discard(xattr_pages(inode.ino))?;
            }
            if was_inline {
                fs.write_inline(inode.ino, |inline| *inline = [0; INLINE_BYTES])?;
            }
            fs.write_inode(&inode)?;
            Ok(inode)
        })
    }

    /// The attributes fit (again) into the inline area.
    fn xattr_to_inline(
        &mut self,
        mut inode: Inode,
        area: Area,
        mut entries: [u8; INLINE_BYTES],
        kept: usize,
        len: usize,
        parts: [&[u8]; 3],
    ) -> Result<Inode> {
        let mut at = kept;
        for part in parts {
            entries.get_mut(at..at + part.len()).ok_or(Error::Range)?.copy_from_slice(part);
            at += part.len();
        }
        inode.flags.remove(InodeFlags::XATTR_OVERFLOW);
        inode.inline = Inline::Xattr;
        inode.inline_len = u16::try_from(len).map_err(|_| Error::Range)?;
        self.apply(|fs| {
            if area.overflow {
                fs.store.discard(xattr_pages(inode.ino))?;
            }
            fs.write_inline(inode.ino, |inline| *inline = entries)?;
            fs.write_inode(&inode)?;
            Ok(inode)
        })
    }

    /// The attributes leave the inline area.
    fn xattr_to_overflow(
        &mut self,
        mut inode: Inode,
        entries: &[u8; INLINE_BYTES],
        kept: usize,
        len: usize,
        parts: [&[u8]; 3],
    ) -> Result<Inode> {
        let area = xattr_pages(inode.ino);
        for i in 0..page_count(len) {
            drop(self.store.fresh(area.first.add(i))?);
        }
        if inode.inline == Inline::Xattr {
            inode.inline = Inline::Nothing;
            inode.inline_len = 0;
        }
        inode.flags |= InodeFlags::XATTR_OVERFLOW;
        self.apply(|fs| {
            fs.overflow_write(inode.ino, 0, RawXattrHeader::new(&inode, len).as_bytes())?;
            fs.overflow_write(inode.ino, XATTR_HEADER_BYTES, entries.get(..kept).unwrap_or(&[]))?;
            fs.overflow_append(inode.ino, kept, parts)?;
            if inode.inline == Inline::Nothing {
                fs.write_inline(inode.ino, |inline| *inline = [0; INLINE_BYTES])?;
            }
            fs.write_inode(&inode)?;
            Ok(inode)
        })
    }

    /// The attributes stay in the overflow area.
    fn xattr_in_overflow(
        &mut self,
        inode: Inode,
        area: Area,
        old: Option<Span>,
        len: usize,
        parts: [&[u8]; 3],
    ) -> Result<Inode> {
        let range = xattr_pages(inode.ino);
        let (had, has) = (page_count(area.len), page_count(len));
        for i in 0..has.max(had) {
            let page_no = range.first.add(i);
            drop(if i < had { self.store.write(page_no)? } else { self.store.fresh(page_no)? });
        }
        self.apply(|fs| {
            let mut end = area.len;
            if let Some(old) = old {
                fs.overflow_close_gap(&area, old)?;
                end -= old.end() - old.at;
            }
            fs.overflow_append(inode.ino, end, parts)?;
            fs.overflow_write(inode.ino, 0, RawXattrHeader::new(&inode, len).as_bytes())?;
            if has < had {
                fs.store.discard(PageRange { first: range.first.add(has), count: had - has })?;
            }
            fs.write_inode(&inode)?;
            Ok(inode)
        })
    }

    /// Prepare: makes sure that a value can be written over.
    pub(super) fn xattr_touch(&self, area: &Area, span: Span) -> Result<()> {
        if !area.overflow {
            return self.touch_inode(area.ino);
        }
        let at = XATTR_HEADER_BYTES + span.value_at();
        for page in at / PAGE..(at + span.value_len).div_ceil(PAGE) {
            drop(self.store.write(xattr_pages(area.ino).first.add(page as u64))?);
        }
        Ok(())
    }

    /// Apply: writes a value over one of the same length.
    pub(super) fn xattr_overwrite(&self, area: &Area, span: Span, value: &[u8]) -> Result<()> {
        let at = span.value_at();
        if area.overflow {
            return self.overflow_write(area.ino, XATTR_HEADER_BYTES + at, value);
        }
        self.write_inline(area.ino, |inline| {
            if let Some(place) = inline.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        })
    }

    /// Apply: writes the parts of an entry behind `end` bytes of entries.
    fn overflow_append(&self, ino: Ino, end: usize, parts: [&[u8]; 3]) -> Result<()> {
        let mut at = XATTR_HEADER_BYTES + end;
        for part in parts {
            self.overflow_write(ino, at, part)?;
            at += part.len();
        }
        Ok(())
    }

    /// Apply: moves the entries behind `old` over it.
    fn overflow_close_gap(&self, area: &Area, old: Span) -> Result<()> {
        let mut chunk = [0; 512];
        let (mut to, mut from) = (old.at, old.end());
        while from < area.len {
            let part = (area.len - from).min(chunk.len());
            let bytes = chunk.get_mut(..part).ok_or(Error::Range)?;
            self.xattr_read(area, from, bytes)?;
            self.overflow_write(area.ino, XATTR_HEADER_BYTES + to, bytes)?;
            from += part;
            to += part;
        }
        Ok(())
    }
}
