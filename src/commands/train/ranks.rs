//! One process of several: joins the others, begins with rank 0's state, and ends as they do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use tch::Tensor;

use crate::backend;
use crate::checkpoint::Manifest;
use crate::cli::TrainArgs;
use crate::commands::setup::Machine;
use crate::config::Config;
use crate::dist::{Group, Place};
use crate::model::SyncBatchNorm;
use crate::train::{Byol, Ranks};

/// Runs this process's part. An error of any process ends all, and one of them says it.
/// # Errors
/// The one line, or [`crate::dist::Reported`] where another process has it.
pub(super) fn run(place: Place, args: &TrainArgs, config: &Config) -> Result<u8> {
    if place.rank > 0 {
        log::set_max_level(log::LevelFilter::Warn); // rank 0 speaks for all
    }
    let machine = Machine::set_up_one_of(&place, config)?;
    let own = serde_json::json!({
        "manifest": Manifest::new(serde_json::to_value(config)?),
        "precision": machine.precision(),
        "device": if machine.device.is_cuda() { "cuda" } else { "cpu" },
    });
    let differences = |first: &str| -> Result<Vec<String>> {
        let first: serde_json::Value = serde_json::from_str(first).context("rank 0's config")?;
        let mut differences = config.differences(&first["manifest"]["config"])?;
        for (what, path) in [
            ("byol", "/manifest/byol"),
            ("commit", "/manifest/commit"),
            ("libtorch", "/manifest/libtorch"),
            ("train.precision", "/precision"),
            ("train.device", "/device"),
        ] {
            let [ours, theirs] = [&own, &first].map(|of| of.pointer(path).cloned().unwrap_or_default());
            if ours != theirs {
                differences.push(format!("{what}: {ours}, was {theirs}"));
            }
        }
        Ok(differences)
    };
    let group = Arc::new(Group::join(place, &config.dist, machine.device, &own.to_string(), differences)?);
    // tch panics where an operator fails, and so does a collective inside BatchNorm.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let code = super::train(args, config, machine, Some(group.clone()))?;
        group.leave()?;
        Ok(code)
    }));
    let outcome = outcome.unwrap_or_else(|panic| Err(anyhow!(backend::panic_line(&*panic))));
    outcome.map_err(|error| group.explain(error))
}

/// Fails unless every process gets the same number of images in every micro-batch, and BatchNorm more than one.
pub(super) fn check_shares(config: &Config, world: usize) -> Result<()> {
    let (batch, parts) = (config.train.batch_size, config.train.accumulation_steps);
    ensure!(
        world == 1 || batch.is_multiple_of(world * parts) && batch / (world * parts) >= 2,
        "train.batch_size: found {batch}, expected a multiple of {world} processes times {parts} micro-batches, with at \
         least 2 images for each"
    );
    Ok(())
}

/// Has gradients averaged over all processes, and BatchNorm see the batches of all.
pub(super) fn connect(group: &Group, config: &Config, byol: &mut Byol) -> Result<()> {
    if config.model.sync_batchnorm != SyncBatchNorm::Off {
        [&byol.online, &byol.target].iter().for_each(|network| network.params.synchronise(&group.processes));
    }
    byol.ranks = Some(Ranks::new(&group.processes, &byol.online.params)?);
    Ok(())
}

/// Gives every process rank 0's state (networks, optimiser, where the run is), which it may have from a checkpoint that
/// others do not see. `done` says whether rank 0 found the run finished.
pub(super) fn start_alike(group: &Group, byol: &Byol, manifest: &mut Manifest, done: bool) -> Result<bool> {
    let networks = [&byol.online, &byol.target];
    let named = networks.iter().flat_map(|n| n.params.parameters.iter().chain(&n.params.buffers));
    let mut tensors: Vec<Tensor> = named.map(|named| named.tensor.detach()).collect();
    tensors.extend(byol.optimizer.state().into_iter().map(|named| named.tensor));
    group.processes.broadcast(&tensors)?;
    let [online, target] = networks.map(|network| network.batches_tracked.get() as f64);
    let random = manifest.knn_random.unwrap_or(f64::NAN);
    let numbers = group.from_first(&[manifest.step as f64, online, target, random, f64::from(done)])?;
    manifest.step = numbers[0] as u64;
    networks.iter().zip(&numbers[1..]).for_each(|(network, &count)| network.batches_tracked.set(count as i64));
    manifest.knn_random = Some(numbers[3]).filter(|top1| top1.is_finite());
    Ok(numbers[4] > 0.0)
}
