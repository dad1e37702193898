//! A server in this process, on a socket in a temporary directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use blockd::device::Device;
use blockd::nbd::server::{Export, Exports, Limits, Listener, Server, Stopper};

/// Stops and drains when dropped.
pub struct Served {
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    pub fn start(path: &Path, device: Arc<dyn Device>) -> Served {
        Self::with(path, device, Limits::default())
    }

    pub fn with(path: &Path, device: Arc<dyn Device>, limits: Limits) -> Served {
        let exports = Exports::single(Export::new("disk", device).expect("an export"));
        Self::listening(vec![Listener::unix(path)], exports, limits).0
    }

    /// Any listeners and exports; gives the addresses too.
    pub fn listening(
        listeners: Vec<Listener>,
        exports: Arc<Exports>,
        limits: Limits,
    ) -> (Served, Vec<String>) {
        let server = Server::bind(listeners, exports, limits).expect("bound");
        let addresses = server.addresses();
        let stopper = server.stopper();
        let thread = std::thread::spawn(move || drop(server.run()));
        (Served { stopper, thread: Some(thread) }, addresses)
    }

    pub fn stop(mut self) {
        self.finish();
    }

    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    fn finish(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends without a panic");
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A temporary directory and the socket path in it.
pub fn socket() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("nbd.sock");
    (dir, path)
}
