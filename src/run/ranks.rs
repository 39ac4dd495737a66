//! One process or several: a command that shares its work runs alone, as the N processes that `--nproc` starts, or as
//! one of those that another launcher has started; all of them end as one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::byol::{Byol, Ranks};
use crate::checkpoint::Manifest;
use crate::cli::RanksArgs;
use crate::config::Config;
use crate::data::Dataset;
use crate::data::loader::BadImages;
use crate::distributed::{self, Backend, Group, RankInfo};
use crate::model::SyncBatchNorm;
use crate::run::machine::Machine;

/// What a command is to its processes.
pub struct Shared {
    /// What must be the same in each of them beside the config: an object of names and values.
    pub asked: Value,
    /// What to do after one was lost.
    pub advice: &'static str,
}

/// Runs `work` in this process, in the processes that `args` ask for, or as this process's part of those that a
/// launcher has started. The value is the exit code.
/// # Errors
/// The one line, or [`dist::Reported`] where another process has it.
pub fn run(
    args: &RanksArgs,
    config: &Config,
    shared: &Shared,
    work: impl FnOnce(Machine, Option<Arc<Group>>) -> Result<u8>,
) -> Result<u8> {
    distributed::end_with_launcher()?;
    match (RankInfo::from_env()?, args.nproc) {
        (Some(place), Some(_)) if !distributed::launched() => bail!(
            "--nproc: another launcher has made this rank {} of {}; leave --nproc out, or unset RANK and the like",
            place.rank,
            place.world
        ),
        (Some(place), _) => one_of(place, config, shared, work),
        (None, Some(count @ 2..)) => distributed::launch(count as usize, &config.dist, shared.advice),
        (None, nproc) if config.dist.backend == Backend::Nccl && (nproc.is_some() || RankInfo::of_one()) => {
            one_of(RankInfo::alone(), config, shared, work)
        }
        (None, _) => work(Machine::set_up(config)?, None),
    }
}

/// This process's part. An error of any process ends all, and one of them says it.
fn one_of(
    place: RankInfo,
    config: &Config,
    shared: &Shared,
    work: impl FnOnce(Machine, Option<Arc<Group>>) -> Result<u8>,
) -> Result<u8> {
    if place.rank > 0 {
        log::set_max_level(log::LevelFilter::Warn); // rank 0 speaks for all
    }
    let machine = Machine::set_up_one_of(&place, config)?;
    let own = json!({
        "manifest": Manifest::new(serde_json::to_value(config)?),
        "precision": machine.precision(),
        "device": if machine.device.is_cuda() { "cuda" } else { "cpu" },
        "asked": shared.asked,
    });
    let differences = |first: &str| differences(config, &own, &serde_json::from_str(first).context("rank 0's config")?);
    let agreed = (own.to_string(), differences);
    let group = Group::join(place, &config.dist, machine.device, shared.advice, (&agreed.0, agreed.1))?;
    let group = Arc::new(group);
    // tch panics where an operator fails, and so does a collective inside BatchNorm.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let code = work(machine, Some(group.clone()))?;
        group.leave()?;
        Ok(code)
    }));
    let outcome = outcome.unwrap_or_else(|panic| Err(anyhow!(native::panic_line(&*panic))));
    outcome.map_err(|error| group.explain(error))
}

/// What of this process is not as in rank 0.
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
        ("command", "/asked/command"),
        ("byol", "/manifest/byol"),
        ("commit", "/manifest/commit"),
        ("libtorch", "/manifest/libtorch"),
        ("train.precision", "/precision"),
        ("train.device", "/device"),
    ] {
        let (ours, theirs) = both(path);
        compare(what, &ours, &theirs);
    }
    let (ours, theirs) = both("/asked");
    if ours["command"] == theirs["command"] {
        for (name, value) in ours.as_object().into_iter().flatten() {
            compare(name, value, theirs.get(name).unwrap_or(&nothing));
        }
    }
    differences.extend(config.differences(&first["manifest"]["config"])?);
    Ok(differences)
}

/// Fails unless all processes have the same images.
/// # Errors
/// What differs.
pub fn agree_on_data(group: &Group, what: &str, set: &dyn Dataset) -> Result<()> {
    group.agree(what, &format!("{} images, index {}", set.len(), set.fingerprint()))
}

/// How many different images were bad, in whichever process.
/// # Errors
/// A process is gone, or late.
pub fn bad_images(bad: &BadImages, group: Option<&Group>) -> Result<usize> {
    Ok(group.map_or(Ok(bad.names()), |group| group.union(&bad.names()))?.len())
}

/// Fails unless every process gets the same number of images in every micro-batch, and BatchNorm more than one.
/// # Errors
/// What is found and expected.
pub fn check_shares(config: &Config, world: usize) -> Result<()> {
    let (batch, parts) = (config.train.batch_size, config.train.accumulation_steps);
    ensure!(
        world == 1 || batch.is_multiple_of(world * parts) && batch / (world * parts) >= 2,
        "train.batch_size: found {batch}, expected a multiple of {world} processes times {parts} micro-batches, with at \
         least 2 images for each"
    );
    Ok(())
}

/// Has gradients averaged over all processes, and BatchNorm see the batches of all.
/// # Errors
/// What libtorch says.
pub fn connect(group: &Group, config: &Config, byol: &mut Byol) -> Result<()> {
    if config.model.sync_batchnorm != SyncBatchNorm::Off {
        [&byol.online, &byol.target].iter().for_each(|network| network.params.synchronize(&group.processes));
    }
    byol.ranks = Some(Ranks::new(&group.processes, &byol.online.params)?);
    Ok(())
}
