//! Waiting for a condition, with a deadline in place of a guessed sleep.

use std::time::{Duration, Instant};

/// Generous, since it only matters when something is broken.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Polls `condition` until it gives something.
///
/// # Panics
/// It gives nothing for [`LIMIT`].
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {LIMIT:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
