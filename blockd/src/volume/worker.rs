//! What is done with the requests to the log: every change gets its place in the order here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use layout::addr::{CLASS0_BASE, COMMAND_PAGE, PAGE, PAGE_SHIFT, SUPERBLOCK_PAGE};

use super::Core;
use super::inbox::{Inbox, Request};
pub(crate) use super::inbox::{Internal, InternalSender};
use super::part::Parts;
use super::session::{Action, Cloned};
use crate::buf::AlignedBuf;
use crate::device::{ClientId, Commit, Done, IoError, VolumeKind};
use crate::store::clean::CleanerLink;
use crate::store::log::{Job, JobDone, Log, Op, Place};
use crate::store::space::Class;

/// Users' jobs that wait in the log; more wait in the queue.
const BACKLOG_MAX: usize = 256;

fn job_done(done: Done) -> JobDone {
    Box::new(move |result| done(result.map(|()| None)))
}

/// Of a page of a VexFS volume.
fn class_of(page: u64) -> Class {
    if page == SUPERBLOCK_PAGE.0 {
        Class::Commit
    } else if page < CLASS0_BASE >> PAGE_SHIFT {
        Class::Metadata
    } else {
        Class::Data
    }
}

/// What the log's thread may do after a turn.
pub(super) enum Rest {
    /// Take another turn.
    Not,
    /// Sleep until something is finished, or until so much waits.
    Sleep {
        /// Weight of the users' requests.
        wake_at: u64,
    },
    /// Finish.
    End,
}

/// The log with what waits for it.
pub(super) struct Worker {
    core: Arc<Core>,
    log: Log,
    inbox: Arc<Inbox>,
    backlog: VecDeque<Request>,
    parts: Parts,
    cleaner: Option<CleanerLink>,
    shutdown: Option<JobDone>,
}

impl Worker {
    pub(super) fn new(core: Arc<Core>, log: Log, inbox: Arc<Inbox>, cleaner: Option<CleanerLink>) -> Self {
        Worker {
            core,
            log,
            inbox,
            backlog: VecDeque::new(),
            parts: Parts::default(),
            cleaner,
            shutdown: None,
        }
    }

    pub(super) fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    /// From now on the calling thread waits for the log's writes and syncs.
    pub(super) fn begin(&mut self) {
        self.log.set_inline(false);
    }

    /// Takes in what waits and does what can be done without waiting; tells whether anything came in.
    pub(super) fn step(&mut self) -> bool {
        self.step_at(Place::Thread)
    }

    /// As [`Worker::step`], in a thread that has other things to do as well.
    pub(super) fn step_here(&mut self) {
        self.step_at(Place::Caller);
        self.look_for_space();
    }

    fn step_at(&mut self, place: Place) -> bool {
        let took = self.take_in();
        self.log.pump_at(place);
        self.core.pending_pages.store(self.log.pending_pages(), Ordering::Relaxed);
        took
    }

    /// Nothing is under way, and nothing waits.
    pub(super) fn is_at_rest(&self) -> bool {
        self.log.is_idle() && self.backlog.is_empty() && !self.inbox.has_requests()
    }

    /// Carries a request out, in the thread that brings it and would only wait for it; the worker is at rest.
    pub(super) fn carry_out(&mut self, request: Request) {
        self.log.set_inline(true);
        self.handle(request);
        self.log.pump_at(Place::Caller);
        self.log.set_inline(false);
        self.core.pending_pages.store(self.log.pending_pages(), Ordering::Relaxed);
        self.look_for_space();
    }

    /// Something has to be done that takes long.
    pub(super) fn wants_thread(&self) -> bool {
        self.log.wants_thread() || self.shutdown.is_some()
    }

    /// A request that was taken from the inbox waits here, and could be handled.
    pub(super) fn has_backlog(&self) -> bool {
        self.backlog.front().is_some_and(|request| !self.must_wait(request))
    }

    fn look_for_space(&self) {
        if self.log.stall().is_none()
            && let Some(cleaner) = &self.cleaner
        {
            cleaner.look();
        }
    }

    /// A turn of the log's thread.
    pub(super) fn turn(&mut self) -> Rest {
        let took = self.step();
        if let Some(stall) = self.log.stall() {
            match &self.cleaner {
                Some(cleaner) => cleaner.want_space(stall),
                None => self.log.refuse_stalled(),
            }
        }
        self.look_for_space();
        if took || self.has_backlog() || self.log.can_go_on() {
            return Rest::Not;
        }
        if self.shutdown.is_some() && self.is_at_rest() {
            return Rest::End;
        }
        let full = !self.backlog.is_empty() || self.log.user_backlog() >= BACKLOG_MAX;
        // Nothing more can be taken in until something is finished.
        Rest::Sleep { wake_at: if full { u64::MAX } else { self.log.worth_waking_pages() } }
    }

    /// The last checkpoint; whatever comes later is refused.
    pub(super) fn finish(mut self) {
        if let Some(cleaner) = self.cleaner.take() {
            cleaner.stop();
        }
        let (send, recv) = crossbeam_channel::bounded(1);
        self.log.submit_checkpoint(Box::new(move |result| {
            let _ = send.send(result);
        }));
        while !self.log.is_idle() {
            self.log.pump();
            if !self.log.is_idle() {
                self.log.wait();
            }
        }
        self.inbox.end();
        let result = recv.try_recv().unwrap_or(Ok(()));
        if let Some(done) = self.shutdown.take() {
            done(result);
        }
    }

    /// Takes messages and requests in; tells whether there were any.
    fn take_in(&mut self) -> bool {
        let mut took = false;
        while let Some(message) = self.inbox.next_internal() {
            took = true;
            match message {
                Internal::Relocate(job) => self.log.submit_cold(*job),
                Internal::Checkpoint(done) => self.log.submit_checkpoint(done),
                // Whoever stalls since then waits for what the cleaner finds now.
                Internal::NothingToClean(stall) if self.log.stall() == Some(stall) => {
                    self.log.refuse_stalled()
                }
                Internal::NothingToClean(_) | Internal::Cleaned => {}
                Internal::WithLog(task) => task(Ok(&mut self.log)),
                Internal::Shutdown(done) => self.shutdown = Some(done),
            }
        }
        while self.log.user_backlog() < BACKLOG_MAX {
            let Some(request) = self.backlog.pop_front().or_else(|| self.inbox.next_request()) else {
                break;
            };
            if self.must_wait(&request) {
                self.backlog.push_front(request);
                break;
            }
            took = true;
            self.handle(request);
        }
        took
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Flush { done } => self.log.submit_flush(job_done(done)),
            Request::Disconnect { client } => self.core.sessions.lock().disconnect(client),
            Request::Write { client, offset, buf, fua, keep_zeros, done } => {
                self.write(client, offset, buf, (fua, keep_zeros), done);
            }
            Request::Zero { client, offset, len_bytes, fua, done } => {
                self.zero(client, offset, len_bytes, fua, done);
            }
            Request::Commit { client, commit, done } => self.commit(client, &commit, done),
        }
    }

    /// One job: a record or a few, of which the last one commits, so that a crash leaves all or nothing.
    fn commit(&mut self, client: ClientId, commit: &Commit, done: Done) {
        if let Err(e) = self.core.sessions.lock().check(client, self.log.session().session()) {
            return done(Err(e));
        }
        let mut page_in_buf = 0;
        let ops: VecDeque<Op> = commit
            .runs()
            .map(|run| {
                let op = Op::Write {
                    first: run.first,
                    buf: Arc::clone(commit.buf()),
                    page_in_buf,
                    pages: run.pages,
                };
                page_in_buf += run.pages;
                op
            })
            .collect();
        let class = commit.runs().map(|run| class_of(run.first)).min().unwrap_or(Class::Commit);
        let mut job = Job::new(ops, job_done(done));
        (job.commit, job.durable, job.class) = (true, true, class);
        self.log.submit_user(job);
    }

    fn write(
        &mut self,
        client: ClientId,
        offset: u64,
        buf: Arc<AlignedBuf>,
        (fua, keep_zeros): (bool, bool),
        done: Done,
    ) {
        let page = offset / PAGE as u64;
        let vexfs = self.core.store.kind == VolumeKind::VexFs;
        if vexfs && page == COMMAND_PAGE.0 {
            return self.command(client, &buf, done);
        }
        if vexfs && let Err(e) = self.core.sessions.lock().check(client, self.log.session().session()) {
            return done(Err(e));
        }
        if buf.is_empty() {
            // Not a write of page 0 either, which would be a commit.
            return done(Ok(None));
        }
        if !offset.is_multiple_of(PAGE as u64) || !buf.len().is_multiple_of(PAGE) {
            let mut job = self.parts.write(&self.core.store, offset, &buf, job_done(done));
            if let Ok(job) = &mut job {
                job.keep_zeros = keep_zeros;
            }
            return self.submit_part(job, fua);
        }
        let pages = buf.len() / PAGE;
        self.parts.replaced(page, pages as u64);
        let mut job = Job::new([Op::Write { first: page, buf, page_in_buf: 0, pages }], job_done(done));
        job.durable = fua;
        job.keep_zeros = keep_zeros;
        if vexfs {
            job.commit = page == SUPERBLOCK_PAGE.0;
            job.class = class_of(page);
        }
        self.log.submit_user(job);
    }

    fn zero(&mut self, client: ClientId, offset: u64, len_bytes: u64, fua: bool, done: Done) {
        if self.core.store.kind == VolumeKind::VexFs
            && let Err(e) = self.core.sessions.lock().check(client, self.log.session().session())
        {
            return done(Err(e));
        }
        let job = self.parts.zero(&self.core.store, offset, len_bytes, job_done(done)).map(|mut job| {
            job.class = Class::Metadata;
            job
        });
        self.submit_part(job, fua);
    }

    fn submit_part(&mut self, job: Result<Job, (JobDone, IoError)>, fua: bool) {
        match job {
            Ok(job) if job.ops.is_empty() => (job.done)(Ok(())),
            Ok(mut job) => {
                job.durable = fua;
                self.log.submit_user(job);
            }
            Err((done, e)) => done(Err(e)),
        }
    }

    /// Whether a request changes part of a page whose content is not known yet.
    fn must_wait(&self, request: &Request) -> bool {
        match request {
            Request::Write { offset, buf, .. } => self.parts.must_wait(&self.log, *offset, buf.len() as u64),
            Request::Zero { offset, len_bytes, .. } => self.parts.must_wait(&self.log, *offset, *len_bytes),
            Request::Commit { .. } | Request::Flush { .. } | Request::Disconnect { .. } => false,
        }
    }

    fn command(&mut self, client: ClientId, page: &[u8], done: Done) {
        let outcome = self.core.sessions.lock().command(client, page, self.log.session(), self.log.epoch());
        match outcome {
            Err(e) => done(Err(e)),
            Ok(Action { session: None, repeated: false, .. }) => done(Ok(None)),
            Ok(action) => {
                let discards = action.discards.into_iter().map(|(first, count)| Op::Discard { first, count });
                let clones =
                    action.clones.into_iter().map(|Cloned { from, to, count }| Op::Clone { from, to, count });
                let ops: VecDeque<Op> = discards.chain(clones).collect();
                let mut job = Job::new(ops, job_done(done));
                job.rollback = action.rollback;
                job.session = action.session;
                job.durable = action.durable;
                self.log.submit_user(job);
            }
        }
    }
}
