//! The server's side of the fixed newstyle negotiation ("Newstyle negotiation", "Option types").
//!
//! It runs as a task over any byte stream, and takes exactly the bytes of a message off it: what follows, be it
//! requests or a TLS handshake, is left for whoever comes next. It holds at most one option's data.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Shared;
use super::attached::{Attached, ready};
use super::export::Export;
use super::exports::{Exports, NotFound};
use super::lobby::Place;
use super::meta::Chosen;
use super::registry::{Refused, Seat};
use crate::nbd::proto::info::{INFO_DESCRIPTION, INFO_NAME, Info};
use crate::nbd::proto::meta::MetaData;
use crate::nbd::proto::option::{
    GoData, OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO, OPT_INFO, OPT_LIST,
    OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY, OptionHead,
    OptionReplyHead, REP_ACK, REP_ERR_EXT_HEADER_REQD, REP_ERR_INVALID, REP_ERR_POLICY, REP_ERR_SHUTDOWN,
    REP_ERR_TLS_REQD, REP_ERR_TOO_BIG, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_SERVER,
};
pub use crate::nbd::proto::reply::Replies;
use crate::nbd::proto::{STRING_BYTES_MAX, flags, greeting};

/// Longest data of an option that is looked at: a name and many information requests.
const OPTION_DATA_BYTES_MAX: u32 = STRING_BYTES_MAX as u32 + 1024;
/// Longest data of an option that is skipped; a longer one ends the connection.
const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;
/// Options that one client may send; an honest one needs fewer than ten.
const OPTIONS_MAX: usize = 64;

/// How a negotiation ended.
pub enum Outcome {
    /// Requests follow.
    Transmission(Admitted),
    /// A TLS handshake follows, and then options again.
    StartTls,
    /// The client is done, politely.
    Ended,
    /// The peer broke the protocol; the text says how.
    Broken(String),
}

/// A client that may send requests.
pub struct Admitted {
    /// What it is connected to.
    pub export: Arc<Export>,
    /// What it may do.
    pub negotiated: Transmission,
    /// Its place among the connections.
    pub seat: Seat,
    /// It, as the device knows it: dropped when it is gone.
    pub client: Attached,
}

/// What the client may do in the transmission.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, Debug)]
pub struct Transmission {
    /// The form of requests and replies.
    pub replies: Replies,
    /// NBD_CMD_BLOCK_STATUS is served, for base:allocation.
    pub allocation: bool,
}

/// Where a connection stands with TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tls {
    /// Its listener has none ("NOTLS mode").
    Off,
    /// Nothing else is answered before ("FORCEDTLS mode").
    Required,
    /// It has begun.
    Active,
}

/// The server, as one connection in its negotiation sees it.
pub struct Host<'a> {
    /// The server.
    pub shared: &'a Arc<Shared>,
    /// The connection's place in the lobby.
    pub place: &'a Place,
    /// Who it is, for people.
    pub who: &'a str,
    /// The connection's socket.
    pub socket: &'a OwnedFd,
}

impl Host<'_> {
    /// Takes a client in, before it is told what the export is: from then on that stays as it is.
    async fn attach(&self, export: &Export) -> Result<Attached, (u32, String)> {
        let client = Attached::new(export);
        self.ready(export).await.map(|()| client)
    }

    /// Waits until it can be told what the export is; not as long as clients wait for an answer.
    async fn ready(&self, export: &Export) -> Result<(), (u32, String)> {
        let wait_max = Duration::from_millis(self.shared.limits.handshake_timeout_ms / 4);
        ready(&**export.device(), wait_max).await.map_err(|e| (REP_ERR_POLICY, e.to_string()))
    }

    fn reserve(&self, export: &Export, tls: Tls) -> Result<Seat, (u32, String)> {
        let socket = self.socket.try_clone().map_err(|e| (REP_ERR_POLICY, e.to_string()))?;
        let max = self.shared.limits.connections;
        let who = (self.who.to_owned(), tls == Tls::Active);
        self.shared.registry.reserve(export, socket, who, max).map_err(|refused| match refused {
            Refused::Full => {
                tracing::warn!(max, "too many NBD connections; refusing one (--connections sets how many there may be)");
                let why = format!(
                    "all {max} connections that this server takes are in use; close one, or have it serve more \
                     (vexfs-blockd serve --connections N)"
                );
                (REP_ERR_POLICY, why)
            }
            Refused::Stopping => (REP_ERR_SHUTDOWN, "the server is being shut down".into()),
            Refused::Left => (REP_ERR_POLICY, "the client has left".into()),
        })
    }
}

/// Exchanges the greeting: whether the client wants no zeroes after NBD_OPT_EXPORT_NAME, or how it ended.
///
/// # Errors
/// Those of the stream.
pub async fn greet<S>(stream: &mut S, host: &Host<'_>) -> io::Result<Result<bool, Outcome>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let broken = |why: String| Ok(Err(Outcome::Broken(why)));
    let offered = flags::HANDSHAKE_FIXED_NEWSTYLE | flags::HANDSHAKE_NO_ZEROES;
    stream.write_all(&greeting::encode(offered)).await?;
    let Some(client_flags) = message(stream).await?.map(u32::from_be_bytes) else {
        return Ok(Err(Outcome::Ended));
    };
    host.place.spoke();
    if client_flags & !(flags::CLIENT_FIXED_NEWSTYLE | flags::CLIENT_NO_ZEROES) != 0 {
        return broken(format!("unknown client flags {client_flags:#x}"));
    }
    if client_flags & flags::CLIENT_FIXED_NEWSTYLE == 0 {
        return broken("the client does not know the fixed newstyle negotiation".into());
    }
    Ok(Ok(client_flags & flags::CLIENT_NO_ZEROES != 0))
}

/// Answers options until the transmission or TLS begins, or the connection is to be closed.
///
/// # Errors
/// Those of the stream.
pub async fn negotiate<S>(stream: &mut S, host: &Host<'_>, tls: Tls, no_zeroes: bool) -> io::Result<Outcome>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut options = Options { stream, host, tls, chosen: Chosen::default() };
    for _ in 0..OPTIONS_MAX {
        let Some(head) = message(options.stream).await? else { return Ok(Outcome::Ended) };
        let Some(OptionHead { option, data_bytes }) = OptionHead::decode(&head) else {
            return broken("an option has a wrong magic".into());
        };
        if data_bytes > OPTION_DATA_BYTES_MAX {
            if data_bytes > OPTION_SKIP_BYTES_MAX || option == OPT_EXPORT_NAME {
                return broken(format!("option {option} has {data_bytes} bytes of data"));
            }
            skip(options.stream, u64::from(data_bytes)).await?;
            options.reply(option, REP_ERR_TOO_BIG, b"the option's data is too long").await?;
            continue;
        }
        let mut data = vec![0; data_bytes as usize];
        options.stream.read_exact(&mut data).await?;
        host.place.spoke();
        if let Some(outcome) = options.answer(option, &data, no_zeroes).await? {
            return Ok(outcome);
        }
    }
    broken(format!("more than {OPTIONS_MAX} options"))
}

fn broken(why: String) -> io::Result<Outcome> {
    Ok(Outcome::Broken(why))
}

/// A message of `N` bytes; `None` if the stream ends before its first byte.
async fn message<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<[u8; N]>> {
    let mut out = [0; N];
    let mut filled = 0;
    while filled < N {
        match stream.read(&mut out[filled..]).await? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => filled += n,
        }
    }
    Ok(Some(out))
}

async fn skip(stream: &mut (impl AsyncRead + Unpin), len_bytes: u64) -> io::Result<()> {
    let skipped = tokio::io::copy(&mut stream.take(len_bytes), &mut tokio::io::sink()).await?;
    if skipped < len_bytes { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// The export that a client means, or the error to answer with.
async fn find(exports: &Arc<Exports>, name: &[u8]) -> Result<Arc<Export>, (u32, String)> {
    let Ok(name) = str::from_utf8(name) else {
        return Err((REP_ERR_UNKNOWN, "an export's name is UTF-8".into()));
    };
    if let Some(export) = exports.find_given(name) {
        return Ok(export);
    }
    let (exports, name) = (Arc::clone(exports), name.to_owned());
    match tokio::task::spawn_blocking(move || exports.find(&name)).await {
        Ok(Ok(export)) => Ok(export),
        Ok(Err(NotFound::Unknown(why) | NotFound::Failed(why))) => Err((REP_ERR_UNKNOWN, why)),
        Err(error) => {
            tracing::error!(%error, "looking for an export panicked");
            Err((REP_ERR_UNKNOWN, "the export cannot be opened; the server's log says why".into()))
        }
    }
}

/// The options of one connection.
struct Options<'a, S> {
    stream: &'a mut S,
    host: &'a Host<'a>,
    tls: Tls,
    chosen: Chosen,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Options<'_, S> {
    /// Answers one option; `Some` if it was the last.
    async fn answer(&mut self, option: u32, data: &[u8], no_zeroes: bool) -> io::Result<Option<Outcome>> {
        match option {
            OPT_ABORT => {
                // The client may have gone without waiting for the acknowledgement.
                let _ = self.reply(option, REP_ACK, b"").await;
                return Ok(Some(Outcome::Ended));
            }
            OPT_STARTTLS => return self.start_tls(data).await,
            OPT_EXPORT_NAME => return self.export_name(data, no_zeroes).await.map(Some),
            _ if self.tls == Tls::Required => {
                self.reply(
                    option,
                    REP_ERR_TLS_REQD,
                    b"this server requires TLS; begin with NBD_OPT_STARTTLS",
                )
                .await?;
            }
            OPT_LIST => self.list(data).await?,
            OPT_INFO | OPT_GO => return self.info(option, data).await,
            OPT_STRUCTURED_REPLY => {
                let (kind, text) = match self.chosen.replies {
                    _ if !data.is_empty() => (REP_ERR_INVALID, "the option takes no data"),
                    Replies::Extended => (REP_ERR_EXT_HEADER_REQD, "extended headers were chosen before"),
                    Replies::Simple | Replies::Chunks => (REP_ACK, ""),
                };
                if kind == REP_ACK {
                    self.chosen.replies = Replies::Chunks;
                }
                self.reply(option, kind, text.as_bytes()).await?;
            }
            OPT_EXTENDED_HEADERS => {
                let (kind, text) = match self.chosen.replies {
                    _ if !data.is_empty() => (REP_ERR_INVALID, "the option takes no data"),
                    Replies::Extended => (REP_ERR_INVALID, "extended headers were chosen before"),
                    Replies::Simple | Replies::Chunks => (REP_ACK, ""),
                };
                if kind == REP_ACK {
                    self.chosen.replies = Replies::Extended;
                }
                self.reply(option, kind, text.as_bytes()).await?;
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.contexts(option, data).await?,
            other => self.reply(other, REP_ERR_UNSUP, b"this server does not support the option").await?,
        }
        Ok(None)
    }

    async fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut out = Vec::with_capacity(20 + data.len());
        OptionReplyHead::encode(option, kind, data, &mut out);
        self.send(&out).await
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    async fn start_tls(&mut self, data: &[u8]) -> io::Result<Option<Outcome>> {
        let (kind, text) = match self.tls {
            Tls::Off => (REP_ERR_POLICY, "this socket is served without TLS"),
            Tls::Active => (REP_ERR_INVALID, "TLS has begun already"),
            Tls::Required if !data.is_empty() => (REP_ERR_INVALID, "NBD_OPT_STARTTLS takes no data"),
            Tls::Required => (REP_ACK, ""),
        };
        self.reply(OPT_STARTTLS, kind, text.as_bytes()).await?;
        Ok((kind == REP_ACK).then_some(Outcome::StartTls))
    }

    /// NBD_OPT_EXPORT_NAME, which has no error reply.
    async fn export_name(&mut self, name: &[u8], no_zeroes: bool) -> io::Result<Outcome> {
        if self.tls == Tls::Required {
            return broken("NBD_OPT_EXPORT_NAME before TLS, which is required".into());
        }
        if self.chosen.replies == Replies::Extended {
            return broken("NBD_OPT_EXPORT_NAME after NBD_OPT_EXTENDED_HEADERS".into());
        }
        let found = find(&self.host.shared.exports, name).await;
        let admitted = found.and_then(|export| Ok((self.host.reserve(&export, self.tls)?, export)));
        let (seat, export) = match admitted {
            Ok(admitted) => admitted,
            Err((_, why)) => return broken(why),
        };
        let client = match self.host.attach(&export).await {
            Ok(client) => client,
            Err((_, why)) => return broken(why),
        };
        let mut out = Vec::with_capacity(134);
        out.extend_from_slice(&export.info().size_bytes.to_be_bytes());
        out.extend_from_slice(&export.flags(self.chosen.chunks()).to_be_bytes());
        if !no_zeroes {
            out.resize(out.len() + 124, 0);
        }
        self.send(&out).await?;
        let negotiated = self.chosen.transmission(name);
        Ok(Outcome::Transmission(Admitted { export, negotiated, seat, client }))
    }

    async fn list(&mut self, data: &[u8]) -> io::Result<()> {
        if !data.is_empty() {
            return self.reply(OPT_LIST, REP_ERR_INVALID, b"NBD_OPT_LIST takes no data").await;
        }
        let exports = Arc::clone(&self.host.shared.exports);
        let Ok(names) = tokio::task::spawn_blocking(move || exports.names()).await else {
            return self.reply(OPT_LIST, REP_ERR_POLICY, b"the exports cannot be listed").await;
        };
        let mut out = Vec::new();
        for name in names {
            let mut server = Vec::with_capacity(4 + name.len());
            server.extend_from_slice(&(name.len() as u32).to_be_bytes());
            server.extend_from_slice(name.as_bytes());
            OptionReplyHead::encode(OPT_LIST, REP_SERVER, &server, &mut out);
        }
        OptionReplyHead::encode(OPT_LIST, REP_ACK, b"", &mut out);
        self.send(&out).await
    }

    /// Answers NBD_OPT_INFO and NBD_OPT_GO.
    async fn info(&mut self, option: u32, data: &[u8]) -> io::Result<Option<Outcome>> {
        let Some(asked) = GoData::decode(data) else {
            self.reply(option, REP_ERR_INVALID, b"the option's data is malformed").await?;
            return Ok(None);
        };
        let found = find(&self.host.shared.exports, asked.name).await;
        let admitted = match found {
            Ok(export) => self.admit(option, &export).await.map(|client| (export, client)),
            Err(why) => Err(why),
        };
        let (export, client) = match admitted {
            Ok(admitted) => admitted,
            Err((kind, why)) => {
                self.reply(option, kind, why.as_bytes()).await?;
                return Ok(None);
            }
        };
        let mut items = vec![
            Info::Export { size_bytes: export.info().size_bytes, flags: export.flags(self.chosen.chunks()) },
            // Sent unasked too, as the specification allows: a client that ignores it gets EINVAL for
            // what does not fit.
            Info::BlockSizes(export.block_sizes()),
        ];
        if asked.asks_for(INFO_NAME) {
            items.push(Info::Name(export.name().into()));
        }
        if asked.asks_for(INFO_DESCRIPTION) {
            items.push(Info::Description(export.description()));
        }
        let mut out = Vec::new();
        for item in items {
            OptionReplyHead::encode(option, REP_INFO, &item.encode(), &mut out);
        }
        OptionReplyHead::encode(option, REP_ACK, b"", &mut out);
        self.send(&out).await?;
        let negotiated = self.chosen.transmission(asked.name);
        Ok(client.map(|(seat, client)| Outcome::Transmission(Admitted { export, negotiated, seat, client })))
    }

    /// What a client needs that is to be told of an export, and after NBD_OPT_GO may send requests.
    async fn admit(&self, option: u32, export: &Export) -> Result<Option<(Seat, Attached)>, (u32, String)> {
        if option != OPT_GO {
            return self.host.ready(export).await.map(|()| None);
        }
        let seat = self.host.reserve(export, self.tls)?;
        Ok(Some((seat, self.host.attach(export).await?)))
    }

    async fn contexts(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let set = option == OPT_SET_META_CONTEXT;
        if set {
            self.chosen.forget();
        }
        if set && !self.chosen.chunks() {
            let text = b"metadata contexts need structured replies or extended headers, to be chosen before";
            return self.reply(option, REP_ERR_INVALID, text).await;
        }
        let Some(asked) = MetaData::decode(data) else {
            return self.reply(option, REP_ERR_INVALID, b"the option's data is malformed").await;
        };
        if let Err((kind, why)) = find(&self.host.shared.exports, asked.name).await {
            return self.reply(option, kind, why.as_bytes()).await;
        }
        let out = self.chosen.answer(option, &asked);
        self.send(&out).await
    }
}
