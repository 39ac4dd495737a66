//! Resuming a run: finding the checkpoint, checking that it is the same run, and sharing the state with all processes.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use tch::Tensor;

use crate::byol::Byol;
use crate::checkpoint::{self, Manifest};
use crate::config::Config;
use crate::data;
use crate::distributed::Group;
use crate::train::Plan;

/// Where to resume from, and what may differ.
pub struct Resume<'a> {
    /// `auto`, a run's folder, or a checkpoint's.
    pub from: &'a str,
    /// The run's checkpoints.
    pub checkpoints: &'a Path,
    /// The config of this invocation.
    pub config: &'a Config,
    /// Whether keys that change the result may differ.
    pub allow_config_change: bool,
}

impl Resume<'_> {
    /// Loads the checkpoint, and advances `manifest` and `plan` to its step.
    /// # Errors
    /// The checkpoint cannot be used; the config differs in a key that changes the result.
    pub fn load(&self, byol: &Byol, plan: &mut Plan, manifest: &mut Manifest) -> Result<()> {
        let Some((folder, saved)) = self.find(byol, plan, manifest)? else {
            log::info!("no checkpoint in {} yet: starting a new run", self.checkpoints.display());
            return Ok(());
        };
        let (before, position) = (saved.total_steps.saturating_sub(saved.step), position(&saved, plan));
        plan.place(saved.step, position);
        if let Some(pace) = &saved.pace {
            plan.stretch_to((pace.schedule_steps, pace.warmup_steps, pace.ahead));
        }
        manifest.pace = saved.pace.clone();
        move_to(manifest, plan, saved.step);
        manifest.knn_random = saved.knn_random;
        manifest.init = saved.init;
        log::info!("resuming from {} ({})", folder.display(), checkpoint::progress(saved.step, manifest.total_steps));
        if saved.steps_per_epoch != plan.steps_per_epoch {
            log::warn!(
                "an epoch has {} steps, was {}: the run keeps its position in the schedule, epoch {:.2} of {}; steps \
                 left: {}, was {before}; the learning rate is {:.4} now",
                plan.steps_per_epoch,
                saved.steps_per_epoch,
                plan.epochs(saved.step),
                self.config.schedule.epochs,
                plan.total_steps - saved.step,
                plan.rates(saved.step).lr
            );
        }
        checkpoint::set_aside(self.checkpoints, saved.step + 1)
    }

    fn find(&self, byol: &Byol, plan: &Plan, now: &Manifest) -> Result<Option<(PathBuf, Manifest)>> {
        let differences = RefCell::new(String::new());
        let accept = |saved: &Manifest| {
            differences.replace(self.config.differences(&saved.config)?.join("; "));
            self.accept(saved, plan, now, &differences.borrow())
        };
        let folder = PathBuf::from(self.from);
        let found = if self.from == "auto" {
            checkpoint::load_newest(self.checkpoints, byol, accept)
        } else if !checkpoint::list(&folder.join("checkpoints")).is_empty() {
            checkpoint::load_newest(&folder.join("checkpoints"), byol, accept)
        } else if folder.join("manifest.json").is_file() && folder.join("SHA256SUMS").is_file() {
            accept(&checkpoint::read_manifest(&folder)?)?;
            checkpoint::load(&folder, byol).map(|saved| Some((folder, saved)))
        } else {
            bail!(
                "--resume: found {:?}, expected auto, the folder of a run with checkpoints, or a checkpoint's folder, \
                 .../checkpoints/step-...",
                self.from
            )
        };
        found.map_err(|error| match error.is::<checkpoint::Mismatch>() {
            true => error.context(format!(
                "--resume: the checkpoint is of another model or optimizer ({}); restore the config, or start a new run {}",
                differences.borrow(),
                self.new_run(&differences.borrow())
            )),
            false => error,
        })
    }

    /// How to start a new run in place of one that cannot be resumed: its encoder can be taken over if it is the same.
    fn new_run(&self, differences: &str) -> String {
        let other = ["model.arch", "model.width", "model.stem"].iter().any(|key| differences.contains(key));
        let run = if self.from == "auto" {
            self.checkpoints.parent().unwrap_or(self.checkpoints)
        } else {
            Path::new(self.from)
        };
        match other {
            true => "in another folder with --set output.dir=...".into(),
            false => {
                format!("from its encoder in another folder: --set model.init={} --set output.dir=...", run.display())
            }
        }
    }

    /// Compares a checkpoint with this invocation.
    fn accept(&self, saved: &Manifest, plan: &Plan, now: &Manifest, differences: &str) -> Result<()> {
        match (differences.is_empty(), self.allow_config_change) {
            (true, _) => {}
            (false, true) => log::warn!("resuming with a changed config: {differences}"),
            (false, false) => bail!(
                "--resume: the config differs from the checkpoint's ({differences}); restore it, or add \
                 --allow-config-change"
            ),
        }
        if !data::same(&saved.data, &now.data) {
            let set = |m: &Manifest| format!("{} images (fingerprint {})", m.images, data::short(&m.data));
            log::warn!(
                "the training images changed since the checkpoint, in names, sizes, number or labels: {} then, {} now; the run \
                 continues with the current ones",
                set(saved),
                set(now)
            );
        }
        let (position, end) = (position(saved, plan), plan.total_steps);
        if position > end && saved.pace.is_none() {
            let ahead = position as i64 - saved.step as i64;
            bail!(
                "--resume: the checkpoint is at step {}, but the run now ends at step {}",
                saved.step,
                end.saturating_add_signed(-ahead)
            );
        }
        let machine = |m: &Manifest| {
            let processes = if m.processes > 1 { format!("{} processes, ", m.processes) } else { String::new() };
            format!("{}, {processes}{} threads, {}", m.device, m.threads, m.precision)
        };
        if machine(saved) != machine(now) {
            log::warn!("the checkpoint was written on {}, the run continues on {}", machine(saved), machine(now));
        }
        Ok(())
    }
}

/// The config of the run that `from`, the value of `--resume`, names; `None` if there is none that can be read.
pub fn config_of(from: &str, checkpoints: &Path) -> Option<serde_json::Value> {
    let folder = PathBuf::from(from);
    let folders = match from {
        "auto" => checkpoint::list(checkpoints),
        _ => checkpoint::list(&folder.join("checkpoints")).into_iter().chain([folder]).collect(),
    };
    folders.iter().find_map(|folder| checkpoint::read_manifest(folder).ok()).map(|manifest| manifest.config)
}

/// A checkpoint's position in the new schedule: after as many epochs as in its own.
fn position(saved: &Manifest, plan: &Plan) -> u64 {
    let (was, now) = (saved.steps_per_epoch, plan.steps_per_epoch);
    let position = saved.step.saturating_add_signed(saved.schedule_offset);
    if was == now || was == 0 {
        return position;
    }
    (position as f64 * now as f64 / was as f64).round() as u64
}

/// `manifest` after `step` steps of a run that follows `plan`.
fn move_to(manifest: &mut Manifest, plan: &Plan, step: u64) {
    manifest.step = step;
    manifest.schedule_offset = plan.offset();
    manifest.total_steps = plan.total_steps;
}

/// Broadcasts rank 0's state (networks, optimizer, step) to all processes, which may not see its checkpoints.
/// `finished` is whether rank 0 found the run finished.
pub fn broadcast_state(
    group: &Group,
    byol: &Byol,
    plan: &mut Plan,
    manifest: &mut Manifest,
    finished: bool,
) -> Result<bool> {
    let tensors: Vec<Tensor> = byol.tensors().into_iter().map(|named| named.tensor.detach()).collect();
    group.broadcast(&tensors)?;
    let [online, target] = byol.batches_tracked().map(|count| count as f64);
    let random = manifest.knn_random.unwrap_or(f64::NAN);
    let (step, position) = (manifest.step as f64, plan.position(manifest.step) as f64);
    let pace = manifest.pace.as_ref().map(|pace| (pace.schedule_steps, pace.warmup_steps, pace.ahead));
    let (schedule, warmup, ahead) = pace.unwrap_or_default(); // a schedule of 0 steps is none
    let own =
        [step, position, online, target, random, f64::from(finished), schedule as f64, warmup as f64, ahead as f64];
    let numbers = group.from_first(&own)?;
    let step = numbers[0] as u64;
    plan.place(step, numbers[1] as u64);
    if numbers[6] > 0.0 {
        plan.stretch_to((numbers[6] as u64, numbers[7] as u64, numbers[8] as i64));
    }
    move_to(manifest, plan, step);
    byol.set_batches_tracked([numbers[2] as i64, numbers[3] as i64]);
    manifest.knn_random = Some(numbers[4]).filter(|top1| top1.is_finite());
    Ok(numbers[5] > 0.0)
}
