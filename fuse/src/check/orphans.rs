//! Pass 4: the list of inodes without names (FORMAT.md section 5.7), both ways. An intact list is left to the next mount;
//! what a broken one should hold is freed here.

use super::context::Check;
use super::finding::{Code, Finding};
use super::pool::Run;

impl Check<'_> {
    /// The whole pass.
    pub(super) fn pass_orphans(&mut self) -> Run<()> {
        if !self.orphans_broken
            && let Some(finding) = self.orphan_list()?
        {
            self.find(finding)?;
            self.orphans_broken = true;
        }
        if !self.orphans_broken {
            return Ok(());
        }
        let mut from = 0;
        while let Some(ino) = self.census.find(from, |census, ino, _| census.is_orphan(ino)) {
            from = ino + 1;
            self.progress(ino, self.census.end())?;
            self.free_inode(ino)?;
            self.census.set_orphan(ino, false);
        }
        if self.superblock.orphan_head != 0 {
            self.superblock.orphan_head = 0;
            self.superblock_changed = true;
        }
        Ok(())
    }

    /// What is wrong with the list.
    fn orphan_list(&mut self) -> Run<Option<Finding>> {
        let finding =
            |ino: u64, detail: &str| Ok(Some(Finding::new(Code::OrphanList).ino(ino).detail(detail)));
        let (mut before, mut ino) = (0, self.superblock.orphan_head);
        while ino != 0 {
            if !self.census.is_orphan(ino) {
                return finding(ino, "on the list, but not without links");
            }
            if self.census.is_listed(ino) {
                return finding(ino, "twice on the list");
            }
            let Some(inode) = self.inode(ino)? else { return finding(ino, "on the list, but not in use") };
            if inode.orphan_prev.0 != before {
                return Ok(finding(ino, "the one before it on the list")?
                    .map(|found| found.values(before, inode.orphan_prev.0)));
            }
            self.census.set_listed(ino);
            (before, ino) = (ino, inode.orphan_next.0);
        }
        match self.census.find(0, |census, ino, _| census.is_orphan(ino) && !census.is_listed(ino)) {
            Some(ino) => finding(ino, "without links, but not on the list"),
            None => Ok(None),
        }
    }
}
