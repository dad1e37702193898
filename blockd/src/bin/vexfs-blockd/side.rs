//! The daemon's side work: control socket, metrics and watchdog.

use std::sync::Arc;

use anyhow::{Context, Result};
use blockd::control::host::Host;
use blockd::control::listen::{Address, Listening};
use blockd::control::side::{Side, Work};
use blockd::handover::{Handed, Kind};

use crate::notify;
use crate::settings::{Control, Settings};

/// The thread and its sockets, which go away with it.
pub struct SideWork {
    side: Side,
    sockets: Vec<(Kind, Listening)>,
}

impl SideWork {
    /// Binds the sockets, but for those that are among `handed`, and starts the thread.
    ///
    /// # Errors
    /// A socket that was asked for cannot be had.
    pub fn start(settings: &Settings, host: &Arc<Host>, handed: &mut Vec<Handed>) -> Result<SideWork> {
        let mut sockets = Vec::new();
        let mut work = Work::default();
        if let Some(control) = control_socket(&settings.control, handed)? {
            work.control = Some((control.fd(), Arc::clone(host) as _));
            sockets.push((Kind::Control, control));
        }
        for address in &settings.metrics {
            let bound = match adopt(Kind::Metrics, Some(address), handed) {
                Some(adopted) => adopted,
                None => Listening::bind(address).context("cannot serve metrics")?,
            };
            sockets.push((Kind::Metrics, bound));
        }
        while let Some(activated) = adopt(Kind::Metrics, None, handed) {
            sockets.push((Kind::Metrics, activated));
        }
        let metrics = sockets.iter().filter(|(kind, _)| *kind == Kind::Metrics);
        work.metrics = metrics.map(|(_, socket)| (socket.fd(), Arc::clone(host) as _)).collect();
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
        Ok(SideWork { side, sockets })
    }

    /// The predecessor is out of it: files of sockets that it handed over are ours.
    pub fn own(&mut self) {
        self.sockets.iter_mut().for_each(|(_, socket)| socket.own());
    }

    /// Ends it; answers under way are still given.
    pub fn stop(self) {
        self.side.stop();
    }

    /// Ends it; its sockets are for a successor.
    ///
    /// # Errors
    /// No more descriptors are to be had.
    pub fn hand_over(self) -> Result<Vec<Handed>> {
        self.side.stop();
        let handed = self.sockets.into_iter().map(|(kind, socket)| socket.hand_over(kind));
        handed.collect::<Result<_, _>>().context("the listening sockets cannot be copied")
    }
}

/// The socket at an address if it was handed over; without an address, one of systemd's.
fn adopt(kind: Kind, address: Option<&Address>, handed: &mut Vec<Handed>) -> Option<Listening> {
    let wanted = |one: &Handed| {
        one.state.kind == kind
            && address.map_or(one.state.activated, |address| one.state.address == address.to_string())
    };
    let Handed { socket, state } = handed.swap_remove(handed.iter().position(wanted)?);
    match state.address.parse() {
        Ok(address) => Some(Listening::adopt(&address, socket, state.activated)),
        Err(why) => {
            tracing::warn!("the {kind:?} socket that was handed over is not used: {why}");
            None
        }
    }
}

fn control_socket(control: &Control, handed: &mut Vec<Handed>) -> Result<Option<Listening>> {
    if let Some(activated) = adopt(Kind::Control, None, handed) {
        return Ok(Some(activated));
    }
    let path = match control {
        Control::Off => return Ok(None),
        Control::At(path) | Control::Default(path) => path,
    };
    let address = Address::Unix(path.clone());
    if let Some(adopted) = adopt(Kind::Control, Some(&address), handed) {
        return Ok(Some(adopted));
    }
    match Listening::bind(&address) {
        Ok(bound) => Ok(Some(bound)),
        Err(error) if matches!(control, Control::Default(_)) => {
            tracing::warn!("serving without a control socket (see --control, --name): {error}");
            Ok(None)
        }
        Err(error) => Err(error).context("there can be no control socket"),
    }
}
