//! What was started ends with who started it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process that does nothing for two minutes, and tells its number first.
const SLEEPER: [&str; 2] = ["-c", "echo $$ && exec sleep 120"];

fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    let output = child.stdout.as_mut().expect("its output is a pipe");
    BufReader::new(output).read_line(&mut line).expect("it tells something");
    line.trim().to_owned()
}

/// Runs, or has ended and waits for somebody to take note of it.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

fn assert_ends(pid: &str) {
    assert!(pid.parse::<u32>().is_ok(), "{pid:?} is no process");
    let deadline = Instant::now() + Duration::from_secs(60);
    while lives(pid) {
        assert!(Instant::now() < deadline, "{pid} lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Not a test: what [`a_process_ends_when_its_parent_is_killed`] runs and kills.
#[test]
#[ignore = "the parent of another test"]
fn parent() {
    let sleeper = vexfs_harness::command("sh").args(SLEEPER).spawn().expect("sh runs");
    let _ = sleeper.wait_with_output();
}

#[test]
fn a_process_ends_when_its_parent_is_killed() {
    let this = std::env::current_exe().expect("it has a path");
    let mut parent = Command::new(this)
        .args(["--exact", "parent", "--ignored", "--nocapture", "--quiet"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program runs");
    let mut lines = BufReader::new(parent.stdout.as_mut().expect("a pipe")).lines();
    let sleeper = lines
        .by_ref()
        .map(|line| line.expect("text"))
        .find(|line| line.parse::<u32>().is_ok())
        .expect("the sleeper tells its number");
    assert!(lives(&sleeper));
    parent.kill().expect("it runs");
    parent.wait().expect("it ends");
    assert_ends(&sleeper);
}

#[test]
fn a_process_ends_with_the_thread_that_started_it() {
    let start = || {
        let mut sleeper = vexfs_harness::command("sh");
        let mut sleeper = sleeper.args(SLEEPER).stdout(Stdio::piped()).spawn().expect("sh runs");
        let pid = first_line(&mut sleeper);
        assert!(lives(&pid));
        (sleeper, pid)
    };
    let (mut sleeper, pid) = std::thread::spawn(start).join().expect("the thread ends");
    assert_ends(&pid);
    assert!(!sleeper.wait().expect("it ended").success(), "killed");
}

#[test]
fn a_bounded_process_writes_no_more_than_it_may() {
    let directory = std::env::temp_dir().join(format!("vexfs-harness-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("a directory");
    let file = directory.join("log");
    // A hole, so that nothing is written but the byte that is too many.
    let output = std::fs::File::create(&file).expect("a file");
    output.set_len(vexfs_harness::FILE_BYTES_MAX).expect("a sparse file");
    let status = vexfs_harness::bounded("sh")
        .args(["-c", "echo more >>\"$0\""])
        .arg(&file)
        .stderr(Stdio::null())
        .status();
    let len_bytes = output.metadata().expect("it is there").len();
    std::fs::remove_dir_all(&directory).expect("it can go");
    assert_eq!(len_bytes, vexfs_harness::FILE_BYTES_MAX);
    assert!(!status.expect("it runs").success());
}
