//! Going on with a run: which checkpoint, whether it is the same run, and the same state in every process.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use tch::Tensor;

use crate::byol::Byol;
use crate::checkpoint::{self, Manifest};
use crate::config::Config;
use crate::distributed::Group;

/// Loads the checkpoint that `from` names and moves `manifest` to its step.
/// # Errors
/// It cannot be used; the config differs in what changes the result.
pub fn resume(
    from: &str,
    checkpoints: &Path,
    byol: &Byol,
    config: &Config,
    allow_change: bool,
    manifest: &mut Manifest,
) -> Result<()> {
    let accept = |saved: &Manifest| {
        let differences = config.differences(&saved.config)?;
        match (differences.is_empty(), allow_change) {
            (true, _) => {}
            (false, true) => log::warn!("resuming with a changed config: {}", differences.join("; ")),
            (false, false) => bail!(
                "--resume: the config differs from the checkpoint's ({}); restore it, or add --allow-config-change",
                differences.join("; ")
            ),
        }
        if saved.data != manifest.data {
            let set =
                |m: &Manifest| format!("{} images (fingerprint {}...)", m.images, m.data.get(..8).unwrap_or("none"));
            log::warn!(
                "the training images changed since the checkpoint, in names, sizes or number: {} then, {} now; the run \
                 goes on with those of now",
                set(saved),
                set(manifest)
            );
        }
        if saved.step > manifest.total_steps {
            bail!(
                "--resume: the checkpoint is at step {}, but the run now ends at step {}",
                saved.step,
                manifest.total_steps
            );
        }
        let machine = |m: &Manifest| {
            let processes = if m.processes > 1 { format!("{} processes, ", m.processes) } else { String::new() };
            format!("{}, {processes}{} threads, {}", m.device, m.threads, m.precision)
        };
        if machine(saved) != machine(manifest) {
            log::warn!("the checkpoint was made on {}, the run goes on on {}", machine(saved), machine(manifest));
        }
        Ok(())
    };
    let found = if from == "auto" {
        checkpoint::load_newest(checkpoints, byol, accept)?
    } else {
        let folder = PathBuf::from(from);
        if !folder.join("manifest.json").is_file() {
            bail!("--resume: found {from:?}, expected auto or a checkpoint's folder, .../checkpoints/step-...");
        }
        accept(&checkpoint::read_manifest(&folder)?)?;
        Some((folder.clone(), checkpoint::load(&folder, byol)?))
    };
    match found {
        Some((folder, saved)) => {
            log::info!("resuming from {} (step {} of {})", folder.display(), saved.step, manifest.total_steps);
            checkpoint::set_aside(checkpoints, saved.step + 1)?;
            manifest.step = saved.step;
            manifest.knn_random = saved.knn_random;
        }
        None => log::info!("no checkpoint in {} yet: starting", checkpoints.display()),
    }
    Ok(())
}

/// Gives every process rank 0's state (networks, optimizer, where the run is), which it may have from a checkpoint that
/// others do not see. `done` says whether rank 0 found the run finished.
pub fn broadcast_state(group: &Group, byol: &Byol, manifest: &mut Manifest, done: bool) -> Result<bool> {
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
