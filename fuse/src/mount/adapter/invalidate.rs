//! Tells the kernel about what changed without it: names, where a put that publishes a file renames it here, and modes, where a
//! change of bytes took suid or sgid.
//!
//! For names the kernel takes the directory's lock for this, which a request that waits for one of our threads
//! may hold. So a thread of its own does it, and the put waits for it only for a bounded time.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use layout::fs::Ino;
use zerocopy::IntoBytes;

use crate::mount::node::Node;
use crate::mount::volume::Mounted;
use crate::wire::abi::{NOTIFY_INVAL_ENTRY, NOTIFY_INVAL_INODE, NotifyInvalEntryOut, NotifyInvalInodeOut};
use crate::wire::channel::Channel;

/// How long a put waits for the kernel to forget the old names.
const WAIT_MAX: Duration = Duration::from_millis(500);

struct Change {
    dir: Ino,
    names: [Vec<u8>; 2],
    replaced: Option<Ino>,
    done: Sender<()>,
}

impl Change {
    fn tell(&self, kernel: &Channel) -> io::Result<()> {
        let parent = Node::Real(self.dir).id();
        for name in &self.names {
            let entry = NotifyInvalEntryOut { parent, namelen: name.len() as u32, flags: 0 };
            // The name and its NUL.
            let name = [name, &[0][..]].concat();
            ignore_unknown(kernel.notify(NOTIFY_INVAL_ENTRY, [entry.as_bytes(), &name]))?;
        }
        // The directory's times and its listing, which the kernel keeps as the directory's pages.
        ignore_unknown(inval_inode(kernel, parent, 0))?;
        if let Some(replaced) = self.replaced {
            // Its attributes (a negative offset): it lost a link.
            ignore_unknown(inval_inode(kernel, Node::Real(replaced).id(), -1))?;
        }
        Ok(())
    }
}

fn inval_inode(kernel: &Channel, ino: u64, off: i64) -> io::Result<()> {
    let inode = NotifyInvalInodeOut { ino, off, len: 0 };
    kernel.notify(NOTIFY_INVAL_INODE, [inode.as_bytes(), &[]])
}

/// What the kernel does not know, it need not forget.
fn ignore_unknown(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Starts the thread and connects it with the mount; it ends with the mount.
pub fn install(mounted: &Arc<Mounted>, kernel: Channel) -> io::Result<()> {
    let direct = kernel.another()?;
    let _ = mounted.on_mode_changed.set(Box::new(move |ino| {
        // Attributes alone (a negative offset): that takes no lock that a request may hold.
        if let Err(error) = ignore_unknown(inval_inode(&direct, Node::Real(ino).id(), -1)) {
            tracing::warn!("the kernel keeps the mode of inode {}: {error}", ino.0);
        }
    }));
    let (sender, receiver) = channel::<Change>();
    std::thread::Builder::new().name("vexfs-notify".to_owned()).spawn(move || {
        for change in receiver {
            if let Err(error) = change.tell(&kernel) {
                tracing::debug!("the kernel keeps a name: {error}");
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
