//! The bytes of files.

use layout::addr::PAGE;
use layout::error::Result;
use layout::fs::{Ino, Keep};

use super::volume::{Mounted, now};
use crate::engine::{Cost, DataBuf};

/// Bytes read: usually one run of the device, straight from its buffer.
pub enum Bytes {
    /// One run.
    Run(DataBuf),
    /// Holes or several runs, put together.
    Joined(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Run(buf) => buf,
            Bytes::Joined(bytes) => bytes,
        }
    }
}

impl Mounted {
    /// Reads up to `len` bytes at `offset`, less at the file's end.
    ///
    /// # Errors
    /// As the page store.
    pub fn read(&self, ino: Ino, offset: u64, len: usize) -> Result<Bytes> {
        let _bytes = self.locks.shared(ino);
        let inode = self.reading()?.inode(ino)?;
        let len = usize::try_from(inode.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(len);
        let mut joined = Vec::new();
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let Some(run) = layout::windows::map(&inode, at) else {
                // A hole up to the end of the class.
                let (_, end) = layout::windows::class_range(layout::windows::class_of(at));
                let part =
                    usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(len - done).max(1);
                joined.resize(done + part, 0);
                done += part;
                continue;
            };
            let part = usize::try_from(run.len_bytes).unwrap_or(usize::MAX).min(len - done);
            let buf = self.engine.read_data(run.byte, part)?;
            if part == len {
                return Ok(Bytes::Run(buf));
            }
            joined.extend_from_slice(&buf);
            done += part;
        }
        Ok(Bytes::Joined(joined))
    }

    /// Writes bytes at `offset`. `keep_suid`: suid and sgid stay (the caller has CAP_FSETID).
    ///
    /// # Errors
    /// As [`layout::fs::Fs::prepare_write`] and the page store.
    pub fn write(&self, ino: Ino, offset: u64, bytes: &[u8], keep_suid: bool) -> Result<()> {
        self.put(ino, offset, bytes, Keep { suid: keep_suid, times: false })
    }

    /// As [`Mounted::write`], where the kernel may have set the times already ([`Mounted::kernel_has_times`]).
    ///
    /// # Errors
    /// As [`Mounted::write`].
    pub fn write_late(&self, ino: Ino, offset: u64, bytes: &[u8], keep_suid: bool) -> Result<()> {
        self.put(ino, offset, bytes, Keep { suid: keep_suid, times: self.kernel_has_times() })
    }

    fn put(&self, ino: Ino, offset: u64, bytes: &[u8], keep: Keep) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let pages = (bytes.len() / PAGE) as u64 + 2;
        let _op = self.begin(Cost::Pages(pages))?;
        let _bytes = self.locks.exclusive(ino);
        let (before, inode) = {
            let mut fs = self.fs.write();
            let before = fs.inode(ino)?;
            self.drop_capabilities(&mut fs, &before)?;
            (before, fs.prepare_write(ino, offset, bytes.len() as u64)?)
        };
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let run = layout::windows::map(&inode, at).ok_or(layout::error::Error::Aborted)?;
            let part = usize::try_from(run.len_bytes).unwrap_or(usize::MAX).min(bytes.len() - done);
            // Pages past the old end of the file hold nothing yet.
            let mapped_bytes = before.size.next_multiple_of(PAGE as u64).saturating_sub(at);
            let unmapped_from = run.byte.saturating_add(mapped_bytes).next_multiple_of(PAGE as u64);
            self.engine.write_data(run.byte, &bytes[done..done + part], unmapped_from)?;
            done += part;
        }
        let end = offset + bytes.len() as u64;
        let after = self.fs.write().finish_write_keeping(ino, end, now(), keep)?;
        self.tell_mode(&before, &after);
        Ok(())
    }
}
