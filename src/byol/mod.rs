//! BYOL (arXiv 2006.07733), the algorithm: networks, step, loss, moving average. Read [`step`] first.

pub mod ema;
pub mod loss;
mod ranks;
mod step;
pub mod timing;

use anyhow::Result;
use native::Autocast;
use native::stream::PendingScalars;
use tch::{Device, Tensor};

use crate::eval::Represent;
use crate::model::Network;
use crate::optim::Optimizer;
use ema::Ema;
pub use ranks::{Ranks, StopRequest};

/// The two views of a micro-batch: v from T and v' from T', each `[N, 3, H, W]`, normalized.
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
    /// The processes that share each batch, where there are several.
    pub ranks: Option<Ranks>,
    /// Forward passes in bf16 autocast; weights, loss, optimizer and EMA stay in fp32.
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
    /// L2 norm of the whole gradient, before clipping; a scalar.
    pub grad_norm: Tensor,
    /// Where several processes share the batch: signals that have arrived, see [`StopRequest`]; `[3]`.
    pub asked: Option<Tensor>,
}

/// The numbers of a [`StepOutput`].
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// The loss.
    pub loss: f64,
    /// The deviation of the projections.
    pub z_std: f64,
    /// The norm of the gradient.
    pub grad_norm: f64,
    /// What any of several processes was asked for.
    pub asked: StopRequest,
}

impl StepOutput {
    /// The same tensors again.
    pub fn handles(&self) -> Self {
        let [loss, z_std, grad_norm] = [&self.loss, &self.z_std, &self.grad_norm].map(Tensor::shallow_clone);
        Self { loss, z_std, grad_norm, asked: self.asked.as_ref().map(Tensor::shallow_clone) }
    }

    /// Begins to fetch the numbers; [`Numbers::of`] waits for them.
    /// # Errors
    /// What libtorch says.
    pub fn fetch(&self) -> Result<PendingScalars> {
        let numbers = Tensor::f_stack(&[&self.loss, &self.z_std, &self.grad_norm], 0)?;
        PendingScalars::new(match &self.asked {
            Some(asked) => Tensor::f_cat(&[&numbers, asked], 0)?,
            None => numbers,
        })
    }
}

impl Numbers {
    /// What [`StepOutput::fetch`] fetched.
    /// # Errors
    /// What the step met on the device.
    pub fn of(fetched: &PendingScalars) -> Result<Self> {
        let values = fetched.get()?;
        let asked = StopRequest::of(&values[3..]);
        Ok(Self { loss: values[0], z_std: values[1], grad_norm: values[2], asked })
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
