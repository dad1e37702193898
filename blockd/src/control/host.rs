//! The daemon as its commands see it.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::commands;
use super::metrics::Metrics;
use super::protocol::Request;
use super::server::{Handler, Replies};
use super::side::Engine;
use crate::nbd::server::Stopper;
use crate::volume::Volume;

/// A volume that is served.
pub struct Served {
    /// Its export's name; may be empty.
    pub name: String,
    /// The image.
    pub image: PathBuf,
    /// The volume in it.
    pub volume: Arc<Volume>,
}

/// Lives as long as the daemon serves: *serving* -> [`Host::drain`] *draining* -> [`Host::ended`].
pub struct Host {
    name: String,
    listen: Vec<String>,
    exports: Vec<Served>,
    started: Instant,
    engine: OnceLock<Engine>,
    handing_over: AtomicBool,
    /// For good: nobody is to take over.
    ending: AtomicBool,
    server: Stopper,
    on_drain: Box<dyn Fn() + Send + Sync>,
    successor: Mutex<Option<UnixStream>>,
    outcome: Mutex<Option<Result<(), String>>>,
    ended: Condvar,
}

impl Host {
    /// Begins to serve. `on_drain` is told when the end begins.
    pub fn new(
        name: String,
        listen: Vec<String>,
        exports: Vec<Served>,
        server: Stopper,
        on_drain: Box<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        Arc::new(Host {
            name,
            listen,
            exports,
            started: Instant::now(),
            engine: OnceLock::new(),
            handing_over: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            server,
            on_drain,
            successor: Mutex::new(None),
            outcome: Mutex::new(None),
            ended: Condvar::new(),
        })
    }

    /// Notes what the side thread runs on.
    pub fn set_engine(&self, engine: Engine) {
        // Set once, at the start.
        let _ = self.engine.set(engine);
    }

    /// What the side thread runs on.
    pub fn engine(&self) -> Engine {
        self.engine.get().copied().unwrap_or(Engine::Epoll)
    }

    /// The daemon's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where clients connect.
    pub fn listen(&self) -> &[String] {
        &self.listen
    }

    /// The NBD server.
    pub fn server(&self) -> &Stopper {
        &self.server
    }

    /// Since when it serves.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// All volumes.
    pub fn exports(&self) -> &[Served] {
        &self.exports
    }

    /// The volumes meant by the name of an export, or all.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn select(&self, export: Option<&str>) -> Result<Vec<&Served>, String> {
        let found: Vec<&Served> =
            self.exports.iter().filter(|served| export.is_none_or(|name| name == served.name)).collect();
        if found.is_empty() {
            let names: Vec<&str> = self.exports.iter().map(|served| served.name.as_str()).collect();
            return Err(format!("there is no export {:?}; there are {names:?}", export.unwrap_or_default()));
        }
        Ok(found)
    }

    /// The one volume meant by the name of an export, which may be left out if there is only one.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn select_one(&self, export: Option<&str>) -> Result<&Served, String> {
        match self.select(export)?[..] {
            [one] => Ok(one),
            _ => Err("this daemon has several exports; say which".into()),
        }
    }

    /// Takes no more clients from now on, and ends; whoever waits to take over gets nothing. May be called more than once; does not wait.
    pub fn drain(&self) {
        if !self.ending.swap(true, Ordering::SeqCst) {
            (self.on_drain)();
        }
        self.server.stop();
    }

    /// Hands everything over to the process at the other end of a socket. Does not wait.
    pub fn hand_over(&self, successor: UnixStream) {
        // One that asked before has given up, or it would have got everything by now.
        *self.successor.lock() = Some(successor);
        self.handing_over.store(true, Ordering::SeqCst);
        self.server.hand_over();
    }

    /// Somebody asked to take over, whatever came of it: the files of sockets stay.
    pub fn is_handing_over(&self) -> bool {
        self.handing_over.load(Ordering::SeqCst)
    }

    /// Who wants everything, if it is not to end for good.
    pub fn take_successor(&self) -> Option<UnixStream> {
        let successor = self.successor.lock().take();
        successor.filter(|_| !self.ending.load(Ordering::SeqCst))
    }

    /// It is about to end.
    pub fn is_draining(&self) -> bool {
        self.is_handing_over() || self.ending.load(Ordering::SeqCst)
    }

    /// Everything is written, or cannot be: wakes those in [`Host::wait_for_end`].
    pub fn ended(&self, outcome: Result<(), String>) {
        *self.outcome.lock() = Some(outcome);
        self.ended.notify_all();
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn wait_for_end(&self) -> Result<(), String> {
        let mut outcome = self.outcome.lock();
        loop {
            match &*outcome {
                Some(outcome) => return outcome.clone(),
                None => self.ended.wait(&mut outcome),
            }
        }
    }
}

impl Handler for Host {
    fn handle(&self, request: Request, replies: &Replies) -> Result<serde_json::Value, String> {
        commands::run(self, request, replies)
    }
}

impl Metrics for Host {
    fn text(&self) -> String {
        commands::exposition::text(self)
    }
}
