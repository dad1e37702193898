//! Processes: run to their end and checked, or in the background and ended with the test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// Runs `command` to its end; gives its standard output.
///
/// # Panics
/// It fails; the message has its output.
pub fn ok(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}\n{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `command`, which must fail by itself (an exit status, not a signal; not Rust's panic status);
/// gives its standard error.
///
/// # Panics
/// It succeeds, panics or dies.
pub fn fails(command: &mut Command) -> String {
    let output = output(command);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_refused(&format!("{command:?}"), output.status, &stderr);
    stderr
}

/// Asserts that a program ended with an error of its own and said why.
///
/// # Panics
/// It succeeded, panicked, was killed or said nothing.
pub fn assert_refused(what: &str, status: ExitStatus, stderr: &str) {
    let code = status.code().unwrap_or_else(|| panic!("{what} died: {status}\n{stderr}"));
    assert_ne!(code, 0, "{what} succeeded, but should not have:\n{stderr}");
    assert_ne!(code, 101, "{what} panicked:\n{stderr}");
    assert_ne!(code, 124, "{what} hung until timeout(1) ended it:\n{stderr}");
    assert!(!stderr.contains("panicked at"), "{what} panicked:\n{stderr}");
    assert!(!stderr.trim().is_empty(), "{what} failed without a word");
}

/// Runs `command` to its end and gives all it said.
///
/// # Panics
/// It cannot be run.
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// A process in the background; killed when dropped. Commands of [`crate::programs`] also end with the thread that started
/// them, however it ends.
pub struct Background {
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Background {
    /// Starts `command`; its output goes to the file `log`, behind what stands there.
    ///
    /// # Panics
    /// It can't be started.
    pub fn spawn(command: &mut Command, log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("the log can be written");
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a descriptor is left"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child, log: log.to_path_buf(), ended: None }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its exit status if it ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
        }
        self.ended
    }

    /// Waits until `ready`.
    ///
    /// # Panics
    /// The process ends before, or the wait is too long.
    pub fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> bool) {
        wait::until(what, || {
            if let Some(status) = self.ended() {
                panic!("ended with {status} before {what}:\n{}", self.log());
            }
            ready().then_some(())
        });
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let log = self.log.clone();
        wait::until(&format!("the end of the process that logs to {}", log.display()), || self.ended())
    }

    /// SIGTERM.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// kill -9, and waits for the end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let pid =
                i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process id is positive");
            kill_process(pid, signal).expect("our own child can be signalled");
        }
    }

    /// Asserts that the log holds no panic.
    ///
    /// # Panics
    /// It does.
    pub fn assert_no_panic(&self) {
        let log = self.log();
        assert!(!log.contains("panicked at"), "the program panicked:\n{log}");
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
