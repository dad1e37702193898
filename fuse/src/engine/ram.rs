//! A device in RAM for tests. It models commits: a crash leaves the state at the last write of
//! page 0. It records every request in the order of arrival, and can hold acknowledgements back.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockd::buf::AlignedBuf;
use blockd::device::{ClientId, Device, DeviceInfo, Done, Extent, IoError, IoOp, VolumeKind};
use layout::addr::{
    COMMAND_PAGE, DEVICE_BYTES, MAP_BASE, MAP_SUMMARY, MAP_UPPER, PAGE, PAGE_SHIFT, STATUS_PAGE,
};
use layout::command::{
    CMD_CLONE_RANGE, CMD_FREE_RANGES, CMD_OPEN, Command, CommandReply, REPLY_MAGIC, STATUS_MAGIC, Status,
};
use parking_lot::Mutex;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

type Contents = BTreeMap<u64, Arc<[u8]>>;

/// What reached the device, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A run of pages: first, count.
    Write(u64, u64),
    /// A run of pages was freed.
    Free(u64, u64),
    /// A run of pages was cloned: from, to, count.
    Clone(u64, u64, u64),
    /// Page 0.
    Commit,
    /// A read of data or metadata pages.
    Read(u64, u64),
}

#[derive(Default)]
struct State {
    now: Contents,
    committed: Contents,
    events: Vec<Event>,
    reply: Vec<u8>,
    commits: u64,
    hold: bool,
    hold_pages: bool,
    held: Vec<(Done, Result<Option<AlignedBuf>, IoError>)>,
    fail_writes: Option<IoError>,
    fail_reads: Option<IoError>,
    no_space_writes: u32,
    no_space_commands: u32,
    /// The errno of clones.
    refuse_clones: u32,
    pages_max: u64,
}

/// See the module's text.
#[derive(Default)]
pub struct RamDevice(Mutex<State>);

impl RamDevice {
    /// An empty device with room for `pages_max` pages.
    pub fn new(pages_max: u64) -> Arc<Self> {
        Arc::new(RamDevice(Mutex::new(State { pages_max, ..State::default() })))
    }

    /// A new device with what a crash would leave.
    pub fn after_crash(&self) -> Arc<Self> {
        let s = self.0.lock();
        let committed = s.committed.clone();
        Arc::new(RamDevice(Mutex::new(State {
            now: committed.clone(),
            committed,
            pages_max: s.pages_max,
            ..State::default()
        })))
    }

    /// From now on writes of page 0 are not acknowledged until [`RamDevice::let_go`].
    pub fn hold_commits(&self) {
        self.0.lock().hold = true;
    }

    /// From now on writes of all other pages are not acknowledged until [`RamDevice::let_go`].
    pub fn hold_pages(&self) {
        self.0.lock().hold_pages = true;
    }

    /// Acknowledges what was held back, and holds nothing any more.
    pub fn let_go(&self) {
        {
            let mut s = self.0.lock();
            (s.hold, s.hold_pages) = (false, false);
        }
        self.let_these_go();
    }

    /// Acknowledges what was held back so far.
    pub fn let_these_go(&self) {
        let held = std::mem::take(&mut self.0.lock().held);
        for (done, result) in held {
            done(result);
        }
    }

    /// Whether a commit waits for its acknowledgement.
    pub fn is_holding(&self) -> bool {
        !self.0.lock().held.is_empty()
    }

    /// Every write fails from now on.
    pub fn fail_writes(&self, error: IoError) {
        self.0.lock().fail_writes = Some(error);
    }

    /// The next so many writes find no space.
    pub fn no_space_for(&self, writes: u32) {
        self.0.lock().no_space_writes = writes;
    }

    /// Writes that still find no space.
    pub fn no_space_left_for(&self) -> u32 {
        self.0.lock().no_space_writes
    }

    /// Clones are answered with this errno from now on, though they are made: as one that failed at its end.
    pub fn refuse_clones(&self, errno: u32) {
        self.0.lock().refuse_clones = errno;
    }

    /// The next so many commands find no space.
    pub fn no_space_for_commands(&self, commands: u32) {
        self.0.lock().no_space_commands = commands;
    }

    /// Every read fails from now on.
    pub fn fail_reads(&self, error: IoError) {
        self.0.lock().fail_reads = Some(error);
    }

    /// The requests so far.
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().events.clone()
    }

    /// Number of commits so far.
    pub fn commits(&self) -> u64 {
        self.0.lock().commits
    }

    /// First byte of a page; 0 if unmapped.
    pub fn byte(&self, page: u64) -> u8 {
        self.0.lock().now.get(&page).map_or(0, |bytes| bytes[0])
    }

    /// The first eight bytes of a page, little-endian; 0 if unmapped.
    pub fn number(&self, page: u64) -> u64 {
        let bytes = self.0.lock().now.get(&page).and_then(|bytes| bytes[..8].try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    }

    /// A new device with what is there now, committed.
    pub fn fork(&self) -> Arc<Self> {
        let s = self.0.lock();
        let state = State {
            now: s.now.clone(),
            committed: s.now.clone(),
            pages_max: s.pages_max,
            ..State::default()
        };
        Arc::new(RamDevice(Mutex::new(state)))
    }

    /// The mapped pages in order.
    pub fn mapped(&self) -> Vec<u64> {
        self.0.lock().now.keys().copied().collect()
    }

    /// A page's bytes; zeros if unmapped.
    pub fn page(&self, page: u64) -> [u8; PAGE] {
        let s = self.0.lock();
        s.now.get(&page).map_or([0; PAGE], |bytes| bytes[..].try_into().expect("pages are whole"))
    }

    /// Puts a page there, past every rule.
    pub fn put(&self, page: u64, bytes: &[u8; PAGE]) {
        self.0.lock().now.insert(page, bytes[..].into());
    }

    /// Whether a page is mapped.
    pub fn is_mapped(&self, page: u64) -> bool {
        self.0.lock().now.contains_key(&page)
    }
}

impl State {
    fn read(&mut self, offset: u64, buf: &mut AlignedBuf) {
        let first = offset >> PAGE_SHIFT;
        for (page, chunk) in (first..).zip(buf.chunks_exact_mut(PAGE)) {
            if page == STATUS_PAGE.0 {
                chunk.copy_from_slice(self.status().as_bytes());
            } else if page == COMMAND_PAGE.0 {
                chunk.copy_from_slice(&self.reply);
            } else if offset >= MAP_BASE {
                self.map(page, chunk);
            } else {
                match self.now.get(&page) {
                    Some(bytes) => chunk.copy_from_slice(bytes),
                    None => chunk.fill(0),
                }
            }
        }
        if first > COMMAND_PAGE.0 || first == 0 {
            self.events.push(Event::Read(first, (buf.len() / PAGE) as u64));
        }
    }

    fn status(&self) -> Status {
        let mut status = Status::new_zeroed();
        status.magic = STATUS_MAGIC;
        status.version = 1.into();
        status.capacity_pages = self.pages_max.into();
        status.used_pages = (self.now.len() as u64).into();
        // Both the open epoch's pages and the committed versions they replace take room.
        let replaced = self.committed.keys().filter(|p| !self.now.contains_key(p)).count() as u64;
        status.available_pages = self.pages_max.saturating_sub(self.now.len() as u64 + replaced).into();
        status
    }

    fn map(&self, page: u64, chunk: &mut [u8]) {
        chunk.fill(0);
        let at = (page << PAGE_SHIFT) - MAP_BASE;
        // Pages that one page of the map tells of.
        let (told, of) = match at {
            0..MAP_SUMMARY => (at * 8, 8 * PAGE as u64),
            MAP_SUMMARY..MAP_UPPER => (((at - MAP_SUMMARY) / 4) << 15, (PAGE as u64 / 4) << 15),
            _ => (((at - MAP_UPPER) / 8) << 25, (PAGE as u64 / 8) << 25),
        };
        if self.now.range(told..told.saturating_add(of)).next().is_none() {
            return;
        }
        if at < MAP_SUMMARY {
            let first = at * 8;
            for mapped in self.now.range(first..first + 8 * PAGE as u64).map(|(p, _)| p - first) {
                chunk[(mapped / 8) as usize] |= 1 << (mapped % 8);
            }
        } else if at >= MAP_UPPER {
            for (i, entry) in chunk.chunks_exact_mut(8).enumerate() {
                let first = ((at - MAP_UPPER) / 8 + i as u64) << 25;
                let count = self.now.range(first..first + (1 << 25)).count() as u64;
                entry.copy_from_slice(&count.to_le_bytes());
            }
        } else {
            for (i, entry) in chunk.chunks_exact_mut(4).enumerate() {
                let first = ((at - MAP_SUMMARY) / 4 + i as u64) << 15;
                let count = self.now.range(first..first + (1 << 15)).count() as u32;
                entry.copy_from_slice(&count.to_le_bytes());
            }
        }
    }

    fn command(&mut self, bytes: &[u8]) {
        let command = Command::read_from_bytes(bytes).expect("a command is one page");
        let mut reply = CommandReply::new_zeroed();
        reply.magic = REPLY_MAGIC;
        reply.op = command.op;
        reply.id = command.id;
        reply.session = command.session;
        match command.op.get() {
            CMD_OPEN => reply.session = 7.into(),
            CMD_FREE_RANGES => {
                for range in &command.ranges[..command.range_count.get() as usize] {
                    let (first, count) = (range.first_page.get(), range.page_count.get());
                    let inside: Vec<u64> = self.now.range(first..first + count).map(|(p, _)| *p).collect();
                    for page in inside {
                        self.now.remove(&page);
                    }
                    self.events.push(Event::Free(first, count));
                }
            }
            CMD_CLONE_RANGE => {
                reply.errno = self.refuse_clones.into();
                for clone in command.clones() {
                    let (from, to) = (clone.from_page.get(), clone.to_page.get());
                    let count = clone.page_count.get();
                    for i in 0..count {
                        match self.now.get(&(from + i)).cloned() {
                            Some(page) => self.now.insert(to + i, page),
                            None => self.now.remove(&(to + i)),
                        };
                    }
                    self.events.push(Event::Clone(from, to, count));
                }
            }
            _ => {}
        }
        self.reply = reply.as_bytes().to_vec();
    }

    fn write(&mut self, offset: u64, buf: &AlignedBuf) -> Result<(), IoError> {
        let first = offset >> PAGE_SHIFT;
        if first == COMMAND_PAGE.0 {
            if self.no_space_commands > 0 {
                self.no_space_commands -= 1;
                return Err(IoError::NoSpace);
            }
            self.command(buf);
            return Ok(());
        }
        if let Some(error) = &self.fail_writes {
            return Err(error.clone());
        }
        if self.no_space_writes > 0 {
            self.no_space_writes -= 1;
            return Err(IoError::NoSpace);
        }
        let count = (buf.len() / PAGE) as u64;
        if self.now.len() as u64 + count > self.pages_max {
            return Err(IoError::NoSpace);
        }
        for (page, chunk) in (first..).zip(buf.chunks_exact(PAGE)) {
            self.now.insert(page, chunk.into());
        }
        if first == 0 {
            self.events.push(Event::Commit);
            self.commits += 1;
            self.committed = self.now.clone();
        } else {
            self.events.push(Event::Write(first, count));
        }
        Ok(())
    }
}

impl Device for RamDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: VolumeKind::VexFs,
            size_bytes: DEVICE_BYTES,
            block_bytes_min: PAGE as u32,
            read_only: false,
            uuid: uuid::Uuid::nil(),
        }
    }

    fn connect(&self) -> ClientId {
        ClientId(1)
    }

    fn allocation(
        &self,
        _client: ClientId,
        offset: u64,
        len_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, IoError> {
        let s = self.0.lock();
        let (mut at, end) = (offset, offset + len_bytes);
        let mut extents = Vec::new();
        for page in s.now.range(offset >> PAGE_SHIFT..end >> PAGE_SHIFT).map(|(page, _)| page << PAGE_SHIFT) {
            if extents.len() >= extents_max {
                return Ok(extents);
            }
            match extents.last_mut() {
                Some(Extent { len_bytes, mapped: true }) if page == at => *len_bytes += PAGE as u64,
                _ => {
                    if page > at {
                        extents.push(Extent { len_bytes: page - at, mapped: false });
                    }
                    extents.push(Extent { len_bytes: PAGE as u64, mapped: true });
                }
            }
            at = page + PAGE as u64;
        }
        if at < end && extents.len() < extents_max {
            extents.push(Extent { len_bytes: end - at, mapped: false });
        }
        Ok(extents)
    }

    fn disconnect(&self, _client: ClientId) {}

    fn submit(&self, _client: ClientId, op: IoOp, done: Done) {
        let mut s = self.0.lock();
        let result = match op {
            IoOp::Read { offset, mut buf } => match &s.fail_reads {
                Some(error) => Err(error.clone()),
                None => {
                    s.read(offset, &mut buf);
                    Ok(Some(buf))
                }
            },
            IoOp::Write { offset, buf, .. } => {
                let result = s.write(offset, &buf).map(|()| None);
                let is_command = offset >> PAGE_SHIFT == COMMAND_PAGE.0;
                if if offset == 0 { s.hold } else { s.hold_pages && !is_command } {
                    s.held.push((done, result));
                    return;
                }
                result
            }
            IoOp::Flush | IoOp::Trim { .. } | IoOp::WriteZeroes { .. } => Ok(None),
        };
        drop(s);
        done(result);
    }
}
