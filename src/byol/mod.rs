//! BYOL (arXiv 2006.07733), the algorithm: networks, step, loss, moving average. Read [`step`] first.

pub mod ema;
pub mod loss;
#[cfg(test)]
mod operators;
mod ranks;
mod state;
mod step;
pub mod timing;

use anyhow::Result;
use native::Autocast;
use native::stream::PendingScalars;
use tch::{Device, Tensor};

use crate::model::{Network, Represent};
use crate::optim::{Optimizer, OptimizerConfig};
use ema::Ema;
pub use ranks::{Ranks, StopRequest};
pub use state::Snapshot;

/// The two views of a micro-batch: v from T and v' from T', each `[N, C, H, W]`, normalized.
pub type Views = [Tensor; 2];

/// The networks and their optimizer.
pub struct Byol {
    /// theta: encoder, projector, predictor.
    pub online: Network,
    /// xi: encoder, projector.
    pub target: Network,
    /// Updates theta.
    pub optimizer: Optimizer,
    /// Updates xi.
    pub ema: Ema,
    /// The processes that share each batch.
    pub ranks: Ranks,
    /// Forward passes in bf16 autocast; weights, loss, optimizer and EMA stay in fp32.
    pub bf16: bool,
    /// Device of the networks.
    pub device: Device,
}

/// The schedules' values for one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate of the optimizer's update.
    pub lr: f64,
    /// Coefficient of the target's moving average, 0 to 1.
    pub tau: f64,
    /// Optimizer updates before this one (Adam's bias correction).
    pub step: u64,
}

/// The results of a step, on the device: reading them waits for the step to end.
pub struct StepOutput {
    /// The loss, 0 to 8, averaged over the micro-batches; a scalar.
    pub loss: Tensor,
    /// See [`loss::z_std`]; of the first micro-batch's first view, in all processes together; a scalar.
    pub z_std: Tensor,
    /// L2 norm of the whole gradient, before clipping; a scalar.
    pub grad_norm: Tensor,
    /// How many processes received each signal, see [`StopRequest`]; `[3]`.
    pub signals: Option<Tensor>,
}

/// The values of a [`StepOutput`] on the host.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// The loss.
    pub loss: f64,
    /// The deviation of the projections.
    pub z_std: f64,
    /// The norm of the gradient.
    pub grad_norm: f64,
    /// What signals at any process request; empty for a single process.
    pub request: StopRequest,
}

impl Byol {
    /// In fp32, for one process, on the device of `online`.
    pub fn new(online: Network, target: Network, optimizer: &OptimizerConfig) -> Self {
        let device = online.params.device();
        let optimizer = Optimizer::new(optimizer, &online.params);
        Self { online, target, optimizer, ema: Ema::new(device), ranks: Ranks::default(), bf16: false, device }
    }
}

#[cfg(test)]
impl Byol {
    /// A quarter of a ResNet-18 with heads of 8 and 4, on the CPU, for tests.
    pub(crate) fn tiny() -> Self {
        use crate::model::{Arch, ModelConfig, Stem};
        let config = ModelConfig { arch: Arch::Resnet18, width: 0.25, stem: Stem::Cifar, ..ModelConfig::default() };
        let config = ModelConfig { projector_hidden: 8, projection_dim: 4, predictor_hidden: 8, ..config };
        let online = Network::online(&config, Device::Cpu, 0);
        let target = Network::target_of(&online, &config, Device::Cpu);
        Self::new(online, target, &OptimizerConfig::default())
    }
}

impl StepOutput {
    /// Shallow clones.
    pub fn handles(&self) -> Self {
        let [loss, z_std, grad_norm] = [&self.loss, &self.z_std, &self.grad_norm].map(Tensor::shallow_clone);
        Self { loss, z_std, grad_norm, signals: self.signals.as_ref().map(Tensor::shallow_clone) }
    }

    /// Starts copying the values to the host; [`Numbers::of`] waits for them.
    pub fn fetch(&self) -> Result<PendingScalars> {
        let numbers = Tensor::f_stack(&[&self.loss, &self.z_std, &self.grad_norm], 0)?;
        PendingScalars::new(match &self.signals {
            Some(signals) => Tensor::f_cat(&[&numbers, signals], 0)?,
            None => numbers,
        })
    }
}

impl Numbers {
    /// Waits for the copy that [`StepOutput::fetch`] started.
    pub fn of(fetched: &PendingScalars) -> Result<Self> {
        let values = fetched.get()?;
        let request = StopRequest::of(&values[3..]);
        Ok(Self { loss: values[0], z_std: values[1], grad_norm: values[2], request })
    }
}

/// Representations by the online encoder.
impl Represent for Byol {
    fn represent(&self, images: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let _autocast = Autocast::bf16(self.device, self.bf16)?;
        Ok(self.online.represent(images))
    }

    fn device(&self) -> Device {
        self.device
    }

    fn feature_dim(&self) -> i64 {
        self.online.encoder.feature_dim
    }
}
