//! Tells the kernel about names that changed without it: a put that publishes a file renames it here.
//!
//! The kernel takes the directory's lock for this, which a request that waits for one of our threads
//! may hold. So a thread of its own does it, and the put waits for it only for a bounded time.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use layout::fs::Ino;

use crate::mount::node::Node;
use crate::mount::volume::Mounted;

/// How long a put waits for the kernel to forget the old names.
const WAIT_MAX: Duration = Duration::from_millis(500);

struct Change {
    dir: Ino,
    names: [Vec<u8>; 2],
    replaced: Option<Ino>,
    done: Sender<()>,
}

/// Starts the thread and connects it with the mount; it ends with the mount.
pub fn install(mounted: &Arc<Mounted>, notifier: Notifier) -> io::Result<()> {
    let (sender, receiver) = channel::<Change>();
    std::thread::Builder::new().name("vexfs-notify".to_owned()).spawn(move || {
        for change in receiver {
            let dir = INodeNo(Node::Real(change.dir).id());
            for name in &change.names {
                if let Err(error) = notifier.inval_entry(dir, OsStr::from_bytes(name)) {
                    tracing::debug!("the kernel keeps a name: {error}");
                }
            }
            // Attributes only (a negative offset): the directory's times, the replaced file's links.
            for node in [Some(change.dir), change.replaced].into_iter().flatten() {
                let _ = notifier.inval_inode(INodeNo(Node::Real(node).id()), -1, 0);
            }
            let _ = change.done.send(());
        }
    })?;
    let _ = mounted.on_published.set(Box::new(move |published| {
        let (done, waiting) = channel();
        let change = Change {
            dir: published.dir,
            names: [published.old_name.to_vec(), published.new_name.to_vec()],
            replaced: published.replaced.map(|inode| inode.ino),
            done,
        };
        if sender.send(change).is_ok() {
            let _ = waiting.recv_timeout(WAIT_MAX);
        }
    }));
    Ok(())
}
