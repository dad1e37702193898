//! The daemon's side work: control socket, metrics and watchdog.

use std::sync::Arc;

use anyhow::{Context, Result};
use blockd::control::host::Host;
use blockd::control::listen::{Address, Listening};
use blockd::control::side::{Side, Work};

use crate::notify;
use crate::settings::{Control, Settings};

/// The thread and its sockets, which go away with it.
pub struct SideWork {
    side: Side,
    _sockets: Vec<Listening>,
}

impl SideWork {
    /// Binds the sockets and starts the thread.
    ///
    /// # Errors
    /// A socket that was asked for cannot be had.
    pub fn start(settings: &Settings, host: &Arc<Host>) -> Result<SideWork> {
        let mut sockets = Vec::new();
        let mut work = Work::default();
        if let Some(control) = control_socket(&settings.control)? {
            work.control = Some((control.fd(), Arc::clone(host) as _));
            sockets.push(control);
        }
        for address in &settings.metrics {
            let metrics = Listening::bind(address).context("cannot serve metrics")?;
            work.metrics.push((metrics.fd(), Arc::clone(host) as _));
            sockets.push(metrics);
        }
        if let Some(period) = notify::watchdog_period() {
            let host = Arc::clone(host);
            let check = move || {
                // Waits for the locks that requests need too: if they are never free again, so is this thread.
                host.exports().iter().for_each(|served| drop(served.volume.status()));
                notify::alive();
            };
            work.timer = Some((period, Box::new(check)));
        }
        let side = Side::start(work).context("cannot start the side thread")?;
        host.set_engine(side.engine());
        Ok(SideWork { side, _sockets: sockets })
    }

    /// Ends it; answers under way are still given.
    pub fn stop(self) {
        self.side.stop();
    }
}

fn control_socket(control: &Control) -> Result<Option<Listening>> {
    match control {
        Control::Off => Ok(None),
        Control::At(path) => {
            let bound = Listening::bind(&Address::Unix(path.clone()));
            bound.map(Some).context("there can be no control socket")
        }
        Control::Default(path) => match Listening::bind(&Address::Unix(path.clone())) {
            Ok(bound) => Ok(Some(bound)),
            Err(error) => {
                tracing::warn!("serving without a control socket (see --control, --name): {error}");
                Ok(None)
            }
        },
    }
}
