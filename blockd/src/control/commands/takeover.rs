//! `takeover`.

use std::os::unix::net::UnixStream;

use rustix::net::sockopt::socket_peercred;
use rustix::process::{geteuid, getuid};
use serde_json::Value;

use crate::control::host::Host;
use crate::control::server::Replies;

/// Begins to hand over to the process that asks. What follows on its socket is the daemon's main thread's.
pub(super) fn run(host: &Host, replies: &Replies) -> Result<Value, String> {
    let peer =
        socket_peercred(replies.socket()).map_err(|error| format!("who asks cannot be told: {error}"))?;
    if ![getuid(), geteuid()].contains(&peer.uid) {
        return Err("only a process of the same user may take over".into());
    }
    if host.is_draining() {
        return Err("it is about to end".into());
    }
    let socket = replies.take_socket().map_err(|error| format!("its socket cannot be had: {error}"))?;
    tracing::info!(successor = peer.pid.as_raw_nonzero().get(), "handing over");
    host.hand_over(UnixStream::from(socket));
    Ok(Value::Null)
}
