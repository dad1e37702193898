//! Whether a thread looks for the next request for a while before it sleeps.
//!
//! To be woken takes longer than to serve a small request from memory, above all in a virtual machine, where a sleeping
//! processor is woken by its host. A client that sends one request at a time, each soon after the reply to the one before, is
//! therefore waited for awake, for at most [`WAIT_MAX`], and giving way to whoever wants the processor. The time is wasted
//! at most once in [`SOON_MIN`] requests: a longer wait ends it until so many came soon again. QEMU's event loop does much the
//! same (`poll-max-ns`, util/aio-posix.c).

use std::cell::Cell;
use std::time::Duration;

/// A request that comes within this time came soon. Longer than it takes the system to wake the client by the reply, and, while
/// this is being found out, to wake this thread by the request.
const WAIT_MAX: Duration = Duration::from_micros(100);
/// After so many requests in a row that came soon, the next one is expected soon.
const SOON_MIN: u32 = 16;

/// What is known of a client that sends one request at a time.
#[derive(Default, Debug)]
pub struct Polling {
    alone: Cell<bool>,
    soon: Cell<u32>,
}

impl Polling {
    /// Whether the client waits for the reply to each request before it sends the next one. With others under way this thread
    /// gains nothing by haste: what comes meanwhile is taken in together.
    pub fn set_alone(&self, alone: bool) {
        self.alone.set(alone);
    }

    /// How long to look for bytes before sleeping.
    pub fn wait_max(&self) -> Option<Duration> {
        (self.alone.get() && self.soon.get() >= SOON_MIN).then_some(WAIT_MAX)
    }

    /// Whether [`Polling::waited`] wants to know how long it takes until bytes come.
    pub fn is_learning(&self) -> bool {
        self.alone.get()
    }

    /// Bytes came after this time.
    pub fn waited(&self, time: Duration) {
        let soon = if time <= WAIT_MAX { self.soon.get().saturating_add(1) } else { 0 };
        self.soon.set(soon);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_whose_requests_keep_coming_soon_is_waited_for_awake() {
        let polling = Polling::default();
        assert!(!polling.is_learning() && polling.wait_max().is_none());
        polling.set_alone(true);
        for _ in 0..SOON_MIN {
            assert!(polling.is_learning() && polling.wait_max().is_none(), "not known yet");
            polling.waited(WAIT_MAX);
        }
        assert_eq!(polling.wait_max(), Some(WAIT_MAX));
        polling.set_alone(false);
        assert!(polling.wait_max().is_none(), "several requests are under way");
        polling.set_alone(true);
        assert!(polling.wait_max().is_some());
        polling.waited(2 * WAIT_MAX);
        for _ in 0..SOON_MIN {
            assert!(polling.wait_max().is_none(), "it paused, so that is to be learned again");
            polling.waited(Duration::ZERO);
        }
        assert!(polling.wait_max().is_some());
    }
}
