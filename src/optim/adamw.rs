//! `torch.optim.AdamW`: w = w (1 - lr wd); m and v averages of g and g^2;
//! w = w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), t from 1.

use anyhow::Result;
use tch::Tensor;

use super::OptimizerConfig;
use crate::backend::add_scaled;

pub(super) fn update(
    weight: &mut Tensor,
    gradient: &Tensor,
    moments: &mut [Tensor],
    adapted: bool,
    lr: f64,
    step: u64,
    config: &OptimizerConfig,
) -> Result<()> {
    let [beta1, beta2] = config.betas;
    let t = (step + 1) as f64;
    if adapted {
        let _ = weight.g_mul_scalar_(1.0 - lr * config.weight_decay);
    }
    let (first, second) = moments.split_at_mut(1);
    let _ = first[0].g_mul_scalar_(beta1).g_add_(&(gradient * (1.0 - beta1)));
    let _ = second[0].g_mul_scalar_(beta2).g_add_(&(gradient * gradient * (1.0 - beta2)));
    let denominator = second[0].sqrt() / (1.0 - beta2.powf(t)).sqrt() + config.eps;
    add_scaled(weight, &(&first[0] / denominator), -lr / (1.0 - beta1.powf(t)))
}
