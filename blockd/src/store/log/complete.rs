//! What happens to records once they are written: applied and acknowledged in order, made durable,
//! or, when the backing fails, the end of all writing.

use std::io;

use super::job::JobDone;
use super::leaves::{Unread, apply_record};
use super::{InFlight, Log, SYNC_TOKEN};
use crate::device::IoError;
use crate::storage::Completion;
use crate::store::checkpoint::is_checkpoint_token;
use crate::store::format::record::Entry;

impl Log {
    /// Takes completions in; applies and acknowledges in log order.
    pub(super) fn reap(&mut self) -> bool {
        let mut completions: Vec<Completion> = Vec::new();
        self.queue.reap(&mut completions);
        let progress = !completions.is_empty();
        for completion in completions {
            if completion.token == SYNC_TOKEN {
                self.sync_finished(completion.result);
                continue;
            }
            if is_checkpoint_token(completion.token) {
                self.checkpoint_completed(completion);
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

    fn checkpoint_completed(&mut self, completion: Completion) {
        let Some(mut checkpoint) = self.checkpoint.take() else { return };
        match checkpoint.completed(self, completion.token, completion.result) {
            Ok(()) => self.checkpoint = Some(checkpoint),
            Err(e) => self.fail_checkpoint(*checkpoint, &e),
        }
    }

    fn apply(&mut self, f: InFlight) {
        match apply_record(&self.shared, &f.record, Unread::PassOver) {
            Ok(false) => {}
            // A replay could not do the same.
            Ok(true) => self.checkpoint_wanted = true,
            // It could be read when the record was built.
            Err((_, e)) => {
                self.fail(&format!("the map cannot be read: {e}"));
                f.acks.into_iter().for_each(|(done, _)| done(Err(e.clone())));
                return;
            }
        }
        self.applied_seq = f.record.seq;
        for (done, durable) in f.acks {
            if durable { self.wait_durable(f.record.seq, done) } else { done(Ok(())) }
        }
        let pages: u64 = f.record.entries.iter().map(Entry::mapped_pages).sum();
        self.pending_pages = self.pending_pages.saturating_sub(pages);
    }

    pub(super) fn wait_durable(&mut self, seq: u64, done: JobDone) {
        if seq <= self.durable_seq { done(Ok(())) } else { self.waiters.push_back((seq, done)) }
    }

    /// One sync for all that wait and whose records are applied.
    pub(super) fn start_sync(&mut self) -> bool {
        if self.syncing.is_some() || self.failed.is_some() {
            return false;
        }
        let wanted = self.waiters.iter().any(|(seq, _)| *seq <= self.applied_seq) || self.sync_gives_room();
        if !wanted {
            return false;
        }
        self.syncing = Some(self.applied_seq);
        self.shared.counters.syncs.inc();
        self.queue.sync(SYNC_TOKEN);
        self.queue.submit();
        true
    }

    /// A lane waits for a segment, and there are dead ones that a sync frees.
    pub(super) fn sync_gives_room(&self) -> bool {
        (self.user_stalled || self.cold_stalled)
            && (self.syncing.is_some()
                || (self.durable_seq < self.applied_seq
                    && self.shared.maps.read().segments.waiting_for_sync() > 0))
    }

    fn sync_finished(&mut self, result: io::Result<()>) {
        let upto = self.syncing.take().unwrap_or(self.durable_seq);
        match result {
            Ok(()) => self.now_durable(upto),
            Err(e) => self.fail(&format!("making the image durable failed: {}", explain(&e))),
        }
    }

    pub(in crate::store) fn now_durable(&mut self, upto: u64) {
        self.durable_seq = self.durable_seq.max(upto);
        self.free_dead_segments();
        for (seq, done) in std::mem::take(&mut self.waiters) {
            self.wait_durable(seq, done);
        }
    }

    /// Segments whose last page died by a record that is durable now can be used again.
    fn free_dead_segments(&mut self) {
        let freed = self.shared.maps.write().segments.release_durable(self.durable_seq);
        self.discard_freed(&freed);
    }

    /// Gives the space of freed segments back to the backing, if that is wanted.
    pub(in crate::store) fn discard_freed(&self, segments: &[u32]) {
        if self.discard {
            let geometry = self.shared.geometry;
            for &segment in segments {
                self.shared.storage.discard(geometry.segment_byte(segment), geometry.segment_bytes());
            }
        }
    }

    /// From now on nothing is written: what is on the backing is no longer known. Reads go on.
    pub(super) fn fail(&mut self, why: &str) {
        if self.failed.is_none() {
            self.shared.counters.failed(why);
            tracing::error!("{why}; nothing more is written, restart when the cause is mended");
            self.failed =
                Some(format!("{why}; the store stopped writing, restart it when the cause is mended"));
        }
    }

    pub(super) fn fail_all(&mut self) {
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
        let under_way = self.checkpoint.take().map(|mut c| c.take_waiters()).unwrap_or_default();
        for done in under_way.into_iter().chain(std::mem::take(&mut self.checkpoint_waiters)) {
            done(Err(error()));
        }
        self.changes.fail(self.failed.as_deref().unwrap_or_default());
        self.checkpoint_wanted = false;
        self.user_stalled = false;
        self.cold_stalled = false;
        self.pending_pages = 0;
    }
}

/// Whoever changes the log holds one: a panic in the midst of a change would leave it half done, for others to go on with
/// and to make durable. The process ends at once instead, and the next start replays what is whole.
pub(super) struct Whole;

impl Drop for Whole {
    fn drop(&mut self) {
        // Tests of the store itself assert things in there.
        if !cfg!(test) && std::thread::panicking() {
            tracing::error!(
                "a panic within the log; ending at once, the next start replays it: please report this"
            );
            std::process::abort();
        }
    }
}

impl Log {
    /// What an error of the backing means.
    pub(in crate::store) fn explain(&self, e: &io::Error) -> String {
        explain(e)
    }
}

fn explain(e: &io::Error) -> String {
    if e.kind() == io::ErrorKind::StorageFull {
        return format!("{e} (the file system that holds the image is full: free space there)");
    }
    e.to_string()
}
