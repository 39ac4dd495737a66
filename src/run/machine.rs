//! What every command does first: choose the device, its precision and threads, and listen for signals.

use std::sync::Arc;

use anyhow::Result;
use tch::Device;

use crate::byol::Byol;
use crate::byol::ema::Ema;
use crate::config::Config;
use crate::data::Dataset;
use crate::data::loader::LoaderOptions;
use crate::distributed::{self, RankInfo};
use crate::model::Network;
use crate::optim::Optimizer;
use crate::signals::Signals;
use crate::train::{Executor, OnNonFinite, Precision};

/// The machine as a config wants it used.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Where tensors live.
    pub device: Device,
    /// Forward passes in bf16 autocast.
    pub bf16: bool,
    /// Threads of libtorch's CPU operators.
    pub threads: usize,
    /// Workers and prefetching of the loaders.
    pub loader: LoaderOptions,
}

impl Machine {
    /// Sets libtorch up as the sections `train` and `data` say; call before any tensor is made.
    /// # Errors
    /// The device is not there, with what is missing.
    pub fn set_up(config: &Config) -> Result<Self> {
        Self::set_up_one_of(&RankInfo::alone(), config)
    }

    /// The same for one of several processes, which share the machine's cores; each has a GPU of its own.
    /// # Errors
    /// As [`Self::set_up`]; fewer GPUs than processes.
    pub fn set_up_one_of(place: &RankInfo, config: &Config) -> Result<Self> {
        let device = distributed::own_device(native::choose_device(config.train.device)?, place)?;
        let processes = place.local_world;
        let (torch_threads, loader_workers) = native::default_threads(device);
        let (torch_threads, loader_workers) = ((torch_threads / processes).max(1), (loader_workers / processes).max(1));
        let threads = config.train.threads.unwrap_or(torch_threads);
        let workers = config.data.workers.unwrap_or(loader_workers);
        native::set_threads(threads);
        if device == Device::Cpu {
            native::keep_freed_memory();
        }
        native::allow_tf32(config.train.allow_tf32)?;
        native::deterministic(config.train.deterministic)?;
        let bf16 = match config.train.precision {
            Precision::Fp32 => false,
            Precision::Bf16 => true,
            Precision::Auto => native::computes_in_bf16(device),
        };
        let loader = config.data.loader(workers);
        Ok(Self { device, bf16, threads, loader })
    }

    /// `fp32` or `bf16`.
    pub fn precision(&self) -> &'static str {
        if self.bf16 { "bf16" } else { "fp32" }
    }
}

/// Both networks as they start, and the optimizer.
pub fn networks(config: &Config, machine: &Machine) -> Byol {
    let (device, bf16) = (machine.device, machine.bf16);
    let mut online = Network::online(&config.model, device, config.train.seed);
    let mut target = Network::target_of(&online, &config.model, device);
    if config.train.channels_last {
        online.params.to_channels_last();
        target.params.to_channels_last();
    }
    let optimizer = Optimizer::new(&config.optimizer, &online.params);
    Byol { online, target, optimizer, ema: Ema::new(device), ranks: None, bf16, device }
}

/// What runs the steps, `grouped` with those of other processes or not.
/// # Errors
/// A CUDA graph that is demanded and cannot be had.
pub fn executor(config: &Config, machine: &Machine, grouped: bool) -> Result<Executor> {
    let obstacle = if config.train.on_non_finite == OnNonFinite::SkipStep {
        Some("train.on_non_finite: skip_step has the host look at every step before its update")
    } else if grouped {
        Some("a step exchanges numbers with other processes")
    } else {
        None
    };
    Executor::new(config.train.cuda_graph, machine.device, obstacle)
}

/// Asked between batches: the exit code of a signal that has come.
pub fn signal(signals: &Signals) -> Arc<dyn Fn() -> Option<i32>> {
    let signals = signals.clone();
    Arc::new(move || signals.exit_code())
}

/// Whether every image has a label.
pub fn labelled(set: &dyn Dataset) -> bool {
    (0..set.len()).all(|index| set.label(index).is_some_and(|label| label >= 0))
}
