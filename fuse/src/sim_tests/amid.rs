//! What other threads of the mounter do while a batch is on its way to the daemon. The simulation has one thread: the
//! daemon calls [`during_requests`] in the midst of requests, and that carries operations out.

use std::cell::RefCell;

type Work = Box<dyn FnMut()>;

thread_local! {
    static WORK: RefCell<Option<Work>> = const { RefCell::new(None) };
}

/// For [`blockd::volume::simulated::SimDaemon`].
pub(super) fn during_requests() {
    // Taken out: requests made by the work itself have nobody beside them.
    let work = WORK.with_borrow_mut(Option::take);
    if let Some(mut work) = work {
        work();
        WORK.set(Some(work));
    }
}

/// Runs `f`; whenever the daemon has changes under way meanwhile, `work` is done.
pub(super) fn with<R>(work: impl FnMut() + 'static, f: impl FnOnce() -> R) -> R {
    struct Disarm;
    impl Drop for Disarm {
        fn drop(&mut self) {
            WORK.set(None);
        }
    }
    WORK.set(Some(Box::new(work)));
    let _disarm = Disarm;
    f()
}
