//! The cleaner's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use layout::addr::PAGE;
use parking_lot::{Condvar, Mutex};

use super::policy::{Choice, View, choose};
use crate::buf::AlignedBuf;
use crate::device::{IoError, VolumeKind};
use crate::store::Shared;
use crate::store::format::record::{Entry, Record};
use crate::store::format::segment::Stream;
use crate::store::format::{Loc, page_crc};
use crate::store::log::{Job, Op};
use crate::store::map::Maps;
use crate::store::map::segments::Segment;
use crate::store::space::Taker;
use crate::volume::worker::{Internal, InternalSender};

/// Pages moved by one job.
const JOB_PAGES: usize = 128;

/// Tells the cleaner that there may be work.
#[derive(Clone)]
pub struct CleanerLink {
    state: Arc<(Mutex<Signal>, Condvar)>,
    low: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Signal {
    work: bool,
    urgent: bool,
    stop: bool,
}

impl CleanerLink {
    /// Users wait for space.
    pub fn want_space(&self) {
        let mut signal = self.state.0.lock();
        signal.urgent = true;
        signal.work = true;
        self.state.1.notify_one();
    }

    /// Wakes the cleaner if free space ran low.
    pub fn look(&self) {
        let low = self.shared.maps.read().segments.free_count() < low_segments(&self.shared);
        if low && !self.low.swap(true, Ordering::Relaxed) {
            self.state.0.lock().work = true;
            self.state.1.notify_one();
        }
    }

    /// Ends the thread after what it is doing.
    pub fn stop(&self) {
        self.state.0.lock().stop = true;
        self.state.1.notify_one();
    }
}

/// Cleaning begins below so many free segments.
fn low_segments(shared: &Shared) -> u32 {
    (shared.geometry.segments / 16).max(6)
}

/// Does what the policy chooses.
pub struct Cleaner {
    shared: Arc<Shared>,
}

/// What tells whether a checkpoint gained anything, whoever took segments meanwhile.
#[derive(Clone, Copy)]
struct Standing {
    free: u32,
    /// Segments that users and the cleaner took since the start.
    data_uses: u64,
}

impl Standing {
    fn of(maps: &Maps) -> Self {
        Standing { free: maps.segments.free_count(), data_uses: maps.segments.data_uses() }
    }

    fn gained_since(self, before: Standing) -> bool {
        u64::from(self.free) + self.data_uses > u64::from(before.free) + before.data_uses
    }
}

/// Pages of a segment that are alive.
struct Live {
    page: u64,
    loc: Loc,
    crc: u32,
}

impl Cleaner {
    /// Starts the thread.
    pub(crate) fn start(
        shared: Arc<Shared>,
        log: InternalSender,
        threads: &mut Vec<JoinHandle<()>>,
    ) -> CleanerLink {
        let state = Arc::new((Mutex::new(Signal::default()), Condvar::new()));
        let low = Arc::new(AtomicBool::new(false));
        let link = CleanerLink { state, low, shared: Arc::clone(&shared) };
        let mine = link.clone();
        let spawned = std::thread::Builder::new()
            .name("vexfs-clean".into())
            .spawn(move || Cleaner::new(shared).run(&mine, &log));
        match spawned {
            Ok(handle) => threads.push(handle),
            Err(e) => tracing::error!("cannot start the cleaner's thread: {e}"),
        }
        link
    }

    fn run(&self, link: &CleanerLink, log: &InternalSender) {
        loop {
            let urgent = {
                let mut signal = link.state.0.lock();
                while !signal.work && !signal.stop {
                    link.state.1.wait(&mut signal);
                }
                if signal.stop {
                    return;
                }
                signal.work = false;
                std::mem::take(&mut signal.urgent)
            };
            link.low.store(false, Ordering::Relaxed);
            self.clean(link, log, urgent);
        }
    }

    /// Cleans until enough is free or nothing is gained.
    fn clean(&self, link: &CleanerLink, log: &InternalSender, mut urgent: bool) {
        // How things stood before the last checkpoint, if nothing was moved since.
        let mut before_checkpoint: Option<Standing> = None;
        loop {
            let signal = link.state.0.lock();
            urgent |= signal.urgent;
            if signal.stop {
                return;
            }
            drop(signal);
            let (send, recv) = crossbeam_channel::bounded::<Result<(), IoError>>(1);
            let done = Box::new(move |result| {
                let _ = send.send(result);
            });
            let mut choice = self.choose(urgent, true);
            let standing = Standing::of(&self.shared.maps.read());
            if choice == Choice::Checkpoint && before_checkpoint.is_some_and(|b| !standing.gained_since(b)) {
                // A checkpoint takes segments too, and the last one took all that it freed.
                choice = self.choose(urgent, false);
            }
            before_checkpoint = (choice == Choice::Checkpoint).then_some(standing);
            let work = self.carry_out(choice);
            let moved = matches!(work, Work::Jobs(_));
            let result = match work {
                Work::Nothing => {
                    if urgent {
                        log.send(Internal::NothingToClean);
                    }
                    return;
                }
                Work::Skip => continue,
                Work::Checkpoint => {
                    log.send(Internal::Checkpoint(done));
                    recv.recv().unwrap_or(Err(IoError::Shutdown))
                }
                Work::Jobs(jobs) => move_pages(
                    jobs,
                    log,
                    if urgent { 0 } else { self.shared.tuning.get().cleaner_bytes_per_s },
                ),
            };
            match result {
                Ok(()) if moved => self.shared.counters.cleaned_segments.inc(),
                Ok(()) => {}
                Err(IoError::NoSpace) => {
                    if urgent {
                        log.send(Internal::NothingToClean);
                    }
                    return;
                }
                Err(_) => return,
            }
        }
    }

    /// Asks the policy; without `checkpoints`, as if nothing were to be had from one alone.
    pub(crate) fn choose(&self, urgent: bool, checkpoints: bool) -> Choice {
        let maps = self.shared.maps.read();
        let low = low_segments(&self.shared);
        let mut target = low + low / 2;
        if urgent {
            // What a waiting writer needs, and a little more.
            target = low.max(self.shared.keep_segments(&maps, Taker::Users)) + 2;
        }
        // A raw volume has no open epoch: its checkpoints are small, and what they take hardly counts.
        let epochs = self.shared.kind == VolumeKind::VexFs;
        let checkpoint_pages = if epochs {
            self.shared.next_checkpoint_pages(&maps)
        } else {
            self.shared.payload_pages(&maps) + 1
        };
        let checkpoint_segments = match (checkpoints, epochs) {
            (false, _) => u32::MAX,
            (true, true) => self.shared.segments_checkpoint_fills(&maps),
            (true, false) => 0,
        };
        choose(View {
            segments: maps.segments.all(),
            segment_pages: self.shared.geometry.segment_pages,
            free: maps.segments.free_count(),
            target,
            now_use_seq: maps.segments.all().iter().map(|s| s.use_seq).max().unwrap_or(0),
            urgent,
            room_pages: self.shared.cold_room_pages(&maps),
            checkpoint_pages,
            checkpoint_segments,
            full_checkpoint_segments: if epochs {
                self.shared.full_checkpoint_segments(&maps)
            } else {
                u32::MAX - 3
            },
        })
    }

    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Cleaner { shared }
    }

    /// Turns a choice into work for the log.
    pub(crate) fn carry_out(&self, choice: Choice) -> Work {
        match choice {
            Choice::Nothing => Work::Nothing,
            Choice::Checkpoint => Work::Checkpoint,
            Choice::Meta(segment) => self.empty_meta(segment),
            Choice::AllMeta => {
                let spread = |s: &Segment| s.stream == Stream::Meta && s.live() > 0;
                let metas: Vec<u32> = {
                    let maps = self.shared.maps.read();
                    (0u32..).zip(maps.segments.all()).filter(|(_, s)| spread(s)).map(|(i, _)| i).collect()
                };
                for segment in metas {
                    if !matches!(self.empty_meta(segment), Work::Checkpoint) {
                        return Work::Skip;
                    }
                }
                Work::Checkpoint
            }
            Choice::Data(segment) => {
                let use_seq = |maps: &Maps| maps.segments.get(segment).map(|s| s.use_seq);
                let before = use_seq(&self.shared.maps.read());
                match self.read_live(segment) {
                    Ok(jobs) if jobs.is_empty() => {
                        // All died meanwhile, or (a hostile image) the count never was true: not chosen again.
                        let mut maps = self.shared.maps.write();
                        if use_seq(&maps) == before {
                            maps.segments.mark_damaged(segment);
                        }
                        Work::Skip
                    }
                    Ok(jobs) => Work::Jobs(jobs),
                    Err(why) => {
                        let mut maps = self.shared.maps.write();
                        // Emptied and used again meanwhile: nothing is wrong with it.
                        if use_seq(&maps) == before {
                            tracing::error!(
                                "segment {segment} cannot be cleaned: {why}; it is left as it is"
                            );
                            maps.segments.mark_damaged(segment);
                        }
                        Work::Skip
                    }
                }
            }
        }
    }

    /// Has the leaves of a meta segment written anew by the next checkpoint.
    fn empty_meta(&self, segment: u32) -> Work {
        if self.shared.empty_meta(segment).is_err() {
            self.shared.maps.write().segments.mark_damaged(segment);
            return Work::Skip;
        }
        Work::Checkpoint
    }

    /// Reads the live pages of a segment, ready to be moved.
    fn read_live(&self, segment: u32) -> Result<Vec<(Vec<Op>, u64)>, String> {
        let Some(info) = self.shared.maps.read().segments.get(segment).copied() else {
            return Err("it does not exist".into());
        };
        let mut bytes = AlignedBuf::recycled(info.used_pages as usize * PAGE);
        let start = self.shared.geometry.segment_byte(segment);
        self.shared.storage.read_exact(start, &mut bytes).map_err(|e| e.to_string())?;
        let live = self.find_live(segment, info.use_seq, &bytes)?;
        let mut jobs = Vec::new();
        for part in live.chunks(JOB_PAGES) {
            let mut buf = AlignedBuf::recycled(part.len() * PAGE);
            for (to, from) in buf.chunks_exact_mut(PAGE).zip(part) {
                let at = usize::from(from.loc.offset) * PAGE;
                let page = &bytes[at..at + PAGE];
                let found = page_crc(from.page, page);
                if found != from.crc {
                    let (page, expected) = (from.page, from.crc);
                    return Err(format!(
                        "device page {page:#x} at {}: crc32c expected {expected:#010x}, found {found:#010x}",
                        from.loc
                    ));
                }
                to.copy_from_slice(page);
            }
            let buf = Arc::new(buf);
            let op = |(i, live): (usize, &Live)| Op::Relocate {
                page: live.page,
                old: live.loc,
                crc: live.crc,
                buf: Arc::clone(&buf),
                page_in_buf: i,
            };
            jobs.push((part.iter().enumerate().map(op).collect(), (part.len() * PAGE) as u64));
        }
        Ok(jobs)
    }

    /// Walks the records of a segment; what the map (any layer) still refers to is alive.
    fn find_live(&self, segment: u32, use_seq: u64, bytes: &[u8]) -> Result<Vec<Live>, String> {
        let mut live = Vec::new();
        let mut at = 1usize;
        while (at + 1) * PAGE <= bytes.len() {
            let record =
                Record::decode(&bytes[at * PAGE..(at + 1) * PAGE]).map_err(|e| format!("page {at}: {e}"))?;
            if record.use_seq != use_seq || record.at != (Loc { segment, offset: at as u16 }) {
                return Err(format!("page {at}: a record of another place or use"));
            }
            let mut loc = record.at;
            for entry in &record.entries {
                let pages: Vec<(u64, u32)> = match entry {
                    Entry::Write { first, crcs } => (*first..).zip(crcs.iter().copied()).collect(),
                    Entry::Relocate { page, crc, .. } => vec![(*page, *crc)],
                    Entry::Discard { .. } => Vec::new(),
                };
                for (page, crc) in pages {
                    let next =
                        loc.offset.checked_add(1).filter(|&o| (usize::from(o) + 1) * PAGE <= bytes.len());
                    let Some(next) = next else {
                        return Err(format!("page {at}: the record is longer than its segment"));
                    };
                    loc.offset = next;
                    if self.is_live(page, loc)? {
                        live.push(Live { page, loc, crc });
                    }
                }
            }
            at += 1 + record.page_count() as usize;
        }
        Ok(live)
    }

    fn is_live(&self, page: u64, loc: Loc) -> Result<bool, String> {
        loop {
            let missing = {
                match self.shared.maps.read().mapped_there(page, loc) {
                    Ok(found) => return Ok(found.is_some()),
                    Err(leaf) => leaf,
                }
            };
            self.shared.load(missing).map_err(|e| e.to_string())?;
        }
    }
}

/// What the cleaner asks of the log.
pub(crate) enum Work {
    /// All is well, or nothing can be gained.
    Nothing,
    /// Choose again.
    Skip,
    /// A checkpoint.
    Checkpoint,
    /// Relocations, each with its bytes.
    Jobs(Vec<(Vec<Op>, u64)>),
}

fn move_pages(jobs: Vec<(Vec<Op>, u64)>, log: &InternalSender, bytes_per_s: u64) -> Result<(), IoError> {
    for (ops, bytes) in jobs {
        let (send, recv) = crossbeam_channel::bounded(1);
        let done = Box::new(move |result| {
            let _ = send.send(result);
        });
        log.send(Internal::Relocate(Box::new(Job::new(ops, done))));
        recv.recv().unwrap_or(Err(IoError::Shutdown))?;
        if let Some(ms) = (bytes * 1000).checked_div(bytes_per_s) {
            std::thread::sleep(Duration::from_millis(ms));
        }
    }
    Ok(())
}
