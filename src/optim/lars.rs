//! LARS. DeepMind's form (`byol/utils/optimizers.py`), the default: with u = g + wd w,
//! r = eta |w| / |u| (1 where either norm is 0); v = m v + r u; w = w - lr v.
//! With `clip`, solo-learn's (`solo/utils/lars.py`, `clip_lr`): r = eta |w| / (|g| + wd |w| + 1e-8), then
//! r = min(r / lr, 1), so that the applied rate never exceeds lr; where |w| or |g| is 0, u = g and r = 1.
//! Excluded parameters (biases, BatchNorm) get plain SGD with momentum at the full learning rate.

use anyhow::Result;
use tch::Tensor;

use super::{OptimizerConfig, decayed};
use crate::backend::add_scaled;

pub(super) fn update(
    weight: &mut Tensor,
    gradient: &Tensor,
    momentum: &mut Tensor,
    adapted: bool,
    lr: f64,
    config: &OptimizerConfig,
) -> Result<()> {
    let direction = match (adapted, config.clip) {
        (false, _) => gradient.shallow_clone(),
        (true, false) => deepmind(weight, gradient, config)?,
        (true, true) => solo_learn(weight, gradient, lr, config)?,
    };
    let _ = momentum.g_mul_scalar_(config.momentum).g_add_(&direction);
    add_scaled(weight, momentum, -lr)
}

/// r u of DeepMind's form. Norms stay on the device: no look at their values.
fn deepmind(weight: &Tensor, gradient: &Tensor, config: &OptimizerConfig) -> Result<Tensor> {
    let direction = decayed(gradient, weight, config)?;
    let (weight_norm, norm) = (weight.norm(), direction.norm());
    let ratio = &weight_norm * config.eta / &norm;
    Ok(direction * ratio.where_self(&both_positive(&weight_norm, &norm), &ratio.ones_like()))
}

/// r u of solo-learn's form.
fn solo_learn(weight: &Tensor, gradient: &Tensor, lr: f64, config: &OptimizerConfig) -> Result<Tensor> {
    let (weight_norm, gradient_norm) = (weight.norm(), gradient.norm());
    let bound = &weight_norm * config.eta / (&gradient_norm + &weight_norm * config.weight_decay + 1e-8);
    // At a learning rate of 0 the quotient is infinite and the cap holds.
    let ratio = (bound / lr).clamp_max(1.0);
    let adapted = decayed(gradient, weight, config)? * ratio;
    Ok(adapted.where_self(&both_positive(&weight_norm, &gradient_norm), gradient))
}

fn both_positive(a: &Tensor, b: &Tensor) -> Tensor {
    a.gt(0.0).logical_and(&b.gt(0.0))
}
