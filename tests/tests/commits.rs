//! How many commits what a program asks for costs. The epoch in the volume's status counts them.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;

use vexfs_tests::stage::Stage;

/// Commits from a mount to its unmount, with what is done in between.
fn commits(stage: &Stage, work: impl FnOnce(&Path)) -> u64 {
    let before = stage.status("epoch");
    // Without a timer that commits.
    let mount = stage.mount_with("commit=100000");
    work(mount.path());
    mount.unmount();
    stage.status("epoch") - before
}

fn write_and_sync(file: &mut File) {
    file.write_all(&[1; 4096]).and_then(|()| file.sync_all()).unwrap();
}

#[test]
fn an_fsync_is_one_commit_or_a_share_of_one() {
    const FSYNCS: u64 = 24;
    const THREADS: u64 = 8;
    let stage = Stage::vexfs(64);
    let around = commits(&stage, |root| {
        for number in 0..FSYNCS {
            fs::write(root.join(format!("{number}")), b"").unwrap();
        }
    });
    assert!(around <= 3, "{around} commits to mount, write nothing durable and unmount");

    let one_by_one = commits(&stage, |root| {
        let mut file = File::create(root.join("0")).unwrap();
        (0..FSYNCS).for_each(|_| write_and_sync(&mut file));
    });
    assert!(
        (FSYNCS..=FSYNCS + around).contains(&one_by_one),
        "{one_by_one} commits for {FSYNCS} fsyncs, one after the other"
    );

    let needless = commits(&stage, |root| {
        let file = File::open(root.join("1")).unwrap();
        (0..FSYNCS).for_each(|_| file.sync_all().unwrap());
    });
    assert!(needless <= around, "{needless} commits where nothing had changed");

    let parallel = commits(&stage, |root| {
        thread::scope(|scope| {
            for number in 0..THREADS {
                let mut file = File::create(root.join(format!("{number}"))).unwrap();
                scope.spawn(move || (0..FSYNCS).for_each(|_| write_and_sync(&mut file)));
            }
        });
    });
    println!("{} fsyncs by {THREADS} threads were {parallel} commits", THREADS * FSYNCS);
    // Those that wait share one (engine::tests shows it on a device that lets them wait); how many do is a matter of speed here.
    assert!(parallel <= THREADS * FSYNCS + around, "{parallel} commits");
}
