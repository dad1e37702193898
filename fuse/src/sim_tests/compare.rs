//! Everything that the mount shows, against the tree.

use std::collections::{BTreeMap, BTreeSet};

use layout::addr::PAGE;
use layout::error::{Error, Result};
use layout::fs::{Ino, Inode};
use layout::inode::Kind;
use layout::testing::model::Node;

use super::world::World;
use crate::mount::{Mounted, Seek};
use crate::session::FsAccess;

const ZEROS: [u8; PAGE] = [0; PAGE];

impl World {
    /// # Panics
    /// Where the mount shows something else, or fails for no reason.
    pub(super) fn compare(&mut self) {
        self.catch_up();
        if let Err(error) = self.differences() {
            assert!(self.is_explained(error), "a comparison: {error}");
        }
    }

    fn differences(&self) -> Result<()> {
        let used = FsAccess::read(&self.mounted, |fs| fs.superblock().inodes_used);
        // Rows files are inodes too.
        assert_eq!(used, (self.tree.names.nodes.len() + self.tree.rows.len()) as u64, "inodes in use");
        for (ino, node) in &self.tree.names.nodes {
            self.compare_node(*ino, node)?;
        }
        self.compare_rows()
    }

    fn compare_node(&self, ino: Ino, node: &Node) -> Result<()> {
        let inode = self.mounted.inode(ino).inspect_err(|e| {
            assert!(*e != Error::NotFound, "inode {} is gone", ino.0);
        })?;
        let times = [inode.atime, inode.mtime, inode.ctime, inode.btime];
        assert_eq!(
            (inode.kind, inode.perm, inode.nlink, inode.uid, inode.gid, inode.rdev, times),
            (node.kind, node.perm, node.nlink, node.uid, node.gid, node.rdev, node.times),
            "attributes of {}",
            ino.0
        );
        let mut xattrs = BTreeMap::new();
        for name in self.mounted.listxattr(ino, true)?.split(|b| *b == 0).filter(|name| !name.is_empty()) {
            // Rows, as they travel with copies: compared elsewhere.
            if name.starts_with(b"user.vexfs.") {
                continue;
            }
            xattrs.insert(name.to_vec(), self.mounted.getxattr(ino, name)?);
        }
        assert!(xattrs == node.xattrs, "xattrs of {}", ino.0);
        match node.kind {
            Kind::Dir => self.compare_dir(ino, node),
            Kind::Symlink => {
                assert!(self.mounted.readlink(ino)? == node.target, "target of {}", ino.0);
                Ok(())
            }
            Kind::File => self.compare_bytes(&inode, node),
            _ => Ok(()),
        }
    }

    fn compare_dir(&self, dir: Ino, node: &Node) -> Result<()> {
        let mut listed = BTreeMap::new();
        self.mounted.readdir(dir, 0, true, &mut |entry, _| {
            if entry.cookie >= 16 {
                listed.insert(entry.name.to_vec(), entry.ino);
            } else if entry.name == b".." && node.nlink > 0 {
                assert_eq!(entry.ino, node.parent, "parent of {}", dir.0);
            }
            true
        })?;
        assert_eq!(listed, node.children, "names in {}", dir.0);
        for (name, ino) in &node.children {
            assert_eq!(self.mounted.lookup(dir, name)?.ino, *ino);
        }
        Ok(())
    }

    /// The pages that were written and those beside them; the size; and that no data counts as a hole.
    fn compare_bytes(&self, inode: &Inode, node: &Node) -> Result<()> {
        assert_eq!(inode.size, node.size, "size of {}", inode.ino.0);
        let last = node.size.div_ceil(PAGE as u64);
        let beside = |i: &u64| [i.saturating_sub(1), *i, i + 1];
        let wanted: BTreeSet<u64> = node.pages.keys().flat_map(beside).filter(|i| *i < last).collect();
        for index in wanted {
            let offset = index * PAGE as u64;
            let expected = node.pages.get(&index).map_or(&ZEROS, |page| &**page);
            let len = (node.size - offset).min(PAGE as u64) as usize;
            let found = Mounted::read(&self.mounted, inode.ino, offset, PAGE)?;
            assert!(
                *found == expected[..len],
                "page {index} of {}: {:?} and so on, expected {:?}",
                inode.ino.0,
                &found[..found.len().min(8)],
                &expected[..8]
            );
            if expected != &ZEROS {
                let data = self.mounted.seek(inode.ino, offset, Seek::Data)?;
                assert_eq!(data, Some(offset), "page {index} of {} counts as a hole", inode.ino.0);
            }
        }
        // In one piece too, as far as it is short.
        let len = node.size.min(120_000) as usize;
        let found = Mounted::read(&self.mounted, inode.ino, 0, len)?;
        let mut expected = vec![0; len.next_multiple_of(PAGE)];
        for (index, page) in node.pages.range(..(len.div_ceil(PAGE)) as u64) {
            let at = *index as usize * PAGE;
            expected[at..at + PAGE].copy_from_slice(&page[..]);
        }
        assert!(*found == expected[..len], "the first {len} bytes of {}", inode.ino.0);
        Ok(())
    }
}
