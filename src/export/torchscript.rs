//! An encoder as a TorchScript module: traced, so that its weights are constants of the graph, then frozen.

use std::path::Path;

use anyhow::Result;
use tch::{CModule, Kind, Tensor};

use super::GraphOptions;
use crate::backend;
use crate::eval::Encoder;

/// Writes the module to `path`. Batch and image size are free: the trace holds no shape.
/// # Errors
/// What libtorch says, such as a full disk.
pub(super) fn write(encoder: &Encoder, options: &GraphOptions, path: &Path) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let (mean, std) = (&encoder.augment.mean, &encoder.augment.std);
    let [mean, std] = [mean, std].map(|v| Tensor::from_slice(v).to_kind(Kind::Float).reshape([1, 3, 1, 1]));
    let example = Tensor::f_zeros([2, 3, 64, 64], (Kind::Float, encoder.device))?;
    let mut forward = |inputs: &[Tensor]| {
        let x = if options.normalize { (&inputs[0] - &mean) / &std } else { inputs[0].shallow_clone() };
        vec![encoder.net.forward(&x, false)]
    };
    CModule::create_by_tracing("Encoder", "forward", &[example], &mut forward)?.save(path)?;
    backend::freeze_torchscript(path)
}
