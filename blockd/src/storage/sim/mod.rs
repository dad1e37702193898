//! A simulated backing: everything that can go wrong, by a seed.
//!
//! A write is *queued* -> *complete* (visible) -> *durable* (by a sync that began after it completed). A
//! power cut keeps of every write that is not durable any subset of its 512-byte sectors. The death of
//! the process keeps every complete write; of the queued ones some are carried out, some torn, some lost, and
//! some land *late*, under the successor. Time is simulated too: requests complete in the order of their
//! latencies, which vary widely, not in that of their submission.
//!
//! [`faults`]: what else can be made to happen. [`queue`]: the asynchronous writes. [`timeline`]: clock and trace. [`script`]: lives by seeds.

pub mod faults;
mod queue;
pub mod script;
pub mod timeline;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Read, Storage, WriteQueue};
use faults::{Lie, Plan, ReadFault, Rot, Wounds, blocks_of};
use timeline::{Content, Event, Timeline};

/// Unit of tearing.
const SECTOR: usize = 512;
/// Unit in which late writes are kept from what a successor uses: see [`SimStorage::restart`].
const LATE_UNIT: usize = 64 << 10;

/// Reads without a write between them, beyond which the store goes round in circles.
const READS_IN_A_ROW_MAX: u64 = 300_000;

/// What ends a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// Writes that are not durable may be lost, torn, reordered.
    PowerCut,
    /// Only what was still queued may be lost.
    ProcessDeath,
}

struct Pending {
    offset: usize,
    bytes: Vec<u8>,
    /// Order of completion.
    order: u64,
    /// Of a write that went elsewhere, or nowhere: the range it was meant for.
    meant_for: Option<(usize, usize)>,
}

impl Pending {
    fn new(offset: usize, bytes: Vec<u8>) -> Self {
        Pending { offset, bytes, order: 0, meant_for: None }
    }

    /// The [`LATE_UNIT`]s it lies in.
    fn units(&self) -> impl Iterator<Item = usize> + use<> {
        self.offset / LATE_UNIT..(self.offset + self.bytes.len()).div_ceil(LATE_UNIT)
    }
}

/// A request of the log's queue.
enum Queued {
    Write(Pending),
    /// Makes durable what completed up to this order.
    Sync(u64),
    Fail(i32),
}

struct Slot {
    token: u64,
    due_us: u64,
    what: Queued,
}

struct State {
    rng: StdRng,
    timeline: Timeline,
    durable: Vec<u8>,
    visible: Vec<u8>,
    /// Complete, not durable.
    volatile: Vec<Pending>,
    queued: Vec<Slot>,
    /// Of a dead predecessor, still on their way.
    late: Vec<Pending>,
    /// Where this use has written, in units of [`LATE_UNIT`].
    touched: HashSet<usize>,
    writes: u64,
    reads: u64,
    reads_in_a_row: u64,
    syncs: u64,
    completed: u64,
    plan: Plan,
    wounds: Wounds,
    off: bool,
    /// Of the engine.
    synchronous: bool,
}

/// Holds a read up, so that things happen between its lookup and the bytes.
pub struct Gate {
    arrived: Receiver<()>,
    go_on: Sender<()>,
}

impl Gate {
    /// Waits until a read is held up; false if there will be none, its thread having ended.
    pub fn wait(&self) -> bool {
        self.arrived.recv().is_ok()
    }

    /// Lets it go on.
    pub fn open(self) {
        let _ = self.go_on.send(());
    }
}

/// The reader's side of a [`Gate`].
struct Barrier {
    arrived: Sender<()>,
    go_on: Receiver<()>,
}

/// The backing; clones share it.
#[derive(Clone)]
pub struct SimStorage {
    state: Arc<Mutex<State>>,
    barrier: Arc<Mutex<Option<Barrier>>>,
    len: u64,
}

impl SimStorage {
    /// A backing with this content, all of it durable.
    pub fn new(image: Vec<u8>, seed: u64) -> Self {
        Self::with_timeline(image, seed, Timeline::default())
    }

    /// One whose events go to a timeline.
    pub fn with_timeline(image: Vec<u8>, seed: u64, timeline: Timeline) -> Self {
        Self::from_state(State::new(image, StdRng::seed_from_u64(seed), timeline))
    }

    fn from_state(state: State) -> Self {
        let len = state.visible.len() as u64;
        SimStorage { state: Arc::new(Mutex::new(state)), barrier: Arc::default(), len }
    }

    /// A number of the backing's own choices, for those who use it.
    pub fn draw(&self) -> u64 {
        self.state.lock().rng.random()
    }

    /// The engine of queues made from now on: requests are finished when they were made.
    pub fn set_synchronous(&self, synchronous: bool) {
        self.state.lock().synchronous = synchronous;
    }

    /// The backing gets another length, everything on it being durable.
    pub fn set_len_bytes(&mut self, len_bytes: u64) {
        let mut s = self.state.lock();
        let all = s.completed;
        s.make_durable(all);
        let len = len_bytes as usize;
        s.visible.resize(len, 0);
        s.durable.resize(len, 0);
        s.late.retain(|write| write.offset + write.bytes.len() <= len);
        s.wounds.cut(len);
        s.timeline.note(format!("the backing has {len_bytes} bytes now"));
        drop(s);
        self.len = len_bytes;
    }

    /// Power goes in the midst of the `n`th write from now (the first is 1).
    pub fn crash_at(&self, n: u64) {
        let mut s = self.state.lock();
        s.plan.crash_at_write = Some(s.writes + n);
    }

    /// The `n`th write from now fails with this errno, and nothing of it is written.
    pub fn error_at(&self, n: u64, errno: i32) {
        self.errors_at(n, 1, errno);
    }

    /// So many writes in a row fail.
    pub fn errors_at(&self, n: u64, count: u64, errno: i32) {
        let mut s = self.state.lock();
        s.plan.write_error = Some((s.writes + n, count, errno));
    }

    /// The `n`th sync from now fails.
    pub fn sync_error_at(&self, n: u64) {
        let mut s = self.state.lock();
        s.plan.sync_error = Some(s.syncs + n);
    }

    /// Something befalls the `n`th read from now.
    pub fn read_fault_at(&self, n: u64, fault: ReadFault) {
        let mut s = self.state.lock();
        s.plan.read_fault = Some((s.reads + n, fault));
    }

    /// The `n`th write from now is said to be done, and is not.
    pub fn lie_at(&self, n: u64, lie: Lie) {
        let mut s = self.state.lock();
        s.plan.lie = Some((s.writes + n, lie));
    }

    /// What has not come to pass will not.
    pub fn disarm(&self) {
        self.state.lock().plan = Plan::default();
    }

    /// A block of what is now there rots, unless it is to be spared; says which and how.
    pub fn rot(&self, rot: Rot, spare: impl Fn(u64) -> bool) -> String {
        let mut s = self.state.lock();
        let all = s.completed;
        s.make_durable(all);
        let text = s.rot(rot, spare);
        s.timeline.note(format!("fault: {text}"));
        text
    }

    /// The next read is held up until the gate is opened.
    pub fn hold_next_read(&self) -> Gate {
        let (arrived_send, arrived) = crossbeam_channel::bounded(1);
        let (go_on, go_on_recv) = crossbeam_channel::bounded(1);
        *self.barrier.lock() = Some(Barrier { arrived: arrived_send, go_on: go_on_recv });
        Gate { arrived, go_on }
    }

    /// No read is held up any more; who waits for one at the gate is told.
    pub fn hold_no_read(&self) {
        self.barrier.lock().take();
    }

    /// Whether the crash came.
    pub fn crashed(&self) -> bool {
        self.state.lock().off
    }

    /// Whether a fault (a crash apart) came to pass since this use began.
    pub fn fault_fired(&self) -> bool {
        self.state.lock().wounds.fired
    }

    /// Whether an error that names this byte of the image has a cause within so many bytes.
    pub fn explains(&self, byte: u64, within_bytes: u64) -> bool {
        self.state.lock().wounds.explain(byte, within_bytes)
    }

    /// The clock and the events.
    pub fn timeline(&self) -> Timeline {
        self.state.lock().timeline.clone()
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.state.lock().writes
    }

    /// All that is complete, made durable.
    pub fn image(&self) -> Vec<u8> {
        let mut s = self.state.lock();
        let all = s.completed;
        s.make_durable(all);
        s.durable.clone()
    }

    /// What is found after a crash.
    pub fn image_after(&self, crash: Crash) -> Vec<u8> {
        let mut guard = self.state.lock();
        let s = &mut *guard;
        let mut image = if crash == Crash::PowerCut { s.durable.clone() } else { s.visible.clone() };
        let volatile = s.volatile.iter().filter(|_| crash == Crash::PowerCut);
        for write in volatile.chain(s.queued.iter().filter_map(Slot::write)) {
            for (at, bytes) in surviving(&mut s.rng, write) {
                image[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
        image
    }

    /// The crash comes, and the backing is used again. Whoever still holds the old one finds it dead.
    ///
    /// After the death of a process what was complete is still not durable. Of its queued writes some land
    /// later, but not in 64 KiB units that the successor has written to: a dead daemon has no requests under
    /// way any more once its lock is gone, so those it could destroy something with are ruled out.
    pub fn restart(&self, crash: Crash) -> SimStorage {
        let mut guard = self.state.lock();
        let rng = StdRng::seed_from_u64(guard.rng.random());
        let dead = State::new(Vec::new(), rng, guard.timeline.clone());
        let mut s = std::mem::replace(&mut *guard, dead);
        guard.off = true;
        drop(guard);
        s.timeline.note(format!(
            "{crash:?}: {} writes volatile, {} queued",
            s.volatile.len(),
            s.queued.len()
        ));
        // What could destroy something of this use (see above) will not happen to the next either.
        let touched = std::mem::take(&mut s.touched);
        s.late.retain(|write| !write.units().any(|unit| touched.contains(&unit)));
        let queued: Vec<Pending> = std::mem::take(&mut s.queued)
            .into_iter()
            .filter_map(|slot| match slot.what {
                Queued::Write(write) => Some(write).filter(|w| !w.bytes.is_empty()),
                Queued::Sync(_) | Queued::Fail(_) => None,
            })
            .collect();
        match crash {
            Crash::PowerCut => {
                let lost = std::mem::take(&mut s.volatile);
                for write in lost.iter().chain(&queued) {
                    for (at, bytes) in surviving(&mut s.rng, write) {
                        s.durable[at..at + bytes.len()].copy_from_slice(bytes);
                    }
                }
                s.late.clear();
                s.visible.copy_from_slice(&s.durable);
            }
            Crash::ProcessDeath => {
                for write in queued {
                    if s.rng.random_ratio(1, 4) {
                        s.late.push(write);
                        continue;
                    }
                    let parts = surviving(&mut s.rng, &write);
                    let parts: Vec<_> = parts.into_iter().map(|(at, b)| (at, b.to_vec())).collect();
                    for (offset, bytes) in parts {
                        s.complete(Pending { meant_for: write.meant_for, ..Pending::new(offset, bytes) });
                    }
                }
            }
        }
        (s.writes, s.reads, s.syncs) = (0, 0, 0);
        s.plan = Plan::default();
        s.off = false;
        let damaged = std::mem::take(&mut s.wounds.damaged);
        let unreadable = std::mem::take(&mut s.wounds.unreadable);
        s.wounds = Wounds { fired: !damaged.is_empty(), damaged, unreadable, ..Wounds::default() };
        SimStorage::from_state(s)
    }
}

/// The sectors of a write that arrive: all, none or any of them.
fn surviving<'a>(rng: &mut StdRng, write: &'a Pending) -> Vec<(usize, &'a [u8])> {
    match rng.random_range(0..3) {
        0 => vec![(write.offset, &write.bytes)],
        1 => {
            let sectors = write.bytes.chunks(SECTOR).enumerate();
            let sectors = sectors.map(|(i, sector)| (write.offset + i * SECTOR, sector));
            sectors.filter(|_| rng.random()).collect()
        }
        _ => Vec::new(),
    }
}

impl Slot {
    fn write(&self) -> Option<&Pending> {
        match &self.what {
            Queued::Write(write) => Some(write),
            Queued::Sync(_) | Queued::Fail(_) => None,
        }
    }
}

/// What becomes of a write.
enum Fate {
    Done,
    /// The power goes in its midst.
    Cut,
    Fails(i32),
}

impl State {
    fn new(image: Vec<u8>, rng: StdRng, timeline: Timeline) -> Self {
        State {
            rng,
            timeline,
            durable: image.clone(),
            visible: image,
            volatile: Vec::new(),
            queued: Vec::new(),
            late: Vec::new(),
            touched: HashSet::new(),
            writes: 0,
            reads: 0,
            reads_in_a_row: 0,
            syncs: 0,
            completed: 0,
            plan: Plan::default(),
            wounds: Wounds::default(),
            off: false,
            synchronous: false,
        }
    }

    fn power(&self) -> io::Result<()> {
        if self.off { Err(io::Error::other("simulated: the power is off")) } else { Ok(()) }
    }

    /// Usually some dozens of microseconds; now and then very long, as when a disk tries again.
    fn latency_us(&mut self, typical_us: u64) -> u64 {
        let us = self.rng.random_range(typical_us / 4..typical_us * 2);
        match self.rng.random_range(0..1024) {
            0 => us * 30_000,
            1..64 => us * 30,
            _ => us,
        }
    }

    /// Counts a write, and says what becomes of it; a lie changes where it goes.
    fn count(&mut self, write: &mut Pending) -> io::Result<Fate> {
        self.power()?;
        self.writes += 1;
        self.reads_in_a_row = 0;
        let content = Content::of(&write.bytes);
        let len_bytes = write.bytes.len() as u64;
        self.timeline.add(Event::Write { at: write.offset as u64, len_bytes, content });
        assert!(
            write.offset + write.bytes.len() <= self.visible.len(),
            "a write past the end of the backing"
        );
        self.land_late();
        self.touched.extend(write.units());
        if let Some((n, count, errno)) = self.plan.write_error
            && (n..n + count).contains(&self.writes)
        {
            self.wounds.fired = true;
            self.timeline.note(format!("fault: that write fails with errno {errno}"));
            return Ok(Fate::Fails(errno));
        }
        if self.plan.crash_at_write == Some(self.writes) {
            self.off = true;
            self.timeline.note("fault: the power goes in its midst");
            return Ok(Fate::Cut);
        }
        if let Some((n, lie)) = self.plan.lie
            && n == self.writes
        {
            self.lie(write, lie);
        }
        Ok(Fate::Done)
    }

    fn lie(&mut self, write: &mut Pending, lie: Lie) {
        let len = write.bytes.len();
        write.meant_for = Some((write.offset, len));
        self.wounds.fired = true;
        self.wounds.damage(write.offset, len, u64::MAX);
        match lie {
            Lie::Lost => {
                self.timeline.note("fault: nothing of that write is carried out");
                write.bytes.clear();
            }
            Lie::Misdirected => {
                // Not over a superblock: one of its slots is being written now and then anyway, and two
                // faults at once are more than is promised against.
                let pages = (self.visible.len() - LATE_UNIT - len) / 4096;
                let offset = LATE_UNIT + self.rng.random_range(0..=pages) * 4096;
                self.timeline.note(format!("fault: that write goes to {offset}"));
                write.offset = offset;
                self.wounds.damage(offset, len, u64::MAX);
            }
        }
    }

    /// One of the writes of a dead predecessor arrives.
    fn land_late(&mut self) {
        if self.late.is_empty() || !self.rng.random_ratio(1, 6) {
            return;
        }
        let i = self.rng.random_range(0..self.late.len());
        let write = self.late.swap_remove(i);
        if write.units().any(|unit| self.touched.contains(&unit)) {
            return;
        }
        self.timeline.note(format!("fault: a write of the dead daemon lands at {}", write.offset));
        self.complete(write);
    }

    fn complete(&mut self, mut write: Pending) {
        self.completed += 1;
        write.order = self.completed;
        if let Some((offset, len)) = write.meant_for {
            // Nothing that was written before this makes it right.
            self.wounds.damage(offset, len, write.order);
            self.wounds.damage(write.offset, write.bytes.len(), write.order);
        }
        if write.bytes.is_empty() {
            return;
        }
        let content = Content::of(&write.bytes);
        self.timeline.add(Event::Complete { at: write.offset as u64, content });
        self.visible[write.offset..write.offset + write.bytes.len()].copy_from_slice(&write.bytes);
        self.wounds.rewritten(write.offset, write.bytes.len());
        self.volatile.push(write);
    }

    fn make_durable(&mut self, upto: u64) {
        let count = self.volatile.partition_point(|w| w.order <= upto);
        for write in self.volatile.drain(..count) {
            self.durable[write.offset..write.offset + write.bytes.len()].copy_from_slice(&write.bytes);
            if write.meant_for.is_none() {
                self.wounds.heal(write.offset, write.bytes.len(), write.order);
            }
        }
        self.timeline.add(Event::Durable { writes: count as u64 });
    }

    /// Counts a sync; whether it fails.
    fn count_sync(&mut self) -> bool {
        self.syncs += 1;
        self.timeline.add(Event::Sync);
        let fails = self.plan.sync_error == Some(self.syncs);
        if fails {
            self.wounds.fired = true;
            self.timeline.note("fault: that sync fails");
        }
        fails
    }

    fn read(&mut self, offset: usize, buf: &mut [u8]) -> io::Result<()> {
        self.power()?;
        self.reads += 1;
        self.reads_in_a_row += 1;
        assert!(self.reads_in_a_row < READS_IN_A_ROW_MAX, "the store reads and reads, and gets nowhere");
        let us = self.latency_us(80);
        self.timeline.pass(us);
        self.timeline.add(Event::Reads { count: 1, at: offset as u64, len_bytes: buf.len() as u64 });
        let from = self.visible.get(offset..offset + buf.len());
        buf.copy_from_slice(from.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        let mut blocks = blocks_of(offset, buf.len());
        if !self.wounds.unreadable.is_empty() && blocks.any(|b| self.wounds.unreadable.contains(&b)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if let Some((n, fault)) = self.plan.read_fault
            && n == self.reads
        {
            self.wounds.fired = true;
            self.wounds.suspects.extend(blocks_of(offset, buf.len()));
            self.timeline.note(format!("fault: {fault:?} at that read"));
            if fault == ReadFault::Eio {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            let bit = self.rng.random_range(0..buf.len() * 8);
            buf[bit / 8] ^= 1 << (bit % 8);
        }
        Ok(())
    }
}

impl Storage for SimStorage {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn read_batch(&self, reads: &mut [Read<'_>]) {
        let barrier = self.barrier.lock().take();
        if let Some(barrier) = barrier.filter(|b| b.arrived.send(()).is_ok()) {
            // An error means that nobody holds the gate any more.
            let _ = barrier.go_on.recv();
        }
        let mut s = self.state.lock();
        for read in reads {
            read.result = s.read(read.offset as usize, read.buf);
        }
    }

    fn write_all(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert_eq!((offset | bytes.len() as u64) % 4096, 0, "writes are whole pages");
        let mut s = self.state.lock();
        let mut write = Pending::new(offset as usize, bytes.to_vec());
        match s.count(&mut write)? {
            Fate::Done => {
                let us = s.latency_us(100);
                s.timeline.pass(us);
                s.complete(write);
                Ok(())
            }
            Fate::Cut => {
                s.queued.push(Slot { token: 0, due_us: 0, what: Queued::Write(write) });
                s.power()
            }
            Fate::Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut s = self.state.lock();
        s.power()?;
        let us = s.latency_us(500);
        s.timeline.pass(us);
        if s.count_sync() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let upto = s.completed;
        s.make_durable(upto);
        Ok(())
    }

    fn discard(&self, offset: u64, len_bytes: u64) {
        let mut s = self.state.lock();
        if s.off {
            return;
        }
        let (offset, len) = (offset as usize, len_bytes as usize);
        s.timeline.add(Event::Write { at: offset as u64, len_bytes, content: Content::Discarded });
        // Nothing may be read there any more; until a sync it may all the same be there again.
        let write = Pending::new(offset, vec![0xdd; len]);
        s.complete(write);
    }

    fn queue(&self) -> io::Result<Box<dyn WriteQueue>> {
        Ok(Box::new(queue::SimQueue::new(Arc::clone(&self.state))))
    }
}

/// `image` with one bit flipped.
pub fn flip_bit(image: &mut [u8], bit: u64) {
    image[(bit / 8) as usize] ^= 1 << (bit % 8);
}
