//! Pass 8: numbers of inodes and windows (FORMAT.md section 5.6): each in use, or on exactly one free stack once, or
//! never used.

use layout::addr::{PAGE, PAGE_SHIFT, PageNo, PageRange, STACK_BASE, STACK_STRIDE};
use layout::inode::ROOT_INO;
use layout::windows::CLASSES;

use super::bits::SparseBits;
use super::census::State;
use super::context::Check;
use super::finding::{Code, Finding};
use super::mapped::Mapped;
use super::pool::Run;

/// So many lost window numbers are put on a stack again; of more than that it is only said that they are lost.
const LOST_MAX: u64 = 1 << 20;
const ENTRIES: u64 = PAGE as u64 / 8;

impl Check<'_> {
    /// The whole pass.
    pub(super) fn pass_numbers(&mut self) -> Run<()> {
        for class in 1..CLASSES {
            let end = self.windows[class - 1].end();
            let said = u64::from(self.superblock.next_window[class - 1]);
            if said < end {
                self.find(wrong_next_window(class, end, said))?;
                self.set_next_window(class, end);
            }
        }
        for class in 0..CLASSES {
            self.progress(class as u64, CLASSES as u64)?;
            self.class(class)?;
        }
        let used = self.census.used();
        if self.superblock.inodes_used != used {
            self.superblock.inodes_used = used;
            self.superblock_changed = true;
        }
        Ok(())
    }

    fn set_next_window(&mut self, class: usize, next: u64) {
        self.superblock.next_window[class - 1] = next as u32;
        self.superblock_changed = true;
        self.numbers_changed = true;
    }

    fn next_number(&self, class: usize) -> u64 {
        match class {
            0 => self.superblock.next_ino,
            _ => u64::from(self.superblock.next_window[class - 1]),
        }
    }

    fn is_free(&self, class: usize, number: u64) -> bool {
        match class {
            0 => number > ROOT_INO.0 && self.census.state(number) == State::Free,
            _ => number < self.next_number(class) && self.windows[class - 1].owner(number).is_none(),
        }
    }

    fn class(&mut self, class: usize) -> Run<()> {
        let mut stacked = SparseBits::default();
        let mut rebuild = self.numbers_changed;
        if !rebuild {
            for stack in [2 * class, 2 * class + 1] {
                if let Some(finding) = self.stack(class, stack, &mut stacked)? {
                    let detail = format!("stack {stack}: {}", finding.detail);
                    self.find(finding.detail(detail))?;
                    rebuild = true;
                    break;
                }
            }
        }
        if !rebuild {
            let lost = match class {
                0 => self.census.free_from_above().find(|ino| !stacked.contains(*ino)).map_or(0, |_| 1),
                _ => self.next_number(class) - self.windows[class - 1].owned() - stacked.count(),
            };
            if lost > LOST_MAX && self.windows[class - 1].end() + LOST_MAX < self.next_number(class) {
                let (end, said) = (self.windows[class - 1].end(), self.next_number(class));
                self.find(wrong_next_window(class, end, said))?;
                rebuild = true;
            } else if lost > LOST_MAX {
                let detail = format!("{lost} windows of class {class}");
                self.find(Finding::new(Code::NumberGap).detail(detail))?;
            } else if lost > 0 {
                self.find(Finding::new(Code::NumberLost).detail(format!("class {class}")))?;
                rebuild = true;
            }
        }
        if rebuild { self.rebuild_stacks(class) } else { Ok(()) }
    }

    /// Looks through a stack; what is wrong with it.
    fn stack(&mut self, class: usize, stack: usize, stacked: &mut SparseBits) -> Run<Option<Finding>> {
        let depth = self.superblock.stack_depth[stack];
        let finding = Finding::new(Code::StackEntry);
        if depth > self.next_number(class) {
            return Ok(Some(
                finding
                    .page(0)
                    .values(self.next_number(class), depth)
                    .detail("deeper than there are numbers"),
            ));
        }
        let first = stack_page(stack);
        let pages = depth.div_ceil(ENTRIES);
        let mut at = first;
        let mut cursor = Mapped::new(first, first + pages);
        loop {
            let run = self.pool.next_mapped(&mut cursor)?;
            let (from, to) = run.unwrap_or((first + pages, first + pages));
            // A page of zeros need not be mapped. More than one zero is wrong in any case.
            for _ in at * ENTRIES..(from * ENTRIES).min(first * ENTRIES + depth).min(at * ENTRIES + 2) {
                if !self.is_free(class, 0) || !stacked.insert(0) {
                    return Ok(Some(finding.page(at).detail("a page that is not mapped")));
                }
            }
            for page in from..to {
                let bytes = match self.pool.read_on(PageNo(page), PageNo(to))? {
                    Ok(bytes) => bytes,
                    Err(why) => return Ok(Some(finding.page(page).detail(why.0))),
                };
                let count = (depth - (page - first) * ENTRIES).min(ENTRIES) as usize;
                for entry in bytes.as_chunks::<8>().0.iter().take(count) {
                    let number = u64::from_le_bytes(*entry);
                    if !self.is_free(class, number) || !stacked.insert(number) {
                        let detail = "a number that is not free, or stands twice";
                        return Ok(Some(
                            finding.page(page).values(self.next_number(class), number).detail(detail),
                        ));
                    }
                }
            }
            at = to;
            if run.is_none() {
                return Ok(None);
            }
        }
    }

    /// Puts every free number of a class on the stack that this commit pushes on, so that none is taken before it.
    fn rebuild_stacks(&mut self, class: usize) -> Run<()> {
        if class > 0 && self.next_number(class) - self.windows[class - 1].owned() > LOST_MAX {
            // Numbers behind the last one in use need not be free: they are as good as never used.
            let end = self.windows[class - 1].end();
            self.set_next_window(class, end);
        }
        let push = 2 * class + ((self.superblock.epoch.wrapping_add(1)) & 1) as usize;
        let pop = push ^ 1;
        let (mut page, mut depth) = ([0; PAGE], 0);
        let mut numbers: Box<dyn Iterator<Item = u64>> = match class {
            0 => Box::new(self.census.free_from_above().filter(|ino| *ino > ROOT_INO.0)),
            _ if self.next_number(class) - self.windows[class - 1].owned() > LOST_MAX => {
                Box::new(std::iter::empty())
            }
            _ => {
                let windows = &self.windows[class - 1];
                Box::new((0..self.next_number(class)).rev().filter(|window| windows.owner(*window).is_none()))
            }
        };
        let mut pages = 0;
        loop {
            let next = numbers.next();
            if next.is_none() || depth % ENTRIES == 0 && depth > 0 {
                if depth > 0 {
                    self.pool.write(PageNo(stack_page(push) + (depth - 1) / ENTRIES), &page)?;
                    pages = depth.div_ceil(ENTRIES);
                }
                page = [0; PAGE];
            }
            let Some(number) = next else { break };
            let at = (depth % ENTRIES * 8) as usize;
            page[at..at + 8].copy_from_slice(&number.to_le_bytes());
            depth += 1;
        }
        drop(numbers);
        for (stack, kept) in [(push, pages), (pop, 0)] {
            let first = PageNo(stack_page(stack) + kept);
            self.pool.free(PageRange { first, count: (STACK_STRIDE >> PAGE_SHIFT) - kept })?;
        }
        self.superblock.stack_depth[push] = depth;
        self.superblock.stack_depth[pop] = 0;
        self.superblock_changed = true;
        Ok(())
    }
}

fn stack_page(stack: usize) -> u64 {
    (STACK_BASE + stack as u64 * STACK_STRIDE) >> PAGE_SHIFT
}

/// The superblock counts other windows of a class as used than there are.
fn wrong_next_window(class: usize, end: u64, said: u64) -> Finding {
    Finding::new(Code::SbNextWindow).page(0).values(end, said).detail(format!("class {class}"))
}
