//! One step of BYOL: read it beside Algorithm 1 of the paper (arXiv 2006.07733).

use anyhow::Result;
use tch::{Device, Tensor};

use crate::backend::{Autocast, Reducer};
use crate::ema;
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
    /// Averages theta's gradients over the processes of the run; none where there is one.
    pub reducer: Option<Reducer>,
    /// Forward passes in bf16 autocast; weights, loss, optimiser and EMA stay in fp32.
    pub bf16: bool,
    /// Where it all lives.
    pub device: Device,
}

/// What a step tells, of this process's share of the batch, on the device: reading it waits for the step to end.
pub struct StepOutput {
    /// The loss, 0 to 8, averaged over the micro-batches; a scalar.
    pub loss: Tensor,
    /// See [`z_std`]; of the first micro-batch's first view; a scalar.
    pub z_std: Tensor,
}

impl Byol {
    /// One optimiser update from `micro_batches` (their gradients averaged), then one update of the target.
    /// They are taken one at a time, so that only one is on the device. `step` counts updates from 0.
    /// # Errors
    /// What libtorch says, such as memory running out.
    pub fn step(
        &mut self,
        micro_batches: impl ExactSizeIterator<Item = Result<Views>>,
        lr: f64,
        tau: f64,
        step: u64,
    ) -> Result<StepOutput> {
        self.optimizer.zero_grad()?;
        let parts = micro_batches.len();
        let mut outputs = Vec::with_capacity(parts);
        for views in micro_batches {
            let output = self.forward(&views?)?;
            if let Some(reducer) = self.reducer.as_ref().filter(|_| outputs.len() + 1 == parts) {
                reducer.prepare()?; // the last backward pass averages theta's `.grad` over all processes
            }
            // Gradients add up in theta's `.grad`.
            (&output.loss / parts as f64).f_backward()?;
            outputs.push(StepOutput { loss: output.loss.detach(), z_std: output.z_std });
        }
        self.optimizer.step(lr, step)?; // theta <- optimizer(theta, gradient, lr)
        ema::update(&self.target, &self.online, tau)?; // xi <- tau xi + (1 - tau) theta, the new theta
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
        let (t1, t2) = {
            let _no_grad = tch::no_grad_guard(); // the gradient stops at the target
            (self.target.project(v1), self.target.project(v2)) // z'     [N, D]
        };
        drop(autocast); // the loss is taken in fp32
        // The prediction from one view meets the target's projection of the other.
        let loss = regression_loss(&p1, &t2) + regression_loss(&p2, &t1);
        Ok(StepOutput { loss, z_std: z_std(&z1) })
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
