//! What evaluations need of an encoder.

use anyhow::Result;
use tch::{Device, Tensor};

/// What turns images into representations, wherever it comes from.
pub trait Represent {
    /// Normalized images `[N, 3, H, W]` on [`Self::device`] to fp32 representations `[N, feature_dim]`; BatchNorm
    /// with its running statistics.
    fn represent(&self, images: &Tensor) -> Result<Tensor>;
    /// Where it computes.
    fn device(&self) -> Device;
    /// Length of a representation.
    fn feature_dim(&self) -> i64;
}
