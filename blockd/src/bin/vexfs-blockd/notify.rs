//! What systemd is told (sd_notify(3)); nothing, if it did not start us.

use std::time::Duration;

use sd_notify::NotifyState;

/// Clients can connect.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// No client is taken any more.
pub fn stopping(status: &str) {
    send(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// All is well.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// This process is the daemon from now on.
pub fn successor(pid: u32) {
    send(&[NotifyState::MainPid(pid)]);
}

/// How often [`alive`] is to be called, if it is: twice as often as systemd wants to hear of us.
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be notified");
    }
}
