//! `torch.optim.SGD` (no dampening): u = g + wd w; v = m v + u; w = w - lr v, or with Nesterov w - lr (u + m v).

use anyhow::Result;

use super::{Group, OptimizerConfig, Rate, Rule};
use native::foreach;

pub(super) const RULE: Rule = Rule { state: &["momentum"], update };

fn update(group: &Group, rate: &Rate, config: &OptimizerConfig) -> Result<()> {
    let decay = if group.adapted { config.weight_decay } else { 0.0 };
    let (momentum, nesterov) = (config.momentum, config.nesterov);
    foreach::sgd(&group.weights, &group.gradients, &group.state[0], &rate.lr, decay, momentum, nesterov)
}
