//! The log: the one writer of a store.
//!
//! Jobs enter a lane (users' or the cleaner's) and are cut into records; several records are
//! written at once. A record is *built* -> *in flight* -> *complete* -> (all before it complete)
//! *applied* to the map and its jobs acknowledged -> *durable* by a sync, which all waiters share.
//! Records are numbered over both lanes without gaps, so that recovery knows where the log ends.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use layout::addr::PAGE;

use super::Shared;
use super::checkpoint::Checkpointer;
use super::format::record::{Entry, EntryList, FLAG_COMMIT, FLAG_LINK, FLAG_ROLLBACK, Record, SessionState};
use super::format::segment::{SegmentHeader, Stream};
use super::format::superblock::Superblock;
use super::format::{Loc, page_crc};
use super::space::{CLEANER_SEGMENTS, Class};
use crate::buf::AlignedBuf;
use crate::device::{IoError, VolumeKind};
use crate::storage::{Chunk, Completion, Waker, WriteQueue};

/// Records in flight at once.
const IN_FLIGHT_MAX: usize = 8;
/// Data pages of a record.
const RECORD_PAGES_MAX: u32 = 256;
/// Token of a sync; records have their sequence.
const SYNC_TOKEN: u64 = u64::MAX;

static ZERO_PAGE: [u8; PAGE] = [0; PAGE];

/// Called once with a job's outcome.
pub type JobDone = Box<dyn FnOnce(Result<(), IoError>) + Send>;

/// One change of a job.
pub enum Op {
    /// Whole pages of `buf` from `page_in_buf` on.
    Write {
        /// First device page.
        first: u64,
        /// The bytes.
        buf: Arc<AlignedBuf>,
        /// First page within `buf`.
        page_in_buf: usize,
        /// Number of pages.
        pages: usize,
    },
    /// Pages that read as zeros from now on.
    Discard {
        /// First device page.
        first: u64,
        /// Number of pages.
        count: u64,
    },
    /// A copy of a page, valid only if it still stands at `old`.
    Relocate {
        /// The device page.
        page: u64,
        /// Where it was found.
        old: Loc,
        /// Its crc.
        crc: u32,
        /// The bytes.
        buf: Arc<AlignedBuf>,
        /// Page within `buf`.
        page_in_buf: usize,
    },
}

impl Op {
    fn pages(&self) -> u64 {
        match self {
            Op::Write { pages, .. } => *pages as u64,
            Op::Discard { .. } => 0,
            Op::Relocate { .. } => 1,
        }
    }
}

/// A request to the log.
pub struct Job {
    /// In order.
    pub ops: VecDeque<Op>,
    /// First drop the open epoch.
    pub rollback: bool,
    /// Commit afterwards.
    pub commit: bool,
    /// The session state from this job on.
    pub session: Option<SessionState>,
    /// Acknowledge only when it and all before it are durable.
    pub durable: bool,
    /// How deep it may dig into the reserve.
    pub class: Class,
    /// Told the outcome.
    pub done: JobDone,
}

impl Job {
    /// A job of these operations and nothing else.
    pub fn new(ops: impl Into<VecDeque<Op>>, done: JobDone) -> Self {
        Job {
            ops: ops.into(),
            rollback: false,
            commit: false,
            session: None,
            durable: false,
            class: Class::Data,
            done,
        }
    }
}

/// Where a stream writes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) at: Loc,
    pub(super) use_seq: u64,
    /// The segment's header is not written yet.
    pub(super) fresh: bool,
}

struct InFlight {
    record: Record,
    /// `None` until its write completed.
    complete: bool,
    acks: Vec<(JobDone, bool)>,
}

/// The writer. One thread owns it; [`Log::pump`] does all that can be done without waiting.
pub struct Log {
    pub(super) shared: Arc<Shared>,
    queue: Box<dyn WriteQueue>,
    pub(super) superblock: Superblock,
    user: VecDeque<Job>,
    cold: VecDeque<Job>,
    /// Of [`Stream::LOGGED`].
    pub(super) heads: [Head; 2],
    pub(super) meta_head: Option<Head>,
    pub(super) next_seq: u64,
    pub(super) next_use_seq: u64,
    pub(super) applied_seq: u64,
    pub(super) durable_seq: u64,
    built_epoch: u64,
    given_epoch: u64,
    session: SessionState,
    in_flight: VecDeque<InFlight>,
    /// Pages of jobs admitted and not yet applied.
    pending_pages: u64,
    syncing: Option<u64>,
    waiters: VecDeque<(u64, JobDone)>,
    failed: Option<String>,
    pages_since_checkpoint: u64,
    checkpoint_pages: u64,
    checkpoint_waiters: Vec<JobDone>,
    checkpoint_wanted: bool,
    user_stalled: bool,
    cold_stalled: bool,
    reclaim_tried: u64,
}

impl Log {
    pub(super) fn new(
        shared: Arc<Shared>,
        queue: Box<dyn WriteQueue>,
        superblock: Superblock,
        start: super::recover::LogStart,
        checkpoint_pages: u64,
    ) -> Self {
        let (built_epoch, session) = {
            let maps = shared.maps.read();
            (maps.epoch, maps.session.clone())
        };
        Log {
            shared,
            queue,
            superblock,
            user: VecDeque::new(),
            cold: VecDeque::new(),
            heads: start.heads,
            meta_head: None,
            next_seq: start.next_seq,
            next_use_seq: start.next_use_seq,
            applied_seq: start.next_seq - 1,
            durable_seq: start.next_seq - 1,
            built_epoch,
            given_epoch: built_epoch,
            session,
            in_flight: VecDeque::new(),
            pending_pages: 0,
            syncing: None,
            waiters: VecDeque::new(),
            failed: None,
            pages_since_checkpoint: 0,
            checkpoint_pages,
            checkpoint_waiters: Vec::new(),
            checkpoint_wanted: false,
            user_stalled: false,
            cold_stalled: false,
            reclaim_tried: 0,
        }
    }

    /// Ends [`Log::wait`] from another thread.
    pub fn waker(&self) -> Waker {
        self.queue.waker()
    }

    /// Waits until something completed or the waker was called.
    pub fn wait(&mut self) {
        self.queue.wait();
    }

    /// The session state as of the last job given.
    pub fn session(&self) -> &SessionState {
        &self.session
    }

    /// Why the log stopped, if it did. Reads go on.
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// No job waits and nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.user.is_empty()
            && self.cold.is_empty()
            && self.in_flight.is_empty()
            && self.syncing.is_none()
            && self.waiters.is_empty()
            && !self.checkpoint_wanted
    }

    /// A user's job waits for the cleaner.
    pub fn is_stalled(&self) -> bool {
        self.user_stalled && self.in_flight.is_empty()
    }

    /// Bytes of users' jobs wait; more should wait with the callers.
    pub fn user_backlog(&self) -> usize {
        self.user.len()
    }

    /// Takes a job of a user. One that does not fit is refused at once.
    pub fn submit_user(&mut self, job: Job) {
        if let Some(why) = &self.failed {
            return (job.done)(Err(IoError::Io(why.clone())));
        }
        let pages: u64 = job.ops.iter().map(Op::pages).sum();
        if pages > 0 && !self.admit(&job, pages) {
            return (job.done)(Err(IoError::NoSpace));
        }
        self.pending_pages += pages;
        if let Some(session) = &job.session {
            self.session = session.clone();
        }
        self.given_epoch += u64::from(job.commit);
        self.user.push_back(job);
    }

    /// Commits when all jobs given are done.
    pub fn epoch(&self) -> u64 {
        self.given_epoch
    }

    /// Pages of jobs not yet applied.
    pub fn pending_pages(&self) -> u64 {
        self.pending_pages
    }

    /// Takes a job of the cleaner.
    pub fn submit_cold(&mut self, job: Job) {
        if let Some(why) = &self.failed {
            return (job.done)(Err(IoError::Io(why.clone())));
        }
        self.pending_pages += job.ops.iter().map(Op::pages).sum::<u64>();
        self.cold.push_back(job);
    }

    /// Acknowledges when everything acknowledged before is durable.
    pub fn submit_flush(&mut self, done: JobDone) {
        if self.user.is_empty() {
            match &self.failed {
                Some(why) => done(Err(IoError::Io(why.clone()))),
                None => self.wait_durable(self.next_seq - 1, done),
            }
        } else {
            let mut job = Job::new([], done);
            job.durable = true;
            self.user.push_back(job);
        }
    }

    /// Wants a checkpoint; told when it is durable.
    pub fn submit_checkpoint(&mut self, done: JobDone) {
        match &self.failed {
            Some(why) => done(Err(IoError::Io(why.clone()))),
            None => {
                self.checkpoint_wanted = true;
                self.checkpoint_waiters.push(done);
            }
        }
    }

    /// The cleaner found nothing to gain: users' jobs that wait for space can't have it.
    pub fn refuse_stalled(&mut self) {
        if !self.user_stalled {
            return;
        }
        tracing::warn!("no space left in the image, and nothing to clean");
        for job in std::mem::take(&mut self.user) {
            let pages = job.ops.iter().map(Op::pages).sum::<u64>();
            if pages == 0 {
                self.user.push_back(job);
                continue;
            }
            self.pending_pages -= pages;
            (job.done)(Err(IoError::NoSpace));
        }
        self.user_stalled = false;
    }

    /// Whether a user's pages may be taken in.
    fn admit(&self, job: &Job, pages: u64) -> bool {
        let new_pages = {
            let maps = self.shared.maps.read();
            if pages <= self.shared.available_pages(&maps, self.pending_pages, job.class) {
                return true;
            }
            let used = maps.segments.data_live() + 2 * maps.segments.meta_live();
            tracing::debug!(pages, used, pending = self.pending_pages, "no room for new pages");
            drop(maps);
            self.count_new_pages(job)
        };
        let maps = self.shared.maps.read();
        match self.shared.kind {
            // Replacing a page frees the old one as soon as the record is applied.
            VolumeKind::Raw => new_pages == 0,
            VolumeKind::VexFs => {
                new_pages == 0
                    && pages <= self.shared.available_pages(&maps, self.pending_pages, Class::Metadata)
            }
        }
    }

    /// Pages of a job that are not mapped yet; on doubt they count as new.
    fn count_new_pages(&self, job: &Job) -> u64 {
        let mut new_pages = 0;
        for op in &job.ops {
            let Op::Write { first, pages, .. } = op else { continue };
            for page in *first..*first + *pages as u64 {
                use super::map::Lookup;
                let mut found = self.shared.maps.read().lookup(page);
                if let Lookup::Leaf(key) = found {
                    if self.shared.load_leaf(key).is_err() {
                        return u64::MAX;
                    }
                    found = self.shared.maps.read().lookup(page);
                }
                new_pages += u64::from(!matches!(found, Lookup::Mapped(_)));
            }
        }
        new_pages
    }

    /// Does all that can be done without waiting.
    pub fn pump(&mut self) {
        loop {
            let mut progress = self.reap();
            progress |= self.start_sync();
            if self.failed.is_some() {
                self.fail_all();
            } else if self.checkpoint_due() {
                if !self.in_flight.is_empty() || self.syncing.is_some() {
                    // It begins when what is in flight has landed.
                    if !progress {
                        return;
                    }
                    continue;
                }
                self.run_checkpoint();
                progress = true;
            } else {
                progress |= self.build(Stream::Cold);
                progress |= self.build(Stream::User);
                self.queue.submit();
            }
            if !progress && !self.refuse_cold() {
                return;
            }
        }
    }

    /// The cleaner itself has no room left: it is told so, rather than left waiting.
    fn refuse_cold(&mut self) -> bool {
        if !self.cold_stalled || !self.in_flight.is_empty() || self.checkpoint_due() {
            return false;
        }
        self.cold_stalled = false;
        for job in std::mem::take(&mut self.cold) {
            self.pending_pages =
                self.pending_pages.saturating_sub(job.ops.iter().map(Op::pages).sum::<u64>());
            (job.done)(Err(IoError::NoSpace));
        }
        true
    }

    fn lane(&mut self, stream: Stream) -> &mut VecDeque<Job> {
        if stream == Stream::Cold { &mut self.cold } else { &mut self.user }
    }

    fn head(&mut self, stream: Stream) -> &mut Head {
        &mut self.heads[usize::from(stream == Stream::Cold)]
    }

    /// Cuts waiting jobs of a lane into records; tells whether it did anything.
    fn build(&mut self, stream: Stream) -> bool {
        let mut progress = false;
        while self.in_flight.len() < IN_FLIGHT_MAX && !self.lane(stream).is_empty() {
            progress |= self.finish_bare_jobs(stream);
            let Some(job) = self.lane(stream).front() else { break };
            let room_wanted = if job.ops.iter().any(|op| op.pages() > 0) { 2 } else { 1 };
            // The last page of a segment is kept for the record that links to the next one.
            let last = self.shared.geometry.segment_pages - 1;
            if u32::from(self.head(stream).at.offset) + room_wanted > last {
                let rolled = self.roll(stream);
                if stream == Stream::Cold {
                    self.cold_stalled = !rolled;
                } else {
                    self.user_stalled = !rolled;
                }
                if !rolled {
                    return progress;
                }
            }
            self.build_record(stream, last);
            progress = true;
        }
        progress
    }

    /// Jobs that change nothing (a flush behind other jobs) need no record.
    fn finish_bare_jobs(&mut self, stream: Stream) -> bool {
        let mut progress = false;
        while let Some(job) = self.lane(stream).front() {
            if !job.ops.is_empty() || job.rollback || job.commit || job.session.is_some() {
                break;
            }
            let Some(job) = self.lane(stream).pop_front() else { break };
            progress = true;
            if job.durable {
                self.wait_durable(self.next_seq - 1, job.done);
            } else if let Some(last) = self.in_flight.back_mut() {
                last.acks.push((job.done, false));
            } else {
                (job.done)(Ok(()));
            }
        }
        progress
    }

    fn build_record(&mut self, stream: Stream, last: u32) {
        let head = *self.head(stream);
        let pages_max = (last - u32::from(head.at.offset) - 1).min(RECORD_PAGES_MAX);
        let mut list = EntryList::default();
        let mut chunks = Vec::new();
        let mut acks = Vec::new();
        let mut flags = 0;
        let mut session = None;
        let mut zero_pages = 0;
        while let Some(job) = self.lane(stream).front_mut() {
            if job.rollback {
                if !list.is_empty() || !acks.is_empty() {
                    break;
                }
                flags |= FLAG_ROLLBACK;
                job.rollback = false;
            }
            let (whole, zeros) = fill(job, &mut list, &mut chunks, pages_max);
            zero_pages += zeros;
            if !whole {
                break;
            }
            let Some(mut job) = self.lane(stream).pop_front() else { break };
            acks.push((job.done, job.durable));
            if job.commit {
                flags |= FLAG_COMMIT;
            }
            let state = job.session.take();
            let ends = job.commit || state.is_some();
            session = state.or(session);
            if ends {
                break;
            }
        }
        self.pending_pages = self.pending_pages.saturating_sub(zero_pages);
        let session = session.unwrap_or_else(|| self.record_session());
        self.write_record(stream, flags, None, list.take(), session, chunks, acks);
    }

    /// The session state of the last record built.
    fn record_session(&self) -> SessionState {
        self.in_flight
            .back()
            .map_or_else(|| self.shared.maps.read().session.clone(), |f| f.record.session.clone())
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a record, used in one place")]
    fn write_record(
        &mut self,
        stream: Stream,
        flags: u32,
        next: Option<(u32, u64)>,
        entries: Vec<Entry>,
        session: SessionState,
        data: Vec<Chunk>,
        acks: Vec<(JobDone, bool)>,
    ) {
        let head = *self.head(stream);
        let seq = self.next_seq;
        let record = Record {
            uuid: self.shared.uuid,
            at: head.at,
            use_seq: head.use_seq,
            seq,
            epoch: self.built_epoch,
            incarnation: self.superblock.incarnation,
            durable_seq: self.durable_seq,
            written_seq: self.applied_seq,
            flags,
            next,
            session,
            entries,
        };
        let header_pages = 1 + usize::from(head.fresh);
        let mut header = AlignedBuf::zeroed(header_pages * PAGE);
        record.encode_into(&mut header[(header_pages - 1) * PAGE..]);
        let mut start = head.at;
        if head.fresh {
            self.segment_header(head.at.segment, stream, head.use_seq).encode_into(&mut header[..PAGE]);
            start.offset = 0;
        }
        let pages = 1 + record.page_count();
        let mut chunks = Vec::with_capacity(1 + data.len());
        chunks.push(Chunk::new(Arc::new(header), 0, header_pages * PAGE));
        chunks.extend(data);
        self.queue.write(seq, self.shared.geometry.byte(start), chunks);
        let head = self.head(stream);
        head.fresh = false;
        head.at.offset += pages as u16;
        self.next_seq += 1;
        if flags & FLAG_COMMIT != 0 {
            self.built_epoch += 1;
        }
        self.pages_since_checkpoint += u64::from(pages);
        self.in_flight.push_back(InFlight { record, complete: false, acks });
    }

    pub(super) fn segment_header(&self, segment: u32, stream: Stream, use_seq: u64) -> SegmentHeader {
        SegmentHeader {
            uuid: self.shared.uuid,
            segment,
            stream,
            use_seq,
            incarnation: self.superblock.incarnation,
        }
    }

    /// Ends the stream's segment with a link to a new one; false if there is none to be had.
    fn roll(&mut self, stream: Stream) -> bool {
        let session = self.record_session();
        let use_seq = self.next_use_seq;
        let taken = {
            let mut maps = self.shared.maps.write();
            let mut keep = self.shared.checkpoint_segments(&maps);
            if stream == Stream::User {
                keep += CLEANER_SEGMENTS;
            }
            if maps.segments.free_count() > keep { maps.segments.take(stream, use_seq) } else { None }
        };
        let Some(segment) = taken else { return false };
        self.next_use_seq += 1;
        let old = self.head(stream).at.segment;
        self.write_record(
            stream,
            FLAG_LINK,
            Some((segment, use_seq)),
            Vec::new(),
            session,
            Vec::new(),
            Vec::new(),
        );
        self.shared.maps.write().segments.close(old);
        *self.head(stream) = Head { at: Loc { segment, offset: 1 }, use_seq, fresh: true };
        true
    }

    /// Takes completions in; applies and acknowledges in log order.
    fn reap(&mut self) -> bool {
        let mut completions: Vec<Completion> = Vec::new();
        self.queue.reap(&mut completions);
        let progress = !completions.is_empty();
        for completion in completions {
            if completion.token == SYNC_TOKEN {
                self.sync_finished(completion.result);
                continue;
            }
            if let Err(e) = completion.result {
                self.fail(&format!(
                    "writing record {} to the image failed: {}",
                    completion.token,
                    explain(&e)
                ));
                continue;
            }
            if let Some(f) = self.in_flight.iter_mut().find(|f| f.record.seq == completion.token) {
                f.complete = true;
            }
        }
        while self.failed.is_none() && self.in_flight.front().is_some_and(|f| f.complete) {
            let Some(done) = self.in_flight.pop_front() else { break };
            self.apply(done);
        }
        progress
    }

    fn apply(&mut self, f: InFlight) {
        if let Err(e) = apply_record(&self.shared, &f.record) {
            self.fail(&format!("the map cannot be read: {e}"));
            f.acks.into_iter().for_each(|(done, _)| done(Err(e.clone())));
            return;
        }
        self.applied_seq = f.record.seq;
        for (done, durable) in f.acks {
            if durable { self.wait_durable(f.record.seq, done) } else { done(Ok(())) }
        }
        let pages: u64 = f.record.entries.iter().map(|e| u64::from(e.pages())).sum();
        self.pending_pages = self.pending_pages.saturating_sub(pages);
    }

    fn wait_durable(&mut self, seq: u64, done: JobDone) {
        if seq <= self.durable_seq { done(Ok(())) } else { self.waiters.push_back((seq, done)) }
    }

    /// One sync for all that wait and whose records are applied.
    fn start_sync(&mut self) -> bool {
        let wanted = self.waiters.iter().any(|(seq, _)| *seq <= self.applied_seq);
        if self.syncing.is_some() || !wanted || self.failed.is_some() {
            return false;
        }
        self.syncing = Some(self.applied_seq);
        self.queue.sync(SYNC_TOKEN);
        self.queue.submit();
        true
    }

    fn sync_finished(&mut self, result: io::Result<()>) {
        let upto = self.syncing.take().unwrap_or(self.durable_seq);
        match result {
            Ok(()) => self.now_durable(upto),
            Err(e) => self.fail(&format!("making the image durable failed: {}", explain(&e))),
        }
    }

    fn now_durable(&mut self, upto: u64) {
        self.durable_seq = self.durable_seq.max(upto);
        for (seq, done) in std::mem::take(&mut self.waiters) {
            self.wait_durable(seq, done);
        }
    }

    /// From now on nothing is written: what is on the backing is no longer known. Reads go on.
    fn fail(&mut self, why: &str) {
        if self.failed.is_none() {
            tracing::error!("{why}; nothing more is written, restart when the cause is mended");
            self.failed =
                Some(format!("{why}; the store stopped writing, restart it when the cause is mended"));
        }
    }

    fn fail_all(&mut self) {
        let error = || IoError::Io(self.failed.clone().unwrap_or_default());
        for f in std::mem::take(&mut self.in_flight) {
            f.acks.into_iter().for_each(|(done, _)| done(Err(error())));
        }
        for job in self.user.drain(..).chain(self.cold.drain(..)) {
            (job.done)(Err(error()));
        }
        for (_, done) in std::mem::take(&mut self.waiters) {
            done(Err(error()));
        }
        for done in std::mem::take(&mut self.checkpoint_waiters) {
            done(Err(error()));
        }
        self.checkpoint_wanted = false;
        self.user_stalled = false;
        self.cold_stalled = false;
        self.pending_pages = 0;
    }

    /// Whether a checkpoint should come before anything else is written.
    fn checkpoint_due(&mut self) -> bool {
        if self.checkpoint_wanted || self.pages_since_checkpoint >= self.checkpoint_pages {
            return true;
        }
        if !self.user_stalled && !self.cold_stalled {
            return false;
        }
        // A checkpoint frees what died since the last one; once for each state of the log.
        let reclaimable = self.shared.maps.read().segments.empty().next().is_some();
        if reclaimable && self.reclaim_tried != self.next_seq {
            self.reclaim_tried = self.next_seq;
            return true;
        }
        false
    }

    fn run_checkpoint(&mut self) {
        self.checkpoint_wanted = false;
        let result = Checkpointer::new(self).run();
        match &result {
            Ok(()) => {
                self.pages_since_checkpoint = 0;
                self.now_durable(self.next_seq - 1);
            }
            Err(IoError::NoSpace) => {
                // Tried again after as much again was written; the log itself is sound.
                self.pages_since_checkpoint = self.checkpoint_pages / 2;
                tracing::warn!("no space for a checkpoint; the cleaner has to make some");
            }
            Err(e) => self.fail(&e.to_string()),
        }
        for done in std::mem::take(&mut self.checkpoint_waiters) {
            done(result.clone());
        }
    }
}

/// Loads the leaves a record needs and applies it.
pub(super) fn apply_record(shared: &Shared, record: &Record) -> Result<(), IoError> {
    loop {
        let missing = shared.maps.read().leaves_missing(record);
        for key in &missing {
            shared.load_leaf(*key)?;
        }
        if missing.is_empty() {
            break;
        }
    }
    shared.maps.write().apply(record);
    Ok(())
}

/// Moves as much of a job as fits into the record: whether nothing of it is left, and how many
/// pages of zeros became discards.
fn fill(job: &mut Job, list: &mut EntryList, chunks: &mut Vec<Chunk>, pages_max: u32) -> (bool, u64) {
    let mut zeros = 0;
    while let Some(op) = job.ops.front_mut() {
        match op {
            Op::Discard { first, count } => {
                if !list.push_discard(*first, *count) {
                    return (false, zeros);
                }
            }
            Op::Relocate { page, old, crc, buf, page_in_buf } => {
                let entry = Entry::Relocate { page: *page, old: *old, crc: *crc };
                if list.pages() >= pages_max || !list.push(entry) {
                    return (false, zeros);
                }
                chunks.push(Chunk::new(Arc::clone(buf), *page_in_buf * PAGE, PAGE));
            }
            Op::Write { first, buf, page_in_buf, pages } => {
                let start = *page_in_buf;
                let mut chunk_start = start;
                while *pages > 0 {
                    let bytes = &buf[*page_in_buf * PAGE..(*page_in_buf + 1) * PAGE];
                    let zero = bytes == ZERO_PAGE;
                    let pushed = if zero {
                        list.push_discard(*first, 1)
                    } else {
                        list.pages() < pages_max && list.push_write(*first, page_crc(*first, bytes))
                    };
                    if zero || !pushed {
                        push_chunk(chunks, buf, chunk_start, *page_in_buf);
                        chunk_start = *page_in_buf + 1;
                    }
                    if !pushed {
                        return (false, zeros);
                    }
                    zeros += u64::from(zero);
                    *first += 1;
                    *page_in_buf += 1;
                    *pages -= 1;
                }
                push_chunk(chunks, buf, chunk_start, *page_in_buf);
            }
        }
        job.ops.pop_front();
    }
    (true, zeros)
}

fn push_chunk(chunks: &mut Vec<Chunk>, buf: &Arc<AlignedBuf>, from: usize, to: usize) {
    if to > from {
        chunks.push(Chunk::new(Arc::clone(buf), from * PAGE, (to - from) * PAGE));
    }
}

fn explain(e: &io::Error) -> String {
    if e.kind() == io::ErrorKind::StorageFull {
        return format!("{e} (the file system that holds the image is full: free space there)");
    }
    e.to_string()
}
