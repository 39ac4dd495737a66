//! The target network's exponential moving average (paper, section 3.1).

use anyhow::Result;

use crate::model::Network;

/// target <- tau * target + (1 - tau) * online, for every parameter of encoder and projector; BatchNorm's
/// buffers stay the target's own. Written as `target + (1 - tau) (online - target)`, which keeps more digits
/// when tau is close to 1. The predictor, which the target lacks, comes last in the online network.
/// # Errors
/// What libtorch says, when memory runs out.
pub fn update(target: &Network, online: &Network, tau: f64) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    for (target, online) in target.params.parameters.iter().zip(&online.params.parameters) {
        debug_assert_eq!(target.name, online.name);
        let _ = target.tensor.shallow_clone().f_lerp_(&online.tensor, 1.0 - tau)?;
    }
    Ok(())
}
