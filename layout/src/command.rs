//! The status page and the command page (FORMAT.md section 3): the in-band way from a mounter to
//! the daemon, the same over ublk, NBD and the embedded store.
//!
//! A mounter writes one [`Command`] page; when that write is acknowledged the command was carried
//! out (or refused), and a read of the same page gives the [`CommandReply`]. The log keeps the
//! last (session, id) and its reply, so repeating the write after a reconnect is harmless.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::PAGE;

/// `Status::magic`: "VEXFSST1".
pub const STATUS_MAGIC: [u8; 8] = *b"VEXFSST1";
/// `Command::magic`: "VEXFSCM1".
pub const COMMAND_MAGIC: [u8; 8] = *b"VEXFSCM1";
/// `CommandReply::magic`: "VEXFSCR1".
pub const REPLY_MAGIC: [u8; 8] = *b"VEXFSCR1";

/// Takes the volume: a new session is granted, an older one is fenced, and the volume is rolled
/// back to its last commit. Allowed from an unattached client; attaches it.
pub const CMD_OPEN: u32 = 1;
/// Goes on with a session after a lost connection or a daemon restart: nothing is rolled back.
/// Allowed from an unattached client; attaches it.
pub const CMD_ATTACH: u32 = 2;
/// Ends the session. Uncommitted changes are rolled back; commit first.
pub const CMD_CLOSE: u32 = 3;
/// Unmaps page ranges in the open epoch.
pub const CMD_FREE_RANGES: u32 = 4;
/// Page ranges of data are as others are now, in the open epoch, and share their place.
pub const CMD_CLONE_RANGE: u32 = 5;
/// Reserved: names the next commit.
pub const CMD_SNAPSHOT: u32 = 6;

/// `CMD_OPEN` flag: a read-only mount; no session is granted and nobody is fenced.
pub const OPEN_READ_ONLY: u32 = 1;

/// Most ranges in one `CMD_FREE_RANGES`.
pub const RANGES_MAX: usize = (PAGE - 128) / 16;
/// Most ranges in one `CMD_CLONE_RANGE`,
pub const CLONES_MAX: usize = (PAGE - 128) / size_of::<CommandClone>();
/// and pages of all of them.
pub const CLONE_PAGES_MAX: u64 = 1 << 16;

/// What the daemon says of a VexFS volume; read by private direct I/O, never through a cache.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone)]
#[repr(C)]
pub struct Status {
    /// [`STATUS_MAGIC`].
    pub magic: [u8; 8],
    /// Format version, 1.
    pub version: U32,
    /// Bit 0: the backing is read-only. Bit 1: a session is live.
    pub flags: U32,
    /// The volume's uuid.
    pub uuid: [u8; 16],
    /// The live session, 0 if none.
    pub session: U64,
    /// Commits since the volume was made.
    pub epoch: U64,
    /// Starts of the store since the volume was made.
    pub incarnation: U64,
    /// Pages of 4 KiB that user data may use in all.
    pub capacity_pages: U64,
    /// Pages mapped, the open epoch included.
    pub used_pages: U64,
    /// Pages that can still be written before writes fail with ENOSPC.
    pub available_pages: U64,
    /// Zero.
    pub reserved: [u8; 4016],
}

/// A request; all multi-byte fields little-endian.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone)]
#[repr(C)]
pub struct Command {
    /// [`COMMAND_MAGIC`].
    pub magic: [u8; 8],
    /// One of the `CMD_*`.
    pub op: U32,
    /// Flags of the command; unknown bits are refused.
    pub flags: U32,
    /// The session (0 for `CMD_OPEN`).
    pub session: U64,
    /// Chosen by the mounter, grows by 1 a command within a session; the repeat of the last id
    /// gives the kept reply without doing it again.
    pub id: U64,
    /// The mounter's boot id (/proc/sys/kernel/random/boot_id) for open and attach.
    pub boot_id: [u8; 16],
    /// Number of ranges used, or of clones.
    pub range_count: U32,
    /// Zero.
    pub reserved0: U32,
    /// Zero.
    pub reserved1: [u8; 72],
    /// Page ranges of `CMD_FREE_RANGES`: first page, count of pages. Of `CMD_CLONE_RANGE`: see [`Command::clones`].
    pub ranges: [CommandRange; RANGES_MAX],
}

impl Command {
    /// The clones of a `CMD_CLONE_RANGE`, as many as it says, [`CLONES_MAX`] at most.
    pub fn clones(&self) -> impl Iterator<Item = CommandClone> {
        let count = (self.range_count.get() as usize).min(CLONES_MAX);
        let bytes = self.ranges.as_bytes().chunks_exact(size_of::<CommandClone>());
        bytes.take(count).filter_map(|bytes| CommandClone::read_from_bytes(bytes).ok())
    }

    /// Puts clones into a `CMD_CLONE_RANGE`, [`CLONES_MAX`] at most.
    pub fn set_clones(&mut self, clones: &[CommandClone]) {
        let clones = clones.get(..CLONES_MAX).unwrap_or(clones);
        self.range_count = (clones.len() as u32).into();
        let slots = self.ranges.as_mut_bytes().chunks_exact_mut(size_of::<CommandClone>());
        slots.zip(clones).for_each(|(slot, clone)| slot.copy_from_slice(clone.as_bytes()));
    }
}

/// Pages to be cloned.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct CommandClone {
    /// First device page that is read.
    pub from_page: U64,
    /// First device page that is to be as that.
    pub to_page: U64,
    /// Count of pages.
    pub page_count: U64,
}

/// A run of pages in a command.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
pub struct CommandRange {
    /// First device page.
    pub first_page: U64,
    /// Count of pages.
    pub page_count: U64,
}

/// The reply to the last command of the session (or of this client, if it has none).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone)]
#[repr(C)]
pub struct CommandReply {
    /// [`REPLY_MAGIC`].
    pub magic: [u8; 8],
    /// 0, or a positive errno.
    pub errno: U32,
    /// The command's op.
    pub op: U32,
    /// The session it belongs to; for `CMD_OPEN` the one granted (0 for a read-only open).
    pub session: U64,
    /// The command's id.
    pub id: U64,
    /// The last commit (its epoch), after the command.
    pub epoch: U64,
    /// A NUL-padded sentence for people when `errno` is not 0.
    pub message: [u8; 216],
    /// Zero.
    pub reserved: [u8; 3840],
}

const _: () = assert!(size_of::<Status>() == PAGE);
const _: () = assert!(size_of::<Command>() == PAGE);
const _: () = assert!(size_of::<CommandReply>() == PAGE);
const _: () = assert!(core::mem::offset_of!(Status, session) == 32);
const _: () = assert!(core::mem::offset_of!(Command, ranges) == 128);
const _: () = assert!(CLONES_MAX == 165 && size_of::<CommandClone>() == 24);
const _: () = assert!(core::mem::offset_of!(CommandReply, message) == 40);
