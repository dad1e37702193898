//! Pass 1: the inode table, in order, page by page where it is mapped. Each slot is decoded or mended, and what can be
//! said of it alone is checked: fields of its kind, windows, symbolic links, extended attributes.

use layout::addr::{CLASS0_BASE, INODE_BASE, INODE_BYTES, PAGE, PAGE_SHIFT, PageNo, PageRange, XATTR_BASE};
use layout::dir::page::{DIR_MAGIC, raw as dir_header};
use layout::inode::{INODES_PER_PAGE, Inline, Ino, Inode, InodeFlags, Kind, ROOT_INO, RawInode, Slot, slot};
use layout::page_store::Timespec;
use layout::windows::{CLASSES, class_pages, map_page};
use zerocopy::IntoBytes;

use super::census::{State, fingerprint};
use super::context::Check;
use super::finding::{Code, Finding};
use super::mapped::Mapped;
use super::mend::{Content, mend};
use super::pool::Run;

/// A longer stretch of numbers that were never used is left alone: they are not given out again. So are all shorter ones, where
/// they are more than the inodes in use and so many: else a few pages far from each other would grow to many.
pub const GAP_MAX: u64 = 1 << 14;

const SLOTS: u64 = INODES_PER_PAGE as u64;

impl Check<'_> {
    /// The whole pass.
    pub(super) fn pass_inodes(&mut self) -> Run<()> {
        let first = INODE_BASE >> PAGE_SHIFT;
        let mut cursor = Mapped::new(first, XATTR_BASE >> PAGE_SHIFT);
        let end_known = self.superblock.next_ino.div_ceil(SLOTS);
        while let Some((from, to)) = self.pool.next_mapped(&mut cursor)? {
            for page in from..to {
                self.progress((page - first).min(end_known), end_known)?;
                if page - first >= layout::addr::INO_LIMIT / SLOTS {
                    // Between the table and the next region; the pass over what is mapped tells of it.
                    break;
                }
                self.table_slots(PageNo(page), (page - first) * SLOTS, PageNo(to))?;
            }
        }
        let (used, said) = (self.census.used(), self.superblock.inodes_used);
        // What was lost just now is told of already; the count itself is set at the end.
        if used != said && !self.numbers_changed {
            self.find(Finding::new(Code::SbInodesUsed).page(0).values(used, said))?;
        }
        self.root()?;
        self.end_of_table()?;
        self.holes()?;
        (1..CLASSES).try_for_each(|class| self.far_windows(class))
    }

    fn table_slots(&mut self, page: PageNo, first: u64, end: PageNo) -> Run<()> {
        let bytes = match self.pool.read_on(page, end)? {
            Ok(bytes) => bytes,
            Err(why) => {
                self.find(Finding::new(Code::InodeUnreadable).page(page.0).detail(why.0))?;
                self.pool.write(page, &[0; PAGE])?;
                self.numbers_changed = true;
                for number in first.max(ROOT_INO.0 + 1)..first + SLOTS {
                    self.made_from_content(number)?;
                }
                return Ok(());
            }
        };
        for number in first..first + SLOTS {
            let raw = slot(&bytes, Ino(number));
            if number < ROOT_INO.0 {
                if raw.as_bytes().iter().any(|b| *b != 0) {
                    self.find(Finding::new(Code::InodeReserved).ino(number).page(page.0))?;
                    self.change_slot(number, |raw| *raw = RawInode::ZERO)?;
                }
                continue;
            }
            match raw.decode(page, Ino(number)) {
                Ok(Slot::NeverUsed) => {}
                Ok(Slot::Free(_)) => self.census.set_state(number, State::Free),
                Ok(Slot::Used(inode)) => self.used_inode(inode)?,
                Err(error) => {
                    self.damaged_slot(number, raw, Finding::new(Code::InodeDamaged).ino(number).of(&error))?
                }
            }
        }
        Ok(())
    }

    /// What stands where an inode's content would be.
    pub(super) fn content(&mut self, ino: u64) -> Run<Content> {
        let page = PageNo::containing(CLASS0_BASE + (ino << 20));
        let is_dir = self.pool.read(page)?.is_ok_and(|bytes| {
            let header = dir_header(&bytes);
            header.magic == DIR_MAGIC && header.dir.get() == ino && header.index.get() == 0
        });
        let mut class0_end = 0;
        let mut cursor = Mapped::new(page.0, page.0 + 256);
        while let Some((_, to)) = self.pool.next_mapped(&mut cursor)? {
            class0_end = (to - page.0) * PAGE as u64;
        }
        Ok(Content { is_dir, class0_end })
    }

    fn damaged_slot(&mut self, ino: u64, raw: &RawInode, finding: Finding) -> Run<()> {
        let content = self.content(ino)?;
        match mend(raw, Ino(ino), content) {
            Some(mut mended) => {
                self.find(finding)?;
                let drops_inline =
                    mended.inline_kind == 0 && (raw.inline_kind != 0 || raw.inline_len.get() != 0);
                if let Some(kind) = Kind::from_code(mended.kind).filter(|_| drops_inline) {
                    mended.perm = (mended.perm.get() & self.perm_without_acl(kind)).into();
                }
                self.change_slot(ino, |slot| *slot = mended)?;
                match mended.decode(Self::table_page(ino).unwrap_or(PageNo(0)), Ino(ino)) {
                    Ok(Slot::Used(inode)) => self.used_inode(inode),
                    _ => {
                        self.census.set_state(ino, State::Free);
                        Ok(())
                    }
                }
            }
            None => {
                self.find(Finding { code: Code::InodeLost, ..finding })?;
                self.numbers_changed = true;
                if ino == ROOT_INO.0 || !self.made_from_content(ino)? {
                    let generation = raw.generation.get().max(1);
                    self.change_slot(ino, |slot| *slot = RawInode::free(Ino(ino), generation))?;
                    self.census.set_state(ino, State::Free);
                }
                Ok(())
            }
        }
    }

    /// Makes an inode whose slot is lost anew from what stands where its content is: a directory if that says so, else a file,
    /// of the first MiB, which only root may use. False if nothing stands there.
    fn made_from_content(&mut self, ino: u64) -> Run<bool> {
        let content = self.content(ino)?;
        if content.class0_end == 0 {
            return Ok(false);
        }
        let (kind, perm) = if content.is_dir { (Kind::Dir, 0o700) } else { (Kind::File, 0o600) };
        let mut inode = Inode::new(Ino(ino), 1, kind, perm, crate::mount::now());
        inode.size = content.class0_end;
        if kind == Kind::File {
            inode.flags |= InodeFlags::SPARSE;
        }
        self.change_slot(ino, |slot| {
            *slot = RawInode::ZERO;
            inode.encode(slot);
        })?;
        self.used_inode(inode)?;
        Ok(true)
    }

    fn used_inode(&mut self, mut inode: Inode) -> Run<()> {
        let ino = inode.ino.0;
        let before = inode;
        self.fields(&mut inode)?;
        for class in 1..CLASSES {
            self.window(&mut inode, class)?;
        }
        self.census.set_state(ino, State::Used(inode.kind));
        self.census.set_orphan(ino, inode.nlink == 0);
        self.census.set_place(ino, fingerprint(inode.place_dir.0, inode.place_key));
        match inode.kind {
            Kind::Rows => drop(self.rows_files.insert(ino)),
            Kind::Dir if Self::is_collection(&inode) => drop(self.collections.insert(ino, inode.rows_ino.0)),
            _ => {}
        }
        if inode != before {
            self.put_inode(&inode)?;
        }
        if inode.kind == Kind::Symlink && !self.symlink(&inode)? {
            return self.free_inode(ino);
        }
        if inode.flags.contains(InodeFlags::XATTR_OVERFLOW) || inode.inline == Inline::Xattr {
            self.xattrs(ino)?;
        }
        Ok(())
    }

    /// Fields that the inode's kind or state does not have.
    fn fields(&mut self, inode: &mut Inode) -> Run<()> {
        let before = *inode;
        let mut what = "";
        let has_data = matches!(inode.kind, Kind::File | Kind::Dir | Kind::Rows);
        if inode.generation == 0 {
            (inode.generation, what) = (1, "generation 0");
        }
        if !inode.flags.contains(InodeFlags::ORPHAN) && (inode.orphan_prev.0 != 0 || inode.orphan_next.0 != 0)
        {
            (inode.orphan_prev, inode.orphan_next) = (Ino(0), Ino(0));
            what = "links of the orphan list on an inode that has names";
        }
        let has_rows = inode.kind == Kind::File;
        if (!has_rows && (inode.first_row != 0 || inode.row_count != 0))
            || (!has_rows && !Self::is_collection(inode) && inode.rows_ino.0 != 0)
        {
            (inode.first_row, inode.row_count) = (0, 0);
            if !Self::is_collection(inode) {
                inode.rows_ino = Ino(0);
            }
            what = "rows of what is no file";
        }
        if !has_data && inode.windows != [0; 3] {
            // Whoever else names them is their owner.
            inode.windows = [0; 3];
            what = "windows of what has no data";
        }
        if !has_data && inode.kind != Kind::Symlink && inode.size != 0 {
            inode.size = 0;
            what = "a size of what has no data";
        }
        if inode.kind == Kind::Rows && inode.nlink != 1 {
            inode.nlink = 1;
            inode.flags.remove(InodeFlags::ORPHAN);
            what = "the link count of a rows file";
        }
        if inode.kind == Kind::Rows && inode.place_dir.0 != 0 {
            (inode.place_dir, inode.place_key) = (Ino(0), 0);
            what = "a place of a rows file";
        }
        if inode.ino == ROOT_INO && inode.place_dir.0 != 0 {
            (inode.place_dir, inode.place_key) = (Ino(0), 0);
            what = "a place of the root";
        }
        if *inode != before {
            self.find_in(Code::InodeField, inode.ino.0, what)?;
        }
        Ok(())
    }

    fn window(&mut self, inode: &mut Inode, class: usize) -> Run<()> {
        let Some(number) = inode.windows[class - 1].checked_sub(1).map(u64::from) else { return Ok(()) };
        let Some(owner) = self.windows[class - 1].own(number, inode.ino.0) else { return Ok(()) };
        let detail = format!("window {number} of class {class} is inode {owner}'s");
        self.find(Finding::new(Code::InodeWindow).ino(inode.ino.0).detail(detail))?;
        inode.windows[class - 1] = 0;
        if inode.kind == Kind::File {
            inode.flags |= InodeFlags::SPARSE;
        }
        Ok(())
    }

    /// Windows that count as never used, and where nothing stands, are no inode's.
    fn far_windows(&mut self, class: usize) -> Run<()> {
        let mut from = u64::from(self.superblock.next_window[class - 1]);
        while let Some((window, ino)) = self.windows[class - 1].next_owned(from) {
            from = window + 1;
            let Some(mut inode) = self.inode(ino)? else { continue };
            let range = class_pages(&inode, class, 0, layout::inode::MAX_FILE_BYTES);
            let Some(range) = range else { continue };
            if self.pool.has_mapped(range)? {
                continue;
            }
            let detail = format!("window {window} of class {class} was never given out");
            self.find(Finding::new(Code::InodeWindow).ino(ino).detail(detail))?;
            inode.windows[class - 1] = 0;
            self.windows[class - 1].disown(window);
            self.put_inode(&inode)?;
        }
        Ok(())
    }

    /// Whether a symbolic link has a target; one that is damaged further on is cut there.
    fn symlink(&mut self, inode: &Inode) -> Run<bool> {
        let ino = inode.ino.0;
        let len = inode.size as usize;
        let target: Vec<u8> = if inode.inline == Inline::Symlink {
            self.raw_slot(ino)?.inline_bytes().to_vec()
        } else {
            let page = map_page(inode, 0).unwrap_or(PageNo(0));
            match self.pool.read(page)? {
                Ok(bytes) => bytes.get(..len).unwrap_or(&[]).to_vec(),
                Err(why) => {
                    self.find(Finding::new(Code::Symlink).ino(ino).page(page.0).detail(why.0))?;
                    return Ok(false);
                }
            }
        };
        let Some(good) = target.iter().position(|b| *b == 0) else { return Ok(true) };
        self.find(
            Finding::new(Code::Symlink)
                .ino(ino)
                .values(len as u64, good as u64)
                .detail("a NUL in the target"),
        )?;
        if good == 0 {
            return Ok(false);
        }
        if inode.inline == Inline::Symlink {
            self.change_slot(ino, |raw| {
                raw.size = (good as u64).into();
                raw.inline_len = (good as u16).into();
                raw.inline[good..].fill(0);
            })?;
        } else if good > layout::inode::INLINE_BYTES {
            self.change_slot(ino, |raw| raw.size = (good as u64).into())?;
        } else {
            // Short enough for the inline area, where it must stand then; attributes that stood there are lost.
            self.change_slot(ino, |raw| {
                raw.size = (good as u64).into();
                raw.inline_kind = Inline::Symlink as u8;
                raw.inline_len = (good as u16).into();
                raw.inline.fill(0);
                raw.inline[..good].copy_from_slice(&target[..good]);
            })?;
            if let Some(range) = class_pages(inode, 0, 0, 1 << 20) {
                self.pool.free(range)?;
            }
        }
        Ok(true)
    }

    /// There is a root directory, or a new one.
    fn root(&mut self) -> Run<()> {
        let ino = ROOT_INO.0;
        if self.census.kind(ino) == Some(Kind::Dir) {
            if self.census.is_orphan(ino) {
                self.find_in(Code::OrphanLinked, ino, "the root")?;
                self.unorphan(ino)?;
            }
            return Ok(());
        }
        self.find(Finding::new(Code::RootMissing).ino(ino))?;
        let content = self.content(ino)?;
        let mut root = Inode::new(ROOT_INO, 1, Kind::Dir, 0o755, Timespec::default());
        if content.is_dir {
            root.size = content.class0_end;
        }
        self.change_slot(ino, |raw| {
            *raw = RawInode::ZERO;
            root.encode(raw);
        })?;
        self.census.set_state(ino, State::Used(Kind::Dir));
        Ok(())
    }

    /// Takes the mark of the unlinked off an inode.
    pub(super) fn unorphan(&mut self, ino: u64) -> Run<()> {
        let Some(mut inode) = self.inode(ino)? else { return Ok(()) };
        inode.flags.remove(InodeFlags::ORPHAN);
        inode.nlink = if inode.kind == Kind::Dir { 2 } else { 1 };
        (inode.orphan_prev, inode.orphan_next) = (Ino(0), Ino(0));
        self.put_inode(&inode)?;
        self.census.set_orphan(ino, false);
        self.orphans_broken = true;
        Ok(())
    }

    /// The first never-used number is the one behind the last slot in use.
    fn end_of_table(&mut self) -> Run<()> {
        let end = self.census.end().max(ROOT_INO.0 + 1);
        let said = self.superblock.next_ino;
        if said != end {
            self.find(Finding::new(Code::SbNextIno).page(0).values(end, said))?;
            self.superblock.next_ino = end;
            self.superblock_changed = true;
            self.numbers_changed = true;
        }
        Ok(())
    }

    /// Numbers below the end that were never used become free ones, unless they are so many.
    fn holes(&mut self) -> Run<()> {
        let end = self.superblock.next_ino;
        let mut holes = Vec::new();
        let mut at = ROOT_INO.0;
        while let Some(first) = (at..end).find(|ino| self.census.state(*ino) == State::Never) {
            let next = self.census.find(first, |_, _, state| state != State::Never).unwrap_or(end).min(end);
            holes.push((first, next));
            at = next;
        }
        let short: u64 = holes.iter().map(|(at, next)| next - at).filter(|len| *len <= GAP_MAX).sum();
        let are_filled = short <= GAP_MAX + self.census.used();
        for (at, next) in holes {
            let detail = format!("inode numbers {at} to {}", next - 1);
            if !are_filled || next - at > GAP_MAX {
                self.find(Finding::new(Code::NumberGap).detail(detail))?;
                continue;
            }
            self.find(Finding::new(Code::InodeHole).ino(at).values(1, next - at).detail(detail))?;
            for ino in at..next {
                self.change_slot(ino, |raw| *raw = RawInode::free(Ino(ino), 1))?;
                self.census.set_state(ino, State::Free);
            }
            self.numbers_changed = true;
        }
        Ok(())
    }

    /// The pages of the table behind the last slot in use.
    pub(super) fn table_tail(&self) -> PageRange {
        let first = (INODE_BASE + self.superblock.next_ino * INODE_BYTES).div_ceil(PAGE as u64);
        PageRange { first: PageNo(first), count: (XATTR_BASE >> PAGE_SHIFT) - first }
    }
}
