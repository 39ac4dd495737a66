//! One process or several: a distributed command runs in a single process, as the N processes that `--nproc` starts, or
//! as one of those that another launcher started; all of them exit together.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::checkpoint::Manifest;
use crate::cli::RanksArgs;
use crate::config::Config;
use crate::data::loader::BadImages;
use crate::data::{self, Dataset};
use crate::distributed::{self, Agreement, Backend, Group, RankInfo};
use crate::run::machine::Machine;

/// What the processes of a command need to know beside its config.
pub struct Shared {
    /// What must be the same in each of them: an object of names and values, `command` first.
    pub arguments: Value,
    /// What to do after a process was lost.
    pub advice: &'static str,
}

/// Runs `work` in this process, in the processes that `args` ask for, or as this process's part of those that a
/// launcher has started. The value is the exit code.
/// # Errors
/// The error, or [`distributed::Reported`] if another process prints it.
pub fn run(
    args: &RanksArgs,
    config: &Config,
    shared: &Shared,
    work: impl FnOnce(Machine, Arc<Group>) -> Result<u8>,
) -> Result<u8> {
    distributed::end_with_launcher()?;
    let rank_info = RankInfo::from_env()?;
    match (rank_info, args.nproc) {
        (Some(info), Some(_)) if !distributed::launched() => bail!(
            "--nproc: another launcher started this process as rank {} of {}; remove --nproc, or unset RANK and the like",
            info.rank,
            info.world
        ),
        (Some(info), _) => join(info, config, shared, work),
        (None, Some(count @ 2..)) => distributed::launch(count as usize, &config.dist, shared.advice),
        (None, nproc) if config.dist.backend == Backend::Nccl && (nproc.is_some() || RankInfo::launched_as_one()) => {
            join(RankInfo::single(), config, shared, work)
        }
        (None, _) => in_group(Machine::set_up(config)?, Group::single(), work),
    }
}

/// Runs `work` as one of several processes.
fn join(
    rank_info: RankInfo,
    config: &Config,
    shared: &Shared,
    work: impl FnOnce(Machine, Arc<Group>) -> Result<u8>,
) -> Result<u8> {
    if rank_info.rank > 0 {
        log::set_max_level(log::LevelFilter::Warn); // rank 0 logs for all
    }
    let machine = Machine::set_up_for(&rank_info, config)?;
    let own = json!({
        "manifest": Manifest::new(serde_json::to_value(config)?),
        "precision": machine.precision(),
        "device": if machine.device.is_cuda() { "cuda" } else { "cpu" },
        "arguments": shared.arguments,
    });
    let differences = |first: &str| differences(config, &own, &serde_json::from_str(first).context("rank 0's config")?);
    let agreement = Agreement { own: &own.to_string(), differences: &differences };
    let group = Group::join(rank_info, &config.dist, machine.device, shared.advice, &agreement)?;
    in_group(machine, group, work)
}

/// An error of any process stops all, and one of them prints it.
fn in_group(machine: Machine, group: Group, work: impl FnOnce(Machine, Arc<Group>) -> Result<u8>) -> Result<u8> {
    let group = Arc::new(group);
    // tch panics when an operator fails, and so does a collective inside BatchNorm.
    let outcome = native::caught(|| {
        let code = work(machine, group.clone())?;
        group.leave()?;
        Ok(code)
    });
    outcome.map_err(|error| group.explain(error))
}

/// How this process differs from rank 0.
fn differences(config: &Config, own: &Value, first: &Value) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, ours: &Value, theirs: &Value| {
        if ours != theirs {
            differences.push(format!("{what}: {ours}, was {theirs}"));
        }
    };
    let nothing = Value::Null;
    let at = |of: &'_ Value, path: &str| of.pointer(path).cloned().unwrap_or_default();
    let both = |path| (at(own, path), at(first, path));
    for (what, path) in [
        ("command", "/arguments/command"),
        ("byol", "/manifest/byol"),
        ("commit", "/manifest/commit"),
        ("libtorch", "/manifest/libtorch"),
        ("train.precision", "/precision"),
        ("train.device", "/device"),
    ] {
        let (ours, theirs) = both(path);
        compare(what, &ours, &theirs);
    }
    let (ours, theirs) = both("/arguments");
    if ours["command"] == theirs["command"] {
        for (name, value) in ours.as_object().into_iter().flatten() {
            compare(name, value, theirs.get(name).unwrap_or(&nothing));
        }
    }
    differences.extend(config.differences(&first["manifest"]["config"])?);
    Ok(differences)
}

/// Fails unless all processes have the same images.
pub fn agree_on_data(group: &Group, what: &str, set: &dyn Dataset) -> Result<()> {
    group.agree(what, || Ok(format!("{} images, index {}", set.len(), data::fingerprint(set))))
}

/// Number of distinct bad images over all processes.
/// # Errors
/// Another process was lost or timed out.
pub fn bad_images(bad: &BadImages, group: &Group) -> Result<usize> {
    Ok(group.union(&bad.names())?.len())
}

/// Fails unless every process gets the same number of images in every micro-batch, and BatchNorm more than one.
pub fn check_shares(config: &Config, world: usize) -> Result<()> {
    let (batch, parts) = (config.train.batch_size, config.train.accumulation_steps);
    ensure!(
        batch.is_multiple_of(world * parts) && batch / (world * parts) >= 2,
        "train.batch_size: found {batch}, expected a multiple of {world} processes times {parts} micro-batches, with at \
         least 2 images for each"
    );
    Ok(())
}
