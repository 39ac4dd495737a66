//! `byol train`: a config becomes the parts of a run, the parts a [`Trainer`], its outcome a summary.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tch::Device;

use crate::backend;
use crate::checkpoint::{self, Manifest};
use crate::cli::TrainArgs;
use crate::config::Config;
use crate::data::loader::{BadImages, Loader, LoaderOptions};
use crate::data::sampler::Sampler;
use crate::data::{self, Dataset};
use crate::eval::ExtractOptions;
use crate::logging::Logger;
use crate::logging::progress::Progress;
use crate::model::Network;
use crate::optim::Optimizer;
use crate::train::{Byol, Ending, KnnWatch, Outcome, Plan, Precision, Signals, Trainer};

/// Runs the command; the value is the process's exit code.
/// # Errors
/// One line: what is wrong, where, and what to do.
pub fn run(args: &TrainArgs) -> Result<u8> {
    let config = Config::load(&args.config, &args.set)?;
    let started = Instant::now();
    let signals = Signals::listen()?;
    let run_dir = &config.output.dir;
    let checkpoints = prepare_folder(run_dir, args.resume.as_deref())?;

    let device = backend::choose_device(config.train.device)?;
    let (torch_threads, loader_workers) = backend::default_threads(device);
    let or = |chosen: usize, automatic: usize| if chosen == 0 { automatic } else { chosen };
    let threads = or(config.train.threads, torch_threads);
    let workers = or(config.data.workers, loader_workers);
    backend::set_threads(threads);
    backend::allow_tf32(config.train.allow_tf32)?;
    backend::deterministic(config.train.deterministic)?;
    let bf16 = match config.train.precision {
        Precision::Fp32 => false,
        Precision::Bf16 => true,
        Precision::Auto => backend::computes_in_bf16(device),
    };

    let dataset = data::open_train(&config.data)?;
    let plan = Plan::new(dataset.len(), &config.train, &config.optimizer, &config.schedule, &config.ema)?;
    let loader_options = LoaderOptions { workers, prefetch: config.data.prefetch_batches, ..LoaderOptions::default() };
    let bad = BadImages::new(config.data.on_bad_image);
    let knn = knn_watch(&config, &dataset, bad.clone(), loader_options)?;

    let byol = build(&config, device, bf16);
    let mut manifest = Manifest {
        total_steps: plan.total_steps,
        steps_per_epoch: plan.steps_per_epoch,
        images: dataset.len(),
        data: dataset.fingerprint(),
        device: backend::describe_device(device),
        threads,
        precision: if bf16 { "bf16" } else { "fp32" }.into(),
        ..Manifest::new(serde_json::to_value(&config)?)
    };
    if let Some(from) = &args.resume {
        resume(from, &checkpoints, &byol, &config, args.allow_config_change, &mut manifest)?;
    }
    checkpoint::write_file(&run_dir.join("config.yaml"), config.to_yaml()?.as_bytes())?;
    announce(&config, &manifest, &byol, &plan, workers);

    let parts = config.train.accumulation_steps;
    let sampler = Sampler::new(dataset.len(), config.train.batch_size, parts, config.train.seed)?;
    let first = manifest.step * parts as u64;
    let loader = Loader::new(dataset, config.augment.clone(), sampler, first, bad.clone(), loader_options)?;
    let resumed = (manifest.step > 0).then_some(manifest.step);
    let progress = Progress::new(plan.total_steps, plan.steps_per_epoch, manifest.step);
    let logger = Logger::open(run_dir, resumed, config.monitor.tensorboard, progress)?;
    let mut trainer = Trainer {
        byol,
        plan,
        loader,
        knn,
        logger,
        manifest,
        checkpoints,
        train: config.train.clone(),
        augment: config.augment.clone(),
        monitor: config.monitor.clone(),
        output: config.output.clone(),
    };
    let outcome = trainer.run(&signals)?;
    summarise(run_dir, &trainer, &outcome, bad.count(), started)
}

/// Makes the run's folder and finds out, before any work, whether it can be written and whether it is free.
fn prepare_folder(run_dir: &Path, resume: Option<&str>) -> Result<PathBuf> {
    let checkpoints = run_dir.join("checkpoints");
    fs::create_dir_all(&checkpoints).with_context(|| format!("output.dir: cannot make {}", checkpoints.display()))?;
    checkpoint::write_file(&run_dir.join("writable"), b"")
        .and_then(|()| Ok(fs::remove_file(run_dir.join("writable"))?))
        .with_context(|| format!("output.dir: cannot write into {}", run_dir.display()))?;
    if resume.is_none() && !checkpoint::list(&checkpoints).is_empty() {
        bail!(
            "output.dir: {} holds a run already; add --resume auto to go on with it, or choose another folder with --set output.dir=...",
            run_dir.display()
        );
    }
    checkpoint::clean(&checkpoints, usize::MAX);
    Ok(checkpoints)
}

fn build(config: &Config, device: Device, bf16: bool) -> Byol {
    let mut online = Network::online(&config.model, device, config.train.seed);
    let mut target = Network::target_of(&online, &config.model, device);
    if config.train.channels_last {
        online.to_channels_last();
        target.to_channels_last();
    }
    let optimizer = Optimizer::new(&config.optimizer, &online.params);
    Byol { online, target, optimizer, bf16, device }
}

/// k-NN monitoring, where the config asks for it and there are labels.
fn knn_watch(
    config: &Config,
    bank: &Arc<dyn Dataset>,
    bad: Arc<BadImages>,
    loader: LoaderOptions,
) -> Result<Option<KnnWatch>> {
    if config.monitor.knn_every == 0 {
        return Ok(None);
    }
    if (0..bank.len()).any(|index| bank.label(index).is_none()) {
        log::info!("no k-NN accuracy: not every training image has a label");
        return Ok(None);
    }
    let queries = data::open_eval(&config.data)?;
    match &queries {
        Some(set) => log::info!("k-NN: {} held-out images", set.len()),
        None => log::info!(
            "k-NN: no held-out images (data.eval_path); training images classify each other, leaving one out"
        ),
    }
    Ok(Some(KnnWatch {
        bank: bank.clone(),
        queries,
        monitor: config.monitor.clone(),
        augment: config.augment.clone(),
        options: ExtractOptions {
            batch_size: config.train.micro_batch().clamp(64, 512),
            loader,
            bad,
            channels_last: config.train.channels_last,
        },
    }))
}

/// Loads the checkpoint that `from` names and moves `manifest` to its step.
fn resume(
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
            log::warn!(
                "the training images changed since the checkpoint: {} then, {} now; the run goes on with those of now",
                saved.images,
                manifest.images
            );
        }
        Ok(())
    };
    let found = if from == "auto" {
        checkpoint::load_newest(checkpoints, byol, accept)?
    } else {
        let folder = PathBuf::from(from);
        accept(&checkpoint::read_manifest(&folder)?)?;
        Some((folder.clone(), checkpoint::load(&folder, byol)?))
    };
    match found {
        Some((folder, saved)) => {
            log::info!("resuming from {} (step {} of {})", folder.display(), saved.step, manifest.total_steps);
            manifest.step = saved.step;
            manifest.knn_random = saved.knn_random;
        }
        None => log::info!("no checkpoint in {} yet: starting", checkpoints.display()),
    }
    Ok(())
}

fn announce(config: &Config, manifest: &Manifest, byol: &Byol, plan: &Plan, workers: usize) {
    let cpu = if byol.device == Device::Cpu { format!(", {} threads", manifest.threads) } else { String::new() };
    log::info!(
        "{} images, {} a step, {} steps an epoch, {} epochs; {:?} with {:.2} M parameters on {}{cpu} in {}, {workers} loader workers; peak lr {:.4}",
        manifest.images,
        config.train.batch_size,
        plan.steps_per_epoch,
        config.schedule.epochs,
        config.model.arch,
        byol.online.params.count() as f64 / 1e6,
        manifest.device,
        manifest.precision,
        plan.peak_lr,
    );
}

/// `summary.json` and the last line on stdout.
#[derive(Serialize)]
struct Summary<'a> {
    ending: &'static str,
    step: u64,
    total_steps: u64,
    epochs: f64,
    loss: f64,
    z_std: f64,
    collapsed: bool,
    knn_top1_random: Option<f64>,
    knn_top1: Option<f64>,
    images_per_second: f64,
    seconds: f64,
    images_skipped: usize,
    device: &'a str,
    precision: &'a str,
    checkpoint: &'a Path,
}

fn summarise(run_dir: &Path, trainer: &Trainer, outcome: &Outcome, skipped: usize, started: Instant) -> Result<u8> {
    let manifest = &trainer.manifest;
    let (ending, code) = match outcome.ending {
        Ending::Finished => ("finished", 0),
        Ending::MaxSteps => ("max_steps", 0),
        Ending::Signal(code) => ("signal", code as u8),
    };
    let summary = Summary {
        ending,
        step: manifest.step,
        total_steps: manifest.total_steps,
        epochs: trainer.plan.epochs(manifest.step),
        loss: outcome.loss,
        z_std: outcome.z_std,
        collapsed: outcome.collapsed,
        knn_top1_random: manifest.knn_random,
        knn_top1: outcome.knn_top1,
        images_per_second: outcome.images_per_second,
        seconds: started.elapsed().as_secs_f64(),
        images_skipped: skipped,
        device: &manifest.device,
        precision: &manifest.precision,
        checkpoint: &outcome.checkpoint,
    };
    checkpoint::write_file(&run_dir.join("summary.json"), &serde_json::to_vec_pretty(&summary)?)?;
    let verb = match outcome.ending {
        Ending::Finished => "finished",
        Ending::MaxSteps => "stopped at train.max_steps",
        Ending::Signal(_) => "stopped by a signal (go on with --resume auto)",
    };
    let knn = match (summary.knn_top1_random, summary.knn_top1) {
        (Some(random), Some(trained)) => {
            format!(", k-NN top-1 {:.1} % (random encoder {:.1} %)", 100.0 * trained, 100.0 * random)
        }
        (None, Some(trained)) => format!(", k-NN top-1 {:.1} %", 100.0 * trained),
        _ => String::new(),
    };
    let skipped = match summary.images_skipped {
        0 => String::new(),
        count => format!(", {count} unreadable images replaced"),
    };
    let line = format!(
        "{verb}: step {} of {}, loss {:.4}{knn}, {:.0} images/s, {:.0} s{skipped}; checkpoint {}",
        summary.step,
        summary.total_steps,
        summary.loss,
        summary.images_per_second,
        summary.seconds,
        summary.checkpoint.display()
    );
    // Whoever reads stdout may be gone; the run is complete all the same.
    let _ = writeln!(std::io::stdout(), "{line}");
    Ok(code)
}
