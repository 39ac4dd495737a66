//! `torch.optim.SGD` (no dampening): u = g + wd w; v = m v + u; w = w - lr v, or with Nesterov w - lr (u + m v).

use tch::Tensor;

use super::OptimizerConfig;

pub(super) fn update(
    weight: &mut Tensor,
    gradient: &Tensor,
    momentum: &mut Tensor,
    adapted: bool,
    lr: f64,
    config: &OptimizerConfig,
) {
    let decayed = if adapted { gradient + &*weight * config.weight_decay } else { gradient.shallow_clone() };
    let _ = momentum.g_mul_scalar_(config.momentum).g_add_(&decayed);
    let direction = if config.nesterov { decayed + &*momentum * config.momentum } else { momentum.shallow_clone() };
    let _ = weight.g_sub_(&(direction * lr));
}
