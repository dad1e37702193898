//! The thread that takes signals: SIGTERM and SIGINT end the daemon, SIGUSR2 has a new process take over.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};
use blockd::control::host::Host;
use parking_lot::Mutex;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::settings::{Control, Settings};

#[derive(Default)]
struct State {
    host: Option<Arc<Host>>,
    stopping: bool,
}

/// See the module.
pub struct SignalThread(Arc<Mutex<State>>);

impl SignalThread {
    /// Starts it. From then on no signal ends the process by itself.
    ///
    /// # Errors
    /// The system refuses.
    pub fn start(settings: &Settings) -> Result<SignalThread> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR2]).context("cannot take signals")?;
        let state = Arc::new(Mutex::new(State::default()));
        // Asked now: when the file is replaced, the path is that of the new one.
        let program = std::env::current_exe().context("cannot tell the path of this program")?;
        let has_control = settings.control != Control::Off;
        let for_thread = Arc::clone(&state);
        let run = move || {
            for signal in signals.forever() {
                match signal {
                    SIGUSR2 if has_control => start_successor(&program),
                    SIGUSR2 => {
                        tracing::error!("there is no control socket, so no other process can take over")
                    }
                    signal => stop(&for_thread, signal),
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(run).context("cannot start a thread")?;
        Ok(SignalThread(state))
    }

    /// A signal to end has come.
    pub fn stopping(&self) -> bool {
        self.0.lock().stopping
    }

    /// This is to be ended by a signal, or nothing is at the moment.
    pub fn watch(&self, host: Option<&Arc<Host>>) {
        let mut state = self.0.lock();
        state.host = host.cloned();
        if let (true, Some(host)) = (state.stopping, host) {
            host.drain();
        }
    }
}

fn stop(state: &Mutex<State>, signal: i32) {
    let host = {
        let mut state = state.lock();
        if state.stopping {
            eprintln!("vexfs-blockd: second signal, exiting at once; the next start replays the log");
            std::process::exit(1);
        }
        state.stopping = true;
        state.host.clone()
    };
    tracing::info!(signal, "stopping");
    if let Some(host) = host {
        host.drain();
    }
}

/// Starts the program anew, with the same arguments, to take over.
fn start_successor(program: &PathBuf) {
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--takeover");
    let mut command = Command::new(program);
    // The watchdog expects to hear of the new process.
    command.args(arguments).arg("--takeover").stdin(Stdio::null()).env_remove("WATCHDOG_PID");
    match command.spawn() {
        Ok(mut child) => {
            tracing::info!(pid = child.id(), program = %program.display(), "a new process is to take over");
            // Of interest only if it fails: else this process ends first.
            std::thread::spawn(move || match child.wait() {
                Ok(status) => tracing::error!(%status, "the process that was to take over ended"),
                Err(error) => tracing::error!(%error, "the process that was to take over is lost"),
            });
        }
        Err(error) => tracing::error!(%error, program = %program.display(), "no new process can be started"),
    }
}
