//! What a page of a VexFS volume is, for people: from its address alone where that says it (FORMAT.md section 2),
//! else by asking the inode table.

use std::collections::BTreeMap;

use layout::addr::{
    CLASS0_BASE, CLASS1_BASE, CLASS2_BASE, CLASS3_BASE, COMMAND_PAGE, INDEX_BASE, INODE_BASE, INODE_BYTES,
    MAP_BASE, MAP_UNIT_PAGES, PAGE, PageNo, STACK_BASE, STACK_STRIDE, STATUS_PAGE, SUPERBLOCK_PAGE,
    XATTR_BASE, XATTR_BYTES,
};
use layout::inode::{self, INODES_PER_PAGE, Ino, Slot};

use crate::buf::AlignedBuf;
use crate::store::Shared;

/// Pages of the inode table read at once.
const READ_PAGES: u64 = 64;

/// What a device page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PageName {
    Superblock,
    Status,
    Command,
    FreeStack {
        number: u64,
        first_entry: u64,
    },
    Inodes {
        first: u64,
    },
    Xattrs {
        ino: u64,
    },
    /// A file's bytes; the number of the inode is in the address.
    Data {
        ino: u64,
        first_byte: u64,
    },
    /// A file's bytes in a window of class 1, 2 or 3; the inode names the window.
    Window {
        class: u8,
        window: u32,
        first_byte: u64,
    },
    Index,
    AllocationMap,
    Nothing,
}

impl PageName {
    pub(super) fn of(page: PageNo) -> Self {
        let byte = page.byte();
        let window = |class: u8, base: u64, shift: u32| PageName::Window {
            class,
            window: ((byte - base) >> shift) as u32,
            first_byte: (byte - base) & ((1 << shift) - 1),
        };
        match byte {
            _ if page == SUPERBLOCK_PAGE => PageName::Superblock,
            _ if page == STATUS_PAGE => PageName::Status,
            _ if page == COMMAND_PAGE => PageName::Command,
            MAP_BASE.. => PageName::AllocationMap,
            INDEX_BASE.. => PageName::Index,
            CLASS2_BASE.. => window(2, CLASS2_BASE, 40),
            CLASS3_BASE.. => window(3, CLASS3_BASE, 48),
            CLASS1_BASE.. => window(1, CLASS1_BASE, 30),
            CLASS0_BASE.. => {
                let at = byte - CLASS0_BASE;
                PageName::Data { ino: at >> 20, first_byte: at & ((1 << 20) - 1) }
            }
            XATTR_BASE.. => PageName::Xattrs { ino: (byte - XATTR_BASE) / XATTR_BYTES },
            INODE_BASE.. => PageName::Inodes { first: (byte - INODE_BASE) / INODE_BYTES },
            STACK_BASE.. => {
                let at = byte - STACK_BASE;
                PageName::FreeStack { number: at / STACK_STRIDE, first_entry: at % STACK_STRIDE / 8 }
            }
            _ => PageName::Nothing,
        }
    }
}

impl std::fmt::Display for PageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = |first: u64| format!("file bytes {first} to {}", first + PAGE as u64 - 1);
        match *self {
            PageName::Superblock => write!(f, "the file system's superblock"),
            PageName::Status => write!(f, "the status page"),
            PageName::Command => write!(f, "the command page"),
            PageName::FreeStack { number, first_entry } => {
                write!(f, "free stack {number}, entries from {first_entry} on")
            }
            PageName::Inodes { first } => {
                write!(f, "inode table, inodes {first} to {}", first + INODES_PER_PAGE as u64 - 1)
            }
            PageName::Xattrs { ino } => write!(f, "inode {ino}, extended attributes"),
            PageName::Data { ino, first_byte } => write!(f, "inode {ino}, {}", bytes(first_byte)),
            PageName::Window { class, window, first_byte } => {
                write!(f, "window {window} of data class {class}, {}", bytes(first_byte))
            }
            PageName::Index => write!(f, "index region"),
            PageName::AllocationMap => write!(f, "allocation map"),
            PageName::Nothing => write!(f, "outside every region"),
        }
    }
}

/// Names for device pages of a VexFS volume, in their order. The inode table is read if windows are among them; parts
/// of it that are bad themselves are passed over.
pub(super) fn names(store: &Shared, pages: &[u64]) -> Vec<String> {
    let names: Vec<PageName> = pages.iter().map(|&page| PageName::of(PageNo(page))).collect();
    let mut owners: BTreeMap<(u8, u32), Option<u64>> = BTreeMap::new();
    for name in &names {
        if let PageName::Window { class, window, .. } = *name {
            owners.insert((class, window), None);
        }
    }
    if !owners.is_empty() {
        find_owners(store, &mut owners);
    }
    let resolve = |name: PageName| match name {
        PageName::Window { class, window, first_byte } => {
            match owners.get(&(class, window)).copied().flatten() {
                Some(ino) => PageName::Data { ino, first_byte },
                None => name,
            }
        }
        name => name,
    };
    names.into_iter().map(|name| resolve(name).to_string()).collect()
}

/// Finds the inodes that name these windows.
fn find_owners(store: &Shared, owners: &mut BTreeMap<(u8, u32), Option<u64>>) {
    let (table, end) = (INODE_BASE / PAGE as u64, (INODE_BASE << 1) / PAGE as u64);
    let mut unit_page = table;
    let mut buf = AlignedBuf::zeroed(READ_PAGES as usize * PAGE);
    loop {
        let next = {
            let maps = store.maps.read();
            let base = maps.base.units_between(unit_page, end).next();
            let overlay = maps.overlay.units_in(unit_page / MAP_UNIT_PAGES..end / MAP_UNIT_PAGES).next();
            base.into_iter().chain(overlay).min()
        };
        let Some(unit) = next else { return };
        unit_page = (unit + 1) * MAP_UNIT_PAGES;
        for first in (unit * MAP_UNIT_PAGES..unit_page).step_by(READ_PAGES as usize) {
            if store.read_run(first, &mut buf).is_ok() {
                look_into(first, &buf, owners);
                continue;
            }
            for (i, page) in (first..).zip(buf.chunks_exact_mut(PAGE)) {
                if store.read_run(i, page).is_ok() {
                    look_into(i, page, owners);
                }
            }
        }
    }
}

/// Takes the windows of the inodes in some pages of the table.
fn look_into(first_page: u64, bytes: &[u8], owners: &mut BTreeMap<(u8, u32), Option<u64>>) {
    for (page, bytes) in (first_page..).zip(bytes.chunks_exact(PAGE)) {
        let Ok(bytes) = bytes.try_into() else { continue };
        let first_ino = (page * PAGE as u64 - INODE_BASE) / INODE_BYTES;
        for ino in (first_ino..first_ino + INODES_PER_PAGE as u64).map(Ino) {
            let Ok(Slot::Used(inode)) = inode::slot(bytes, ino).decode(PageNo(page), ino) else { continue };
            for (class, &window) in (1u8..).zip(&inode.windows) {
                if let Some(window) = window.checked_sub(1)
                    && let Some(owner) = owners.get_mut(&(class, window))
                {
                    *owner = Some(ino.0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use layout::inode::{Inode, Kind};
    use layout::page_store::Timespec;
    use layout::windows;

    use super::*;

    #[test]
    fn names_are_the_inverse_of_the_layouts_arithmetic() {
        let inode = Inode { windows: [7, 8, 9], ..Inode::new(Ino(5), 1, Kind::File, 0, Timespec::default()) };
        for (offset, class) in [(0, 0), (0xf_f000, 0), (1 << 20, 1), ((1 << 30) + 4096, 2), (1 << 40, 3)] {
            let page = windows::map_page(&inode, offset / PAGE as u64).expect("it has every window");
            let name = PageName::of(page);
            match class {
                0 => assert_eq!(name, PageName::Data { ino: 5, first_byte: offset }),
                _ => {
                    let window = inode.windows[class as usize - 1] - 1;
                    assert_eq!(name, PageName::Window { class, window, first_byte: offset });
                }
            }
        }
        let table = Ino(1000).page().expect("inside");
        assert_eq!(PageName::of(table), PageName::Inodes { first: 1000 });
        assert_eq!(
            PageName::of(PageNo::containing(XATTR_BASE + 77 * XATTR_BYTES)),
            PageName::Xattrs { ino: 77 }
        );
        let stack = PageNo::containing(STACK_BASE + 3 * STACK_STRIDE + 4096);
        assert_eq!(PageName::of(stack), PageName::FreeStack { number: 3, first_entry: 512 });
        assert_eq!(PageName::of(SUPERBLOCK_PAGE), PageName::Superblock);
        assert_eq!(PageName::of(PageNo(3)), PageName::Nothing);
        assert_eq!(PageName::of(PageNo::containing(MAP_BASE)), PageName::AllocationMap);
    }
}
