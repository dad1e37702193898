//! Changing how an open volume keeps house.

use super::Volume;
use crate::device::IoError;
use crate::store::clean::Tuning;

impl Volume {
    /// The settings in force.
    pub fn tuning(&self) -> Tuning {
        self.core.store.tuning.get()
    }

    /// Changes them; they hold until the volume is closed.
    ///
    /// # Errors
    /// `Invalid` names the value that makes no sense; nothing is changed then.
    pub fn set_tuning(&self, tuning: Tuning) -> Result<(), IoError> {
        let geometry = self.core.store.geometry;
        if tuning.free_segments > geometry.segments / 4 {
            return Err(IoError::Invalid(format!(
                "{} free segments are too many to aim for: at most {} of this image's {}",
                tuning.free_segments,
                geometry.segments / 4,
                geometry.segments
            )));
        }
        if tuning.checkpoint_bytes != 0 && tuning.checkpoint_bytes < geometry.segment_bytes() {
            return Err(IoError::Invalid(format!(
                "a checkpoint each {} bytes is too often: at least each {} (a segment), or 0 to have it chosen",
                tuning.checkpoint_bytes,
                geometry.segment_bytes()
            )));
        }
        self.core.store.tuning.set(tuning);
        self.wake_worker();
        Ok(())
    }
}
