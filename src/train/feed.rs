//! Batches of the loader as views on the device.

use anyhow::Result;
use tch::Device;

use super::Views;
use super::laps::{Part, lap};
use crate::augment::AugmentConfig;
use crate::backend::Normaliser;
use crate::data::loader::Batch;

/// Brings micro-batches to the device and normalises them there.
pub struct Feed {
    normaliser: Normaliser,
    size: i64,
}

impl Feed {
    /// Views are in bf16 where forward passes are, so that autocast has nothing to cast.
    /// # Errors
    /// What libtorch says.
    pub fn new(augment: &AugmentConfig, device: Device, channels_last: bool, bf16: bool) -> Result<Self> {
        let normaliser = Normaliser::new(augment.mean, augment.std, device, channels_last, bf16)?;
        Ok(Self { normaliser, size: augment.size as i64 })
    }

    /// Both views of a micro-batch.
    /// # Errors
    /// What libtorch says.
    pub fn views(&self, batch: &Batch) -> Result<Views> {
        let shape = [batch.indices.len() as i64, self.size, self.size, 3];
        let view = |bytes: &[u8]| self.normaliser.bytes(bytes, shape);
        let views = [view(&batch.views[0])?, view(&batch.views[1])?];
        lap(Part::Normalise);
        Ok(views)
    }
}
