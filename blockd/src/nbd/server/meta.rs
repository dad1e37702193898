//! NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT: what a client may ask, and the answers.

use super::Export;
use super::reply::ALLOCATION_CONTEXT;
use crate::nbd::proto::meta::{BASE_ALL, BASE_ALLOCATION, MetaData};
use crate::nbd::proto::option::{
    OPT_SET_META_CONTEXT, OptionReplyHead, REP_ACK, REP_ERR_INVALID, REP_ERR_UNKNOWN, REP_META_CONTEXT,
};

/// What the options before the transmission chose.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Chosen {
    /// Replies come in chunks.
    pub structured: bool,
    /// base:allocation is chosen, under this name of the export.
    allocation_of: Option<Vec<u8>>,
}

impl Chosen {
    /// Whether NBD_CMD_BLOCK_STATUS is served after the transmission began under `name`.
    pub fn allocation(&self, name: &[u8]) -> bool {
        self.structured && self.allocation_of.as_deref() == Some(name)
    }

    /// Carries out one of the two options; gives the replies.
    pub fn answer(&mut self, export: &Export, option: u32, data: &[u8]) -> Vec<u8> {
        let set = option == OPT_SET_META_CONTEXT;
        if set {
            // Whatever comes of it, the choice before is void.
            self.allocation_of = None;
        }
        let mut out = Vec::new();
        let mut reply = |kind, data: &[u8]| OptionReplyHead::encode(option, kind, data, &mut out);
        match MetaData::decode(data) {
            _ if set && !self.structured => {
                reply(REP_ERR_INVALID, b"metadata contexts need structured replies, to be chosen before");
            }
            None => reply(REP_ERR_INVALID, b"the option's data is malformed"),
            Some(asked) if !export.is_named(asked.name) => reply(REP_ERR_UNKNOWN, b"no such export"),
            Some(asked) => {
                let exact = asked.queries.contains(&BASE_ALLOCATION.as_bytes());
                let listed = asked.queries.is_empty() || asked.queries.contains(&BASE_ALL.as_bytes());
                if exact || (!set && listed) {
                    let number = if set { ALLOCATION_CONTEXT } else { 0 };
                    reply(
                        REP_META_CONTEXT,
                        &[&number.to_be_bytes()[..], BASE_ALLOCATION.as_bytes()].concat(),
                    );
                }
                if set && exact {
                    self.allocation_of = Some(asked.name.to_vec());
                }
                reply(REP_ACK, b"");
            }
        }
        out
    }
}
