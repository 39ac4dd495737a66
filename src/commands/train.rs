//! `byol train`: a config becomes the parts of a run, the parts a [`Trainer`], its outcome a summary.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tch::Device;

use crate::byol::Byol;
use crate::checkpoint::{self, Manifest};
use crate::cli::TrainArgs;
use crate::config::Config;
use crate::data::loader::sampler::Sampler;
use crate::data::loader::{BadImages, Loader, LoaderOptions};
use crate::data::{self, Dataset};
use crate::distributed::Group;
use crate::eval;
use crate::logging::Logger;
use crate::logging::progress::Progress;
use crate::run::evaluation::extract_options;
use crate::run::machine::{self as setup, Machine};
use crate::run::ranks::{self, Shared};
use crate::run::{memory, resume, summary};
use crate::signals::Signals;
use crate::train::{Feed, KnnWatch, OnWriteError, Plan, RunFolder, Saver, Trainer};

/// Runs the command; the value is the process's exit code.
/// # Errors
/// One line: what is wrong, where, and what to do.
pub fn run(args: &TrainArgs) -> Result<u8> {
    let config = Config::load(&args.source.config, &args.source.set)?;
    // These change no weights, and so a resumed run may have others, but they say when all processes come together.
    let (end, monitor) = (config.train.max_steps, &config.monitor);
    let asked = json!({"command": "train", "train.max_steps": end, "monitor": monitor});
    let shared = Shared { asked, advice: "go on from its last checkpoint with --resume auto" };
    ranks::run(&args.ranks, &config, &shared, |machine, group| train(args, &config, machine, group))
}

/// Puts a run together and does it; `group` are the processes that share each batch.
fn train(args: &TrainArgs, config: &Config, machine: Machine, group: Option<Arc<Group>>) -> Result<u8> {
    let started = Instant::now();
    let (rank, world) = group.as_ref().map_or((0, 1), |group| (group.place.rank, group.place.world));
    let place = |key: &str| Config::place(&args.source.config, &args.source.set, key);
    let run_dir = &config.output.dir;
    let signals = Signals::default();
    signals.install_nonfatal()?;
    let mut folder = if rank == 0 { RunFolder::take(run_dir)? } else { RunFolder::for_worker(run_dir) };
    if rank == 0 && args.resume.is_none() && !checkpoint::list(&folder.checkpoints()).is_empty() {
        bail!(
            "output.dir: {} holds a run already; add --resume auto to go on with it, or choose another folder with --set output.dir=...",
            run_dir.display()
        );
    }

    ranks::check_shares(config, world).with_context(|| place("train.batch_size"))?;
    let executor = setup::executor(config, &machine, group.is_some())?;
    let dataset = data::open_train(&config.data).with_context(|| format!("{}: data.path", place("data.path")))?;
    let mut share = config.clone();
    share.train.batch_size /= world;
    if rank == 0 {
        memory::check(&share, &machine)?;
    }
    signals.listen()?; // until here the signals' own effect, the end, loses nothing
    let plan = Plan::new(dataset.len(), &config.train, &config.optimizer, &config.schedule, &config.ema)
        .with_context(|| place("train.batch_size"))?;
    let bad = BadImages::new(config.data.on_bad_image);
    let knn = knn_watch(&share, &dataset, bad.clone(), machine.loader, &signals, group.clone())?;

    let mut byol = setup::networks(config, &machine);
    if let Some(group) = &group {
        ranks::connect(group, config, &mut byol)?;
    }
    let mut manifest = Manifest {
        total_steps: plan.total_steps,
        steps_per_epoch: plan.steps_per_epoch,
        images: dataset.len(),
        data: dataset.fingerprint(),
        device: native::describe_device(machine.device),
        threads: machine.threads,
        processes: world,
        precision: machine.precision().into(),
        config_sha256: config.fingerprint()?,
        seed: config.train.seed,
        deterministic: config.train.deterministic,
        ..Manifest::new(serde_json::to_value(config)?)
    };
    if let Some(from) = args.resume.as_ref().filter(|_| rank == 0) {
        resume::resume(from, &folder.checkpoints(), &byol, config, args.allow_config_change, &mut manifest)?;
    }
    let mut finished = manifest.step == plan.total_steps && summary::finished(run_dir, manifest.step);
    if let Some(group) = &group {
        group.agree("data", &format!("{} images, index {}", manifest.images, manifest.data))?;
        finished = resume::broadcast_state(group, &byol, &mut manifest, finished)?;
    }
    if finished {
        log::info!("nothing left to do: {} has finished all {} steps", run_dir.display(), manifest.step);
        return Ok(0);
    }
    folder.put("config.yaml", config.to_yaml()?.into_bytes())?;
    folder.put("manifest.json", serde_json::to_vec_pretty(&manifest)?)?;
    announce(config, &manifest, &byol, &plan, machine.loader.workers, world);

    let parts = config.train.accumulation_steps;
    let sampler = Sampler::new(dataset.len(), config.train.batch_size, parts, config.train.seed)?;
    let first = manifest.step * parts as u64;
    let own = LoaderOptions { rank, world, ..machine.loader };
    let loader = Loader::new(dataset, config.augment.clone(), sampler, first, bad.clone(), own)?;
    let feed = Feed::new(&config.augment, machine.device, config.train.channels_last, machine.bf16)?;
    let resumed = (manifest.step > 0).then_some(manifest.step);
    let logger = || -> Result<Logger> {
        let progress = Progress::new(plan.total_steps, plan.steps_per_epoch, manifest.step);
        let logger = Logger::open(run_dir, resumed, config.monitor.tensorboard, progress)?;
        Ok(logger.retrying(config.output.on_write_error == OnWriteError::Retry))
    };
    let logger = (rank == 0).then(logger).transpose()?;
    let mut trainer = Trainer {
        byol,
        plan,
        loader,
        feed,
        executor,
        knn,
        logger,
        group: group.clone(),
        saver: Saver::new(folder, config.output.clone(), manifest.step),
        manifest,
        train: config.train.clone(),
        monitor: config.monitor.clone(),
    };
    let outcome = trainer.run(&signals)?;
    let skipped = ranks::bad_images(&bad, group.as_deref())?;
    summary::summarize(&mut trainer, &outcome, skipped, started)
}

/// k-NN monitoring, where the config asks for it and there are labels.
fn knn_watch(
    config: &Config,
    bank: &Arc<dyn Dataset>,
    bad: Arc<BadImages>,
    loader: LoaderOptions,
    signals: &Signals,
    group: Option<Arc<Group>>,
) -> Result<Option<KnnWatch>> {
    if config.monitor.knn_every == 0 {
        return Ok(None);
    }
    let Some(labelled) = data::subset::labelled(bank.clone()) else {
        log::info!("no k-NN accuracy: no training image has a label");
        return Ok(None);
    };
    if !eval::several_classes(&*labelled) {
        log::info!("no k-NN accuracy: all labelled training images are of one class");
        return Ok(None);
    }
    if labelled.len() < bank.len() {
        log::info!("k-NN: the {} labelled ones of {} training images vote", labelled.len(), bank.len());
    }
    let mut queries = data::open_eval(&config.data).context("data.eval_path")?;
    if queries.as_ref().is_some_and(|set| !setup::labelled(&**set)) {
        if config.data.eval_path.is_some() {
            bail!(
                "data.eval_path: found images without labels, expected labels for all; leave it out, or set monitor.knn_every=0"
            );
        }
        log::info!("k-NN: the images beside the training set have no labels and are left out");
        queries = None;
    }
    match &queries {
        Some(set) => log::info!("k-NN: {} held-out images", set.len()),
        None => log::info!(
            "k-NN: no held-out images (data.eval_path); training images classify each other, leaving one out"
        ),
    }
    Ok(Some(KnnWatch {
        bank: labelled,
        queries,
        monitor: config.monitor.clone(),
        augment: config.augment.clone(),
        options: extract_options(config, loader, bad, signals, group),
    }))
}

/// What the run is made of, and from what it can be repeated.
fn announce(config: &Config, manifest: &Manifest, byol: &Byol, plan: &Plan, workers: usize, world: usize) {
    let each = if world > 1 { format!(" in each of {world} processes") } else { String::new() };
    let cpu = if byol.device == Device::Cpu { format!(", {} threads", manifest.threads) } else { String::new() };
    log::info!(
        "{} images, {} a step, {} steps an epoch, {} epochs; {:?} with {:.2} M parameters on {}{cpu} in {}, {workers} loader workers{each}; peak lr {:.4}",
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
    log::info!("{}", manifest.line());
}
