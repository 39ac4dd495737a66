//! `torch.optim.AdamW`: w = w (1 - lr wd); m and v averages of g and g^2;
//! w = w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), t from 1.

use anyhow::Result;

use super::{Group, OptimizerConfig, Rate, Rule};
use native::foreach;

pub(super) const RULE: Rule = Rule { state: &["exp_avg", "exp_avg_sq"], update };

fn update(group: &Group, rate: &Rate, config: &OptimizerConfig) -> Result<()> {
    let decay = if group.adapted { config.weight_decay } else { 0.0 };
    let (moments, Rate { lr, count }) = ([&group.state[0][..], &group.state[1][..]], rate);
    foreach::adamw(&group.weights, &group.gradients, moments, count, lr, config.betas, decay, config.eps)
}
