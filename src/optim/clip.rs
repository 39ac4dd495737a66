//! `torch.nn.utils.clip_grad_norm_`: g <- g min(1, max_norm / (|g| + 1e-6)), |g| over all parameters together.

use anyhow::Result;
use tch::Tensor;

/// Scales gradients of this norm, a scalar on their device; nothing is read back to the host.
pub(super) fn scale(gradients: impl Iterator<Item = Tensor>, norm: &Tensor, max_norm: f64) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let factor = ((norm + 1e-6).f_reciprocal()? * max_norm).f_clamp_max(1.0)?;
    for mut gradient in gradients {
        let _ = gradient.f_mul_(&factor)?;
    }
    Ok(())
}
