//! Sessions and commands (FORMAT.md section 3.2): who may change a VexFS volume.
//!
//! A client is *unattached* -> (OPEN or ATTACH) *attached* to the live session -> (the session is
//! closed, or taken by another OPEN) *fenced*, which is to be unattached. Decisions are made in the order of the
//! log, by its thread; what outlives the daemon is a [`SessionState`] in each record.

use std::collections::HashMap;

use layout::addr::{
    CLASS0_BASE, DEVICE_PAGES, INDEX_BASE, Owner, PAGE, PAGE_SHIFT, PageNo, STACK_BASE, owner,
};
use layout::command::{
    CLONE_PAGES_MAX, CLONES_MAX, CMD_ATTACH, CMD_CLONE_RANGE, CMD_CLOSE, CMD_FREE_RANGES, CMD_OPEN,
    CMD_SNAPSHOT, COMMAND_MAGIC, Command, CommandReply, OPEN_READ_ONLY, RANGES_MAX, REPLY_MAGIC,
};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::{ClientId, IoError};
use crate::store::format::record::{LastCommand, SessionState};

/// Volatile side of the sessions.
#[derive(Debug)]
pub struct Sessions {
    attached: HashMap<ClientId, u64>,
    /// Last reply of each client.
    replies: HashMap<ClientId, Reply>,
    /// Sessions granted by this start; with the incarnation they are never granted twice.
    granted: u32,
    incarnation: u64,
    /// Could have gone on, but its head is lost to damage.
    lost: Option<u64>,
}

#[derive(Clone, Debug)]
struct Reply {
    last: LastCommand,
    message: [u8; 216],
}

#[derive(Serialize, Deserialize)]
struct SavedClient {
    attached: Option<u64>,
    reply: Option<SavedReply>,
}

#[derive(Serialize, Deserialize)]
struct SavedReply {
    session: u64,
    id: u64,
    epoch: u64,
    op: u32,
    errno: u32,
    message: Vec<u8>,
}

/// Pages that are to be as others are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cloned {
    /// First page as which they are.
    pub from: u64,
    /// First of them.
    pub to: u64,
    /// How many.
    pub count: u64,
}

/// What a command asks of the log.
#[derive(Debug, Default)]
pub struct Action {
    /// Drop the open epoch first.
    pub rollback: bool,
    /// Page ranges to unmap.
    pub discards: Vec<(u64, u64)>,
    /// Page ranges to clone.
    pub clones: Vec<Cloned>,
    /// The session state from then on; `None`: nothing needs to be logged.
    pub session: Option<SessionState>,
    /// Acknowledge when durable.
    pub durable: bool,
    /// Done before: acknowledge when that is written, which it may not be yet.
    pub repeated: bool,
}

fn text(message: &str) -> [u8; 216] {
    let mut out = [0; 216];
    let mut len = message.len().min(out.len() - 1);
    while !message.is_char_boundary(len) {
        len -= 1;
    }
    out[..len].copy_from_slice(&message.as_bytes()[..len]);
    out
}

impl Sessions {
    /// Nobody is attached yet.
    pub fn new(incarnation: u64, lost: Option<u64>) -> Self {
        Sessions { attached: HashMap::new(), replies: HashMap::new(), granted: 0, incarnation, lost }
    }

    /// The client is gone; its session stays.
    pub fn disconnect(&mut self, client: ClientId) {
        self.attached.remove(&client);
        self.replies.remove(&client);
    }

    /// What a successor must know of a client: the session it is attached to, and its last reply.
    pub fn client_state(&self, client: ClientId) -> Vec<u8> {
        let attached = self.attached.get(&client).copied();
        let reply = self.replies.get(&client).map(|Reply { last, message }| SavedReply {
            session: last.session,
            id: last.id,
            epoch: last.epoch,
            op: last.op,
            errno: last.errno,
            message: message.to_vec(),
        });
        // Numbers and bytes: there is nothing that JSON could not hold.
        serde_json::to_vec(&SavedClient { attached, reply }).unwrap_or_default()
    }

    /// The client was known so to the predecessor. Whether its session lives on is decided at each request, as ever.
    pub fn restore_client(&mut self, client: ClientId, state: &[u8]) {
        let Ok(SavedClient { attached, reply }) = serde_json::from_slice(state) else { return };
        if let Some(session) = attached {
            self.attached.insert(client, session);
        }
        if let Some(SavedReply { session, id, epoch, op, errno, message }) = reply
            && let Ok(message) = message.try_into()
        {
            self.replies
                .insert(client, Reply { last: LastCommand { session, id, epoch, op, errno }, message });
        }
    }

    /// Whether the client may change the volume.
    ///
    /// # Errors
    /// [`IoError::Fenced`] if it is not attached to the live session.
    pub fn check(&self, client: ClientId, live: u64) -> Result<(), IoError> {
        match self.attached.get(&client) {
            Some(&session) if session == live && live != 0 => Ok(()),
            Some(session) => Err(IoError::Fenced(format!("session {session} was ended by another mounter"))),
            None => Err(IoError::Fenced("not attached: send OPEN or ATTACH first".into())),
        }
    }

    /// The reply page a client reads.
    pub fn reply(&self, client: ClientId, state: &SessionState) -> [u8; PAGE] {
        let kept = Reply { last: state.last_command(), message: state.message };
        let Reply { last, message } = self.replies.get(&client).cloned().unwrap_or(kept);
        let reply = CommandReply {
            magic: REPLY_MAGIC,
            errno: last.errno.into(),
            op: last.op.into(),
            session: last.session.into(),
            id: last.id.into(),
            epoch: last.epoch.into(),
            message,
            reserved: [0; 3840],
        };
        let mut page = [0; PAGE];
        page.copy_from_slice(reply.as_bytes());
        page
    }

    /// Carries out a command, `state` being the session state of the log's end and `epoch` its commits.
    ///
    /// # Errors
    /// [`IoError::Invalid`] if it is malformed: the write of the command page fails.
    pub fn command(
        &mut self,
        client: ClientId,
        page: &[u8],
        state: &SessionState,
        epoch: u64,
    ) -> Result<Action, IoError> {
        let command = parse(page)?;
        let (op, session, id) = (command.op.get(), command.session.get(), command.id.get());
        let live = state.session();
        let outcome = match op {
            CMD_OPEN => return Ok(self.open(client, &command, state, epoch)),
            CMD_ATTACH => Ok(self.attach(client, &command, state)),
            _ => self.in_session(client, &command, state),
        };
        let mut last = LastCommand { session, id, epoch, op, errno: 0 };
        match outcome {
            Ok(Outcome::Kept) => {
                self.replies.insert(client, Reply { last: state.last_command(), message: state.message });
                Ok(Action { repeated: true, durable: op == CMD_CLOSE, ..Action::default() })
            }
            Ok(Outcome::Refused(errno, message)) => {
                last.errno = errno;
                self.replies.insert(client, Reply { last, message: text(&message) });
                Ok(Action::default())
            }
            Ok(Outcome::Done(mut action, errno, message)) => {
                last.errno = errno;
                let message = text(&message);
                if op != CMD_ATTACH {
                    let mut state = state.clone();
                    if op == CMD_CLOSE {
                        state.set_session(0, [0; 16]);
                        self.attached.retain(|_, s| *s != live);
                    }
                    state.set_last_command(last, message);
                    action.session = Some(state);
                }
                self.replies.insert(client, Reply { last, message });
                Ok(*action)
            }
            Err(e) => Err(e),
        }
    }

    fn open(&mut self, client: ClientId, command: &Command, state: &SessionState, epoch: u64) -> Action {
        let id = command.id.get();
        if command.flags.get() & OPEN_READ_ONLY != 0 {
            let last = LastCommand { session: 0, id, epoch, op: CMD_OPEN, errno: 0 };
            self.replies.insert(client, Reply { last, message: [0; 216] });
            return Action::default();
        }
        self.granted += 1;
        let session = (self.incarnation << 32) | u64::from(self.granted);
        self.attached.clear();
        self.attached.insert(client, session);
        self.lost = None;
        let mut state = state.clone();
        state.set_session(session, command.boot_id);
        // Ids of the new session begin above 0.
        let last = LastCommand { session, id: 0, epoch, op: CMD_OPEN, errno: 0 };
        state.set_last_command(last, [0; 216]);
        self.replies.insert(client, Reply { last: LastCommand { id, ..last }, message: [0; 216] });
        Action { rollback: true, session: Some(state), durable: true, ..Action::default() }
    }

    fn attach(&mut self, client: ClientId, command: &Command, state: &SessionState) -> Outcome {
        let session = command.session.get();
        if session != 0 && self.lost == Some(session) {
            let message =
                "the image is damaged: what this session wrote last is lost; unmount and mount again";
            return Outcome::Refused(libc::EIO as u32, message.into());
        }
        if session == 0 || session != state.session() || command.boot_id != state.boot_id {
            let message = "the session is over: another mounter took the volume, or it was rolled back";
            return Outcome::Refused(libc::ESHUTDOWN as u32, message.into());
        }
        self.attached.insert(client, session);
        Outcome::Done(Box::default(), 0, String::new())
    }

    /// Commands with an id of their session.
    fn in_session(
        &self,
        client: ClientId,
        command: &Command,
        state: &SessionState,
    ) -> Result<Outcome, IoError> {
        let (op, session, id) = (command.op.get(), command.session.get(), command.id.get());
        let last = state.last_command();
        if session != 0 && session == last.session && id == last.id && op == last.op {
            return Ok(Outcome::Kept);
        }
        if session != state.session() || self.check(client, session).is_err() {
            let message = "not attached to the live session: send OPEN, or ATTACH with its boot id";
            return Ok(Outcome::Refused(libc::ESHUTDOWN as u32, message.into()));
        }
        if session == last.session && id <= last.id {
            let message = format!("command id {id} is not above {}, the last one of this session", last.id);
            return Ok(Outcome::Refused(libc::EINVAL as u32, message));
        }
        Ok(match op {
            CMD_CLOSE => Outcome::Done(
                Box::new(Action { rollback: true, durable: true, ..Action::default() }),
                0,
                String::new(),
            ),
            CMD_FREE_RANGES => match ranges(command) {
                Ok(discards) => {
                    Outcome::Done(Box::new(Action { discards, ..Action::default() }), 0, String::new())
                }
                Err(message) => Outcome::Done(Box::default(), libc::EINVAL as u32, message),
            },
            CMD_CLONE_RANGE => match clones(command) {
                Ok(clones) => {
                    Outcome::Done(Box::new(Action { clones, ..Action::default() }), 0, String::new())
                }
                Err(message) => Outcome::Done(Box::default(), libc::EINVAL as u32, message),
            },
            _ => Outcome::Done(Box::default(), libc::EOPNOTSUPP as u32, "not in this version".into()),
        })
    }
}

enum Outcome {
    /// The kept reply answers it.
    Kept,
    /// Not done, and not noted as the session's last command.
    Refused(u32, String),
    /// Done (or failed for good): errno and message are kept with the session.
    Done(Box<Action>, u32, String),
}

/// The page ranges of a `FREE_RANGES`.
fn ranges(command: &Command) -> Result<Vec<(u64, u64)>, String> {
    let first_allowed = STACK_BASE >> PAGE_SHIFT;
    let end_allowed = INDEX_BASE >> PAGE_SHIFT;
    let mut out = Vec::new();
    for range in &command.ranges[..command.range_count.get() as usize] {
        let (first, count) = (range.first_page.get(), range.page_count.get());
        let end = first.checked_add(count).filter(|&end| end <= DEVICE_PAGES && count > 0);
        match end {
            Some(end) if first >= first_allowed && end <= end_allowed => out.push((first, count)),
            Some(_) => return Err(format!("pages {first:#x}+{count:#x} are not the mounter's to free")),
            None => return Err(format!("pages {first:#x}+{count:#x} are empty or past the device")),
        }
    }
    Ok(out)
}

/// The page ranges of a `CLONE_RANGE`.
fn clones(command: &Command) -> Result<Vec<Cloned>, String> {
    let clones: Vec<Cloned> = command
        .clones()
        .map(|c| Cloned { from: c.from_page.get(), to: c.to_page.get(), count: c.page_count.get() })
        .collect();
    let mut pages = 0u64;
    for Cloned { from, to, count } in &clones {
        pages = pages.saturating_add(*count);
        if pages > CLONE_PAGES_MAX || *count == 0 {
            return Err(format!("a command clones 1 to {CLONE_PAGES_MAX} pages"));
        }
        if !is_data(*from, *count) || !is_data(*to, *count) {
            return Err(format!("pages {from:#x}, {to:#x}+{count:#x}: only data of files is cloned"));
        }
    }
    // What is written must not be read as well: a command that is repeated would clone what it has cloned.
    let mut ranges: Vec<(u64, u64, bool)> = clones
        .iter()
        .flat_map(|c| [(c.to, c.to + c.count, true), (c.from, c.from + c.count, false)])
        .collect();
    ranges.sort_unstable();
    let (mut written_to, mut read_to) = (0, 0);
    for (first, end, is_written) in ranges {
        if first < written_to || (is_written && first < read_to) {
            return Err(format!("page {first:#x} is in several ranges of the command"));
        }
        let upto = if is_written { &mut written_to } else { &mut read_to };
        *upto = end.max(*upto);
    }
    Ok(clones)
}

/// Whether these pages, no more than a command clones, are all of the regions of data.
fn is_data(first: u64, count: u64) -> bool {
    let last = first.saturating_add(count - 1);
    let data = CLASS0_BASE >> PAGE_SHIFT..INDEX_BASE >> PAGE_SHIFT;
    [first, last].iter().all(|page| data.contains(page) && owner(PageNo(*page)) == Owner::Mounter)
}

fn parse(page: &[u8]) -> Result<Command, IoError> {
    let bad = |what: &str| IoError::Invalid(format!("malformed command: {what}"));
    let command = Command::read_from_bytes(page).map_err(|_| bad("it is not one page"))?;
    if command.magic != COMMAND_MAGIC {
        return Err(bad("wrong magic"));
    }
    let op = command.op.get();
    if !(CMD_OPEN..=CMD_SNAPSHOT).contains(&op) {
        return Err(bad("unknown op"));
    }
    let flags_known = if op == CMD_OPEN { OPEN_READ_ONLY } else { 0 };
    if command.flags.get() & !flags_known != 0 {
        return Err(bad("unknown flags"));
    }
    if command.reserved0.get() != 0 || command.reserved1.iter().any(|&b| b != 0) {
        return Err(bad("reserved bytes are not zero"));
    }
    let count = command.range_count.get() as usize;
    let most = match op {
        CMD_FREE_RANGES => RANGES_MAX,
        CMD_CLONE_RANGE => CLONES_MAX,
        _ => 0,
    };
    if count > most {
        return Err(bad("too many ranges"));
    }
    if command.session.get() != 0 && op == CMD_OPEN {
        return Err(bad("OPEN names no session"));
    }
    Ok(command)
}
