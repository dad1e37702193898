//! Completions come in batches: what is best done once for all of them is put off to the batch's end.
//!
//! Whoever tells several requests' outcomes does so within a [`scope`]; a completion in it may [`defer`] its last step
//! (sending the replies of a connection) to the scope's end, where no lock of the device is held.

use std::cell::RefCell;
use std::sync::Arc;

/// The step that is put off.
pub trait Deferred: Send + Sync {
    /// Carries it out; must not block.
    fn run(&self);
}

thread_local! {
    /// What the scope that this thread is in has to do at its end.
    static SCOPE: RefCell<Option<Vec<Arc<dyn Deferred>>>> = const { RefCell::new(None) };
}

/// Runs `f`, and afterwards what was deferred in it, each step once. Within another scope, that one's end counts.
pub fn scope<R>(f: impl FnOnce() -> R) -> R {
    let outer = SCOPE.with(|scope| {
        let mut scope = scope.borrow_mut();
        let nested = scope.is_some();
        scope.get_or_insert_default();
        !nested
    });
    // Steps are run even if `f` panics: others wait for them.
    let _end = outer.then(|| End);
    f()
}

struct End;

impl Drop for End {
    fn drop(&mut self) {
        let steps = SCOPE.with(|scope| scope.borrow_mut().take()).unwrap_or_default();
        steps.iter().for_each(|step| step.run());
    }
}

/// Puts a step off to the end of the scope; false if this thread is in none.
pub fn defer<D: Deferred + 'static>(step: &Arc<D>) -> bool {
    SCOPE.with(|scope| {
        let mut scope = scope.borrow_mut();
        let Some(steps) = scope.as_mut() else { return false };
        let known = |known: &Arc<dyn Deferred>| std::ptr::addr_eq(Arc::as_ptr(known), Arc::as_ptr(step));
        // The last one is it, nearly always.
        if !steps.iter().rev().any(known) {
            steps.push(Arc::clone(step) as Arc<dyn Deferred>);
        }
        true
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Deferred for Count {
        fn run(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn each_step_is_run_once_at_the_end_of_the_outermost_scope() {
        let (a, b) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let runs = |count: &Count| count.0.load(Ordering::Relaxed);
        assert!(!defer(&a), "there is no scope");
        scope(|| {
            scope(|| assert!(defer(&a) && defer(&b) && defer(&a)));
            assert_eq!((runs(&a), runs(&b)), (0, 0), "not before the end");
        });
        assert_eq!((runs(&a), runs(&b)), (1, 1));
        let panicked = std::panic::catch_unwind(|| scope(|| assert!(!defer(&a), "a panic inside")));
        assert!(panicked.is_err());
        assert_eq!(runs(&a), 2, "those who wait are not forgotten");
        assert!(!defer(&a), "and the scope is gone");
    }
}
