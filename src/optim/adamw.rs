//! `torch.optim.AdamW`: w = w (1 - lr wd); m and v averages of g and g^2;
//! w = w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), t from 1.

use anyhow::Result;
use tch::Tensor;

use super::{Group, OptimizerConfig};
use native::foreach;

pub(super) fn update(group: &Group, lr: &Tensor, count: &Tensor, config: &OptimizerConfig) -> Result<()> {
    let decay = if group.adapted { config.weight_decay } else { 0.0 };
    let [first, second] = &group.state;
    foreach::adamw(&group.weights, &group.gradients, [first, second], count, lr, config.betas, decay, config.eps)
}
