//! Flag words of the greeting, of an export, and of a request.

/// Greeting, server: fixed newstyle negotiation.
pub const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Greeting, server: the 124 zero bytes after NBD_OPT_EXPORT_NAME can be left out.
pub const HANDSHAKE_NO_ZEROES: u16 = 1 << 1;

/// Greeting, client: fixed newstyle negotiation.
pub const CLIENT_FIXED_NEWSTYLE: u32 = 1 << 0;
/// Greeting, client: leave the 124 zero bytes out.
pub const CLIENT_NO_ZEROES: u32 = 1 << 1;

/// Export: always set.
pub const EXPORT_HAS_FLAGS: u16 = 1 << 0;
/// Export: takes no writes.
pub const EXPORT_READ_ONLY: u16 = 1 << 1;
/// Export: NBD_CMD_FLUSH is served.
pub const EXPORT_SEND_FLUSH: u16 = 1 << 2;
/// Export: NBD_CMD_FLAG_FUA is honoured.
pub const EXPORT_SEND_FUA: u16 = 1 << 3;
/// Export: NBD_CMD_TRIM is served.
pub const EXPORT_SEND_TRIM: u16 = 1 << 5;
/// Export: NBD_CMD_WRITE_ZEROES is served.
pub const EXPORT_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Export: [`COMMAND_DONT_FRAGMENT`] is honoured. Only with structured replies.
pub const EXPORT_SEND_DF: u16 = 1 << 7;
/// Export: what one connection flushed or wrote with FUA holds for all connections.
pub const EXPORT_CAN_MULTI_CONN: u16 = 1 << 8;
/// Export: NBD_CMD_CACHE is served.
pub const EXPORT_SEND_CACHE: u16 = 1 << 10;
/// Export: [`COMMAND_FAST_ZERO`] is honoured.
pub const EXPORT_SEND_FAST_ZERO: u16 = 1 << 11;

/// Request: durable when acknowledged. Allowed on every command.
pub const COMMAND_FUA: u16 = 1 << 0;
/// Request, NBD_CMD_WRITE_ZEROES only: do not make a hole. A log has nothing to gain from
/// allocated zeros (the specification allows to ignore the wish), so it is accepted and ignored.
pub const COMMAND_NO_HOLE: u16 = 1 << 1;
/// Request, NBD_CMD_READ only: answer with one content chunk.
pub const COMMAND_DONT_FRAGMENT: u16 = 1 << 2;
/// Request, NBD_CMD_BLOCK_STATUS only: one extent, within the range.
pub const COMMAND_REQUEST_ONE: u16 = 1 << 3;
/// Request, with extended headers only: `length` bytes of payload follow.
pub const COMMAND_PAYLOAD_LEN: u16 = 1 << 5;
/// Request, NBD_CMD_WRITE_ZEROES only: fail rather than write zeros out. Ours never does.
pub const COMMAND_FAST_ZERO: u16 = 1 << 4;
