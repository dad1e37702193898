//! What can be changed while a store is open: how much the cleaner keeps free, how fast it works, and how often
//! checkpoints come. Read anew for each decision, so a change works at once.

use std::sync::atomic::{AtomicU64, Ordering};

use layout::addr::PAGE;

/// Settings of an open store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// Free segments that the cleaner aims for, beyond those kept for checkpoints and starts; 0 chooses by the size of the
    /// store. The fewer, the less is moved; the more, the longer a burst of writes before it has to wait for the cleaner.
    pub free_segments: u32,
    /// With enough free segments the cleaner goes on while more than this percentage of the filled pages is dead: the image
    /// takes less space, at the price of more copies. 100 and above: never.
    pub dead_percent_max: u8,
    /// Most bytes a second that the cleaner moves while nobody waits for space; 0 = no limit.
    pub cleaner_bytes_per_s: u64,
    /// Bytes of log between checkpoints: bounds what a start replays. 0 weighs that against what they cost.
    pub checkpoint_bytes: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            free_segments: 0,
            dead_percent_max: 100,
            cleaner_bytes_per_s: 200 << 20,
            checkpoint_bytes: 0,
        }
    }
}

/// A [`Tuning`] that any thread may change while others read it. Each value stands by itself: a reader may see some of
/// a change before the rest.
#[derive(Debug)]
pub struct LiveTuning {
    free_segments: AtomicU64,
    dead_percent_max: AtomicU64,
    cleaner_bytes_per_s: AtomicU64,
    checkpoint_bytes: AtomicU64,
    /// Compactions under way.
    compactions: AtomicU64,
}

/// As long as it lives, the cleaner tolerates no dead space.
#[derive(Debug)]
pub struct Compacting<'a>(&'a LiveTuning);

impl Drop for Compacting<'_> {
    fn drop(&mut self) {
        self.0.compactions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl LiveTuning {
    /// With these settings.
    pub fn new(tuning: Tuning) -> Self {
        LiveTuning {
            free_segments: AtomicU64::new(tuning.free_segments.into()),
            dead_percent_max: AtomicU64::new(tuning.dead_percent_max.into()),
            cleaner_bytes_per_s: AtomicU64::new(tuning.cleaner_bytes_per_s),
            checkpoint_bytes: AtomicU64::new(tuning.checkpoint_bytes),
            compactions: AtomicU64::new(0),
        }
    }

    /// Has the cleaner tolerate no dead space for a while, whatever the settings say.
    pub fn compact(&self) -> Compacting<'_> {
        self.compactions.fetch_add(1, Ordering::Relaxed);
        Compacting(self)
    }

    /// Percentage of the filled pages that may be dead now.
    pub fn dead_percent_max(&self) -> u8 {
        if self.compactions.load(Ordering::Relaxed) > 0 { 0 } else { self.get().dead_percent_max }
    }

    /// As they are now.
    pub fn get(&self) -> Tuning {
        Tuning {
            free_segments: self.free_segments.load(Ordering::Relaxed).try_into().unwrap_or(u32::MAX),
            dead_percent_max: self.dead_percent_max.load(Ordering::Relaxed).try_into().unwrap_or(u8::MAX),
            cleaner_bytes_per_s: self.cleaner_bytes_per_s.load(Ordering::Relaxed),
            checkpoint_bytes: self.checkpoint_bytes.load(Ordering::Relaxed),
        }
    }

    /// Changes them.
    pub fn set(&self, tuning: Tuning) {
        self.free_segments.store(tuning.free_segments.into(), Ordering::Relaxed);
        self.dead_percent_max.store(tuning.dead_percent_max.into(), Ordering::Relaxed);
        self.cleaner_bytes_per_s.store(tuning.cleaner_bytes_per_s, Ordering::Relaxed);
        self.checkpoint_bytes.store(tuning.checkpoint_bytes, Ordering::Relaxed);
    }

    /// Pages of log between checkpoints, if that is set.
    pub fn checkpoint_pages(&self) -> Option<u64> {
        match self.checkpoint_bytes.load(Ordering::Relaxed) {
            0 => None,
            bytes => Some((bytes / PAGE as u64).max(1)),
        }
    }
}

impl Default for LiveTuning {
    fn default() -> Self {
        Self::new(Tuning::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_read_back() {
        let tuning = Tuning {
            free_segments: 9,
            dead_percent_max: 30,
            cleaner_bytes_per_s: 1 << 33,
            checkpoint_bytes: 1 << 34,
        };
        let live = LiveTuning::default();
        assert_eq!(live.get(), Tuning::default());
        live.set(tuning);
        assert_eq!(live.get(), tuning);
        assert_eq!(live.checkpoint_pages(), Some(1 << 22));
        {
            let _compacting = live.compact();
            assert_eq!((live.dead_percent_max(), live.get()), (0, tuning), "the settings stay");
        }
        assert_eq!(live.dead_percent_max(), 30);
        live.set(Tuning { checkpoint_bytes: 0, ..tuning });
        assert_eq!(live.checkpoint_pages(), None);
        live.set(Tuning { checkpoint_bytes: 1, ..tuning });
        assert_eq!(live.checkpoint_pages(), Some(1), "not a checkpoint for each nothing");
    }
}
