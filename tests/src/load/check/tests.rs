//! The checker is tested on a plain directory: what is right passes, each kind of loss is seen.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::super::worker::{Load, Worker};
use super::*;
use crate::load::namespace::Change;

struct Fixture {
    directory: tempfile::TempDir,
    worker: Worker,
}

impl Fixture {
    /// File 1 at `a` with three pages, changed after an fsync and linked to `b`.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("worker");
        fs::create_dir(&root).unwrap();
        let mut worker = Worker::new(root, Arc::new(AtomicU64::new(1)), 1);
        for step in [
            Step::Change(Change::Create { path: "a".into(), file: 1, mode: 0o600 }),
            Step::Write { file: 1, first: 0, pages: 3 },
            Step::Write { file: 1, first: 0, pages: 1 },
            Step::Fsync { file: Some(1) },
            Step::Write { file: 1, first: 1, pages: 1 },
            Step::Change(Change::Link { from: "a".into(), to: "b".into() }),
        ] {
            worker.carry_out(step).unwrap();
        }
        Self { directory, worker }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("worker").join(name)
    }

    fn put_page(&self, stamp: Stamp) {
        let file = fs::File::options().write(true).open(self.path("a")).unwrap();
        file.write_all_at(&stamp.bytes(), stamp.page * PAGE as u64).unwrap();
    }

    fn verdicts(&self) -> [bool; 2] {
        let finished = Finished { root: self.path(""), history: self.worker.history.clone(), error: None };
        [Promise::Everything, Promise::SinceFsync]
            .map(|promise| check(std::slice::from_ref(&finished), promise).is_ok())
    }
}

#[test]
fn the_newest_state_passes() {
    assert_eq!(Fixture::new().verdicts(), [true, true]);
}

#[test]
fn what_is_newer_than_the_fsync_may_be_lost_in_a_crash_only() {
    let fixture = Fixture::new();
    fixture.put_page(Stamp { file: 1, page: 1, version: 2 });
    assert_eq!(fixture.verdicts(), [false, true]);

    let fixture = Fixture::new();
    fs::remove_file(fixture.path("b")).unwrap();
    assert_eq!(fixture.verdicts(), [false, true]);
}

#[test]
fn what_the_fsync_promised_must_be_there() {
    let stale = Stamp { file: 1, page: 0, version: 2 };
    let zeros = Stamp { file: 1, page: 2, version: 0 };
    let foreign = Stamp { file: 9, page: 0, version: 3 };
    for stamp in [stale, zeros, foreign] {
        let fixture = Fixture::new();
        fixture.put_page(stamp);
        assert_eq!(fixture.verdicts(), [false, false], "{stamp:?}");
    }
}

#[test]
fn lost_and_invented_names_sizes_and_modes_are_seen() {
    let damages: [fn(&Fixture); 5] = [
        |fixture| fs::remove_file(fixture.path("a")).unwrap(),
        |fixture| fs::write(fixture.path("c"), b"").unwrap(),
        |fixture| fs::File::options().write(true).open(fixture.path("a")).unwrap().set_len(4096).unwrap(),
        |fixture| fs::File::options().write(true).open(fixture.path("a")).unwrap().set_len(12_289).unwrap(),
        |fixture| {
            fs::set_permissions(fixture.path("a"), std::os::unix::fs::PermissionsExt::from_mode(0o640))
                .unwrap();
        },
    ];
    for (number, damage) in damages.iter().enumerate() {
        let fixture = Fixture::new();
        damage(&fixture);
        assert_eq!(fixture.verdicts(), [false, false], "damage {number}");
    }
}

#[test]
fn an_unanswered_step_may_have_happened_or_not() {
    let mut fixture = Fixture::new();
    let unlink = Step::Change(Change::Unlink { path: "b".into() });
    fixture.worker.carry_out(unlink).unwrap();
    fixture.worker.history.records.last_mut().unwrap().ended = None;
    assert_eq!(fixture.verdicts(), [true, true]);
    fs::hard_link(fixture.path("a"), fixture.path("b")).unwrap();
    assert_eq!(fixture.verdicts(), [true, true]);
}

#[test]
fn random_load_on_a_sound_file_system_passes() {
    let directory = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let load = Load::start(directory.path(), 2, 7);
    crate::wait::until("a thousand steps", || (load.progress() > 2000).then_some(()));
    let finished = load.finish();
    for worker in &finished {
        assert!(worker.error.is_none(), "{:?}", worker.error);
    }
    check(&finished, Promise::Everything).unwrap();
    check(&finished, Promise::SinceFsync).unwrap();
}
