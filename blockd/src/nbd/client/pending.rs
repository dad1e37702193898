//! Requests that are not acknowledged yet, with all that is needed to send them again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::reply::Progress;
use crate::buf::AlignedBuf;
use crate::device::{Done, IoError};
use crate::nbd::proto::reply::Replies;
use crate::nbd::proto::request::{EXTENDED_REQUEST_BYTES, REQUEST_BYTES, Request};
use crate::nbd::wire::outbox::{Frame, Outbox};

/// The bytes that belong to a request.
pub enum Payload {
    /// None.
    None,
    /// Filled by the reply.
    Read(AlignedBuf),
    /// Kept until the reply.
    Write(Arc<AlignedBuf>),
}

/// A request and who waits for it.
pub struct Pending {
    pub request: Request,
    pub payload: Payload,
    /// What came of the reply on the present connection.
    pub progress: Progress,
    pub done: Done,
}

/// A request on its way out.
pub struct RequestFrame {
    head: [u8; EXTENDED_REQUEST_BYTES],
    head_bytes: usize,
    payload: Option<Arc<AlignedBuf>>,
}

impl RequestFrame {
    /// A request without payload.
    pub fn bare(request: &Request, form: Replies) -> Self {
        Self::new(request, form, None)
    }

    fn new(request: &Request, form: Replies, payload: Option<Arc<AlignedBuf>>) -> Self {
        let mut head = [0; EXTENDED_REQUEST_BYTES];
        let head_bytes = if form == Replies::Extended {
            head = request.encode_extended();
            EXTENDED_REQUEST_BYTES
        } else {
            head[..REQUEST_BYTES].copy_from_slice(&request.encode());
            REQUEST_BYTES
        };
        RequestFrame { head, head_bytes, payload }
    }
}

impl Frame for RequestFrame {
    fn head(&self) -> &[u8] {
        &self.head[..self.head_bytes]
    }
    fn payload(&self) -> &[u8] {
        self.payload.as_deref().map(|buf| &**buf).unwrap_or_default()
    }
}

impl Pending {
    /// The frame that sends it, the first time or again, on a connection of this form.
    pub fn frame(&self, form: Replies) -> RequestFrame {
        let payload = match &self.payload {
            Payload::Write(buf) => Some(Arc::clone(buf)),
            _ => None,
        };
        RequestFrame::new(&self.request, form, payload)
    }
}

/// The requests in flight, and the connection if there is one. Cookies grow with each submission
/// and are never reused, so the map's order is the order of submission.
pub struct State {
    pub pending: BTreeMap<u64, Pending>,
    pub next_cookie: u64,
    /// Where frames go; `None` while there is no connection.
    pub outbox: Option<Arc<Outbox<RequestFrame>>>,
    /// The form of the present connection's requests and replies.
    pub form: Replies,
    /// Why nothing works any more.
    pub ended: Option<IoError>,
}

impl State {
    pub fn new() -> Self {
        State { pending: BTreeMap::new(), next_cookie: 1, outbox: None, form: Replies::Simple, ended: None }
    }
}
