//! An encoder as a TorchScript module: traced, so that its weights are constants of the graph, then frozen.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Resource, getrlimit};
use tch::{CModule, Kind, Tensor};

use super::GraphOptions;
use crate::eval::Encoder;

/// More than the graph of the deepest ResNet takes, besides its weights.
const GRAPH_BYTES: u64 = 4 << 20;

/// The module's file. Batch and image size are free: the trace holds no shape.
/// # Errors
/// What libtorch says.
pub(super) fn serialize(encoder: &Encoder, options: &GraphOptions) -> Result<Vec<u8>> {
    // libtorch writes to paths only, and ends the process where one is full: it gets a file in memory, which is
    // subject to nothing but the limit on file sizes.
    let tensors = encoder.params.parameters.iter().chain(&encoder.params.buffers);
    let needed = tensors.map(|named| named.tensor.numel() as u64 * 4).sum::<u64>() + GRAPH_BYTES;
    let limit = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
    ensure!(
        needed <= limit,
        "the module needs up to {:.1} MB, files may have {:.1} MB here; raise the limit (ulimit -f) or use another format",
        needed as f64 / 1e6,
        limit as f64 / 1e6
    );
    let memory = memfd_create("byol-torchscript", MemfdFlags::CLOEXEC).context("cannot make a file in memory")?;
    let path = &PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()));
    let _no_grad = tch::no_grad_guard();
    let (mean, std) = (&encoder.augment.mean, &encoder.augment.std);
    let [mean, std] = [mean, std].map(|v| Tensor::from_slice(v).to_kind(Kind::Float).reshape([1, 3, 1, 1]));
    let example = Tensor::f_zeros([2, 3, 64, 64], (Kind::Float, encoder.device))?;
    let mut forward = |inputs: &[Tensor]| {
        let x = if options.normalize { (&inputs[0] - &mean) / &std } else { inputs[0].shallow_clone() };
        vec![encoder.net.forward(&x, false)]
    };
    CModule::create_by_tracing("Encoder", "forward", &[example], &mut forward)?.save(path)?;
    native::freeze_torchscript(path)?;
    fs::read(path).context("reading the module back")
}
