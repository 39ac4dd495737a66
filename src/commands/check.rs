//! `byol check`: what would stop a run, and how long it would take, before hours are spent on it.

use std::io::{Write, stdout};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tch::Device;

use crate::byol::Byol;
use crate::choose::Source;
use crate::cli::CheckArgs;
use crate::commands::train::{Setup, take_folder};
use crate::config::Config;
use crate::data;
use crate::distributed::Group;
use crate::run::machine::Machine;
use crate::run::memory::{self, Estimate};
use crate::run::ranks;
use crate::run::trial::Trial;
use crate::signals::Signals;
use crate::train::updates::{self, RunKind};
use native::{Memory, describe_device, human_bytes};

/// Most seconds that the steps take.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the command.
pub fn run(args: &CheckArgs) -> Result<u8> {
    let source = Source { config: args.source.config.clone(), set: args.source.set.clone() };
    let config = Config::load(&source.config, &source.set)?;
    let signals = Signals::default();
    let (machine, group) = (Machine::set_up(&config)?, std::sync::Arc::new(Group::single()));
    let existed = config.output.dir.exists();
    let folder = take_folder(args.resume, &config, &group)?;
    let lines = native::caught(|| {
        let mut setup = Setup {
            resume: None,
            allow_config_change: false,
            source: &source,
            config: config.clone(),
            machine,
            group,
            signals,
        };
        lines(&mut setup, folder.checkpoints().as_path(), args.steps.into())
    });
    drop(folder);
    if !existed {
        remove_empty(&config.output.dir);
    }
    for (what, value) in lines? {
        writeln!(stdout(), "{what:<12} {value}").context("cannot write to stdout")?;
    }
    Ok(0)
}

/// Removes a folder that only this command's lock is in.
fn remove_empty(dir: &Path) {
    let _ = std::fs::remove_file(dir.join("lock"));
    for folder in [dir.join("checkpoints"), dir.to_path_buf()] {
        let _ = std::fs::remove_dir(folder); // fails for one with files
    }
}

/// Everything that is checked and measured, as (what, value).
fn lines(setup: &mut Setup, checkpoints: &Path, steps: u64) -> Result<Vec<(&'static str, String)>> {
    let source = setup.source;
    let place = |key: &str| source.place(key);
    ranks::check_shares(&setup.config, 1).with_context(|| place("train.batch_size"))?;
    let dataset = setup.open_images(checkpoints)?;
    let (config, machine) = (&setup.config, &setup.machine);
    memory::check(config, machine)?;
    let mut trial = Trial::new(config, machine, Some(dataset.clone()), &setup.group, &place)?;
    let held_out = data::open_eval(&config.data).context("data.eval_path")?;
    setup.knn_watch(config, &dataset, held_out, trial.bad.clone())?;
    let (plan, hours) = (trial.plan.clone(), config.schedule.hours);
    let mut lines = vec![("config", format!("{}: accepted", setup.source.config.display()))];
    let updates = if hours.is_some() { String::new() } else { format!(", {} updates", plan.total_steps) };
    lines.push(("images", format!("{}, {} steps an epoch{updates}", dataset.len(), plan.steps_per_epoch)));
    lines.extend(memory_lines(config, machine));
    lines.push(("disk", disk_line(config, &trial.byol)?));
    let seconds = trial.seconds_per_step(steps, LIMIT)?;
    let rate = config.train.batch_size as f64 / seconds;
    let loss =
        if trial.bad.count() > 0 { format!(", {} bad images skipped", trial.bad.count()) } else { String::new() };
    lines.push((
        "speed",
        format!("{rate:.1} images/s, {seconds:.3} s a step ({}){loss}", describe_device(machine.device)),
    ));
    let whole = hours.map_or(plan.total_steps as f64 * seconds, |hours| hours * 3600.0);
    lines.push(("time", format!("{} to the end, without evaluations", duration(whole))));
    lines.push(("checkpoints", checkpoints_line(config, plan.steps_per_epoch, seconds)));
    let kind = RunKind::new(config.data.format == data::Format::Synthetic, config.augment.size);
    updates::warn_if_few((whole / seconds) as u64, &kind);
    updates::warn_of_batch_norm(config.train.micro_batch(), &kind);
    Ok(lines)
}

fn memory_lines(config: &Config, machine: &Machine) -> Vec<(&'static str, String)> {
    let (host, gpu) = Estimate::here(config, machine).peaks(machine.device, config.train.cuda_graph);
    let line = |needed: u64, free: u64| {
        let note = if needed > free { " (more than is free)" } else { "" };
        format!("about {} needed, {} free{note}", human_bytes(needed), human_bytes(free))
    };
    let mut lines = vec![("memory", line(host, Memory::of_host().free))];
    if let (Some(needed), Device::Cuda(_)) = (gpu, machine.device) {
        lines.push(("GPU memory", line(needed, Memory::of(machine.device).free)));
    }
    lines
}

/// # Errors
/// Less free disk than the checkpoints take.
fn disk_line(config: &Config, byol: &Byol) -> Result<String> {
    let one: u64 = byol.tensors().iter().map(|named| 4 * named.tensor.numel() as u64).sum();
    // A new one is written before the oldest is removed.
    let kept = config.output.keep_checkpoints as u64 + 1;
    let (needed, dir) = (one * kept, &config.output.dir);
    let there = dir.ancestors().find(|folder| folder.exists()).filter(|folder| !folder.as_os_str().is_empty());
    let stat = rustix::fs::statvfs(there.unwrap_or(Path::new("."))).context("free disk space")?;
    let free = stat.f_bavail * stat.f_frsize;
    let (needed_text, free_text) = (human_bytes(needed), human_bytes(free));
    if needed > free {
        bail!(
            "output.dir: {kept} checkpoints of {} need {needed_text}, {} has {free_text} free; lower \
             output.keep_checkpoints, or choose another folder with --set output.dir=...",
            human_bytes(one),
            dir.display()
        );
    }
    Ok(format!("{needed_text} needed ({kept} checkpoints of {}), {free_text} free", human_bytes(one)))
}

fn checkpoints_line(config: &Config, steps_per_epoch: u64, seconds: f64) -> String {
    let by_epochs =
        config.output.checkpoint_every_epochs.map(|every| 3600.0 / (every * steps_per_epoch) as f64 / seconds);
    let by_steps = config.output.checkpoint_every_steps.map(|every| 3600.0 / every as f64 / seconds);
    match by_epochs.unwrap_or(0.0) + by_steps.unwrap_or(0.0) {
        0.0 => {
            "one, at the end of the run: a run that is killed before loses all (output.checkpoint_every_epochs)".into()
        }
        per_hour => format!("{per_hour:.2} an hour: a run that is killed loses up to {}", duration(3600.0 / per_hour)),
    }
}

/// `3 s`, `12 min`, `5.2 h`, `3.1 days`.
fn duration(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_a_unit_of_their_size() {
        let shown = [5.0, 600.0, 36_000.0, 864_000.0].map(duration);
        assert_eq!(shown, ["5 s", "10 min", "10.0 h", "10.0 days"]);
    }

    #[test]
    fn checkpoints_are_counted_per_hour() {
        let mut config = Config::default();
        config.output.checkpoint_every_epochs = Some(2);
        let line = checkpoints_line(&config, 10, 1.8);
        assert!(line.starts_with("100.00 an hour") && line.ends_with("36 s"), "{line}");
        config.output.checkpoint_every_epochs = None;
        assert!(checkpoints_line(&config, 10, 1.8).starts_with("one, at the end"));
    }
}
