//! The target network's exponential moving average (paper, section 3.1).

use anyhow::Result;
use tch::{Device, Tensor};

use crate::model::{Named, Network};
use native::foreach;

/// Moves the target network after the online one.
#[derive(Debug)]
pub struct Ema {
    /// 1 - tau, on the device.
    weight: Tensor,
}

impl Ema {
    /// With tau = 1: the target does not move.
    pub fn new(device: Device) -> Self {
        Self { weight: foreach::rate(device) }
    }

    /// Sets tau of later updates, 0 to 1.
    pub fn set(&self, tau: f64) -> Result<()> {
        foreach::set_rate(&self.weight, 1.0 - tau)
    }

    /// target <- tau * target + (1 - tau) * online, for every parameter of encoder and projector; BatchNorm's
    /// buffers stay the target's own. Computed as `target + (1 - tau) (online - target)`, which keeps more digits
    /// when tau is close to 1. The predictor, which the target lacks, comes last in the online network.
    pub fn update(&self, target: &Network, online: &Network) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let (target, online) = (&target.params.parameters, &online.params.parameters);
        let online = &online[..target.len()];
        debug_assert!(target.iter().map(|n| &n.name).eq(online.iter().map(|n| &n.name)));
        let handles = |all: &[Named]| all.iter().map(|n| n.tensor.shallow_clone()).collect::<Vec<_>>();
        foreach::lerp(&handles(target), &handles(online), &self.weight)
    }
}
