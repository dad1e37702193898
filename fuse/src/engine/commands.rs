//! The command page: sessions and frees (FORMAT.md 3.2).

use blockd::buf::AlignedBuf;
use blockd::device::{ClientId, Device, IoError, IoOp, blocking};
use layout::addr::{COMMAND_PAGE, PAGE, STATUS_PAGE};
use layout::command::{
    CMD_CLOSE, CMD_FREE_RANGES, CMD_OPEN, COMMAND_MAGIC, Command, CommandRange, CommandReply, OPEN_READ_ONLY,
    RANGES_MAX, REPLY_MAGIC, STATUS_MAGIC, Status,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// How often a command is sent again when the reply read back belongs to another one (a reconnect
/// came between).
const TRIES_MAX: u32 = 5;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] IoError),
    /// The daemon refused.
    #[error("{message} (errno {errno})")]
    Refused {
        /// A positive errno.
        errno: i32,
        /// The daemon's sentence.
        message: String,
    },
    /// What came back is no reply.
    #[error("the volume gives no reply on its command page: is it a VexFS volume of this version?")]
    NoReply,
}

impl CommandError {
    /// Whether the session is gone for good.
    pub fn is_fenced(&self) -> bool {
        match self {
            CommandError::Device(e) => matches!(e, IoError::Fenced(_)),
            CommandError::Refused { errno, .. } => *errno == libc::ESHUTDOWN,
            CommandError::NoReply => false,
        }
    }

    /// Whether the volume is full.
    pub fn is_no_space(&self) -> bool {
        match self {
            CommandError::Device(e) => matches!(e, IoError::NoSpace),
            CommandError::Refused { errno, .. } => *errno == libc::ENOSPC,
            CommandError::NoReply => false,
        }
    }
}

/// The session of one mount, and the ids of its commands.
#[derive(Debug)]
pub struct Commands {
    session: u64,
    next_id: u64,
    boot_id: [u8; 16],
}

impl Commands {
    /// Takes the volume: fences an older session and rolls back to the last commit. With
    /// `read_only` nobody is fenced and [`Commands::session`] is 0.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn open(
        device: &dyn Device,
        client: ClientId,
        boot_id: [u8; 16],
        read_only: bool,
    ) -> Result<Self, CommandError> {
        let mut commands = Commands { session: 0, next_id: 1, boot_id };
        let flags = if read_only { OPEN_READ_ONLY } else { 0 };
        let reply = commands.carry_out(device, client, CMD_OPEN, flags, &[])?;
        commands.session = reply.session.get();
        Ok(commands)
    }

    /// The granted session, 0 if read-only.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Unmaps ranges (first page, count) in the open epoch.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn free_ranges(
        &mut self,
        device: &dyn Device,
        client: ClientId,
        ranges: &[(u64, u64)],
    ) -> Result<(), CommandError> {
        for some in ranges.chunks(RANGES_MAX) {
            self.carry_out(device, client, CMD_FREE_RANGES, 0, some)?;
        }
        Ok(())
    }

    /// Ends the session; commit first.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn close(&mut self, device: &dyn Device, client: ClientId) -> Result<(), CommandError> {
        if self.session != 0 {
            self.carry_out(device, client, CMD_CLOSE, 0, &[])?;
            self.session = 0;
        }
        Ok(())
    }

    fn carry_out(
        &mut self,
        device: &dyn Device,
        client: ClientId,
        op: u32,
        flags: u32,
        ranges: &[(u64, u64)],
    ) -> Result<CommandReply, CommandError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut command = Command::new_zeroed();
        command.magic = COMMAND_MAGIC;
        command.op = op.into();
        command.flags = flags.into();
        command.session = self.session.into();
        command.id = id.into();
        command.boot_id = self.boot_id;
        command.range_count = u32::try_from(ranges.len()).unwrap_or(u32::MAX).into();
        for (slot, &(first_page, page_count)) in command.ranges.iter_mut().zip(ranges) {
            *slot = CommandRange { first_page: first_page.into(), page_count: page_count.into() };
        }
        for _ in 0..TRIES_MAX {
            let buf = AlignedBuf::from_slice(command.as_bytes());
            blocking(device, client, IoOp::Write { offset: COMMAND_PAGE.byte(), buf, fua: false })?;
            let bytes = read_private(device, client, COMMAND_PAGE.byte())?;
            let reply = CommandReply::read_from_bytes(&bytes).map_err(|_| CommandError::NoReply)?;
            if reply.magic != REPLY_MAGIC {
                return Err(CommandError::NoReply);
            }
            if reply.id.get() != id || reply.op.get() != op {
                continue;
            }
            return match reply.errno.get() {
                0 => Ok(reply),
                errno => Err(CommandError::Refused {
                    errno: i32::try_from(errno).unwrap_or(libc::EIO),
                    message: sentence(&reply.message),
                }),
            };
        }
        Err(CommandError::NoReply)
    }
}

/// Reads the status page.
///
/// # Errors
/// [`CommandError::NoReply`] when the page has no status.
pub fn read_status(device: &dyn Device, client: ClientId) -> Result<Status, CommandError> {
    let bytes = read_private(device, client, STATUS_PAGE.byte())?;
    let status = Status::read_from_bytes(&bytes).map_err(|_| CommandError::NoReply)?;
    if status.magic == STATUS_MAGIC { Ok(status) } else { Err(CommandError::NoReply) }
}

fn read_private(device: &dyn Device, client: ClientId, offset: u64) -> Result<AlignedBuf, IoError> {
    let read = blocking(device, client, IoOp::Read { offset, buf: AlignedBuf::zeroed(PAGE) })?;
    read.ok_or_else(|| IoError::Io(format!("the device returned no data at {offset:#x}")))
}

fn sentence(message: &[u8]) -> String {
    let end = message.iter().position(|&b| b == 0).unwrap_or(message.len());
    let text = String::from_utf8_lossy(&message[..end]).into_owned();
    if text.is_empty() { "the volume refused the command".to_owned() } else { text }
}
