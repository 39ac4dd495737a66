//! LARS. DeepMind's form (`byol/utils/optimizers.py`), the default: with u = g + wd w,
//! r = eta |w| / |u| (1 where either norm is 0); v = m v + r u; w = w - lr v.
//! With `clip_lr`, solo-learn's (`solo/utils/lars.py`): r = eta |w| / (|g| + wd |w| + 1e-8), then
//! r = min(r / lr, 1), so that the applied rate never exceeds lr; where |w| or |g| is 0, u = g and r = 1.
//! Excluded parameters (biases, BatchNorm) get plain SGD with momentum at the full learning rate.

use anyhow::Result;
use tch::Tensor;

use super::{Group, OptimizerConfig, Rate, Rule};
use native::foreach;

pub(super) const RULE: Rule = Rule { state: &["momentum"], update };

fn update(group: &Group, rate: &Rate, config: &OptimizerConfig) -> Result<()> {
    let directions = if group.adapted { Some(adapted(group, &rate.lr, config)?) } else { None };
    let directions = directions.as_ref().unwrap_or(&group.gradients);
    foreach::sgd(&group.weights, directions, &group.state[0], &rate.lr, 0.0, config.momentum, false)
}

/// r u of every parameter. The norms and their ratios are tensors `[parameters]`: no look at their values.
fn adapted(group: &Group, lr: &Tensor, config: &OptimizerConfig) -> Result<Vec<Tensor>> {
    let directions = foreach::sum(&group.gradients, &group.weights, config.weight_decay)?;
    let weight_norm = foreach::norms(&group.weights)?;
    let scaled = &weight_norm * config.eta;
    let (ratio, norm) = if config.clip_lr {
        let norm = foreach::norms(&group.gradients)?;
        // At a learning rate of 0 the quotient is infinite and the cap holds.
        let ratio = (scaled / (&norm + &weight_norm * config.weight_decay + 1e-8) / lr).clamp_max(1.0);
        (ratio, norm)
    } else {
        let norm = foreach::norms(&directions)?;
        (scaled / &norm, norm)
    };
    // Where |g| = 0, solo-learn's u is g, which is 0: so is wd w times 0. Where |w| = 0, u is g in both forms.
    let without_norm = if config.clip_lr { ratio.zeros_like() } else { ratio.ones_like() };
    let ratio = ratio.where_self(&norm.gt(0.0), &without_norm);
    let ratio = ratio.where_self(&weight_norm.gt(0.0), &ratio.ones_like());
    for (direction, ratio) in directions.iter().zip(ratio.unbind(0)) {
        let _ = direction.shallow_clone().f_mul_(&ratio)?;
    }
    Ok(directions)
}
