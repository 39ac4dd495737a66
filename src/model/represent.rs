//! What evaluation needs of an encoder.

use anyhow::Result;
use tch::{Device, Tensor};

/// Any encoder of images into representations.
pub trait Represent {
    /// Normalized images `[N, C, H, W]` on [`Self::device`] to fp32 representations `[N, feature_dim]`; BatchNorm
    /// with its running statistics.
    fn represent(&self, images: &Tensor) -> Result<Tensor>;
    /// Its device.
    fn device(&self) -> Device;
    /// Length of a representation.
    fn feature_dim(&self) -> i64;
}
