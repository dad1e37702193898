//! Simulated time, and what happened in it: the last events, to print when a run fails, and a hash over all
//! of them, which tells whether two runs were the same.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;

/// Events kept.
const EVENTS_MAX: usize = 4000;

/// What a write consists of, by its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Content {
    /// A slot of the superblock.
    Superblock { generation: u64 },
    /// A record, alone or behind the header of a fresh segment.
    Record { seq: u64, flags: u32, pages: u32, fresh: bool },
    /// Leaves, the payload or the root of a checkpoint.
    Checkpoint,
    /// Given back.
    Discarded,
}

impl Content {
    /// Looks at the bytes of a write.
    pub fn of(bytes: &[u8]) -> Self {
        use crate::store::format::{record, superblock};
        let u64_at = |bytes: &[u8], at: usize| bytes.get(at..at + 8).map_or(0, le);
        let record = |bytes: &[u8], fresh| Content::Record {
            seq: u64_at(bytes, 48),
            flags: u64_at(bytes, 8).wrapping_shr(32) as u32,
            pages: u64_at(bytes, 100) as u32,
            fresh,
        };
        match bytes.get(4096..) {
            _ if bytes.starts_with(&superblock::MAGIC) => {
                Content::Superblock { generation: u64_at(bytes, 32) }
            }
            _ if bytes.starts_with(&record::MAGIC) => record(bytes, false),
            Some(second) if second.starts_with(&record::MAGIC) => record(second, true),
            _ => Content::Checkpoint,
        }
    }
}

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, &b| sum << 8 | u64::from(b))
}

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// In words: what the run does, what the store logs, a fault.
    Note(String),
    /// A write was given to the backing.
    Write { at: u64, len_bytes: u64, content: Content },
    /// It is complete: it can be read.
    Complete { at: u64, content: Content },
    /// What is complete begins to be made durable.
    Sync,
    /// It is.
    Durable { writes: u64 },
    /// Reads, so many in a row, the last of them here.
    Reads { count: u64, at: u64, len_bytes: u64 },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Note(text) => f.write_str(text),
            Event::Write { at, len_bytes, content } => write!(f, "    write {at}+{len_bytes}: {content:?}"),
            Event::Complete { at, content } => write!(f, "    complete {at}: {content:?}"),
            Event::Sync => write!(f, "    sync"),
            Event::Durable { writes } => write!(f, "    durable: {writes} writes"),
            Event::Reads { count: 1, at, len_bytes } => write!(f, "    read {at}+{len_bytes}"),
            Event::Reads { count, at, len_bytes } => write!(f, "    {count} reads, then {at}+{len_bytes}"),
        }
    }
}

#[derive(Default)]
struct Inner {
    now_us: u64,
    events: VecDeque<(u64, Event)>,
    count: u64,
    hasher: DefaultHasher,
}

impl Inner {
    /// Keeps an event, for the report.
    fn push(&mut self, event: Event) {
        if let (
            Some((_, Event::Reads { count, at, len_bytes })),
            Event::Reads { at: to, len_bytes: len, .. },
        ) = (self.events.back_mut(), &event)
        {
            (*count, *at, *len_bytes) = (*count + 1, *to, *len);
            return;
        }
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back((self.now_us, event));
    }
}

/// The clock and the events of a run; clones share them.
#[derive(Clone, Default)]
pub struct Timeline {
    inner: Arc<Mutex<Inner>>,
}

impl Timeline {
    /// The clock, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.inner.lock().now_us
    }

    /// Time goes by.
    pub fn pass(&self, us: u64) {
        self.inner.lock().now_us += us;
    }

    /// Notes an event.
    pub fn add(&self, event: Event) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        (inner.now_us, &event).hash(&mut inner.hasher);
        inner.count += 1;
        inner.push(event);
    }

    /// Notes something in words.
    pub fn note(&self, text: impl Into<String>) {
        self.add(Event::Note(text.into()));
    }

    /// Two runs with the same number are the same. What was logged does not count: with several subscribers in
    /// a process a line may get lost.
    pub fn fingerprint(&self) -> u64 {
        let inner = self.inner.lock();
        let mut hasher = inner.hasher.clone();
        inner.count.hash(&mut hasher);
        hasher.finish()
    }

    /// Whether one of the events kept is a note with these words.
    pub fn says(&self, words: &str) -> bool {
        self.inner.lock().events.iter().any(|(_, e)| matches!(e, Event::Note(text) if text.contains(words)))
    }

    /// The last events, one a line.
    pub fn last(&self, events_max: usize) -> String {
        let inner = self.inner.lock();
        let skip = inner.events.len().saturating_sub(events_max);
        let mut out = format!("{} events, the last {}:\n", inner.count, inner.events.len() - skip);
        for (us, event) in inner.events.iter().skip(skip) {
            out.push_str(&format!("{:>6}.{:06} {event}\n", us / 1_000_000, us % 1_000_000));
        }
        out
    }
}

/// Takes in what the store logs.
impl std::io::Write for &Timeline {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = format!("  log: {}", String::from_utf8_lossy(bytes).trim_end());
        self.inner.lock().push(Event::Note(text));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
