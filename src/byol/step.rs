//! One step of BYOL: read it beside Algorithm 1 of the paper (arXiv 2006.07733).

use anyhow::{Context, Result};
use tch::Tensor;

use native::Autocast;

use super::loss::{regression_loss, z_std};
use super::timing::{Part, lap};
use super::{Byol, Rates, StepOutput, Views};
use crate::model::DropPath;

impl Byol {
    /// One optimizer update from `micro_batches` (their gradients averaged), then one update of the target.
    pub fn step(
        &mut self,
        micro_batches: impl ExactSizeIterator<Item = Result<Views>>,
        rates: Rates,
    ) -> Result<StepOutput> {
        self.set_rates(rates)?;
        self.run(micro_batches)
    }

    /// Sets the rates of the next update.
    pub fn set_rates(&self, Rates { lr, tau, step }: Rates) -> Result<()> {
        self.optimizer.set(lr, step)?;
        self.online.encoder.drop_path.iter().for_each(|draws| draws.start(step));
        self.ema.set(tau)
    }

    /// A step with the rates set, all of it on the device.
    pub fn run(&mut self, micro_batches: impl ExactSizeIterator<Item = Result<Views>>) -> Result<StepOutput> {
        let output = self.gradients(micro_batches)?;
        self.update()?;
        Ok(output)
    }

    /// The first half of a step: theta's gradients, averaged over the micro-batches, which are taken one at a time,
    /// so that only one is on the device.
    pub fn gradients(&mut self, micro_batches: impl ExactSizeIterator<Item = Result<Views>>) -> Result<StepOutput> {
        self.optimizer.zero_grad()?;
        self.online.encoder.drop_path.iter().for_each(DropPath::rewind);
        let parts = micro_batches.len();
        let (mut losses, mut first_projections) = (Vec::with_capacity(parts), None);
        for views in micro_batches {
            let (loss, projections) = self.forward(&views?)?;
            if losses.len() + 1 == parts {
                self.ranks.prepare()?; // the last pass averages theta's `.grad` over all processes
            }
            // Gradients add up in theta's `.grad`.
            (&loss / parts as f64).f_backward()?;
            lap(Part::Backward);
            losses.push(loss.detach());
            first_projections.get_or_insert(projections);
        }
        let projections = first_projections.context("a step without micro-batches")?;
        let grad_norm = self.optimizer.clip_grad_norm()?;
        let loss = Tensor::f_stack(&losses, 0)?.mean(None);
        let output = StepOutput { loss, z_std: z_std(&projections), grad_norm, signals: None };
        self.ranks.averaged(output, &projections)
    }

    /// The loss that [`Self::gradients`] computes, without gradients; only BatchNorm's running statistics change.
    pub fn loss(&self, micro_batches: impl Iterator<Item = Result<Views>>) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        self.online.encoder.drop_path.iter().for_each(DropPath::rewind);
        let losses = micro_batches.map(|views| Ok(self.forward(&views?)?.0)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_stack(&losses, 0)?.mean(None))
    }

    /// The second half: both networks move.
    pub fn update(&mut self) -> Result<()> {
        self.optimizer.apply()?; // theta <- optimizer(theta, gradient, lr)
        lap(Part::Optimizer);
        self.ema.update(&self.target, &self.online)?; // xi <- tau xi + (1 - tau) theta, the new theta
        lap(Part::Ema);
        Ok(())
    }

    /// The loss of one micro-batch, and the projections of its first view, detached. Each view goes through each
    /// network by itself, so that BatchNorm sees one view at a time.
    fn forward(&self, [v1, v2]: &Views) -> Result<(Tensor, Tensor)> {
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
        lap(Part::Loss);
        Ok((loss, z1.detach()))
    }
}
