//! Runs a task for each item on several threads until all are done, one fails, or the user interrupts.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use anyhow::Result;
use parking_lot::Mutex;

/// Calls `task` once for each item. After the first failure no new item is begun; that failure is returned.
///
/// # Errors
/// The first failure of a task. An interruption is none: ask `stop` afterwards.
pub fn for_each<T: Sync>(
    items: &[T],
    jobs: usize,
    stop: &AtomicBool,
    task: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let work = || {
        while !stop.load(Ordering::Relaxed) && failure.lock().is_none() {
            let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            if let Err(error) = task(item) {
                failure.lock().get_or_insert(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..jobs.min(items.len()) {
            scope.spawn(work);
        }
        work();
    });
    failure.into_inner().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn every_item_is_done_once() {
        let items: Vec<u64> = (0..1000).collect();
        let sum = AtomicU64::new(0);
        for_each(&items, 4, &AtomicBool::new(false), |item| {
            sum.fetch_add(*item, Ordering::Relaxed);
            Ok(())
        })
        .unwrap();
        assert_eq!(sum.into_inner(), 499_500);
        for_each(&[] as &[u64], 4, &AtomicBool::new(false), |_| Ok(())).unwrap();
    }

    #[test]
    fn a_failure_ends_the_work() {
        let items: Vec<u64> = (0..100_000).collect();
        let done = AtomicU64::new(0);
        let result = for_each(&items, 2, &AtomicBool::new(false), |item| {
            done.fetch_add(1, Ordering::Relaxed);
            anyhow::ensure!(*item != 3, "three");
            Ok(())
        });
        assert_eq!(result.unwrap_err().to_string(), "three");
        assert!(done.into_inner() < 100_000);
    }

    #[test]
    fn an_interruption_ends_the_work() {
        let stop = AtomicBool::new(false);
        let done = AtomicU64::new(0);
        for_each(&[0; 10], 1, &stop, |_| {
            done.fetch_add(1, Ordering::Relaxed);
            stop.store(true, Ordering::Relaxed);
            Ok(())
        })
        .unwrap();
        assert_eq!(done.into_inner(), 1);
    }
}
