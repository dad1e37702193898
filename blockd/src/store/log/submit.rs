//! Taking jobs in, or refusing them for want of space.

use parking_lot::RwLockReadGuard;

use super::Log;
use super::job::{Job, JobDone, Op};
use crate::device::{IoError, VolumeKind};
use crate::store::format::record::Entry;
use crate::store::space::Class;

impl Log {
    /// Takes a job of a user. One that does not fit, or that changes what a leaf maps that cannot be read, is refused at once.
    pub fn submit_user(&mut self, job: Job) {
        if let Some(why) = &self.failed {
            return (job.done)(Err(IoError::Io(why.clone())));
        }
        if let Err(e) = self.load_leaves_of(&job) {
            return (job.done)(Err(e));
        }
        let pages = job.charged_pages();
        if pages > 0 && !self.admit(&job, pages) {
            self.shared.counters.no_space.inc();
            return (job.done)(Err(IoError::NoSpace));
        }
        if pages == 0 && !self.admit_discards(&job) {
            return (job.done)(Err(IoError::NoSpace));
        }
        self.pending_pages += pages;
        if let Some(session) = &job.session {
            self.session = session.clone();
        }
        self.given_epoch += u64::from(job.commit);
        self.user.push_back(job);
    }

    /// Takes a job of the cleaner.
    pub fn submit_cold(&mut self, job: Job) {
        if let Some(why) = &self.failed {
            return (job.done)(Err(IoError::Io(why.clone())));
        }
        self.pending_pages += job.charged_pages();
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

    /// The cleaner found nothing to gain: users' jobs that wait for space can't have it. Those without data
    /// go on waiting only while there are others to refuse first: nobody may wait for ever.
    pub fn refuse_stalled(&mut self) {
        // What died since the cleaner looked may be enough, once a checkpoint has freed it.
        if !self.user_stalled || self.sync_gives_room() || self.checkpoint_may_help() {
            return;
        }
        let space = self.shared.describe_space(&self.shared.maps.read());
        tracing::warn!("no space left in the image, and nothing to clean ({space})");
        let all = self.user.iter().all(|job| job.charged_pages() == 0);
        for job in std::mem::take(&mut self.user) {
            if if all { job.is_bare() } else { job.charged_pages() == 0 } {
                self.user.push_back(job);
                continue;
            }
            self.pending_pages = self.pending_pages.saturating_sub(job.charged_pages());
            self.shared.counters.no_space.inc();
            (job.done)(Err(IoError::NoSpace));
        }
        self.forget_refused();
    }

    /// A snapshot keeps nothing more: what waiting jobs replace may have to be kept by an older one, whose leaves were not asked for
    /// when they were taken in. Those that need one that cannot be read are refused.
    pub(in crate::store) fn check_waiting(&mut self) {
        let waiting = self.user.len();
        for job in std::mem::take(&mut self.user) {
            match self.load_leaves_of(&job) {
                Ok(()) => self.user.push_back(job),
                Err(e) => {
                    self.pending_pages = self.pending_pages.saturating_sub(job.charged_pages());
                    (job.done)(Err(e));
                }
            }
        }
        if self.user.len() < waiting {
            self.forget_refused();
        }
    }

    /// What was refused changes neither the session nor the count of commits, and does not wait.
    pub(super) fn forget_refused(&mut self) {
        self.given_epoch = self.built_epoch + self.user.iter().filter(|job| job.commit).count() as u64;
        let given = self.user.iter().rev().find_map(|job| job.session.clone());
        self.session = given.unwrap_or_else(|| self.record_session());
        self.user_stalled = false;
    }

    /// Whether a user's pages may be taken in.
    fn admit(&self, job: &Job, pages: u64) -> bool {
        if job.class == Class::Commit {
            // One page, in place of the one before, and it gives back what the epoch replaced. Its record may use what is
            // kept from all others.
            return true;
        }
        let new_pages = {
            let maps = self.shared.maps.read();
            if pages <= self.shared.available_pages(&maps, self.pending_pages, job.class) {
                return true;
            }
            let used = self.shared.used_pages(&maps);
            tracing::debug!(pages, used, pending = self.pending_pages, "no room for new pages");
            drop(maps);
            self.count_new_pages(&job.ops)
        };
        let room = |pending, class| self.shared.available_pages(&self.shared.maps.read(), pending, class);
        match self.shared.kind {
            // Replacing a page frees the old one as soon as the record is applied.
            VolumeKind::Raw => {
                let rest = room(0, job.class).checked_sub(new_pages);
                // All that is under way may be new, and fit.
                let fits = |rest| self.pending_pages <= rest || self.new_pages_under_way(rest) <= rest;
                new_pages == 0 || rest.is_some_and(fits)
            }
            VolumeKind::VexFs => new_pages == 0 && pages <= room(self.pending_pages, Class::Metadata),
        }
    }

    /// Whether discards may be taken in: they give nothing back that a snapshot keeps, and what it keeps needs leaves.
    fn admit_discards(&self, job: &Job) -> bool {
        let maps = self.shared.maps.read();
        if !maps.snapshots.any_keeps() {
            return true;
        }
        let leaves: u64 = job
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::Discard { first, count } => {
                    Some(maps.base.units_between(*first, first.saturating_add(*count)))
                }
                Op::Write { .. } | Op::Clone { .. } | Op::Relocate { .. } => None,
            })
            .map(|units| units.count() as u64)
            .sum();
        // A leaf stands beside its last version while a checkpoint is written.
        leaves == 0 || 2 * leaves <= self.shared.available_pages(&maps, self.pending_pages, Class::Metadata)
    }

    /// Pages of jobs admitted and not yet applied that take room which is not given back for them. Looks each of them up: for a
    /// volume that is full but for what is under way. Counts no further than to more than `most`.
    fn new_pages_under_way(&self, most: u64) -> u64 {
        let waiting = self.user.iter().map(|job| self.count_new_pages(&job.ops));
        let written = self.records_in_flight().flat_map(|record| &record.entries).map(|entry| match entry {
            Entry::Write { first, crcs } | Entry::Clone { first, crcs, .. } => {
                self.new_pages(*first, crcs.len() as u64)
            }
            Entry::Relocate { .. } | Entry::Discard { .. } => 0,
        });
        let mut pages = 0;
        for found in written.chain(waiting) {
            pages += found;
            if pages > most {
                break;
            }
        }
        pages
    }

    /// Pages of a job that take room which is not given back for them; on doubt they count as new.
    fn count_new_pages<'a>(&self, ops: impl IntoIterator<Item = &'a Op>) -> u64 {
        let new_pages = ops.into_iter().map(|op| match op {
            Op::Write { first, pages, .. } => self.new_pages(*first, *pages as u64),
            Op::Clone { to, count, .. } => self.new_pages(*to, *count),
            Op::Relocate { .. } | Op::Discard { .. } => 0,
        });
        new_pages.sum()
    }

    /// Of so many pages, those that do.
    fn new_pages(&self, first: u64, count: u64) -> u64 {
        let mut maps = self.shared.maps.read();
        let mut takes_room = |page: &u64| loop {
            match maps.takes_room(*page) {
                Ok(takes) => break takes,
                Err(leaf) => {
                    let load = || self.shared.load(leaf);
                    if RwLockReadGuard::unlocked(&mut maps, load).is_err() {
                        break true;
                    }
                }
            }
        };
        (first..first + count).filter(|page| takes_room(page)).count() as u64
    }

    /// The cleaner itself has no room left: it is told so, rather than left waiting.
    pub(super) fn refuse_cold(&mut self) -> bool {
        if !self.cold_stalled
            || !self.in_flight.is_empty()
            || self.sync_gives_room()
            || self.checkpoint_may_help()
        {
            return false;
        }
        self.cold_stalled = false;
        for job in std::mem::take(&mut self.cold) {
            self.pending_pages = self.pending_pages.saturating_sub(job.charged_pages());
            (job.done)(Err(IoError::NoSpace));
        }
        true
    }
}
