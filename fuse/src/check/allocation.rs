//! Pass 9: everything that is mapped, in the order of addresses, against what owns it. Asked for, pass 10 reads all of it.

use layout::addr::{
    CLASS0_BASE, CLASS1_BASE, CLASS2_BASE, CLASS3_BASE, INDEX_BASE, INODE_BASE, PAGE, PAGE_SHIFT, PageNo,
    PageRange, STACK_BASE, STACK_STRIDE, XATTR_BASE,
};
use layout::inode::{Inode, Kind};
use layout::windows::{CLASSES, class_range};

use super::context::Check;
use super::finding::{Code, Finding};
use super::mapped::Mapped;
use super::pool::Run;

/// A longer run that nobody owns is called a leak of data without looking whether all of it is zeros.
const LOOK_PAGES: u64 = 4096;

/// Free stacks: two a class.
const STACKS: u64 = 2 * CLASSES as u64;

/// A part of the address space that is cut into equal pieces, each of which belongs to one inode at most.
struct Region {
    base: u64,
    /// log2 of the bytes of a piece.
    shift: u32,
    class: usize,
    end: u64,
}

const REGIONS: [Region; 4] = [
    Region { base: CLASS0_BASE, shift: 20, class: 0, end: CLASS0_BASE + (1 << 56) },
    Region { base: CLASS1_BASE, shift: 30, class: 1, end: CLASS3_BASE },
    Region { base: CLASS3_BASE, shift: 48, class: 3, end: CLASS2_BASE },
    Region { base: CLASS2_BASE, shift: 40, class: 2, end: INDEX_BASE },
];

impl Check<'_> {
    /// The whole pass.
    pub(super) fn pass_allocation(&mut self) -> Run<()> {
        let page = |byte: u64| byte >> PAGE_SHIFT;
        self.nobodys(3, page(STACK_BASE), true)?;
        self.nobodys(page(STACK_BASE + STACKS * STACK_STRIDE), page(INODE_BASE), false)?;
        let tail = self.table_tail();
        self.nobodys(tail.first.0, tail.first.0 + tail.count, false)?;
        self.xattr_region()?;
        self.nobodys(page(XATTR_BASE) + (1 << 40), page(CLASS0_BASE), false)?;
        for (done, region) in REGIONS.iter().enumerate() {
            self.progress(done as u64, REGIONS.len() as u64)?;
            self.region(region)?;
        }
        self.nobodys(page(CLASS0_BASE + (1 << 56)), page(CLASS1_BASE), false)
    }

    /// A range where nothing may be mapped.
    fn nobodys(&mut self, first: u64, end: u64, unreachable: bool) -> Run<()> {
        let mut cursor = Mapped::new(first, end);
        while let Some((from, to)) = self.pool.next_mapped(&mut cursor)? {
            if unreachable {
                self.find(Finding::new(Code::Outside).page(from).values(0, to - from))?;
            } else {
                self.leak(from, to, None)?;
            }
        }
        Ok(())
    }

    /// Pages without an owner, or behind the end of their owner.
    fn leak(&mut self, from: u64, to: u64, owner: Option<u64>) -> Run<()> {
        let mut zeros = to - from <= LOOK_PAGES;
        let mut page = from;
        while zeros && page < to {
            zeros = self.pool.read_on(PageNo(page), PageNo(to))?.is_ok_and(|b| b.iter().all(|b| *b == 0));
            page += 1;
        }
        let code = match owner {
            _ if zeros => Code::LeakZero,
            Some(_) => Code::PastEnd,
            None => Code::LeakPage,
        };
        let detail = format!("{} pages", to - from);
        self.find(Finding { ino: owner, ..Finding::new(code) }.page(from).detail(detail))?;
        self.pool.free(PageRange { first: PageNo(from), count: to - from })
    }

    fn xattr_region(&mut self) -> Run<()> {
        let first = XATTR_BASE >> PAGE_SHIFT;
        let mut cursor = Mapped::new(first, first + (1 << 40));
        while let Some((from, to)) = self.pool.next_mapped(&mut cursor)? {
            let mut at = from;
            while at < to {
                self.progress(at - first, 1 << 40)?;
                let ino = (at - first) / 16;
                let piece_end = to.min(first + (ino + 1) * 16);
                let used = match self.census.kind(ino) {
                    Some(_) => match self.inode_in_order(ino)? {
                        Some(inode) => self.xattr_pages_used(&inode)?,
                        None => 0,
                    },
                    None => 0,
                };
                let used_end = first + ino * 16 + used;
                if used_end < piece_end {
                    let owner = self.census.kind(ino).map(|_| ino);
                    self.leak(at.max(used_end), piece_end, owner)?;
                }
                at = piece_end;
            }
        }
        Ok(())
    }

    fn region(&mut self, region: &Region) -> Run<()> {
        let first = region.base >> PAGE_SHIFT;
        let piece_pages = 1u64 << (region.shift - PAGE_SHIFT);
        let mut cursor = Mapped::new(first, region.end >> PAGE_SHIFT);
        while let Some((from, to)) = self.pool.next_mapped(&mut cursor)? {
            let mut at = from;
            while at < to {
                let piece = (at - first) / piece_pages;
                let begin = first + piece * piece_pages;
                let piece_end = to.min(begin + piece_pages);
                let ino = match region.class {
                    0 => self.census.kind(piece).map(|_| piece),
                    class => self.windows[class - 1].owner(piece),
                };
                let owner = match ino {
                    Some(ino) if region.class == 0 => self.inode_in_order(ino)?,
                    Some(ino) => self.inode(ino)?,
                    None => None,
                };
                self.progress(at - first, (region.end >> PAGE_SHIFT) - first)?;
                let Some(owner) = owner else {
                    self.leak(at, piece_end, None)?;
                    at = piece_end;
                    continue;
                };
                let (low, high) = owned_pages(&owner, region.class);
                if at < begin + low {
                    self.leak(at, piece_end.min(begin + low), Some(owner.ino.0))?;
                }
                if piece_end > begin + high {
                    self.leak(at.max(begin + high), piece_end, Some(owner.ino.0))?;
                }
                at = piece_end;
            }
        }
        Ok(())
    }

    /// Pass 10: reads every page of every file.
    pub(super) fn pass_data(&mut self) -> Run<()> {
        for region in &REGIONS {
            let first = region.base >> PAGE_SHIFT;
            let mut cursor = Mapped::new(first, region.end >> PAGE_SHIFT);
            while let Some((from, to)) = self.pool.next_mapped(&mut cursor)? {
                for part in (from..to).step_by(LOOK_PAGES as usize) {
                    self.progress(part - first, (region.end >> PAGE_SHIFT) - first)?;
                    self.data_part(region, part, to.min(part + LOOK_PAGES))?;
                }
            }
        }
        Ok(())
    }

    /// Reads some pages; of bad ones side by side in one file it is told once.
    fn data_part(&mut self, region: &Region, from: u64, to: u64) -> Run<()> {
        let mut bad = Vec::new();
        self.pool.probe(from, to - from, &mut |page, why| bad.push((page, why)))?;
        let first = region.base >> PAGE_SHIFT;
        let piece = |page: u64| (page - first) >> (region.shift - PAGE_SHIFT);
        for run in bad.chunk_by(|a, b| a.0 + 1 == b.0 && piece(a.0) == piece(b.0)) {
            let Some((page, why)) = run.first() else { continue };
            let ino = match region.class {
                0 => Some(piece(*page)),
                class => self.windows[class - 1].owner(piece(*page)),
            };
            let offset = (page - first - (piece(*page) << (region.shift - PAGE_SHIFT))) << PAGE_SHIFT;
            let last = offset + run.len() as u64 * PAGE as u64 - 1;
            let finding = Finding { ino, ..Finding::new(Code::DataUnreadable) }.page(*page);
            self.find(finding.detail(format!("bytes {offset} to {last}: {}", why.0)))?;
        }
        Ok(())
    }
}

/// The pages of a class's piece that may be mapped: from, and one past the last, counted from the piece's begin.
fn owned_pages(inode: &Inode, class: usize) -> (u64, u64) {
    let pages = match inode.kind {
        Kind::File | Kind::Rows | Kind::Dir => inode.size.div_ceil(PAGE as u64),
        Kind::Symlink if inode.inline != layout::inode::Inline::Symlink => 1,
        _ => 0,
    };
    let (start, end) = class_range(class);
    ((start >> PAGE_SHIFT).min(pages), pages.min(end >> PAGE_SHIFT))
}
