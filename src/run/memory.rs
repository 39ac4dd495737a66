//! Estimates the memory that a run will need, before it allocates any.

use anyhow::{Result, bail};
use tch::Device;

use crate::config::Config;
use crate::model::Norm;
use crate::run::machine::Machine;
use crate::train::CudaGraph;
use native::{Memory, describe_device, human_bytes};

/// Matrices of patches that a step's convolutions leave holes for in the heap, where they are computed as products of
/// matrices (one for each of the four forward passes, two for the backward pass): as many as fit the measured peaks.
const COLUMNS: u64 = 6;

/// A run's needs in bytes. The sum was compared with the peak (VmHWM) of a step and its checkpoint on the CPU:
///
/// | | estimated | measured |
/// |---|---|---|
/// | 18 layers, CIFAR stem, width 1/4, batch 4, 16 px, fp32 | 0.4 GB | 0.18 GB |
/// | the same, batch 512, 32 px | 1.8 GB | 1.74 GB |
/// | 18 layers, CIFAR stem, 4096 hidden units, batch 256, 32 px, fp32 | 3.5 GB | 3.17 GB |
/// | the same in bf16 | 2.1 GB | 2.04 GB |
/// | the same on a processor without AVX-512 | 3.9 GB | 3.9 GB |
/// | the same, batch 64 | 1.5 GB | 1.40 GB |
/// | 50 layers, 4096 hidden units, batch 8, 224 px, fp32 | 2.7 GB | 2.94 GB |
/// | the same, batch 16, bf16 | 2.8 GB | 2.81 GB |
/// | heads of 16384 hidden units and 4096 outputs, batch 4 | 5.8 GB | 5.65 GB |
/// | ViT-Tiny, width 1/2, patches of 4 px, batch 64, 32 px, fp32 | 1.0 GB | 1.05 GB |
/// | the same, batch 256 | 3.0 GB | 3.37 GB |
/// | ConvNeXt-Tiny, width 1/2, patches of 4 px, batch 64, 32 px, fp32 | 0.66 GB | 0.58 GB |
/// | the same, batch 256 | 1.1 GB | 1.02 GB |
///
/// Not counted: the images that a format keeps in memory, and the features of k-NN.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    /// Both networks, the gradient and the optimizer's state: allocated for the whole run.
    pub weights: u64,
    /// Additional memory of a step: activations of the micro-batch's two views, cast weights, the update's temporaries.
    pub step: u64,
    /// The loader's batches.
    pub batches: u64,
    /// Additional memory for writing a checkpoint (on the host, between steps).
    pub checkpoint: u64,
    /// The program, libtorch and its threads.
    pub program: u64,
}

impl Estimate {
    /// For a config, in bf16 or fp32.
    pub fn new(config: &Config, bf16: bool) -> Self {
        Self::with(config, bf16, false)
    }

    /// For a config on this machine.
    pub fn here(config: &Config, machine: &Machine) -> Self {
        let columns = machine.bf16 && machine.device == Device::Cpu && !native::convolves_in_bf16();
        Self::with(config, machine.bf16, columns)
    }

    /// The same, with `columns` if convolutions are computed as products of matrices, as libtorch does
    /// where oneDNN has none for the type.
    fn with(config: &Config, bf16: bool, columns: bool) -> Self {
        let (train, sides) = (&config.train, config.augment.size);
        let micro = train.micro_batch() as u64;
        let size = config.model.size(sides.shape());
        let states = config.optimizer.name.states() as u64;
        let bytes = if bf16 { 2 } else { 4 };
        // Both views are in flight until the backward pass; it and the target's passes hold a few layers more.
        let activations = micro * (2 * size.activations + 4 * size.largest) * bytes;
        let columns = if columns { COLUMNS * micro * size.columns * bytes } else { 0 };
        let images = 2 * (config.channels() * sides.pixels()) as u64 * micro;
        let casts = if bf16 { 2 * size.online + images * 2 } else { 0 };
        // Each view's pass keeps standardized weights of its own.
        let standardized = if config.model.norm == Norm::GroupWs { 2 * size.online * bytes } else { 0 };
        let (model, optimizer) = (4 * (size.online + size.target), 4 * size.online * states);
        // The loader keeps `data.prefetch_batches` finished ones or `data.prefetch_bytes`, one at least; those of a
        // step are in use.
        let waiting = images.saturating_mul(config.data.prefetch_batches as u64 + 2);
        let waiting = waiting.min(images.max(config.data.prefetch_bytes as u64));
        let batches = images.saturating_mul(train.accumulation_steps as u64).saturating_add(waiting);
        Self {
            weights: model + 4 * size.online + optimizer,
            step: activations + columns + images * 4 + casts + standardized + 4 * size.online,
            batches,
            // Every tensor copied, then the file: first of the model, then of the optimizer beside the model's.
            checkpoint: (2 * model).max(model + 2 * optimizer),
            program: 350_000_000,
        }
    }

    /// The uses of the memory, in words.
    fn parts(&self) -> String {
        let [step, weights, batches] = [self.step, self.weights, self.batches].map(human_bytes);
        format!(
            "{step} for a step, {weights} for weights, target, gradient and optimizer, {batches} for the loader's batches"
        )
    }

    /// Advice for reducing the largest part.
    fn advice(&self) -> &'static str {
        if self.weights >= self.step.max(self.batches) {
            "lower model.projector_hidden, model.projection_dim, model.predictor_hidden or model.width"
        } else if self.batches > self.step {
            "lower train.batch_size or data.prefetch_bytes"
        } else {
            "lower train.batch_size, or raise train.accumulation_steps"
        }
    }

    /// Peak on the host and, for a GPU, on that. While a graph is captured, the state before it is kept to compare
    /// with the eager step; unless the graph is required, it is dropped if memory runs out.
    pub fn peaks(&self, device: Device, graph: CudaGraph) -> (u64, Option<u64>) {
        let states = if graph == CudaGraph::On { 2 } else { 1 };
        let base = self.program + self.batches;
        match device {
            Device::Cpu => (base + self.weights + self.step.max(self.checkpoint), None),
            _ => (base + self.checkpoint, Some(states * self.weights + self.step)),
        }
    }
}

/// An estimate that exceeds the available memory by this factor is an error: above a gigabyte the table's estimates are
/// within 12 % of the measurements.
const CLEARLY_TOO_MUCH: f64 = 1.15;

/// Memory needed on the host or a GPU.
struct Need {
    /// `the machine`, or the GPU's name.
    name: String,
    bytes: u64,
    memory: Memory,
    /// Swap space that can be used in addition.
    swap: u64,
}

impl Need {
    fn clearly_too_much(&self) -> bool {
        self.bytes as f64 > CLEARLY_TOO_MUCH * self.memory.total.saturating_add(self.swap) as f64
    }
}

/// Refuses a run that needs clearly more memory than there is, and warns of one that may not fit, before any work.
/// # Errors
/// How much it needs, what there is, and what to lower; not with `train.ignore_memory`.
pub fn check(config: &Config, machine: &Machine) -> Result<()> {
    let estimate = Estimate::here(config, machine);
    let (host, gpu) = estimate.peaks(machine.device, config.train.cuda_graph);
    let mut needs =
        vec![Need { name: "the machine".into(), bytes: host, memory: Memory::of_host(), swap: native::swap_bytes() }];
    if let Some(bytes) = gpu {
        needs.push(Need { name: describe_device(machine.device), bytes, memory: Memory::of(machine.device), swap: 0 });
    }
    for need in &needs {
        let (name, needed, free) = (&need.name, human_bytes(need.bytes), human_bytes(need.memory.free));
        log::debug!("memory of {name}: about {needed} needed, {free} free");
        if need.clearly_too_much() && !config.train.ignore_memory {
            let swap = if need.swap > 0 { format!(" and {} of swap", human_bytes(need.swap)) } else { String::new() };
            bail!(
                "train.batch_size: the run needs about {needed} ({}), {name} has {} in all{swap}; {}, or set \
                 train.ignore_memory=true to try",
                estimate.parts(),
                human_bytes(need.memory.total),
                estimate.advice()
            );
        }
        if need.bytes > need.memory.free {
            log::warn!(
                "the run will need about {needed} of {name}'s memory ({}), {free} free; {}",
                estimate.parts(),
                estimate.advice()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Arch, Stem};

    #[test]
    fn a_gpu_holds_the_state_twice_where_a_graph_is_demanded() {
        let estimate = Estimate { weights: 7, step: 100, batches: 1000, checkpoint: 10000, program: 100_000 };
        assert_eq!(estimate.peaks(Device::Cuda(0), CudaGraph::Auto), (111_000, Some(107)));
        assert_eq!(estimate.peaks(Device::Cuda(0), CudaGraph::On), (111_000, Some(114)));
        assert_eq!(estimate.peaks(Device::Cpu, CudaGraph::Auto), (111_007, None));
    }

    /// Without AVX-512 bf16 takes more memory than fp32; peaks measured on such a processor.
    #[test]
    fn convolutions_as_products_need_their_patches() {
        let mut config = Config::default();
        config.augment.size = 32.into();
        config.model.arch = Arch::Resnet18;
        config.model.stem = Stem::Cifar;
        for (batch, measured) in [(64, 1.40e9), (256, 3.9e9)] {
            config.train.batch_size = batch;
            let peak = |columns| Estimate::with(&config, true, columns).peaks(Device::Cpu, CudaGraph::Off).0 as f64;
            assert!((peak(true) / measured - 1.0).abs() < 0.12, "batch {batch}: {}", peak(true));
            assert!(peak(false) < 0.85 * measured, "batch {batch}: {}", peak(false));
        }
    }

    #[test]
    fn only_what_exceeds_memory_and_swap_by_a_clear_margin_is_refused() {
        let need = |bytes, swap| {
            let memory = Memory { total: 24_000, free: 9_000 };
            Need { name: String::new(), bytes, memory, swap }.clearly_too_much()
        };
        assert!(need(32_000, 0) && need(825_000, 8_000));
        assert!(!need(32_000, 8_000) && !need(25_000, 0) && !need(10_000, 0));
    }

    #[test]
    fn the_advice_is_for_the_largest_part() {
        let estimate = |weights, step, batches| Estimate { weights, step, batches, checkpoint: 0, program: 0 };
        assert!(estimate(3, 1, 1).advice().contains("model.width"));
        assert!(estimate(1, 3, 1).advice().contains("train.accumulation_steps"));
        assert!(estimate(1, 1, 3).advice().contains("data.prefetch_bytes"));
    }
}
