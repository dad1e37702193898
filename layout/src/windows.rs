//! Where a file's byte stands on the device: data classes and windows (FORMAT.md section 2).

use crate::addr::{CLASS0_BASE, CLASS1_BASE, CLASS2_BASE, CLASS3_BASE, PAGE, PageNo, PageRange};
use crate::inode::{Inode, MAX_FILE_BYTES};

/// Data classes of a file; class 0 needs no window.
pub const CLASSES: usize = 4;

/// A contiguous run of device bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Device address of the first byte.
    pub byte: u64,
    /// Bytes to the end of the contiguous run (not cut at the file's size).
    pub len_bytes: u64,
}

/// File bytes [start, end) of a class.
pub const fn class_range(class: usize) -> (u64, u64) {
    match class {
        0 => (0, 1 << 20),
        1 => (1 << 20, 1 << 30),
        2 => (1 << 30, 1 << 40),
        _ => (1 << 40, MAX_FILE_BYTES),
    }
}

/// The class of a file offset below [`MAX_FILE_BYTES`].
pub const fn class_of(offset: u64) -> usize {
    match offset {
        0..0x10_0000 => 0,
        0x10_0000..0x4000_0000 => 1,
        0x4000_0000..0x100_0000_0000 => 2,
        _ => 3,
    }
}

/// Device address where file byte 0 of the class's window would stand; none without a window.
fn window_base(inode: &Inode, class: usize) -> Option<u64> {
    let window = |i: usize| inode.windows.get(i).and_then(|w| w.checked_sub(1)).map(u64::from);
    Some(match class {
        0 => CLASS0_BASE + (inode.ino.0 << 20),
        1 => CLASS1_BASE + (window(0)? << 30),
        2 => CLASS2_BASE + (window(1)? << 40),
        3 => CLASS3_BASE + (window(2)? << 48),
        _ => return None,
    })
}

/// Where a file byte stands; none if its window is not allocated (a hole) or past every file.
pub fn map(inode: &Inode, offset: u64) -> Option<Run> {
    if offset >= MAX_FILE_BYTES {
        return None;
    }
    let class = class_of(offset);
    let base = window_base(inode, class)?;
    Some(Run { byte: base + offset, len_bytes: class_range(class).1 - offset })
}

/// The device page of a file's page; none as [`map`].
pub fn map_page(inode: &Inode, index: u64) -> Option<PageNo> {
    map(inode, index.checked_mul(PAGE as u64)?).map(|run| PageNo::containing(run.byte))
}

/// The whole pages of one class that hold file bytes of [from, to); none if there are none.
/// Up to 2^36 pages.
pub fn class_pages(inode: &Inode, class: usize, from: u64, to: u64) -> Option<PageRange> {
    let (start, end) = class_range(class);
    let from = from.max(start).checked_next_multiple_of(PAGE as u64)?;
    let to = to.min(end) / PAGE as u64 * PAGE as u64;
    if from >= to {
        return None;
    }
    let base = window_base(inode, class)?;
    Some(PageRange { first: PageNo::containing(base + from), count: (to - from) / PAGE as u64 })
}
