//! NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT: what a client may ask, and the answers.

use super::handshake::{Replies, Transmission};
use super::reply::ALLOCATION_CONTEXT;
use crate::nbd::proto::meta::{BASE_ALL, BASE_ALLOCATION, MetaData};
use crate::nbd::proto::option::{OPT_SET_META_CONTEXT, OptionReplyHead, REP_ACK, REP_META_CONTEXT};

/// What the options before the transmission chose.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Chosen {
    /// The form of requests and replies.
    pub replies: Replies,
    /// base:allocation is chosen, under this name of the export.
    allocation_of: Option<Vec<u8>>,
}

impl Chosen {
    /// Replies come in chunks.
    pub fn chunks(&self) -> bool {
        self.replies != Replies::Simple
    }

    /// What a client may do after the transmission began under `name`.
    pub fn transmission(&self, name: &[u8]) -> Transmission {
        let allocation = self.chunks() && self.allocation_of.as_deref() == Some(name);
        Transmission { replies: self.replies, allocation }
    }

    /// Whatever comes of a new choice, the one before is void.
    pub fn forget(&mut self) {
        self.allocation_of = None;
    }

    /// Carries out one of the two options about an export that there is; gives the replies.
    pub fn answer(&mut self, option: u32, asked: &MetaData<'_>) -> Vec<u8> {
        let set = option == OPT_SET_META_CONTEXT;
        let mut out = Vec::new();
        let mut reply = |kind, data: &[u8]| OptionReplyHead::encode(option, kind, data, &mut out);
        let exact = asked.queries.contains(&BASE_ALLOCATION.as_bytes());
        let listed = asked.queries.is_empty() || asked.queries.contains(&BASE_ALL.as_bytes());
        if exact || (!set && listed) {
            let number = if set { ALLOCATION_CONTEXT } else { 0 };
            reply(REP_META_CONTEXT, &[&number.to_be_bytes()[..], BASE_ALLOCATION.as_bytes()].concat());
        }
        if set && exact {
            self.allocation_of = Some(asked.name.to_vec());
        }
        reply(REP_ACK, b"");
        out
    }
}
