//! copy_file_range(2): bytes from file to file without a way through the caller.
//!
//! Whole pages that stand at the same place of a page in both files are cloned: they share their place in the log, and nothing is moved.
//! The rest is copied: what is left at both ends, holes without a window, and all where the device clones nothing.

use layout::addr::{PAGE, PAGE_SHIFT, PageNo, PageRange};
use layout::error::{Error, Result};
use layout::fs::{Ino, Inode, InodeFlags, Keep};
use layout::page_store::PageStore;
use layout::windows::map;

use super::volume::{Mounted, now};
use crate::engine::{ClonedPages, Cloning, Pages};

/// Bytes read and written at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Bytes copied by one call: it returns so often, and can be interrupted then.
const CALL_BYTES_MAX: u64 = 64 << 20;
/// Fewer are copied: a clone costs a command, and the cleaner some work later.
const CLONE_BYTES_MIN: u64 = if cfg!(test) { PAGE as u64 } else { 64 << 10 };

/// A stretch of bytes to be copied.
#[derive(Clone, Copy)]
struct Stretch {
    from: (Ino, u64),
    to: (Ino, u64),
    len: u64,
}

impl Stretch {
    /// Behind its first bytes.
    fn after(self, done: u64) -> Stretch {
        Stretch {
            from: (self.from.0, self.from.1.saturating_add(done)),
            to: (self.to.0, self.to.1.saturating_add(done)),
            len: self.len - done,
        }
    }

    /// Bytes up to the next page, where both files reach one there.
    fn bytes_to_page(self) -> Option<u64> {
        let page = PAGE as u64;
        let in_page = self.from.1 % page;
        (in_page == self.to.1 % page).then_some((page - in_page) % page)
    }

    /// The pages on the device, one run for each pair of windows; none where one of them is missing.
    fn pages(self, from: &Inode, to: &Inode) -> Option<Vec<ClonedPages>> {
        let mut runs = Vec::new();
        let mut done = 0;
        while done < self.len {
            let source = map(from, self.from.1 + done)?;
            let destination = map(to, self.to.1 + done)?;
            let len = (self.len - done).min(source.len_bytes).min(destination.len_bytes);
            runs.push(ClonedPages {
                from: source.byte >> PAGE_SHIFT,
                to: destination.byte >> PAGE_SHIFT,
                count: len >> PAGE_SHIFT,
            });
            done += len;
        }
        Some(runs)
    }
}

impl Mounted {
    /// Copies up to `len` bytes, less at the source's end or for long copies; gives how many. Ranges of one file must not
    /// overlap. `keep_suid` as in [`Mounted::write`].
    ///
    /// # Errors
    /// As [`Mounted::read`] and [`Mounted::write`], if not even the first bytes could be copied.
    pub fn copy(&self, from: (Ino, u64), to: (Ino, u64), len: u64, keep_suid: bool) -> Result<u64> {
        let all = Stretch { from, to, len: len.min(CALL_BYTES_MAX) };
        let mut done = 0;
        let mut may_clone = !self.engine().cannot_clone();
        while done < all.len {
            match self.copy_some(all.after(done), keep_suid, &mut may_clone) {
                Ok(0) => break,
                Ok(copied) => done += copied,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn copy_some(&self, what: Stretch, keep_suid: bool, may_clone: &mut bool) -> Result<u64> {
        let mut piece = what.len.min(PIECE_BYTES);
        if *may_clone
            && let Some(head) = what.bytes_to_page().filter(|head| head + CLONE_BYTES_MIN <= what.len)
        {
            if head > 0 {
                piece = head;
            } else {
                match self.clone_some(what, keep_suid)? {
                    Some(0) => {}
                    Some(cloned) => return Ok(cloned),
                    None => *may_clone = false,
                }
            }
        }
        let bytes = self.read(what.from.0, what.from.1, usize::try_from(piece).unwrap_or(usize::MAX))?;
        if what.to.1.checked_add(bytes.len() as u64).is_none() {
            return Err(Error::TooBig);
        }
        self.write_late(what.to.0, what.to.1, &bytes, keep_suid)?;
        Ok(bytes.len() as u64)
    }

    /// Clones the whole pages of a stretch that begins with one; gives their bytes. `None`: it cannot be done now.
    fn clone_some(&self, what: Stretch, keep_suid: bool) -> Result<Option<u64>> {
        let cloning = match self.begin_cloning(what.len >> PAGE_SHIFT) {
            Ok(Some(cloning)) => cloning,
            // Too long a commit, or too little space for as much as is asked for.
            Ok(None) | Err(Error::NoSpace) => return Ok(None),
            Err(error) => return Err(error),
        };
        let _bytes = self.locks.pair(what.from.0, what.to.0);
        let (source, before, to, what) = {
            let mut fs = self.fs.write();
            let source = fs.inode(what.from.0)?;
            let before = fs.inode(what.to.0)?;
            let len = what.len.min(source.size.saturating_sub(what.from.1)) / PAGE as u64 * PAGE as u64;
            if len < CLONE_BYTES_MIN || what.from.0 == what.to.0 && what.from.1.abs_diff(what.to.1) < len {
                return Ok(Some(0));
            }
            // A hole up to the end of a class is no place that could be shared.
            let end = layout::windows::class_range(layout::windows::class_of(what.from.1)).1;
            if map(&source, what.from.1).is_none() {
                return Ok(Some(0));
            }
            let what = Stretch { len: len.min(end - what.from.1), ..what };
            self.drop_capabilities(&mut fs, &before)?;
            let sparse = source.flags.contains(InodeFlags::SPARSE);
            let to = fs.prepare_clone(what.to.0, what.to.1, what.len, sparse)?;
            (source, before, to, what)
        };
        let runs = what.pages(&source, &to).ok_or(Error::Aborted)?;
        if !cloning.clone_pages(&runs)? {
            self.clean_up(&before, what, &runs)?;
            return Ok(None);
        }
        let keep = Keep { suid: keep_suid, times: self.kernel_has_times() };
        let after = self.fs.write().finish_write_keeping(what.to.0, what.to.1 + what.len, now(), keep)?;
        self.tell_mode(&before, &after);
        Ok(Some(what.len))
    }

    /// Some of the pages may have been cloned, and the file ends where it did: there are only zeros behind its end.
    fn clean_up(&self, before: &Inode, what: Stretch, runs: &[ClonedPages]) -> Result<()> {
        let mut at = what.to.1;
        for run in runs {
            let kept = before.size.saturating_sub(at).div_ceil(PAGE as u64).min(run.count);
            if kept < run.count {
                let range = PageRange { first: PageNo(run.to + kept), count: run.count - kept };
                Pages(self.engine().clone()).discard(range)?;
            }
            let end = at + (run.count << PAGE_SHIFT);
            if (at..end).contains(&before.size) {
                self.engine().zero_tail((run.to << PAGE_SHIFT) + (before.size - at))?;
            }
            at = end;
        }
        Ok(())
    }

    /// Begins an operation that clones; a full volume gets one commit, as in [`Mounted::begin`].
    fn begin_cloning(&self, pages: u64) -> Result<Option<Cloning<'_>>> {
        match self.engine().begin_cloning(pages) {
            Err(Error::NoSpace) => {
                self.engine().commit(self)?;
                self.engine().begin_cloning(pages)
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blockd::device::Device;
    use layout::fs::{NewInode, SetAttr};
    use layout::inode::Kind;

    use super::*;
    use crate::mount::tests::{formatted, mounted};

    const FILE: NewInode = NewInode { kind: Kind::File, perm: 0o644, umask: 0, uid: 0, gid: 0, rdev: 0 };

    #[test]
    fn a_clone_that_failed_in_the_midst_leaves_zeros_behind_the_end() {
        let device = formatted();
        let m = mounted(Arc::clone(&device) as Arc<dyn Device>);
        let file = |name: &[u8], bytes: &[u8]| {
            let ino = m.create(Ino(2), name, FILE, true).unwrap().ino;
            m.write(ino, 0, bytes, false).unwrap();
            ino
        };
        let (len, size) = (8 * PAGE, 2 * PAGE + 100);
        let (a, b) = (file(b"a", &vec![0xaa; len]), file(b"b", &vec![0xbb; size]));
        m.sync().unwrap();
        // The device has done it, and says that it has not.
        device.refuse_clones(libc::ENOSPC.unsigned_abs());
        let what = Stretch { from: (a, 0), to: (b, 0), len: len as u64 };
        assert_eq!(m.clone_some(what, false), Ok(None));
        assert_eq!(m.inode(b).unwrap().size, size as u64);
        m.sync().unwrap();
        m.setattr(b, SetAttr { size: Some(len as u64), ..SetAttr::default() }, false).unwrap();
        let found = m.read(b, size as u64, len).unwrap();
        assert_eq!(found.len(), len - size);
        assert!(found.iter().all(|&byte| byte == 0), "what was cloned shows behind the end");
        // It is copied then.
        assert_eq!(m.copy((a, 0), (b, 0), len as u64, false), Ok(len as u64));
        assert!(m.read(b, 0, len).unwrap().iter().all(|&byte| byte == 0xaa));
    }
}
