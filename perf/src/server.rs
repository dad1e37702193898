//! A server process of a contender: started, waited for, ended.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::cgroup::Group;

const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A running server; ended when dropped. Its output goes to a log file, whose end is shown on failure.
pub struct Server {
    child: Child,
    name: String,
    log: PathBuf,
    mount: Option<PathBuf>,
}

impl Server {
    /// Starts `program` with `args`. It ends with this process.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn spawn(program: &Path, args: &[&str], log: PathBuf) -> Result<Self> {
        Self::spawn_in(program, args, log, None)
    }

    /// As [`Server::spawn`], in a control group.
    ///
    /// # Errors
    /// As [`Server::spawn`].
    pub fn spawn_in(program: &Path, args: &[&str], log: PathBuf, group: Option<&Group>) -> Result<Self> {
        let output = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = match group {
            // A process joins by itself, before it allocates anything.
            Some(group) => {
                let mut shell = vexfs_harness::command("sh");
                shell.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(group.procs()).arg(program);
                shell
            }
            None => vexfs_harness::command(program),
        };
        let child = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { child, name, log, mount: None })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` says yes.
    ///
    /// # Errors
    /// The server ended, or is not ready in 30 seconds.
    pub fn wait_until(&mut self, what: &str, ready: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} before {what}:\n{}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("{} runs, but without {what} after {START_LIMIT:?}:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits until the server accepts connections on the unix socket `path`.
    pub fn wait_for_socket(&mut self, path: &Path) -> Result<()> {
        self.wait_until("accepting connections", || std::os::unix::net::UnixStream::connect(path).is_ok())
    }

    /// Waits until something is mounted at `path`; it will be unmounted when the server is stopped.
    pub fn wait_for_mount(&mut self, path: &Path) -> Result<()> {
        self.mount = Some(path.to_path_buf());
        self.wait_until("mounting", || is_mounted(path))
    }

    /// Unmounts or sends SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// It does not end in a minute.
    pub fn stop(&mut self) -> Result<()> {
        match self.mount.take() {
            Some(path) => unmount(&path, &[])?,
            None => self.signal(Signal::TERM),
        }
        let deadline = Instant::now() + STOP_LIMIT;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("{} did not end in {STOP_LIMIT:?}:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            // Fails only when it has ended already, which is what is wanted.
            let _ = kill_process(pid, signal);
        }
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(path) = self.mount.take() {
            let _ = unmount(&path, &["-z"]);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unmount(path: &Path, options: &[&str]) -> Result<()> {
    let output = Command::new("fusermount3").arg("-u").args(options).arg(path).output();
    let output = output.context("cannot run fusermount3 (package fuse3)")?;
    if !output.status.success() {
        bail!("cannot unmount {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn is_mounted(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}
