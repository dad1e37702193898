//! One open session file: the request that is being written, the reply that is being read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use layout::inode::Ino;
use layout::uapi::raw::VEXFS_REQUEST_BYTES_MAX;

use super::SessionKind;
use super::caller::Identity;
use super::error::{SessionError, SessionResult};

/// Bytes that all handles may hold together.
#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(most: usize) -> Self {
        Budget { most, used: AtomicUsize::new(0) }
    }

    /// Whether this much more may be held.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.used.load(Ordering::Relaxed).saturating_add(bytes) <= self.most
    }
}

pub(super) fn out_of_budget() -> SessionError {
    SessionError {
        errno: libc::ENOMEM,
        message: "too many requests and replies are open at once; close some session files".into(),
    }
}

/// An open session file.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) kind: SessionKind,
    pub(super) dir: Ino,
    /// Whoever opened it: requests are carried out with these rights, whoever else it is handed to.
    pub(super) opener: Identity,
    request: Vec<u8>,
    /// The file offset at which the request begins.
    request_at: u64,
    reply: Option<Vec<u8>>,
    /// The file offset at which the reply begins.
    reply_at: u64,
    /// A request made this reply; else it is only what reading gives, and is made anew.
    requested: bool,
    budget: Arc<Budget>,
}

impl Handle {
    pub(super) fn new(kind: SessionKind, dir: Ino, opener: Identity, budget: Arc<Budget>) -> Self {
        Handle {
            kind,
            dir,
            opener,
            request: Vec::new(),
            request_at: 0,
            reply: None,
            reply_at: 0,
            requested: false,
            budget,
        }
    }

    /// The request so far.
    pub(super) fn request(&self) -> &[u8] {
        &self.request
    }

    /// Takes the next bytes of the request; after a reply they begin a new one.
    pub(super) fn take(&mut self, offset: u64, bytes: &[u8]) -> SessionResult<()> {
        if self.reply.is_some() {
            self.drop_reply();
        }
        if self.request.is_empty() {
            self.request_at = offset;
        }
        if offset != self.request_end() {
            return Err(SessionError::invalid("write the parts of a request in order, without gaps"));
        }
        let len = self.request.len() + bytes.len();
        if len > VEXFS_REQUEST_BYTES_MAX as usize {
            return Err(SessionError {
                errno: libc::EFBIG,
                message: "a request may have 64 MiB; split it (puts: with append)".into(),
            });
        }
        if !self.budget.fits(bytes.len()) {
            return Err(out_of_budget());
        }
        self.budget.used.fetch_add(bytes.len(), Ordering::Relaxed);
        self.request.extend_from_slice(bytes);
        Ok(())
    }

    /// Whether a read at this offset must make a reply first.
    pub(super) fn wants_answer(&self, offset: u64) -> bool {
        self.reply.is_none() || (!self.requested && offset == self.reply_at)
    }

    /// Keeps the reply, and drops the request that it answers. `read_at`: where it is being read.
    pub(super) fn reply(&mut self, reply: Vec<u8>, read_at: Option<u64>) {
        let request_end = self.request_end();
        let requested = !self.request.is_empty();
        self.drop_reply();
        self.requested = requested;
        self.reply_at = if requested && read_at == Some(request_end) { request_end } else { 0 };
        self.budget.used.fetch_add(reply.len(), Ordering::Relaxed);
        self.reply = Some(reply);
    }

    /// Bytes of the reply; empty past its end.
    pub(super) fn part(&self, offset: u64, len: usize) -> &[u8] {
        let reply = self.reply.as_deref().unwrap_or_default();
        let from = offset.checked_sub(self.reply_at).and_then(|from| usize::try_from(from).ok());
        let rest = from.and_then(|from| reply.get(from..)).unwrap_or_default();
        rest.get(..len).unwrap_or(rest)
    }

    fn request_end(&self) -> u64 {
        self.request_at.saturating_add(self.request.len() as u64)
    }

    /// Empties both buffers.
    fn drop_reply(&mut self) {
        let held = self.request.len() + self.reply.as_ref().map_or(0, Vec::len);
        self.budget.used.fetch_sub(held, Ordering::Relaxed);
        self.request = Vec::new();
        self.reply = None;
        self.requested = false;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.drop_reply();
    }
}
