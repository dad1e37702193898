//! The client's side of the handshake, by NBD_OPT_GO, with the longest headers that the server knows.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use super::target::Target;
use crate::nbd::proto::info::{BlockSizes, INFO_BLOCK_SIZE, INFO_DESCRIPTION, Info};
use crate::nbd::proto::option::{
    GoData, OPT_EXTENDED_HEADERS, OPT_GO, OPT_STRUCTURED_REPLY, OptionHead, OptionReplyHead, REP_ACK,
    REP_ERR_TLS_REQD, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_ERROR_BIT, REP_INFO,
};
use crate::nbd::proto::reply::Replies;
use crate::nbd::proto::{PAYLOAD_BYTES_MAX, STRING_BYTES_MAX, flags, greeting};
use crate::nbd::wire::receiver::Receiver;
use crate::nbd::wire::send::send_all;

/// Items of information that a server may send; an honest one sends fewer than ten.
const ITEMS_MAX: usize = 64;

/// What the server said of the export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// Size in bytes.
    pub size_bytes: u64,
    /// The `EXPORT_*` of [`flags`].
    pub flags: u16,
    /// Block size constraints; the specification's defaults if the server has none.
    pub blocks: BlockSizes,
    /// A sentence for people, maybe empty.
    pub description: String,
    /// The form of requests and replies.
    pub form: Replies,
}

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens.
    #[error(
        "no daemon is serving {socket} ({source}); start it: vexfs-blockd serve IMAGE --nbd unix:{socket}"
    )]
    NoServer {
        /// The socket's path.
        socket: String,
        /// The reason.
        source: io::Error,
    },
    /// It may not be used by us.
    #[error("not permitted to connect to {0}; run as the user who runs the daemon, or as root")]
    NotPermitted(String),
    /// The connection broke or stalled before the transmission.
    #[error("the server at {socket} did not finish the NBD handshake ({source}); see its log, or restart it")]
    Handshake {
        /// The socket's path.
        socket: String,
        /// The reason.
        source: io::Error,
    },
    /// What is there does not speak NBD as we need it.
    #[error("the server at {socket} is not usable: {why}")]
    Unusable {
        /// The socket's path.
        socket: String,
        /// What it lacks, or what it broke.
        why: String,
    },
    /// No thread could be started for the connection.
    #[error("cannot start a thread for the NBD connection: {0}")]
    Thread(io::Error),
}

impl ConnectError {
    /// Whether it may pass by waiting.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            ConnectError::NoServer { .. } | ConnectError::Handshake { .. } | ConnectError::Thread(_)
        )
    }

    pub(super) fn unusable(target: &Target, why: impl Into<String>) -> Self {
        ConnectError::Unusable { socket: target.socket.display().to_string(), why: why.into() }
    }

    pub(super) fn handshake(target: &Target, source: io::Error) -> Self {
        let source = match source.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "it does not answer"),
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")
            }
            _ => source,
        };
        ConnectError::Handshake { socket: target.socket.display().to_string(), source }
    }
}

/// Negotiates, with a form of requests and replies up to `longest`; the stream has its timeouts set.
///
/// # Errors
/// [`ConnectError`].
pub fn negotiate(
    target: &Target,
    longest: Replies,
    stream: &UnixStream,
    receiver: &mut Receiver<impl Read>,
) -> Result<Negotiated, ConnectError> {
    let unusable = |why: String| ConnectError::unusable(target, why);
    let socket_error = |source| ConnectError::handshake(target, source);
    let closed = || socket_error(io::ErrorKind::UnexpectedEof.into());

    let hello = receiver.head().map_err(socket_error)?.ok_or_else(closed)?;
    let Some(offered) = greeting::decode(&hello) else {
        return Err(unusable("it does not speak the NBD protocol".into()));
    };
    if offered & flags::HANDSHAKE_FIXED_NEWSTYLE == 0 {
        return Err(unusable("it does not know the fixed newstyle negotiation".into()));
    }
    let mut answer = flags::CLIENT_FIXED_NEWSTYLE;
    if offered & flags::HANDSHAKE_NO_ZEROES != 0 {
        answer |= flags::CLIENT_NO_ZEROES;
    }
    send_all(stream, &answer.to_be_bytes()).map_err(socket_error)?;
    let form = choose_form(target, longest, stream, receiver)?;
    let mut out = Vec::new();
    OptionHead::encode(
        OPT_GO,
        &GoData::encode(&target.export, &[INFO_BLOCK_SIZE, INFO_DESCRIPTION]),
        &mut out,
    );
    send_all(stream, &out).map_err(socket_error)?;

    let mut export = None;
    // "Block size constraints": what holds if the server says nothing.
    let mut blocks = BlockSizes { min: 1, preferred: 4096, payload_max: PAYLOAD_BYTES_MAX };
    let mut description = String::new();
    for _ in 0..ITEMS_MAX {
        let (kind, data) = option_reply(target, receiver, OPT_GO)?;
        match kind {
            REP_ACK => {
                let (size_bytes, flags) =
                    export.ok_or_else(|| unusable("it does not say the export's size".into()))?;
                blocks.payload_max = blocks.payload_max.min(PAYLOAD_BYTES_MAX);
                return Ok(Negotiated { size_bytes, flags, blocks, description, form });
            }
            REP_INFO => match Info::decode(&data) {
                Some(Info::Export { size_bytes, flags }) => export = Some((size_bytes, flags)),
                Some(Info::BlockSizes(sizes)) => blocks = sizes,
                Some(Info::Description(text)) => description = text,
                Some(Info::Name(_) | Info::Other(_)) => {}
                None => return Err(unusable("it sends malformed information about the export".into())),
            },
            REP_ERR_UNKNOWN => {
                return Err(unusable(format!("it has no export {:?}{}", target.export, sentence(&data))));
            }
            REP_ERR_UNSUP => return Err(unusable("it does not know NBD_OPT_GO".into())),
            kind if kind & REP_ERROR_BIT != 0 => {
                return Err(unusable(format!(
                    "it refuses the export (error {}){}",
                    kind & !REP_ERROR_BIT,
                    sentence(&data)
                )));
            }
            kind => return Err(unusable(format!("it answers with the unknown reply {kind}"))),
        }
    }
    Err(unusable("it sends information without end".into()))
}

/// Asks for extended headers, or else for replies in chunks; a server that knows neither sends simple replies.
fn choose_form(
    target: &Target,
    longest: Replies,
    stream: &UnixStream,
    receiver: &mut Receiver<impl Read>,
) -> Result<Replies, ConnectError> {
    let known: &[_] = match longest {
        Replies::Extended => {
            &[(OPT_EXTENDED_HEADERS, Replies::Extended), (OPT_STRUCTURED_REPLY, Replies::Chunks)]
        }
        Replies::Chunks => &[(OPT_STRUCTURED_REPLY, Replies::Chunks)],
        Replies::Simple => &[],
    };
    for &(option, form) in known {
        let mut out = Vec::new();
        OptionHead::encode(option, b"", &mut out);
        send_all(stream, &out).map_err(|e| ConnectError::handshake(target, e))?;
        match option_reply(target, receiver, option)? {
            (REP_ACK, _) => return Ok(form),
            (REP_ERR_TLS_REQD, _) => {
                return Err(ConnectError::unusable(
                    target,
                    "it requires TLS, which this client does not know",
                ));
            }
            (kind, _) if kind & REP_ERROR_BIT != 0 => {}
            (kind, _) => {
                return Err(ConnectError::unusable(
                    target,
                    format!("it answers with the unknown reply {kind}"),
                ));
            }
        }
    }
    Ok(Replies::Simple)
}

/// A reply to `option`: its kind and data.
fn option_reply(
    target: &Target,
    receiver: &mut Receiver<impl Read>,
    option: u32,
) -> Result<(u32, Vec<u8>), ConnectError> {
    let socket_error = |source| ConnectError::handshake(target, source);
    let closed = || socket_error(io::ErrorKind::UnexpectedEof.into());
    let head = receiver.head().map_err(socket_error)?.ok_or_else(closed)?;
    let head = OptionReplyHead::decode(&head)
        .filter(|head| head.option == option && head.data_bytes as usize <= STRING_BYTES_MAX + 2)
        .ok_or_else(|| {
            ConnectError::unusable(target, "it breaks the NBD protocol in its reply to an option")
        })?;
    let mut data = vec![0; head.data_bytes as usize];
    receiver.payload(&mut data).map_err(socket_error)?;
    Ok((head.kind, data))
}

fn sentence(data: &[u8]) -> String {
    if data.is_empty() {
        return String::new();
    }
    format!(": {}", String::from_utf8_lossy(data).escape_debug())
}

/// What the server must be able to do to be a [`crate::device::Device`].
///
/// # Errors
/// [`ConnectError::Unusable`] naming what is missing.
pub fn check_usable(target: &Target, negotiated: &Negotiated) -> Result<(), ConnectError> {
    let has = |flag| negotiated.flags & flag != 0;
    let missing = if has(flags::EXPORT_READ_ONLY) {
        None
    } else if !has(flags::EXPORT_SEND_FLUSH) {
        Some("flush")
    } else if !has(flags::EXPORT_SEND_FUA) {
        Some("FUA writes")
    } else {
        None
    };
    match missing {
        Some(what) => Err(ConnectError::unusable(
            target,
            format!("it does not support {what}, without which nothing written to it is safe"),
        )),
        None => Ok(()),
    }
}
