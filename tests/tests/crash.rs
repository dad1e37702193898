//! kill -9 at random moments under load: of the daemon, of the mount, of both. What must be there afterwards is in
//! `vexfs_tests::load`. VEXFS_TEST_SEED repeats the load and the moments (not the scheduling).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use vexfs_tests::load::worker::Finished;
use vexfs_tests::load::{Load, Promise, check};
use vexfs_tests::stage::{Mount, Stage};
use vexfs_tests::{settings, tree, wait};

const WORKERS: u64 = 3;
const ROUNDS: u64 = 10;

/// Rounds on one volume, which grows old under them.
struct Rounds {
    rng: StdRng,
    number: u64,
    /// The last round's directory, as it was found after the crash.
    before: Option<(PathBuf, Vec<Finished>, BTreeMap<PathBuf, tree::Entry>)>,
}

impl Rounds {
    fn new() -> Self {
        Self { rng: StdRng::seed_from_u64(settings::seed()), number: 0, before: None }
    }

    /// Removes the round before the last, and starts load in a new directory.
    fn start_load(&mut self, mount: &Mount) -> Load {
        self.number += 1;
        if self.number > 2 {
            fs::remove_dir_all(mount.join(format!("round-{}", self.number - 2)))
                .expect("an old round can be removed");
        }
        Load::start(&self.directory(mount.path()), WORKERS, self.rng.random())
    }

    fn directory(&self, mount: &Path) -> PathBuf {
        let path = mount.join(format!("round-{}", self.number));
        fs::create_dir_all(&path).expect("a directory for a round can be made");
        path
    }

    /// Waits for a random moment.
    fn moment(&mut self, load: &Load) {
        let from = load.progress();
        let steps = self.rng.random_range(20..4000);
        wait::until("the load to go on", || (load.progress() >= from + steps).then_some(()));
        std::thread::sleep(Duration::from_micros(self.rng.random_range(0..3000)));
    }

    /// Checks this round's directory, and that the last one's is as it was.
    fn check(&mut self, mount: &Mount, finished: Vec<Finished>, promise: Promise) {
        let context = |mount: &Mount| format!("round {}; the mount says:\n{}", self.number, mount.log());
        if let Err(error) = check(&finished, promise) {
            panic!("{error:#}\n{}", context(mount));
        }
        if let Some((path, old, entries)) = &self.before {
            let now = tree::read(path).expect("the last round can be read");
            assert!(now == *entries, "an older directory changed in {}", context(mount));
            check(old, Promise::SinceFsync).expect("an older directory's pages are as they were");
        }
        let path = self.directory(mount.path());
        let entries = tree::read(&path).expect("the round can be read");
        self.before = Some((path, finished, entries));
    }
}

/// Errors that a step may get when its mount dies.
fn assert_died_with_the_mount(finished: &[Finished]) {
    for worker in finished {
        let error = worker.error.as_ref().expect("a worker goes on until the mount dies").to_string();
        // The last is for a request that was on its way into a ring.
        let expected = ["107", "103", "5", "4", "108", "125"].map(|errno| format!("(os error {errno})"));
        assert!(expected.iter().any(|text| error.contains(text)), "not an error of a dying mount: {error}");
    }
}

#[test]
fn a_mount_that_lives_through_the_daemons_death_loses_nothing() {
    let stage = Stage::vexfs(1024);
    let mut rounds = Rounds::new();
    let mut daemon = Some(stage.daemon());
    for _ in 0..settings::rounds(ROUNDS) {
        let mount = stage.mount_daemon();
        let load = rounds.start_load(&mount);
        for _ in 0..2 {
            rounds.moment(&load);
            daemon.take().expect("one runs").kill();
            std::thread::sleep(Duration::from_millis(rounds.rng.random_range(0..100)));
            daemon = Some(stage.daemon());
        }
        rounds.moment(&load);
        let finished = load.finish();
        for worker in &finished {
            assert!(worker.error.is_none(), "{:?}\n{}", worker.error, mount.log());
        }
        check(&finished, Promise::Everything).expect("all is there in the mount that lived on");
        mount.unmount();
        let mount = stage.mount_daemon();
        rounds.check(&mount, finished, Promise::Everything);
        mount.unmount();
    }
}

#[test]
fn an_embedded_mount_dies() {
    let stage = Stage::vexfs(1024);
    let mut rounds = Rounds::new();
    for _ in 0..settings::rounds(ROUNDS) {
        let mut mount = stage.mount();
        let load = rounds.start_load(&mount);
        rounds.moment(&load);
        mount.die();
        let finished = load.end();
        assert_died_with_the_mount(&finished);
        drop(mount);
        let mount = stage.mount();
        rounds.check(&mount, finished, Promise::SinceFsync);
        mount.unmount();
    }
}

#[test]
fn a_mount_dies_and_the_daemon_lives() {
    let stage = Stage::vexfs(1024);
    let mut rounds = Rounds::new();
    let daemon = stage.daemon();
    for _ in 0..settings::rounds(ROUNDS) {
        let mut mount = stage.mount_daemon();
        let load = rounds.start_load(&mount);
        rounds.moment(&load);
        mount.die();
        let finished = load.end();
        assert_died_with_the_mount(&finished);
        drop(mount);
        let mount = stage.mount_daemon();
        rounds.check(&mount, finished, Promise::SinceFsync);
        mount.unmount();
    }
    daemon.stop();
}

#[test]
fn mount_and_daemon_die_in_either_order() {
    let stage = Stage::vexfs(1024);
    let mut rounds = Rounds::new();
    for _ in 0..settings::rounds(ROUNDS) {
        let daemon = stage.daemon();
        let mut mount = stage.mount_daemon();
        let load = rounds.start_load(&mount);
        rounds.moment(&load);
        if rounds.rng.random() {
            daemon.kill();
            mount.die();
        } else {
            mount.die();
            daemon.kill();
        }
        let finished = load.end();
        assert_died_with_the_mount(&finished);
        drop(mount);
        let daemon = stage.daemon();
        let mount = stage.mount_daemon();
        rounds.check(&mount, finished, Promise::SinceFsync);
        mount.unmount();
        daemon.stop();
    }
}
