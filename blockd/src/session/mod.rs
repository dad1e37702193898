//! The mounter's side of the command page (FORMAT.md 3.2): sessions, and the commands that are
//! not reads or writes. The same over the embedded store, an NBD connection or a block device.
//!
//! Life of a session: [`Session::open`] (fences an older mounter, rolls back to the last commit)
//! -> commands with ids that grow by one -> [`Session::close`]. When an NBD connection is lost
//! meanwhile, [`reconnect_hook`] attaches the fresh one before anything is sent on it.
//!
//! A reply is read from the same page that the command was written to. If the connection was
//! replaced between the two, the page holds the reply of the attach; then the command is written
//! again with the same id, which gives the kept reply and does nothing a second time.

mod boot;
mod grant;
mod port;

use std::sync::Arc;

use layout::addr::PageRange;
use layout::command::{
    CLONE_PAGES_MAX, CLONES_MAX, CMD_ATTACH, CMD_CLONE_RANGE, CMD_CLOSE, CMD_FREE_RANGES, CMD_OPEN,
    COMMAND_MAGIC, Command, CommandClone, CommandRange, CommandReply, OPEN_READ_ONLY, RANGES_MAX,
    REPLY_MAGIC, STATUS_MAGIC, Status,
};
use parking_lot::Mutex;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::device::{ClientId, Device, IoError};
use crate::nbd::client::{HookOutcome, ReconnectHook};

pub use boot::{BootId, boot_id};
pub use grant::{Grant, GrantCell};
pub use port::{CommandPort, DevicePort};

/// How often a command is written again when the reply belongs to another one; each time means
/// one more lost connection at that very moment.
const TRIES_MAX: u32 = 8;

/// Why a command failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SessionError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] IoError),
    /// The daemon refused the command.
    #[error("{message} (errno {errno})")]
    Refused {
        /// A positive errno.
        errno: i32,
        /// The daemon's sentence.
        message: String,
    },
    /// What stands on the page is not what FORMAT.md says.
    #[error("the volume gives no valid {0}; is it a VexFS volume of format version 1, made by mkfs.vexfs?")]
    NotVexFs(&'static str),
}

impl SessionError {
    /// Whether another mounter took the volume, or the session is gone: nothing will work again.
    pub fn is_fenced(&self) -> bool {
        match self {
            SessionError::Device(e) => matches!(e, IoError::Fenced(_)),
            SessionError::Refused { errno, .. } => *errno == libc::ESHUTDOWN,
            SessionError::NotVexFs(_) => false,
        }
    }

    /// Whether the image is full.
    pub fn is_no_space(&self) -> bool {
        match self {
            SessionError::Device(e) => matches!(e, IoError::NoSpace),
            SessionError::Refused { errno, .. } => *errno == libc::ENOSPC,
            SessionError::NotVexFs(_) => false,
        }
    }
}

/// How a volume is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// A session is granted, an older one fenced, and the volume rolled back to its last commit.
    ReadWrite,
    /// Nothing is granted and nobody fenced.
    ReadOnly,
}

/// A granted session and the ids of its commands.
pub struct Session {
    device: Arc<dyn Device>,
    client: ClientId,
    grant: Option<Grant>,
    cell: GrantCell,
    epoch: u64,
    /// The id of the next command. Locked while one is under way: one at a time.
    next_id: Mutex<u64>,
}

impl Session {
    /// Takes the volume for `client`. The grant is put into `cell`, which a [`reconnect_hook`]
    /// of the same device reads.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn open(
        device: Arc<dyn Device>,
        client: ClientId,
        mode: OpenMode,
        boot_id: BootId,
        cell: &GrantCell,
    ) -> Result<Session, SessionError> {
        let flags = match mode {
            OpenMode::ReadWrite => 0,
            OpenMode::ReadOnly => OPEN_READ_ONLY,
        };
        let mut port = DevicePort { device: &*device, client };
        let command = command(CMD_OPEN, flags, Grant { session: 0, boot_id }, 1);
        let reply = carry_out(&mut port, &command)?;
        let grant = match mode {
            OpenMode::ReadWrite => Some(Grant { session: reply.session.get(), boot_id }),
            OpenMode::ReadOnly => None,
        };
        cell.set(grant);
        if let Some(grant) = grant {
            // A connection replaced after the reply and before `set` is not attached; from here on
            // the hook attaches every fresh one, so this closes the gap.
            attach(&mut port, grant)?;
        }
        let epoch = reply.epoch.get();
        Ok(Session { device, client, grant, cell: cell.clone(), epoch, next_id: Mutex::new(2) })
    }

    /// The session's number; 0 for a read-only one.
    pub fn number(&self) -> u64 {
        self.grant.map_or(0, |grant| grant.session)
    }

    /// The volume's last commit at the time of the open.
    pub fn epoch_at_open(&self) -> u64 {
        self.epoch
    }

    /// Unmaps page ranges in the open epoch, in as many commands as needed: after every write
    /// acknowledged before, and before every write sent afterwards.
    ///
    /// # Errors
    /// [`SessionError`]; the ranges before the failing command are freed.
    pub fn free_ranges(&self, ranges: &[PageRange]) -> Result<(), SessionError> {
        for some in ranges.chunks(RANGES_MAX) {
            self.next(CMD_FREE_RANGES, |command| set_ranges(command, some))?;
        }
        Ok(())
    }

    /// Lets page ranges of data, [`CLONES_MAX`] at most and [`CLONE_PAGES_MAX`] pages, be as others are, in the open epoch and
    /// without a byte being moved: after every write acknowledged before, and before every write sent afterwards. No range that
    /// is written overlaps another one.
    ///
    /// # Errors
    /// [`SessionError`]: each page that was to be written is as it was, or as it was to be.
    ///
    /// # Panics
    /// With more ranges or pages.
    pub fn clone_ranges(&self, clones: &[CommandClone]) -> Result<(), SessionError> {
        let pages: u64 = clones.iter().map(|clone| clone.page_count.get()).sum();
        assert!(clones.len() <= CLONES_MAX && pages <= CLONE_PAGES_MAX, "the clones fit one command");
        self.next(CMD_CLONE_RANGE, |command| command.set_clones(clones)).map(drop)
    }

    /// Ends the session; what is not committed is rolled back. A session that is over already
    /// is as good as closed: it may have been this very close, its reply lost with the connection.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn close(self) -> Result<(), SessionError> {
        if self.grant.is_none() {
            return Ok(());
        }
        let result = self.next(CMD_CLOSE, |_| {});
        self.cell.set(None);
        match result {
            Err(e) if !e.is_fenced() => Err(e),
            _ => Ok(()),
        }
    }

    fn next(&self, op: u32, fill: impl FnOnce(&mut Command)) -> Result<CommandReply, SessionError> {
        let Some(grant) = self.grant else { return Err(SessionError::Device(IoError::ReadOnly)) };
        let mut next_id = self.next_id.lock();
        let id = *next_id;
        *next_id += 1;
        let mut port = DevicePort { device: &*self.device, client: self.client };
        let mut command = command(op, 0, grant, id);
        fill(&mut command);
        carry_out(&mut port, &command)
    }
}

/// Attaches a client, or a fresh connection, to a live session; nothing is rolled back.
/// An attach carries id 0 and is not counted among the session's commands.
///
/// # Errors
/// [`SessionError`]; [`SessionError::is_fenced`] when the session is not live any more.
pub fn attach(port: &mut dyn CommandPort, grant: Grant) -> Result<(), SessionError> {
    carry_out(port, &command(CMD_ATTACH, 0, grant, 0)).map(|_| ())
}

/// What an `NbdClient` needs to survive the daemon's death under a mount: attaches each fresh
/// connection to the session in `cell`, if there is one; a refusal means that it is lost.
pub fn reconnect_hook(cell: GrantCell) -> ReconnectHook {
    Box::new(move |connection| {
        let Some(grant) = cell.get() else { return HookOutcome::Continue };
        match attach(connection, grant) {
            Ok(()) => HookOutcome::Continue,
            // Only a broken connection passes by itself; an answer other than yes is final.
            Err(SessionError::Device(IoError::Io(e))) => {
                HookOutcome::Retry(format!("cannot attach to session {}: {e}", grant.session))
            }
            Err(e) => HookOutcome::Lost(format!("{e}; mount the volume again")),
        }
    })
}

/// Reads the status page.
///
/// # Errors
/// [`SessionError`].
pub fn status(port: &mut dyn CommandPort) -> Result<Status, SessionError> {
    let page = port.read_page(layout::addr::STATUS_PAGE)?;
    Status::read_from_bytes(&page[..])
        .ok()
        .filter(|status| status.magic == STATUS_MAGIC && status.version.get() == 1)
        .ok_or(SessionError::NotVexFs("status page"))
}

fn command(op: u32, flags: u32, grant: Grant, id: u64) -> Command {
    let mut command = Command::new_zeroed();
    command.magic = COMMAND_MAGIC;
    command.op = op.into();
    command.flags = flags.into();
    command.session = grant.session.into();
    command.id = id.into();
    command.boot_id = grant.boot_id.0;
    command
}

fn set_ranges(command: &mut Command, ranges: &[PageRange]) {
    assert!(ranges.len() <= RANGES_MAX, "the ranges fit one command");
    command.range_count = (ranges.len() as u32).into();
    for (slot, range) in command.ranges.iter_mut().zip(ranges) {
        *slot = CommandRange { first_page: range.first.0.into(), page_count: range.count.into() };
    }
}

fn carry_out(port: &mut dyn CommandPort, command: &Command) -> Result<CommandReply, SessionError> {
    for _ in 0..TRIES_MAX {
        port.write_page(layout::addr::COMMAND_PAGE, command.as_bytes())?;
        let page = port.read_page(layout::addr::COMMAND_PAGE)?;
        let reply = CommandReply::read_from_bytes(&page[..]).ok();
        // A page without a reply is one of a client that has sent no command yet: a connection
        // replaced before the read.
        let Some(reply) = reply.filter(|reply| reply.magic == REPLY_MAGIC) else { continue };
        if reply.id != command.id || reply.op != command.op {
            continue;
        }
        return match i32::try_from(reply.errno.get()) {
            Ok(0) => Ok(reply),
            Ok(errno) => Err(SessionError::Refused { errno, message: sentence(&reply.message) }),
            Err(_) => Err(SessionError::NotVexFs("errno in its command reply")),
        };
    }
    Err(SessionError::NotVexFs("command reply"))
}

fn sentence(message: &[u8]) -> String {
    let end = message.iter().position(|&b| b == 0).unwrap_or(message.len());
    let text = String::from_utf8_lossy(&message[..end]).into_owned();
    if text.is_empty() { "the daemon refused the command".into() } else { text }
}

#[cfg(test)]
mod tests {
    use layout::addr::{COMMAND_PAGE, PageNo};

    use super::*;
    use crate::buf::AlignedBuf;

    /// A daemon with one session, whose connection is replaced after the writes named in
    /// `replaced_after`: then the page reads as the fresh connection's attach left it.
    #[derive(Default)]
    struct Daemon {
        written: Vec<(u32, u64)>,
        executed: Vec<u64>,
        replaced_after: Vec<usize>,
        after_replacement: Option<CommandReply>,
        refuse: Option<(u32, &'static str)>,
        page: Option<CommandReply>,
    }

    fn reply(op: u32, id: u64, errno: u32, text: &str) -> CommandReply {
        let mut reply = CommandReply::new_zeroed();
        reply.magic = REPLY_MAGIC;
        reply.op = op.into();
        reply.id = id.into();
        reply.session = 5.into();
        reply.errno = errno.into();
        reply.message[..text.len()].copy_from_slice(text.as_bytes());
        reply
    }

    impl CommandPort for Daemon {
        fn read_page(&mut self, page: PageNo) -> Result<AlignedBuf, IoError> {
            assert_eq!(page, COMMAND_PAGE);
            Ok(match &self.page {
                Some(reply) => AlignedBuf::from_slice(reply.as_bytes()),
                None => AlignedBuf::zeroed(4096),
            })
        }

        fn write_page(&mut self, page: PageNo, bytes: &[u8]) -> Result<(), IoError> {
            assert_eq!(page, COMMAND_PAGE);
            let command = Command::read_from_bytes(bytes).expect("a page");
            assert_eq!(command.magic, COMMAND_MAGIC);
            let (op, id) = (command.op.get(), command.id.get());
            self.written.push((op, id));
            if !self.executed.contains(&id) {
                self.executed.push(id);
            }
            let (errno, text) = self.refuse.unwrap_or((0, ""));
            self.page = Some(reply(op, id, errno, text));
            if self.replaced_after.contains(&self.written.len()) {
                self.page = self.after_replacement.clone();
            }
            Ok(())
        }
    }

    const GRANT: Grant = Grant { session: 5, boot_id: BootId([1; 16]) };

    #[test]
    fn a_reply_of_another_command_has_the_command_written_again_with_the_same_id() {
        let mut daemon = Daemon {
            replaced_after: vec![1, 2],
            after_replacement: Some(reply(CMD_ATTACH, 0, 0, "")),
            ..Daemon::default()
        };
        carry_out(&mut daemon, &command(CMD_FREE_RANGES, 0, GRANT, 9)).unwrap();
        assert_eq!(daemon.written, [(CMD_FREE_RANGES, 9); 3]);
        assert_eq!(daemon.executed, [9], "carried out once");
    }

    #[test]
    fn a_page_without_a_reply_is_not_a_reply() {
        let mut daemon = Daemon { replaced_after: vec![1], ..Daemon::default() };
        carry_out(&mut daemon, &command(CMD_OPEN, 0, GRANT, 1)).unwrap();
        assert_eq!(daemon.written.len(), 2);
        let mut silent = Daemon { replaced_after: (1..100).collect(), ..Daemon::default() };
        let error = carry_out(&mut silent, &command(CMD_OPEN, 0, GRANT, 1)).err().unwrap();
        assert!(error.to_string().contains("mkfs.vexfs"), "{error}");
        assert!(silent.written.len() < 20, "it gives up");
    }

    #[test]
    fn refusals_carry_the_daemons_sentence() {
        let errno = libc::ESHUTDOWN.unsigned_abs();
        let mut daemon = Daemon { refuse: Some((errno, "session 5 is not live")), ..Daemon::default() };
        let error = attach(&mut daemon, GRANT).unwrap_err();
        assert!(error.is_fenced() && !error.is_no_space());
        assert!(error.to_string().contains("session 5 is not live"));
        assert_eq!(daemon.written, [(CMD_ATTACH, 0)]);
    }

    #[test]
    fn commands_carry_session_boot_and_ranges() {
        let range = PageRange { first: PageNo(77), count: 3 };
        let mut command = command(CMD_FREE_RANGES, 0, GRANT, 4);
        set_ranges(&mut command, &[range]);
        assert_eq!((command.session.get(), command.id.get(), command.range_count.get()), (5, 4, 1));
        assert_eq!(command.boot_id, [1; 16]);
        assert_eq!((command.ranges[0].first_page.get(), command.ranges[0].page_count.get()), (77, 3));
        assert_eq!(command.ranges[1].page_count.get(), 0);
        let clone = |n: u64| CommandClone {
            from_page: (n * 3).into(),
            to_page: (n + 1000).into(),
            page_count: 2.into(),
        };
        let clones: Vec<CommandClone> = (0..CLONES_MAX as u64).map(clone).collect();
        command.set_clones(&clones);
        assert_eq!(command.range_count.get() as usize, CLONES_MAX);
        assert_eq!(command.clones().collect::<Vec<_>>(), clones);
    }
}
