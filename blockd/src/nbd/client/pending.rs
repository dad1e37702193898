//! Requests that are not acknowledged yet, with all that is needed to send them again.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::buf::AlignedBuf;
use crate::device::{Done, IoError};
use crate::nbd::proto::request::{REQUEST_BYTES, Request};
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
    pub done: Done,
}

/// A request on its way out.
pub struct RequestFrame {
    head: [u8; REQUEST_BYTES],
    payload: Option<Arc<AlignedBuf>>,
}

impl RequestFrame {
    /// A request without payload.
    pub fn bare(request: &Request) -> Self {
        RequestFrame { head: request.encode(), payload: None }
    }
}

impl Frame for RequestFrame {
    fn head(&self) -> &[u8] {
        &self.head
    }
    fn payload(&self) -> &[u8] {
        self.payload.as_deref().map(|buf| &**buf).unwrap_or_default()
    }
}

impl Pending {
    /// The frame that sends it, the first time or again.
    pub fn frame(&self) -> RequestFrame {
        let payload = match &self.payload {
            Payload::Write(buf) => Some(Arc::clone(buf)),
            _ => None,
        };
        RequestFrame { head: self.request.encode(), payload }
    }
}

/// The requests in flight, and the connection if there is one. Cookies grow with each submission
/// and are never reused, so the map's order is the order of submission.
pub struct State {
    pub pending: BTreeMap<u64, Pending>,
    pub next_cookie: u64,
    /// Where frames go; `None` while there is no connection.
    pub outbox: Option<Arc<Outbox<RequestFrame>>>,
    /// Why nothing works any more.
    pub ended: Option<IoError>,
}

impl State {
    pub fn new() -> Self {
        State { pending: BTreeMap::new(), next_cookie: 1, outbox: None, ended: None }
    }
}
