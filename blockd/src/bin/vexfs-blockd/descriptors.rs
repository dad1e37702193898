//! How many descriptors the process may open: as many as it is permitted, since each client takes some.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A client over TLS has its socket and a copy of it, and both ends of the clear side.
const OF_A_CLIENT: u64 = 4;
/// Negotiations, the control socket, metrics, images.
const OF_ALL_ELSE: u64 = 700;

/// Raises the soft limit to the hard one, and warns if it is too low for so many clients.
pub fn raise(connections: usize) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::debug!(%error, "the limit of open files cannot be raised");
    }
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_mul(OF_A_CLIENT) + OF_ALL_ELSE;
    if let Some(limit) = getrlimit(Resource::Nofile).current.filter(|&limit| limit < wanted) {
        tracing::warn!(
            limit,
            wanted,
            connections,
            "so many clients may need more open files than are permitted; raise the limit (LimitNOFILE= of the \
             systemd unit, ulimit -Hn) or set fewer connections"
        );
    }
}
