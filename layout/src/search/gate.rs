//! Who may see a row, and whether it is alive: decided per file, remembered per query
//! (FORMAT.md sections 6.3 and 6.4).
//!
//! The gate is asked only for rows that would enter the top k, so that k *permitted* rows are
//! found at the cost of looking at the few files that matter.

use crate::access::{Access, Credentials};
use crate::cycle::Cycle;
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::inode::{Ino, Kind, ROOT_INO};
use crate::name::NAME_MAX;
use crate::page_store::PageStore;
use crate::rows::Row;

/// A remembered verdict; memory for the gate's cache.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    ino: Ino,
    generation: u32,
    /// The file may be seen, or the directory's path may be walked.
    allowed: bool,
    /// Lies at or below the scope.
    below: bool,
    data_version: u64,
    rows_ino: Ino,
}

impl Verdict {
    /// An unused place.
    pub const EMPTY: Verdict = Verdict {
        ino: Ino(0),
        generation: 0,
        allowed: false,
        below: false,
        data_version: 0,
        rows_ino: Ino(0),
    };
}

/// The gate of one query (one thread of it).
pub struct Gate<'a, P: PageStore> {
    fs: &'a Fs<P>,
    scope: Ino,
    rows_ino: Ino,
    who: Credentials<'a>,
    files: &'a mut [Verdict],
    dirs: &'a mut [Verdict],
}

impl<'a, P: PageStore> Gate<'a, P> {
    /// A gate for rows of `rows_ino` whose files lie below `scope`. `memory` is for verdicts: 64
    /// and more make it fast, none still right.
    pub fn new(
        fs: &'a Fs<P>,
        scope: Ino,
        rows_ino: Ino,
        who: Credentials<'a>,
        memory: &'a mut [Verdict],
    ) -> Self {
        memory.fill(Verdict::EMPTY);
        let (dirs, files) = memory.split_at_mut(memory.len() / 4);
        Gate { fs, scope, rows_ino, who, files, dirs }
    }

    /// The file system that it looks into.
    pub fn fs(&self) -> &'a Fs<P> {
        self.fs
    }

    /// Whether the row is alive and may be returned; if so, whether it is stale.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Io`]; what cannot be decided otherwise is not permitted.
    pub fn admit(&mut self, row: &Row) -> Result<Option<Freshness>> {
        let verdict = match recall(self.files, row.ino) {
            Some(verdict) => verdict,
            None => {
                let verdict = self.judge_file(row.ino)?;
                remember(self.files, verdict);
                verdict
            }
        };
        let alive = verdict.generation == row.generation && verdict.rows_ino == self.rows_ino;
        Ok((alive && verdict.allowed).then_some(if verdict.data_version == row.data_version {
            Freshness::Fresh
        } else {
            Freshness::Stale
        }))
    }

    fn judge_file(&mut self, ino: Ino) -> Result<Verdict> {
        let denied = Verdict { ino, ..Verdict::EMPTY };
        let inode = match self.fs.inode(ino) {
            Ok(inode) => inode,
            Err(Error::NotFound) => return Ok(denied),
            Err(error) => return Err(error),
        };
        if inode.kind != Kind::File
            || inode.nlink == 0
            || !self.fs.permits(&self.who, &inode, Access::Read)?
        {
            return Ok(denied);
        }
        let mut dir = match self.fs.place_name(&inode, &mut [0; NAME_MAX])? {
            Some((_, dir)) => self.judge_dir(dir.ino)?,
            None => denied,
        };
        // Its place is unknown, or another of its names may lie below the scope.
        if !dir.below && (dir.ino == ino || inode.nlink > 1) {
            let Some((found, _)) = self.fs.find_link(ino, self.scope)? else { return Ok(denied) };
            dir = self.judge_dir(found)?;
        }
        Ok(Verdict {
            ino,
            generation: inode.generation,
            allowed: dir.allowed && dir.below,
            below: dir.below,
            data_version: inode.data_version,
            rows_ino: inode.rows_ino,
        })
    }

    /// Climbs from a directory to the root, or to a directory with a verdict.
    fn judge_dir(&mut self, dir: Ino) -> Result<Verdict> {
        let mut verdict = Verdict { ino: dir, allowed: true, ..Verdict::EMPTY };
        let mut at = dir;
        let mut cycle = Cycle::new();
        loop {
            if let Some(known) = recall(self.dirs, at) {
                verdict.allowed &= known.allowed;
                verdict.below |= known.below;
                remember(self.dirs, verdict);
                return Ok(verdict);
            }
            verdict.below |= at == self.scope;
            let inode = match self.fs.inode(at) {
                Ok(inode) => inode,
                Err(Error::NotFound) => break,
                Err(error) => return Err(error),
            };
            verdict.allowed &=
                inode.kind == Kind::Dir && self.fs.permits(&self.who, &inode, Access::Search)?;
            if at == ROOT_INO {
                remember(self.dirs, verdict);
                return Ok(verdict);
            }
            at = inode.place_dir;
            if at.0 == 0 || cycle.closes(at.0) {
                break;
            }
        }
        // No way to the root: not decided, so denied.
        verdict.allowed = false;
        remember(self.dirs, verdict);
        Ok(verdict)
    }
}

/// Whether a row still fits its file's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Freshness {
    /// The file is as it was when the row was put.
    Fresh,
    /// The file changed since.
    Stale,
}

fn place(len: usize, ino: Ino) -> Option<usize> {
    // Fibonacci hashing: neighbouring inode numbers spread over the places.
    let hash = ino.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (hash as usize).checked_rem(len)
}

fn recall(memory: &[Verdict], ino: Ino) -> Option<Verdict> {
    memory.get(place(memory.len(), ino)?).copied().filter(|verdict| verdict.ino == ino && ino.0 != 0)
}

fn remember(memory: &mut [Verdict], verdict: Verdict) {
    if let Some(slot) = place(memory.len(), verdict.ino).and_then(|at| memory.get_mut(at)) {
        *slot = verdict;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_any_size_remembers_or_forgets_but_never_mixes_up() {
        let mut memory = [Verdict::EMPTY; 3];
        for ino in 1..100 {
            remember(&mut memory, Verdict { ino: Ino(ino), allowed: true, ..Verdict::EMPTY });
            assert_eq!(recall(&memory, Ino(ino)).map(|verdict| verdict.ino), Some(Ino(ino)));
            assert!(recall(&memory, Ino(ino + 100)).is_none());
        }
        remember(&mut [], Verdict::EMPTY);
        assert!(recall(&[], Ino(1)).is_none());
        assert!(recall(&[Verdict::EMPTY], Ino(0)).is_none());
    }
}
