//! A client of a device from before it is told what the device is until it is gone: what it was told holds for so long.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::export::Export;
use crate::device::{ClientId, Device, IoError};

/// How often a device is asked again whether it can be told of.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// A client; it is gone when this is dropped.
pub struct Attached {
    device: Arc<dyn Device>,
    id: ClientId,
}

impl Attached {
    /// A new client.
    pub fn new(export: &Export) -> Attached {
        let device = Arc::clone(export.device());
        let id = device.connect();
        Attached { device, id }
    }

    /// Its number.
    pub fn id(&self) -> ClientId {
        self.id
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.device.disconnect(self.id);
    }
}

/// Waits until a device can be told of, but not longer than so.
///
/// # Errors
/// Why it cannot.
pub async fn ready(device: &dyn Device, wait_max: Duration) -> Result<(), IoError> {
    let until = Instant::now() + wait_max;
    loop {
        match device.ready() {
            Err(_) if Instant::now() < until => sleep(ASK_AGAIN).await,
            result => return result,
        }
    }
}
