//! The real daemon, `vexfs-blockd serve`, as the tests start, signal and end it.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A running daemon; killed when dropped.
pub struct Daemon {
    pub child: Child,
    /// Its ready line.
    pub ready: String,
}

impl Daemon {
    /// The command line that serves an image on a Unix socket, without a control socket.
    pub fn command(image: &Path, socket: &Path) -> Command {
        let mut command = serve(image, socket);
        command.args(["--log", "warn", "--control", "none"]);
        command
    }

    /// As [`Daemon::command`], to be found by a `vexctl` with this directory of control sockets.
    pub fn controlled(image: &Path, socket: &Path, run_dir: &Path) -> Command {
        let mut command = serve(image, socket);
        command.args(["--log", "off"]).env("VEXFS_RUN_DIR", run_dir);
        command
    }

    /// Starts [`Daemon::command`] and waits for its ready line.
    pub fn start(image: &Path, socket: &Path) -> Daemon {
        Self::run(&mut Self::command(image, socket))
    }

    /// As [`Daemon::start`] for any command line.
    pub fn run(command: &mut Command) -> Daemon {
        Self::try_run(command).unwrap_or_else(|said| panic!("no ready line: {said}"))
    }

    /// As [`Daemon::run`]; gives what it said on standard error, if that is piped, when it ends instead.
    pub fn try_run(command: &mut Command) -> Result<Daemon, String> {
        let child = command.stdout(Stdio::piped()).spawn().expect("started");
        let mut daemon = Daemon { child, ready: String::new() };
        let stdout = daemon.child.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut daemon.ready).expect("a line");
        if daemon.ready.starts_with("vexfs-blockd: serving ") {
            return Ok(daemon);
        }
        let mut said = daemon.ready.clone();
        if let Some(stderr) = daemon.child.stderr.as_mut() {
            stderr.read_to_string(&mut said).expect("text");
        }
        Err(said)
    }

    /// Runs one that must fail; gives its standard error.
    pub fn refused(image: &Path, socket: &Path) -> String {
        let output = Self::command(image, socket).output().expect("started");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty(), "no ready line");
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// SIGTERM; gives the exit status.
    pub fn stop(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.child.wait().expect("it ended").code()
    }

    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("it ended");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(image: &Path, socket: &Path) -> Command {
    let mut command = vexfs_harness::command(env!("CARGO_BIN_EXE_vexfs-blockd"));
    command.arg("serve").arg(image).arg("--nbd").arg(format!("unix:{}", socket.display()));
    command.stdin(Stdio::null());
    command
}
