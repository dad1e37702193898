//! What to do about the errors that a file system gives.

use std::io;

use rustix::io::Errno;

/// The remedy for an error number, as a clause after the error's own text; empty if there is nothing to add.
pub fn remedy(errno: Option<i32>) -> &'static str {
    match errno.map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC) => {
            "; the volume is full: delete files that are not needed, or make a larger image and copy the files over"
        }
        Some(Errno::DQUOT) => "; the quota is used up: delete files or ask for more",
        Some(Errno::ROFS) => "; the volume is mounted read-only: mount it writable",
        Some(Errno::ACCESS | Errno::PERM) => "; run it as a user who may do this, or change owner and mode",
        Some(Errno::IO) => "; the volume's device failed: see the messages of vexfs-fuse and vexfs-blockd",
        Some(Errno::NOTCONN) => "; the mount is dead: unmount it (umount) and mount it again",
        Some(Errno::NAMETOOLONG) => "; give it a shorter name",
        _ => "",
    }
}

/// An I/O error with what was tried (`/mnt/x: cannot be written`), why it failed and what to do.
pub fn failed(what: impl std::fmt::Display, error: &io::Error) -> anyhow::Error {
    anyhow::anyhow!("{what}: {error}{}", remedy(error.raw_os_error()))
}
