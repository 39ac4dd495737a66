//! One step of BYOL: read it beside Algorithm 1 of the paper (arXiv 2006.07733).

use anyhow::Result;
use tch::{Device, Tensor};

use super::laps::{Part, lap};
use crate::backend::Autocast;
use crate::ema::Ema;
use crate::eval::Represent;
use crate::loss::{regression_loss, z_std};
use crate::model::Network;
use crate::optim::Optimizer;

/// The two views of a micro-batch: v from T and v' from T', each `[N, 3, H, W]`, normalised.
pub type Views = [Tensor; 2];

/// What is trained.
pub struct Byol {
    /// theta: encoder, projector, predictor.
    pub online: Network,
    /// xi: encoder, projector.
    pub target: Network,
    /// Moves theta.
    pub optimizer: Optimizer,
    /// Moves xi.
    pub ema: Ema,
    /// Forward passes in bf16 autocast; weights, loss, optimiser and EMA stay in fp32.
    pub bf16: bool,
    /// Where it all lives.
    pub device: Device,
}

/// What a step tells, on the device: reading it waits for the step to end.
pub struct StepOutput {
    /// The loss, 0 to 8, averaged over the micro-batches; a scalar.
    pub loss: Tensor,
    /// See [`z_std`]; of the first micro-batch's first view; a scalar.
    pub z_std: Tensor,
}

impl StepOutput {
    /// The same tensors again.
    pub fn handles(&self) -> Self {
        Self { loss: self.loss.shallow_clone(), z_std: self.z_std.shallow_clone() }
    }
}

impl Byol {
    /// One step of training: [`Self::set_rates`], then [`Self::update`].
    /// # Errors
    /// What libtorch says, such as memory running out.
    pub fn step(
        &mut self,
        micro_batches: impl ExactSizeIterator<Item = Result<Views>>,
        lr: f64,
        tau: f64,
        step: u64,
    ) -> Result<StepOutput> {
        self.set_rates(lr, tau, step)?;
        self.update(micro_batches)
    }

    /// Learning rate and tau of the update to come, and its number from 0.
    /// # Errors
    /// What libtorch says.
    pub fn set_rates(&self, lr: f64, tau: f64, step: u64) -> Result<()> {
        self.optimizer.set(lr, step)?;
        self.ema.set(tau)
    }

    /// One optimiser update from `micro_batches` (their gradients averaged), then one update of the target.
    /// They are taken one at a time, so that only one is on the device.
    /// # Errors
    /// What libtorch says, such as memory running out.
    pub fn update(&mut self, micro_batches: impl ExactSizeIterator<Item = Result<Views>>) -> Result<StepOutput> {
        self.optimizer.zero_grad()?;
        let parts = micro_batches.len();
        let mut outputs = Vec::with_capacity(parts);
        for views in micro_batches {
            let output = self.forward(&views?)?;
            // Gradients add up in theta's `.grad`.
            (&output.loss / parts as f64).f_backward()?;
            lap(Part::Backward);
            outputs.push(StepOutput { loss: output.loss.detach(), z_std: output.z_std });
        }
        // The seam for several processes: here they would average the gradients, and below the loss and z_std.
        self.optimizer.apply()?; // theta <- optimizer(theta, gradient, lr)
        lap(Part::Optimizer);
        self.ema.update(&self.target, &self.online)?; // xi <- tau xi + (1 - tau) theta, the new theta
        lap(Part::Ema);
        let losses: Vec<&Tensor> = outputs.iter().map(|o| &o.loss).collect();
        Ok(StepOutput { loss: Tensor::f_stack(&losses, 0)?.mean(None), z_std: outputs.swap_remove(0).z_std })
    }

    /// The loss of one micro-batch. Each view goes through each network by itself, so that BatchNorm sees
    /// one view at a time.
    fn forward(&self, [v1, v2]: &Views) -> Result<StepOutput> {
        let autocast = Autocast::bf16(self.device, self.bf16)?;
        let z1 = self.online.project(v1); // z = g(f(v))                 [N, D]
        let z2 = self.online.project(v2);
        let p1 = self.online.predict(&z1); // q(z)                       [N, D]
        let p2 = self.online.predict(&z2);
        lap(Part::OnlineForward);
        let (t1, t2) = {
            let _no_grad = tch::no_grad_guard(); // the gradient stops at the target
            (self.target.project(v1), self.target.project(v2)) // z'     [N, D]
        };
        lap(Part::TargetForward);
        drop(autocast); // the loss is taken in fp32
        // The prediction from one view meets the target's projection of the other.
        let loss = regression_loss(&p1, &t2) + regression_loss(&p2, &t1);
        let z_std = z_std(&z1);
        lap(Part::Loss);
        Ok(StepOutput { loss, z_std })
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
