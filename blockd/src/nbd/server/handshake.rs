//! The server's side of the fixed newstyle negotiation ("Newstyle negotiation", "Option types").

use std::io;
use std::os::unix::net::UnixStream;

use super::Export;
use super::meta::Chosen;
use crate::nbd::proto::info::{INFO_DESCRIPTION, INFO_NAME, Info};
use crate::nbd::proto::option::{
    GoData, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT,
    OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, OptionHead, OptionReplyHead, REP_ACK, REP_ERR_INVALID,
    REP_ERR_TOO_BIG, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_SERVER,
};
use crate::nbd::proto::{STRING_BYTES_MAX, flags, greeting};
use crate::nbd::wire::receiver::Receiver;
use crate::nbd::wire::send::send_all;

/// Longest data of an option that is looked at: a name and many information requests.
const OPTION_DATA_BYTES_MAX: u32 = STRING_BYTES_MAX as u32 + 1024;
/// Longest data of an option that is skipped; a longer one ends the connection.
const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;
/// Options that one client may send; an honest one needs fewer than ten.
const OPTIONS_MAX: usize = 64;

/// How a negotiation ended.
#[derive(Debug)]
pub enum Outcome {
    /// Requests follow.
    Transmission(Transmission),
    /// The client is done, politely.
    Ended,
    /// The peer broke the protocol; the text says how.
    Broken(String),
}

/// What the client may do in the transmission.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Transmission {
    /// Replies come in chunks.
    pub structured: bool,
    /// NBD_CMD_BLOCK_STATUS is served, for base:allocation.
    pub allocation: bool,
}

impl Chosen {
    fn transmission(&self, name: &[u8]) -> Transmission {
        Transmission { structured: self.structured, allocation: self.allocation(name) }
    }
}

/// Negotiates until the transmission begins or the connection is to be closed.
///
/// # Errors
/// Those of the socket, and its timeouts.
pub fn negotiate(
    stream: &UnixStream,
    receiver: &mut Receiver<&UnixStream>,
    export: &Export,
) -> io::Result<Outcome> {
    let offered = flags::HANDSHAKE_FIXED_NEWSTYLE | flags::HANDSHAKE_NO_ZEROES;
    send_all(stream, &greeting::encode(offered))?;
    let Some(client_flags) = receiver.head::<4>()?.map(u32::from_be_bytes) else {
        return Ok(Outcome::Ended);
    };
    if client_flags & !(flags::CLIENT_FIXED_NEWSTYLE | flags::CLIENT_NO_ZEROES) != 0 {
        return broken(format!("unknown client flags {client_flags:#x}"));
    }
    if client_flags & flags::CLIENT_FIXED_NEWSTYLE == 0 {
        return broken("the client does not know the fixed newstyle negotiation".into());
    }
    let no_zeroes = client_flags & flags::CLIENT_NO_ZEROES != 0;
    let mut chosen = Chosen::default();
    for _ in 0..OPTIONS_MAX {
        let Some(head) = receiver.head()? else { return Ok(Outcome::Ended) };
        let Some(head) = OptionHead::decode(&head) else {
            return broken("an option has a wrong magic".into());
        };
        if head.data_bytes > OPTION_DATA_BYTES_MAX {
            if head.data_bytes > OPTION_SKIP_BYTES_MAX || head.option == OPT_EXPORT_NAME {
                return broken(format!("option {} has {} bytes of data", head.option, head.data_bytes));
            }
            receiver.skip(u64::from(head.data_bytes))?;
            reply(stream, head.option, REP_ERR_TOO_BIG, b"the option's data is too long")?;
            continue;
        }
        let mut data = vec![0; head.data_bytes as usize];
        receiver.payload(&mut data)?;
        match head.option {
            OPT_EXPORT_NAME => return export_name(stream, export, &data, no_zeroes, &chosen),
            OPT_ABORT => {
                // The client may have gone without waiting for the acknowledgement.
                let _ = reply(stream, OPT_ABORT, REP_ACK, b"");
                return Ok(Outcome::Ended);
            }
            OPT_LIST => list(stream, export, &data)?,
            OPT_INFO | OPT_GO => {
                if let Some(transmission) = info(stream, export, head.option, &data, &chosen)?
                    && head.option == OPT_GO
                {
                    return Ok(Outcome::Transmission(transmission));
                }
            }
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                chosen.structured = true;
                reply(stream, OPT_STRUCTURED_REPLY, REP_ACK, b"")?;
            }
            OPT_STRUCTURED_REPLY => {
                reply(stream, OPT_STRUCTURED_REPLY, REP_ERR_INVALID, b"the option takes no data")?;
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                send_all(stream, &chosen.answer(export, head.option, &data))?;
            }
            other => reply(stream, other, REP_ERR_UNSUP, b"this server does not support the option")?,
        }
    }
    broken(format!("more than {OPTIONS_MAX} options"))
}

fn broken(why: String) -> io::Result<Outcome> {
    Ok(Outcome::Broken(why))
}

fn reply(stream: &UnixStream, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut out = Vec::with_capacity(20 + data.len());
    OptionReplyHead::encode(option, kind, data, &mut out);
    send_all(stream, &out)
}

fn export_name(
    stream: &UnixStream,
    export: &Export,
    name: &[u8],
    no_zeroes: bool,
    chosen: &Chosen,
) -> io::Result<Outcome> {
    if !export.is_named(name) {
        // NBD_OPT_EXPORT_NAME has no error reply.
        return broken(format!("no export {:?}", String::from_utf8_lossy(name)));
    }
    let mut out = Vec::with_capacity(134);
    out.extend_from_slice(&export.device.info().size_bytes.to_be_bytes());
    out.extend_from_slice(&export.flags(chosen.structured).to_be_bytes());
    if !no_zeroes {
        out.resize(out.len() + 124, 0);
    }
    send_all(stream, &out)?;
    Ok(Outcome::Transmission(chosen.transmission(name)))
}

fn list(stream: &UnixStream, export: &Export, data: &[u8]) -> io::Result<()> {
    if !data.is_empty() {
        return reply(stream, OPT_LIST, REP_ERR_INVALID, b"NBD_OPT_LIST takes no data");
    }
    let mut server = Vec::with_capacity(4 + export.name.len());
    server.extend_from_slice(&(export.name.len() as u32).to_be_bytes());
    server.extend_from_slice(export.name.as_bytes());
    let mut out = Vec::new();
    OptionReplyHead::encode(OPT_LIST, REP_SERVER, &server, &mut out);
    OptionReplyHead::encode(OPT_LIST, REP_ACK, b"", &mut out);
    send_all(stream, &out)
}

/// Answers NBD_OPT_INFO and NBD_OPT_GO; `None` if the export is not known.
fn info(
    stream: &UnixStream,
    export: &Export,
    option: u32,
    data: &[u8],
    chosen: &Chosen,
) -> io::Result<Option<Transmission>> {
    let Some(asked) = GoData::decode(data) else {
        reply(stream, option, REP_ERR_INVALID, b"the option's data is malformed")?;
        return Ok(None);
    };
    if !export.is_named(asked.name) {
        let text =
            format!("no such export; this server has only {:?}, also under the empty name", export.name);
        reply(stream, option, REP_ERR_UNKNOWN, text.as_bytes())?;
        return Ok(None);
    }
    let mut items = vec![
        Info::Export { size_bytes: export.device.info().size_bytes, flags: export.flags(chosen.structured) },
        // Sent unasked too, as the specification allows: a client that ignores it gets EINVAL for
        // what does not fit.
        Info::BlockSizes(export.block_sizes()),
    ];
    if asked.asks_for(INFO_NAME) {
        items.push(Info::Name(export.name.clone()));
    }
    if asked.asks_for(INFO_DESCRIPTION) {
        items.push(Info::Description(export.description()));
    }
    let mut out = Vec::new();
    for item in items {
        OptionReplyHead::encode(option, REP_INFO, &item.encode(), &mut out);
    }
    OptionReplyHead::encode(option, REP_ACK, b"", &mut out);
    send_all(stream, &out)?;
    Ok(Some(chosen.transmission(asked.name)))
}
