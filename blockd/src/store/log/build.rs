//! Cutting waiting jobs into records, and moving from segment to segment.

use std::collections::VecDeque;
use std::sync::Arc;

use layout::addr::PAGE;

use super::job::{Job, JobDone, fill};
use super::{
    COLD_RECORD_PAGES_MAX, GATHER_PAGES, Head, IN_FLIGHT_MAX, InFlight, Log, USER_RECORD_PAGES_MAX,
    waiting_pages,
};
use crate::buf::AlignedBuf;
use crate::storage::Chunk;
use crate::store::format::Loc;
use crate::store::format::record::{
    Entry, EntryList, FLAG_COMMIT, FLAG_LINK, FLAG_ROLLBACK, Record, SessionState,
};
use crate::store::format::segment::{SegmentHeader, Stream};
use crate::store::space::{Class, Taker};

impl Log {
    fn lane(&mut self, stream: Stream) -> &mut VecDeque<Job> {
        if stream == Stream::Cold { &mut self.cold } else { &mut self.user }
    }

    fn head(&mut self, stream: Stream) -> &mut Head {
        &mut self.heads[usize::from(stream == Stream::Cold)]
    }

    /// Cuts waiting jobs of a lane into records; tells whether it did anything.
    pub(super) fn build(&mut self, stream: Stream) -> bool {
        let mut progress = false;
        while !self.lane(stream).is_empty() && self.may_build(stream) {
            progress |= self.finish_bare_jobs(stream);
            let Some(job) = self.lane(stream).front() else { break };
            let has_pages = job.ops.iter().any(|op| op.pages() > 0);
            let clones = stream == Stream::User && job.clones();
            let takes_room = has_pages || clones;
            let only_discards = !takes_room && !job.ops.is_empty();
            let room_wanted = match has_pages {
                true if job.whole => 3,
                true => 2,
                false => 1,
            };
            // Commits and discards make space: they may use what is kept for the cleaner.
            let urgent = stream == Stream::Cold || !takes_room || job.class == Class::Commit;
            if clones && !self.may_build_clone() {
                return progress;
            }
            if stream == Stream::User && only_discards && self.waits_for_checkpoint() {
                return progress;
            }
            // The last page of a segment is kept for the record that links to the next one.
            let last = self.shared.geometry.segment_pages - 1;
            if u32::from(self.head(stream).at.offset) + room_wanted > last {
                let rolled = self.roll(stream, urgent);
                if stream == Stream::Cold {
                    self.cold_stalled = !rolled;
                } else {
                    self.set_user_stalled(!rolled);
                }
                if !rolled {
                    return progress;
                }
            }
            let mut takes_data = true;
            if stream == Stream::User {
                takes_data = match urgent {
                    true => self.users_may_write(),
                    false if clones => self.has_room_for_clone(),
                    false => self.may_take_data(),
                };
                self.set_user_stalled(!urgent && !takes_data);
                if self.user_stalled {
                    return progress;
                }
            }
            if clones {
                self.build_clone();
            } else {
                self.build_record(stream, last, takes_data);
            }
            progress = true;
        }
        progress
    }

    /// Whether the lane waits for a checkpoint: a discard takes hardly any room in the log and may yet change many leaves, for
    /// which there must be room in a checkpoint, now and at the next start. Tried once for each state of the log.
    fn waits_for_checkpoint(&mut self) -> bool {
        if self.checkpoint.is_none() && self.reclaim_tried == self.next_seq {
            return false;
        }
        let waits = {
            let maps = self.shared.maps.read();
            maps.dirty_count() >= self.shared.geometry.segment_pages as usize
                && maps.segments.free_count() <= self.shared.keep_segments(&maps, Taker::Cleaner)
        };
        self.checkpoint_wanted |= waits && self.checkpoint.is_none();
        waits
    }

    /// Few pages wait for a record in flight, since others may join them; and the cleaner for a clone that waits for none to be.
    fn may_build(&mut self, stream: Stream) -> bool {
        if stream == Stream::Cold && self.clone_is_next() && !self.in_flight.is_empty() {
            return false;
        }
        match self.in_flight.len() {
            0 => true,
            IN_FLIGHT_MAX.. => false,
            _ => waiting_pages(self.lane(stream)) >= GATHER_PAGES,
        }
    }

    /// Whether users' data may go into the head. A start took it whatever was left, and records without data
    /// may dig deeper: before anything that stays is written there, the next start must be possible too.
    fn may_take_data(&mut self) -> bool {
        if !self.users_may_write() {
            let mut maps = self.shared.maps.write();
            let may = maps.segments.free_count() >= self.shared.keep_segments(&maps, Taker::Users);
            maps.segments.let_users_write(may);
            return may;
        }
        true
    }

    fn users_may_write(&self) -> bool {
        self.shared.maps.read().segments.users_may_write()
    }

    /// Jobs that change nothing (a flush behind other jobs) need no record.
    fn finish_bare_jobs(&mut self, stream: Stream) -> bool {
        let mut progress = false;
        while let Some(job) = self.lane(stream).front() {
            if !job.is_bare() {
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

    fn build_record(&mut self, stream: Stream, last: u32, takes_data: bool) {
        let head = *self.head(stream);
        let record_pages_max = match stream {
            Stream::Cold => COLD_RECORD_PAGES_MAX,
            _ => USER_RECORD_PAGES_MAX,
        };
        let mut pages_max = (last - u32::from(head.at.offset) - 1).min(record_pages_max);
        if !takes_data {
            // A commit's one page may.
            pages_max = u32::from(self.user.front().is_some_and(|job| job.class == Class::Commit));
        }
        let mut list = EntryList::default();
        let mut chunks = Vec::new();
        let mut acks = Vec::new();
        let mut flags = 0;
        let mut session = None;
        let mut zero_pages = 0;
        while let Some(job) = self.lane(stream).front_mut() {
            if job.clones() {
                break;
            }
            if job.rollback {
                if !list.is_empty() || !acks.is_empty() {
                    break;
                }
                flags |= FLAG_ROLLBACK;
                job.rollback = false;
            }
            if job.whole && !list.is_empty() && !job.fits(&list, pages_max) {
                break;
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
    pub(super) fn record_session(&self) -> SessionState {
        self.in_flight
            .back()
            .map_or_else(|| self.shared.maps.read().session.clone(), |f| f.record.session.clone())
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a record, used in one place")]
    pub(super) fn write_record(
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
        let offset = self.shared.geometry.byte(start);
        match stream {
            Stream::Cold => self.queue.write_behind(seq, offset, chunks),
            Stream::User | Stream::Meta => self.queue.write(seq, offset, chunks),
        }
        self.shared.counters.record(stream, pages - 1, header_pages);
        let head = self.head(stream);
        head.fresh = false;
        // A link in the very last page of the largest segments ends at 65536; the head moves on then.
        head.at.offset = head.at.offset.wrapping_add(pages as u16);
        self.next_seq += 1;
        if flags & FLAG_COMMIT != 0 {
            self.built_epoch += 1;
        }
        self.pages_since_checkpoint += u64::from(pages);
        self.in_flight.push_back(InFlight { record, complete: false, acks });
    }

    pub(in crate::store) fn segment_header(
        &self,
        segment: u32,
        stream: Stream,
        use_seq: u64,
    ) -> SegmentHeader {
        SegmentHeader {
            uuid: self.shared.uuid,
            segment,
            stream,
            use_seq,
            incarnation: self.superblock.incarnation,
        }
    }

    /// Ends the stream's segment with a link to a new one; false if there is none to be had. Users' records
    /// that make space may use what is kept for the cleaner.
    fn roll(&mut self, stream: Stream, urgent: bool) -> bool {
        let session = self.record_session();
        let use_seq = self.next_use_seq;
        let taken = {
            let mut maps = self.shared.maps.write();
            let taker = match stream {
                Stream::User if urgent => Taker::Freeing,
                Stream::User => Taker::Users,
                Stream::Cold | Stream::Meta => Taker::Cleaner,
            };
            let keep = self.shared.keep_segments(&maps, taker);
            let taken =
                if maps.segments.free_count() > keep { maps.segments.take(stream, use_seq) } else { None };
            if taken.is_some() && stream == Stream::User {
                maps.segments.let_users_write(!urgent);
            }
            taken
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
        self.shared.maps.write().segments.leave(old);
        *self.head(stream) = Head { at: Loc { segment, offset: 1 }, use_seq, fresh: true };
        true
    }
}
