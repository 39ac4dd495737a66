//! `torch.optim.SGD` (no dampening): u = g + wd w; v = m v + u; w = w - lr v, or with Nesterov w - lr (u + m v).

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
    let gradient = if adapted { decayed(gradient, weight, config)? } else { gradient.shallow_clone() };
    let _ = momentum.g_mul_scalar_(config.momentum).g_add_(&gradient);
    if config.nesterov {
        let direction = gradient.copy();
        add_scaled(&direction, momentum, config.momentum)?;
        add_scaled(weight, &direction, -lr)
    } else {
        add_scaled(weight, momentum, -lr)
    }
}
