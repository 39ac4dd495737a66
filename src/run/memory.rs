//! How much memory a run will need, before it takes any.

use anyhow::{Result, bail};
use tch::Device;

use crate::config::Config;
use crate::optim::Algorithm;
use crate::run::machine::Machine;
use crate::train::CudaGraph;
use native::{Memory, describe_device, human_bytes};

/// A run's needs in bytes. The sum was compared with the peak (VmHWM) of a step and its checkpoint on the CPU:
///
/// | | estimated | measured |
/// |---|---|---|
/// | 18 layers, CIFAR stem, width 1/4, batch 4, 16 px, fp32 | 0.4 GB | 0.18 GB |
/// | the same, batch 512, 32 px | 1.8 GB | 1.74 GB |
/// | 18 layers, CIFAR stem, 4096 hidden units, batch 256, 32 px, fp32 | 3.5 GB | 3.17 GB |
/// | the same in bf16 | 2.1 GB | 2.04 GB |
/// | 50 layers, 4096 hidden units, batch 8, 224 px, fp32 | 2.7 GB | 2.94 GB |
/// | the same, batch 16, bf16 | 2.8 GB | 2.81 GB |
/// | heads of 16384 hidden units and 4096 outputs, batch 4 | 5.8 GB | 5.65 GB |
///
/// Not counted: the images that a format keeps in memory, and the features of k-NN.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    /// Both networks, the gradient and the optimizer's state: there from the first step to the last.
    pub weights: u64,
    /// What a step adds: activations of the micro-batch's two views, cast weights, the update's temporaries.
    pub step: u64,
    /// The loader's batches.
    pub batches: u64,
    /// What writing a checkpoint adds (to the host, where a step adds nothing then).
    pub checkpoint: u64,
    /// The program, libtorch and its threads.
    pub program: u64,
}

impl Estimate {
    /// For a config, in bf16 or fp32.
    pub fn new(config: &Config, bf16: bool) -> Self {
        let (train, side) = (&config.train, config.augment.size as u64);
        let micro = train.micro_batch() as u64;
        let size = config.model.size(config.augment.size);
        let states = if config.optimizer.name == Algorithm::Adamw { 2 } else { 1 };
        let bytes = if bf16 { 2 } else { 4 };
        // Both views are in flight until the backward pass; it and the target's passes hold a few layers more.
        let activations = micro * (2 * size.activations + 4 * size.largest) * bytes;
        let images = 2 * 3 * side * side * micro;
        let casts = if bf16 { 2 * size.online + images * 2 } else { 0 };
        let (model, optimizer) = (4 * (size.online + size.target), 4 * size.online * states);
        // The loader keeps `data.prefetch_batches` finished ones or `data.prefetch_bytes`, one at least; those of a step
        // are in use.
        let waiting = images.saturating_mul(config.data.prefetch_batches as u64 + 2);
        let waiting = waiting.min(images.max(config.data.prefetch_bytes as u64));
        let batches = images.saturating_mul(train.accumulation_steps as u64).saturating_add(waiting);
        Self {
            weights: model + 4 * size.online + optimizer,
            step: activations + images * 4 + casts + 4 * size.online,
            batches,
            // Every tensor copied, then the file: first of the model, then of the optimizer beside the model's.
            checkpoint: (2 * model).max(model + 2 * optimizer),
            program: 350_000_000,
        }
    }

    /// Peak on the host and, for a GPU, on that. A graph keeps a step's memory for itself, and is compared with a plain
    /// step; one that is not demanded is given up where there is no room.
    fn peaks(&self, device: Device, graph: CudaGraph) -> (u64, Option<u64>) {
        let steps = if graph == CudaGraph::On { 2 } else { 1 };
        let base = self.program + self.batches;
        match device {
            Device::Cpu => (base + self.weights + self.step.max(self.checkpoint), None),
            _ => (base + self.checkpoint, Some(self.weights + steps * self.step)),
        }
    }
}

/// Refuses what cannot be, and warns of what will hardly be, before any work.
/// # Errors
/// The weights with what belongs to them, or the loader's batches, need more memory than there is in all.
pub fn check(config: &Config, machine: &Machine) -> Result<()> {
    let estimate = Estimate::new(config, machine.bf16);
    let host = Memory::of_host();
    if estimate.batches > host.total {
        bail!(
            "train.batch_size: the loader's batches need {}, the machine has {}; lower train.batch_size or \
             data.prefetch_bytes, or raise train.accumulation_steps",
            human_bytes(estimate.batches),
            human_bytes(host.total)
        );
    }
    let memory = Memory::of(machine.device);
    let name = match machine.device {
        Device::Cpu => "the machine".to_string(),
        device => describe_device(device),
    };
    if estimate.weights > memory.total {
        bail!(
            "model: weights, target, gradient and optimizer.name's state need {}, {name} has {} in all; lower \
             model.projector_hidden, model.projection_dim, model.predictor_hidden or model.width",
            human_bytes(estimate.weights),
            human_bytes(memory.total)
        );
    }
    let (on_host, on_gpu) = estimate.peaks(machine.device, config.train.cuda_graph);
    let places = [("the machine", on_host, host.free), (&*name, on_gpu.unwrap_or(0), memory.free)];
    for (place, needed, free) in places {
        log::debug!("memory of {place}: about {} needed, {} free", human_bytes(needed), human_bytes(free));
        if needed > free {
            log::warn!(
                "the run will need about {} of {place}'s memory ({} a step, {} for weights), {} are free; lower \
                 train.batch_size, or raise train.accumulation_steps",
                human_bytes(needed),
                human_bytes(estimate.step),
                human_bytes(estimate.weights),
                human_bytes(free)
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_holds_a_step_twice_where_a_graph_is_demanded() {
        let estimate = Estimate { weights: 7, step: 100, batches: 1000, checkpoint: 10000, program: 100_000 };
        assert_eq!(estimate.peaks(Device::Cuda(0), CudaGraph::Auto), (111_000, Some(107)));
        assert_eq!(estimate.peaks(Device::Cuda(0), CudaGraph::On), (111_000, Some(207)));
        assert_eq!(estimate.peaks(Device::Cpu, CudaGraph::Auto), (111_007, None));
    }
}
