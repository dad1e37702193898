//! A whole-volume check for tests: every rule of FORMAT.md section 5 that joins several structures, and
//! that nothing mapped is left without an owner.

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec::Vec;

use super::MemStore;
use crate::acl::{ACL_BYTES_MAX, Acl, AclKind};
use crate::addr::{
    CLASS0_BASE, CLASS1_BASE, CLASS2_BASE, CLASS3_BASE, DEVICE_BYTES, INODE_BASE, INODE_BYTES, PAGE, PageNo,
    STACK_BASE, STACK_STRIDE, XATTR_BASE, XATTR_BYTES,
};
use crate::dir::branch::Branch;
use crate::dir::page::{self, DirPlace, LEVEL_FREE};
use crate::error::Error;
use crate::fs::Fs;
use crate::inode::{Ino, Inode, InodeFlags, Kind, ROOT_INO, Slot};
use crate::superblock::INCOMPAT_ACL;
use crate::windows::map_page;

type Check<T> = Result<T, String>;

macro_rules! ensure {
    ($holds:expr, $($message:tt)*) => {
        if !$holds {
            return Err(format!($($message)*));
        }
    };
}

/// Checks the whole volume as it is now (the open epoch included).
///
/// # Errors
/// A sentence on the first rule found broken.
pub fn check(fs: &Fs<MemStore>) -> Check<()> {
    let mut inodes = BTreeMap::new();
    let mut free = BTreeSet::new();
    for number in ROOT_INO.0..fs.superblock().next_ino {
        match fs.read_slot(Ino(number)).map_err(|e| format!("inode {number}: {e}"))? {
            Slot::Used(inode) => {
                inodes.insert(number, inode);
            }
            Slot::Free(_) => {
                free.insert(number);
            }
            Slot::NeverUsed => return Err(format!("inode {number} below next_ino was never used")),
        }
    }
    let used = fs.superblock().inodes_used;
    ensure!(used == inodes.len() as u64, "inodes in use: {used} said, {} found", inodes.len());
    check_stacks(fs, &inodes, &free)?;
    check_names(fs, &inodes)?;
    check_acls(fs, &inodes)?;
    check_orphans(fs, &inodes)?;
    check_mapped(fs, &inodes)
}

fn stack(fs: &Fs<MemStore>, stack: usize) -> Vec<u64> {
    let depth = fs.superblock().stack_depth[stack];
    let entry = |d: u64| {
        let byte = STACK_BASE + stack as u64 * STACK_STRIDE + d * 8;
        let page = fs.store().get(PageNo::containing(byte));
        let at = (byte % PAGE as u64) as usize;
        u64::from_le_bytes(*page[at..].first_chunk().expect("entries do not cross pages"))
    };
    (0..depth).map(entry).collect()
}

/// Each number is in use, on one free stack, or was never used.
fn check_stacks(fs: &Fs<MemStore>, inodes: &BTreeMap<u64, Inode>, free: &BTreeSet<u64>) -> Check<()> {
    for class in 0..4 {
        let stacked: Vec<u64> = [stack(fs, 2 * class), stack(fs, 2 * class + 1)].concat();
        let set: BTreeSet<u64> = stacked.iter().copied().collect();
        ensure!(set.len() == stacked.len(), "class {class}: a number is on the free stacks twice");
        if class == 0 {
            ensure!(set == *free, "free inodes {free:?}, but stacked are {set:?}");
            continue;
        }
        let owned: Vec<u64> =
            inodes.values().filter_map(|i| i.windows[class - 1].checked_sub(1)).map(u64::from).collect();
        let mut all: BTreeSet<u64> = owned.iter().copied().collect();
        ensure!(all.len() == owned.len(), "class {class}: a window has two owners");
        ensure!(all.is_disjoint(&set), "class {class}: a window is owned and free");
        all.extend(&set);
        let next = u64::from(fs.superblock().next_window[class - 1]);
        ensure!(all == (0..next).collect(), "class {class}: windows {all:?} of {next} accounted for");
    }
    Ok(())
}

/// Walks the tree of names: link counts, entry counts, kinds, places, and each inode reachable.
fn check_names(fs: &Fs<MemStore>, inodes: &BTreeMap<u64, Inode>) -> Check<()> {
    let mut links: BTreeMap<u64, u32> = BTreeMap::new();
    let mut names: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let mut todo = Vec::from([ROOT_INO.0]);
    while let Some(dir) = todo.pop() {
        let inode = inodes.get(&dir).ok_or_else(|| format!("directory {dir} is not in use"))?;
        check_tree(fs, inode)?;
        let (mut entries, mut subdirs) = (0, 0);
        let mut problem = None;
        let listed = fs.readdir(Ino(dir), 2, &mut |entry| {
            entries += 1;
            *links.entry(entry.ino.0).or_default() += 1;
            names.insert((dir, entry.cookie), entry.ino.0);
            if entry.kind == Kind::Dir {
                subdirs += 1;
                todo.push(entry.ino.0);
            }
            if inodes.get(&entry.ino.0).is_none_or(|i| i.kind != entry.kind) {
                problem = Some(entry.ino);
            }
            true
        });
        listed.map_err(|e| format!("directory {dir}: {e}"))?;
        ensure!(problem.is_none(), "directory {dir}: entry of {problem:?} with another kind, or dangling");
        ensure!(inode.entries == entries, "directory {dir}: {} entries said, {entries} found", inode.entries);
        ensure!(
            inode.nlink == 2 + subdirs,
            "directory {dir}: nlink {}, {subdirs} subdirectories",
            inode.nlink
        );
    }
    for (number, inode) in inodes {
        let found = links.get(number).copied().unwrap_or(0);
        let expected = match inode.kind {
            Kind::Rows => 0,
            Kind::Dir => u32::from(*number != ROOT_INO.0 && inode.nlink > 0),
            _ => inode.nlink,
        };
        ensure!(found == expected, "inode {number}: {expected} links said, {found} found");
        if inode.place_dir.0 != 0 {
            let at = names.get(&(inode.place_dir.0, inode.place_key));
            ensure!(at == Some(number), "inode {number}: its place names {at:?}");
        } else if inode.kind == Kind::Dir && inode.nlink > 0 {
            ensure!(*number == ROOT_INO.0, "directory {number} without a place");
        }
    }
    Ok(())
}

/// Each page of a directory is in the tree once or on the free list once; leaves are chained in order.
fn check_tree(fs: &Fs<MemStore>, dir: &Inode) -> Check<()> {
    if dir.size == 0 {
        return Ok(());
    }
    let mut seen = BTreeSet::new();
    let mut leaves = Vec::new();
    let read = |index: u32| -> Check<_> {
        let page =
            map_page(dir, u64::from(index)).ok_or_else(|| format!("no page {index} of {}", dir.ino.0))?;
        let bytes = fs.store().get(page);
        let header =
            page::check(&bytes, DirPlace { page, dir: dir.ino, index }).map_err(|e| format!("{e}"))?;
        Ok((page, bytes, header))
    };
    let mut todo = Vec::from([0]);
    while let Some(index) = todo.pop() {
        ensure!(seen.insert(index), "directory {}: page {index} twice in the tree", dir.ino.0);
        let (page, bytes, header) = read(index)?;
        if header.level == 0 {
            leaves.push((index, header.next));
            continue;
        }
        ensure!(header.count > 1 || index != 0, "directory {}: a root with one child", dir.ino.0);
        let branch = Branch::new(&bytes, page, header.count);
        for i in (0..header.count).rev() {
            todo.push(branch.child(i).map_err(|e| format!("{e}"))?.index);
        }
    }
    for pair in leaves.windows(2) {
        ensure!(
            pair[0].1 == pair[1].0,
            "directory {}: leaf {} has sibling {}",
            dir.ino.0,
            pair[0].0,
            pair[0].1
        );
    }
    ensure!(leaves.last().is_none_or(|l| l.1 == 0), "directory {}: the last leaf has a sibling", dir.ino.0);
    let root = read(0)?.2;
    let mut index = root.free_head;
    while index != 0 {
        ensure!(seen.insert(index), "directory {}: free page {index} in use or twice", dir.ino.0);
        let header = read(index)?.2;
        ensure!(header.level == LEVEL_FREE, "directory {}: page {index} on the free list", dir.ino.0);
        index = header.next;
    }
    let used = u64::from(root.used);
    ensure!(used * PAGE as u64 == dir.size, "directory {}: size {}, used {used}", dir.ino.0, dir.size);
    ensure!(seen.len() as u64 == used, "directory {}: {} pages of {used} found", dir.ino.0, seen.len());
    Ok(())
}

/// Stored ACLs are valid, where they may be, and the mode shows an access ACL that it does not equal.
fn check_acls(fs: &Fs<MemStore>, inodes: &BTreeMap<u64, Inode>) -> Check<()> {
    for (number, inode) in inodes.iter().filter(|(_, inode)| inode.has_xattrs()) {
        for kind in [AclKind::Access, AclKind::Default] {
            let mut value = [0; ACL_BYTES_MAX];
            let len = match fs.getxattr(Ino(*number), kind.name(), &mut value) {
                Err(Error::NoAttr) => continue,
                other => other.map_err(|e| format!("inode {number}: ACL: {e}"))?,
            };
            let known = fs.superblock().incompat & INCOMPAT_ACL != 0;
            ensure!(known, "inode {number}: ACL without the superblock's bit");
            let acl = Acl::parse(&value[..len]).map_err(|e| format!("inode {number}: ACL: {e}"))?;
            let acl = acl.ok_or_else(|| format!("inode {number}: ACL without entries"))?;
            ensure!(inode.kind != Kind::Symlink, "inode {number}: ACL of a symbolic link");
            if kind == AclKind::Default {
                ensure!(inode.kind == Kind::Dir, "inode {number}: default ACL of what is no directory");
                continue;
            }
            ensure!(!acl.is_mode(), "inode {number}: the mode says all that its ACL says");
            let (shown, perm) = (acl.mode(), inode.perm & 0o777);
            ensure!(shown == perm, "inode {number}: mode {perm:o}, its ACL says {shown:o}");
        }
    }
    Ok(())
}

/// The orphan list has each inode without links once, linked both ways.
fn check_orphans(fs: &Fs<MemStore>, inodes: &BTreeMap<u64, Inode>) -> Check<()> {
    let mut listed = BTreeSet::new();
    let (mut prev, mut number) = (0, fs.superblock().orphan_head);
    while number != 0 {
        ensure!(listed.insert(number), "orphan {number} is listed twice");
        let inode = inodes.get(&number).ok_or_else(|| format!("orphan {number} is not in use"))?;
        ensure!(inode.orphan_prev.0 == prev, "orphan {number}: previous is {:?}", inode.orphan_prev);
        (prev, number) = (number, inode.orphan_next.0);
    }
    let marked: BTreeSet<u64> =
        inodes.iter().filter(|(_, i)| i.flags.contains(InodeFlags::ORPHAN)).map(|(n, _)| *n).collect();
    ensure!(listed == marked, "orphans listed {listed:?}, marked {marked:?}");
    Ok(())
}

/// Each mapped page that is not zeros belongs to something, and none of a file lies beyond its size.
fn check_mapped(fs: &Fs<MemStore>, inodes: &BTreeMap<u64, Inode>) -> Check<()> {
    let window_owner = |class: usize, window: u64| {
        inodes.values().find(|i| u64::from(i.windows[class - 1]) == window + 1).copied()
    };
    for page in fs.store().mapped() {
        if fs.store().get(page) == [0; PAGE] {
            // Left by a change that failed before it began.
            continue;
        }
        let byte = page.byte();
        let (owner, offset) = match byte {
            0 => continue,
            STACK_BASE..INODE_BASE => continue,
            INODE_BASE..XATTR_BASE => {
                let first = (byte - INODE_BASE) / INODE_BYTES;
                ensure!(first < fs.superblock().next_ino, "inode page {:#x} past next_ino", page.0);
                continue;
            }
            XATTR_BASE..CLASS0_BASE => {
                let number = (byte - XATTR_BASE) / XATTR_BYTES;
                let overflows =
                    inodes.get(&number).is_some_and(|i| i.flags.contains(InodeFlags::XATTR_OVERFLOW));
                ensure!(overflows, "xattr page {:#x} of inode {number}, which has none", page.0);
                continue;
            }
            CLASS0_BASE..CLASS1_BASE => {
                (inodes.get(&((byte - CLASS0_BASE) >> 20)).copied(), (byte - CLASS0_BASE) & ((1 << 20) - 1))
            }
            CLASS1_BASE..CLASS3_BASE => {
                (window_owner(1, (byte - CLASS1_BASE) >> 30), (byte - CLASS1_BASE) & ((1 << 30) - 1))
            }
            CLASS3_BASE..CLASS2_BASE => {
                (window_owner(3, (byte - CLASS3_BASE) >> 48), (byte - CLASS3_BASE) & ((1 << 48) - 1))
            }
            CLASS2_BASE..DEVICE_BYTES => {
                (window_owner(2, (byte - CLASS2_BASE) >> 40), (byte - CLASS2_BASE) & ((1 << 40) - 1))
            }
            _ => return Err(format!("page {:#x} is in no region", page.0)),
        };
        let owner = owner.ok_or_else(|| format!("data page {:#x} without an owner", page.0))?;
        ensure!(
            offset < owner.size || owner.kind == Kind::Rows,
            "inode {}: page at {offset} beyond its size {}",
            owner.ino.0,
            owner.size
        );
    }
    Ok(())
}
