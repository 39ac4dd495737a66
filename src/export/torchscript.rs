//! An encoder as a TorchScript module: traced, so that its weights are constants of the graph, then frozen.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use tch::{CModule, Kind, Tensor};

use super::GraphOptions;
use crate::backend;
use crate::eval::Encoder;

/// The module's file. Batch and image size are free: the trace holds no shape.
/// # Errors
/// What libtorch says.
pub(super) fn serialize(encoder: &Encoder, options: &GraphOptions) -> Result<Vec<u8>> {
    // libtorch writes to paths only, and ends the process where one is full: it gets a file in memory.
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
    backend::freeze_torchscript(path)?;
    fs::read(path).context("reading the module back")
}
