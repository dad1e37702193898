//! Pass 6: the inode table once more, in order: link counts and places against the names that were found, and the
//! chains of rows.

use layout::inode::{Ino, Inode, Kind, ROOT_INO};
use layout::rows::{headers, headers_mut};
use layout::schema::CHUNK_ROWS;

use super::census::State;
use super::context::Check;
use super::finding::{Code, Finding};
use super::pool::Run;
use super::rows::row_page;

impl Check<'_> {
    /// The whole pass.
    pub(super) fn pass_links(&mut self) -> Run<()> {
        let mut from = ROOT_INO.0;
        while let Some(ino) = self.census.find(from, |_, _, state| matches!(state, State::Used(_))) {
            from = ino + 1;
            self.progress(ino, self.census.end())?;
            if let Some(inode) = self.inode_in_order(ino)? {
                self.links_of(inode)?;
            }
        }
        Ok(())
    }

    fn links_of(&mut self, mut inode: Inode) -> Run<()> {
        let ino = inode.ino.0;
        let before = inode;
        let found = self.census.links(ino);
        let expected = match inode.kind {
            Kind::Rows => 1,
            _ if self.census.is_orphan(ino) => 0,
            Kind::Dir => found.saturating_add(2),
            _ => found,
        };
        if inode.nlink != expected {
            self.find(Finding::new(Code::InodeLinks).ino(ino).values(expected.into(), inode.nlink.into()))?;
            inode.nlink = expected;
        }
        let has_place = inode.place_dir.0 != 0 || inode.place_key != 0;
        if has_place
            && !self.census.is_placed(ino)
            && (inode.kind != Kind::Dir || ino == ROOT_INO.0 || expected == 0)
        {
            self.find(
                Finding::new(Code::InodePlace).ino(ino).detail(format!("in directory {}", inode.place_dir.0)),
            )?;
            (inode.place_dir, inode.place_key) = (Ino(0), 0);
        }
        if inode.kind == Kind::File && inode.rows_ino.0 != 0 {
            self.chain(&mut inode)?;
        }
        if inode != before {
            self.put_inode(&inode)?;
        }
        Ok(())
    }

    /// Follows the chain of a file's rows. A rows file that is gone, or a first row of another file, is no fault: the
    /// file outlived its collection (FORMAT.md section 6.3).
    fn chain(&mut self, inode: &mut Inode) -> Run<()> {
        let Some(mut rows) = self.rows.remove(&inode.rows_ino.0) else { return Ok(()) };
        let mut next = inode.first_row.checked_sub(1);
        let mut last_good = None;
        let mut good: u32 = 0;
        while let Some(row) = next.filter(|row| *row < rows.header.next_row && good < u32::MAX) {
            let Some(page) = row_page(&rows, row / CHUNK_ROWS) else { break };
            let Ok(bytes) = self.pool.read(page)? else { break };
            let found = headers(&bytes)[(row % CHUNK_ROWS) as usize].decode(page);
            let Ok(Some(found)) = found else { break };
            if found.ino != inode.ino || found.generation != inode.generation || !rows.chained.insert(row) {
                break;
            }
            (last_good, next) = (Some((row, found)), found.next);
            good += 1;
        }
        if let Some((row, found)) = last_good
            && (good != inode.row_count || next.is_some())
        {
            self.find(
                Finding::new(Code::RowChain).ino(inode.ino.0).values(inode.row_count.into(), good.into()),
            )?;
            inode.row_count = good;
            if next.is_some()
                && let Some(page) = row_page(&rows, row / CHUNK_ROWS)
                && let Ok(bytes) = self.pool.read(page)?
            {
                let mut bytes = **bytes;
                let cut = layout::rows::Row { next: None, ..found };
                headers_mut(&mut bytes)[(row % CHUNK_ROWS) as usize] = layout::rows::RawRow::live(&cut);
                self.pool.write(page, &bytes)?;
            }
        }
        self.rows.insert(inode.rows_ino.0, rows);
        Ok(())
    }
}
