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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Owner, owner};
    use crate::inode::{Ino, Kind, WINDOW_LIMITS};
    use crate::page_store::Timespec;

    fn inode(ino: u64, windows: [u32; 3]) -> Inode {
        Inode { windows, ..Inode::new(Ino(ino), 1, Kind::File, 0, Timespec::default()) }
    }

    #[test]
    fn bytes_stand_where_the_format_says() {
        let inode = inode(5, [7, 8, 9]);
        let run = |byte, len_bytes| Some(Run { byte, len_bytes });
        assert_eq!(map(&inode, 0), run((1 << 57) + (5 << 20), 1 << 20));
        assert_eq!(map(&inode, (1 << 20) - 1), run((1 << 57) + (6 << 20) - 1, 1));
        assert_eq!(map(&inode, 1 << 20), run((1 << 58) + (6 << 30) + (1 << 20), (1 << 30) - (1 << 20)));
        assert_eq!(map(&inode, 1 << 30), run((1 << 60) + (7 << 40) + (1 << 30), (1 << 40) - (1 << 30)));
        assert_eq!(map(&inode, 1 << 40), run((1 << 59) + (8 << 48) + (1 << 40), (1 << 48) - (1 << 40)));
        assert_eq!(map(&inode, 1 << 48), None);
        assert_eq!(map_page(&inode, u64::MAX), None);
    }

    #[test]
    fn the_last_windows_end_inside_their_regions() {
        let inode = inode((1 << 36) - 1, WINDOW_LIMITS);
        let ends = [(1 << 57) + (1 << 56), 1 << 59, 1 << 61, 1 << 60];
        for (class, end) in ends.into_iter().enumerate() {
            let last = map(&inode, class_range(class).1 - 1).expect("it has every window");
            assert_eq!((last.byte, last.len_bytes), (end - 1, 1));
            assert_eq!(owner(PageNo::containing(last.byte)), Owner::Mounter);
        }
    }

    #[test]
    fn classes_agree_with_their_ranges() {
        for class in 0..CLASSES {
            let (start, end) = class_range(class);
            assert_eq!((class_of(start), class_of(end - 1)), (class, class));
        }
    }

    #[test]
    fn only_whole_pages_inside_a_range_are_named() {
        let inode = inode(0, [1, 0, 0]);
        let pages =
            |class, from, to| class_pages(&inode, class, from, to).map(|r| (r.first.0 - (1 << 45), r.count));
        assert_eq!(pages(0, 0, 4096), Some((0, 1)));
        assert_eq!(pages(0, 1, 8192), Some((1, 1)));
        assert_eq!(pages(0, 1, 8191), None);
        assert_eq!(pages(0, 0, MAX_FILE_BYTES), Some((0, 256)));
        assert_eq!(pages(2, 0, MAX_FILE_BYTES), None, "it has no such window");
        assert_eq!(pages(0, u64::MAX - 5, u64::MAX), None);
    }
}
