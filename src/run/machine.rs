//! The setup that commands share: device, precision and threads, networks and executor.

use std::sync::Arc;

use anyhow::Result;
use tch::Device;

use crate::byol::{Byol, Ranks};
use crate::config::Config;
use crate::data::loader::LoaderOptions;
use crate::distributed::{self, Group, RankInfo};
use crate::model::{Network, SyncBatchNorm};
use crate::signals::Signals;
use crate::train::{Executor, OnNonFinite, Precision};
use native::ImageLayout;

/// Device, precision and threads for a config.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Device of tensors.
    pub device: Device,
    /// Forward passes in bf16 autocast.
    pub bf16: bool,
    /// Threads of libtorch's CPU operators.
    pub threads: usize,
    /// Workers and prefetching of the loaders.
    pub loader: LoaderOptions,
}

impl Machine {
    /// Sets libtorch up as the sections `train` and `data` say; call before creating any tensor.
    /// # Errors
    /// Why the device is not available.
    pub fn set_up(config: &Config) -> Result<Self> {
        Self::set_up_for(&RankInfo::single(), config)
    }

    /// The same for one of several processes, which share the machine's cores; each has a GPU of its own.
    /// # Errors
    /// As [`Self::set_up`]; fewer GPUs than processes.
    pub fn set_up_for(rank_info: &RankInfo, config: &Config) -> Result<Self> {
        let device = distributed::own_device(native::choose_device(config.train.device)?, rank_info)?;
        let processes = rank_info.local_world;
        let (torch_threads, loader_workers) = native::default_threads(device);
        let (torch_threads, loader_workers) = ((torch_threads / processes).max(1), (loader_workers / processes).max(1));
        let threads = config.train.threads.unwrap_or(torch_threads);
        let workers = config.data.workers.unwrap_or(loader_workers);
        native::set_threads(threads);
        native::share_cores(device, threads, if rank_info.rank == 0 { busy } else { || {} });
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

    /// The layout of the networks' inputs.
    pub fn image_layout(&self, config: &Config) -> ImageLayout {
        ImageLayout { channels_last: config.train.channels_last, bf16: self.bf16 }
    }

    /// `fp32` or `bf16`.
    pub fn precision(&self) -> &'static str {
        if self.bf16 { "bf16" } else { "fp32" }
    }
}

/// Said once where other processes take the cores.
fn busy() {
    log::info!(
        "the CPU is busy with other processes, which slows training down; a smaller train.threads may be faster"
    );
}

/// Both networks with initial weights, and the optimizer. The processes of `group` share each batch.
pub fn byol(config: &Config, machine: &Machine, group: &Group) -> Result<Byol> {
    let mut online = Network::online(&config.model, machine.device, config.train.seed);
    let mut target = Network::target_of(&online, &config.model, machine.device);
    if config.train.channels_last {
        online.params.to_channels_last();
        target.params.to_channels_last();
    }
    let mut byol = Byol::new(online, target, &config.optimizer);
    byol.bf16 = machine.bf16;
    if let Some(processes) = group.processes() {
        if config.model.sync_batchnorm != SyncBatchNorm::Off {
            byol.networks().iter().for_each(|(_, network)| network.params.synchronize(processes));
        }
        byol.ranks = Ranks::new(processes, &byol.online.params)?;
        byol.online.encoder.drop_path.iter().for_each(|draws| draws.share(group.rank(), group.world()));
    }
    Ok(byol)
}

/// Runs the steps of this process. Make it before [`byol`]: gradients arrive on the stream that is current when
/// several processes are connected.
/// # Errors
/// `train.cuda_graph` is on, but a step cannot be captured.
pub fn executor(config: &Config, machine: &Machine, group: &Group) -> Result<Executor> {
    let obstacle = if config.train.on_non_finite == OnNonFinite::SkipStep {
        Some("train.on_non_finite: skip_step checks every step on the host before its update")
    } else if group.processes().is_some() {
        Some("a step communicates with other processes")
    } else {
        None
    };
    fuse_batch_norm(config, machine);
    Executor::new(config.train.cuda_graph, machine.device, obstacle)
}

/// Compiles the kernels of `train.fused_batch_norm`. Without them steps are slower, and nothing else.
fn fuse_batch_norm(config: &Config, machine: &Machine) {
    let Device::Cuda(index) = machine.device else { return };
    if !config.train.fused_batch_norm || !config.train.channels_last {
        return;
    }
    if let Err(why) = native::batch_norm::compile(index) {
        log::warn!("train.fused_batch_norm: libtorch's own kernels are used, steps will be slower: {why:#}");
    }
}

/// Returns the exit code of a signal that has arrived; called between batches.
pub fn signal(signals: &Signals) -> Arc<dyn Fn() -> Option<i32>> {
    let signals = signals.clone();
    Arc::new(move || signals.exit_code())
}
