//! `byol train`: a config becomes the parts of a run, the parts a [`Trainer`], its outcome a summary.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;
use tch::{Device, Tensor};

use super::setup::{self, Machine};
use crate::backend::{self, Reducer};
use crate::checkpoint::{self, Manifest};
use crate::cli::TrainArgs;
use crate::config::Config;
use crate::data::loader::{BadImages, Loader, LoaderOptions};
use crate::data::sampler::Sampler;
use crate::data::{self, Dataset};
use crate::dist::{self, Group, Place};
use crate::eval::ExtractOptions;
use crate::logging::Logger;
use crate::logging::progress::Progress;
use crate::model::{Network, SyncBatchNorm};
use crate::optim::Optimizer;
use crate::train::{Byol, Ending, KnnWatch, Outcome, Plan, Signals, Trainer};

/// Runs the command; the value is the process's exit code.
/// # Errors
/// One line: what is wrong, where, and what to do.
pub fn run(args: &TrainArgs) -> Result<u8> {
    let config = Config::load(&args.source.config, &args.source.set)?;
    dist::end_with_launcher()?;
    match (Place::from_env()?, args.nproc) {
        (Some(place), Some(_)) if !dist::launched() => bail!(
            "--nproc: another launcher has made this rank {} of {}; leave --nproc out, or unset RANK and the like",
            place.rank,
            place.world
        ),
        (Some(place), _) => run_one_of(place, args, &config),
        (None, Some(count @ 2..)) => dist::launch(count as usize, &config.dist),
        (None, _) => train(args, &config, Machine::set_up(&config)?, None),
    }
}

/// Runs one of the processes of a run. An error of any ends all, and one of them says it.
fn run_one_of(place: Place, args: &TrainArgs, config: &Config) -> Result<u8> {
    if place.rank > 0 {
        log::set_max_level(log::LevelFilter::Warn); // rank 0 speaks for all
    }
    let machine = Machine::set_up_one_of(place.local_world, config)?;
    let agreed = |c: &Config| {
        Ok::<_, anyhow::Error>(serde_json::json!([Manifest::new(serde_json::to_value(c)?), machine.precision()]))
    };
    let own = agreed(config)?;
    let differences = |first: &str| -> Result<Vec<String>> {
        let first: serde_json::Value = serde_json::from_str(first).context("rank 0's config")?;
        let mut differences = config.differences(&first[0]["config"])?;
        for (what, path) in [("byol", "/0/byol"), ("libtorch", "/0/libtorch"), ("train.precision", "/1")] {
            let (ours, theirs) = (own.pointer(path), first.pointer(path));
            if ours != theirs {
                let text = |v: Option<&serde_json::Value>| v.map_or("nothing".to_string(), ToString::to_string);
                differences.push(format!("{what}: {}, there {}", text(ours), text(theirs)));
            }
        }
        Ok(differences)
    };
    let group = Arc::new(Group::join(place, &config.dist, machine.device, &own.to_string(), differences)?);
    let shared = group.clone();
    // tch panics where an operator fails, a collective inside BatchNorm too.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let code = train(args, config, machine, Some(shared))?;
        group.leave()?;
        Ok(code)
    }));
    let outcome = outcome.unwrap_or_else(|panic| Err(anyhow!(backend::panic_line(&*panic))));
    outcome.map_err(|error| group.explain(error))
}

/// Puts a run together and does it; `group` are the processes that share its batches.
fn train(args: &TrainArgs, config: &Config, machine: Machine, group: Option<Arc<Group>>) -> Result<u8> {
    let started = Instant::now();
    let first = group.as_ref().is_none_or(|group| group.is_first());
    let place = |key: &str| Config::place(&args.source.config, &args.source.set, key);
    let run_dir = &config.output.dir;
    // Rank 0 alone writes.
    let _lock = first.then(|| prepare_folder(run_dir, args.resume.as_deref())).transpose()?;
    let checkpoints = run_dir.join("checkpoints");
    let (rank, world) = group.as_ref().map_or((0, 1), |group| (group.place.rank, group.place.world));
    let (batch, parts) = (config.train.batch_size, config.train.accumulation_steps);
    ensure!(
        batch.is_multiple_of(world * parts) && batch / (world * parts) >= 2 || world == 1,
        "{}: train.batch_size: found {batch}, expected a multiple of {world} processes times {parts} micro-batches, with \
         at least 2 images for each",
        place("train.batch_size")
    );

    let dataset = data::open_train(&config.data).with_context(|| format!("{}: data.path", place("data.path")))?;
    check_memory(config, world)?;
    let signals = Signals::listen()?; // until here the signals' own effect, the end, loses nothing
    let plan = Plan::new(dataset.len(), &config.train, &config.optimizer, &config.schedule, &config.ema)
        .with_context(|| place("train.batch_size"))?;
    let bad = BadImages::new(config.data.on_bad_image);
    let knn = knn_watch(config, &dataset, bad.clone(), machine.loader, &signals, group.clone())?;

    let byol = build(config, machine.device, machine.bf16, group.as_deref())?;
    let mut manifest = Manifest {
        total_steps: plan.total_steps,
        steps_per_epoch: plan.steps_per_epoch,
        images: dataset.len(),
        data: dataset.fingerprint(),
        device: backend::describe_device(machine.device),
        threads: machine.threads,
        precision: machine.precision().into(),
        ..Manifest::new(serde_json::to_value(config)?)
    };
    if let Some(from) = args.resume.as_ref().filter(|_| first) {
        resume(from, &checkpoints, &byol, config, args.allow_config_change, &mut manifest)?;
    }
    if let Some(group) = &group {
        group.agree("data", &format!("{} images, index {}", manifest.images, manifest.data))?;
        start_alike(group, &byol, &mut manifest)?;
    }
    let done = manifest.step == plan.total_steps && finished(run_dir, manifest.step);
    // Another machine may not see the folder.
    let done = group
        .as_ref()
        .map_or(Ok(vec![]), |group| group.from_first(&[f64::from(done)]))?
        .first()
        .map_or(done, |&d| d > 0.0);
    if done {
        log::info!("nothing left to do: {} has finished all {} steps", run_dir.display(), manifest.step);
        return Ok(0);
    }
    if first {
        checkpoint::write_file(&run_dir.join("config.yaml"), config.to_yaml()?.as_bytes())?;
    }
    announce(config, &manifest, &byol, &plan, machine.loader.workers, world);

    let sampler = Sampler::new(dataset.len(), batch, parts, config.train.seed)?;
    let from = manifest.step * parts as u64;
    let share = LoaderOptions { rank, world, ..machine.loader };
    let loader = Loader::new(dataset, config.augment.clone(), sampler, from, bad.clone(), share)?;
    let resumed = (manifest.step > 0).then_some(manifest.step);
    let logger = first.then(|| {
        let progress = Progress::new(plan.total_steps, plan.steps_per_epoch, manifest.step);
        Logger::open(run_dir, resumed, config.monitor.tensorboard, progress)
    });
    let logger = logger.transpose()?;
    let mut trainer = Trainer {
        byol,
        plan,
        loader,
        knn,
        logger,
        group: group.clone(),
        manifest,
        checkpoints,
        train: config.train.clone(),
        augment: config.augment.clone(),
        monitor: config.monitor.clone(),
        output: config.output.clone(),
    };
    let outcome = trainer.run(&signals)?;
    let skipped = match &group {
        Some(group) => group.sum(&[bad.count() as f64])?[0] as usize,
        None => bad.count(),
    };
    if first {
        summarise(run_dir, &trainer, &outcome, skipped, started)?;
    }
    Ok(match outcome.ending {
        Ending::Signal(code) => code as u8,
        Ending::Finished | Ending::MaxSteps => 0,
    })
}

/// Gives every process rank 0's state: its networks, its optimiser, and where the run is.
fn start_alike(group: &Group, byol: &Byol, manifest: &mut Manifest) -> Result<()> {
    let networks = [&byol.online, &byol.target];
    let tensors = networks.iter().flat_map(|n| n.params.parameters.iter().chain(&n.params.buffers));
    let mut tensors: Vec<Tensor> = tensors.map(|named| named.tensor.detach()).collect();
    tensors.extend(byol.optimizer.state().into_iter().map(|named| named.tensor));
    group.processes.broadcast(&tensors)?;
    let [online, target] = networks.map(|network| network.batches_tracked.get() as f64);
    let numbers = group.from_first(&[manifest.step as f64, online, target, manifest.knn_random.unwrap_or(f64::NAN)])?;
    manifest.step = numbers[0] as u64;
    networks.iter().zip(&numbers[1..]).for_each(|(network, &count)| network.batches_tracked.set(count as i64));
    manifest.knn_random = Some(numbers[3]).filter(|top1| top1.is_finite());
    Ok(())
}

/// Whether `summary.json` says that the run ended by itself after `step` steps.
fn finished(run_dir: &Path, step: u64) -> bool {
    let summary = fs::read(run_dir.join("summary.json")).ok();
    let summary: Option<serde_json::Value> = summary.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    summary.is_some_and(|s| s["ending"] == "finished" && s["step"] == step)
}

/// Refuses, before any work, batches that the machine's memory cannot hold: the loader keeps
/// `data.prefetch_batches` finished ones, one is being made, and those of a step are being trained on.
fn check_memory(config: &Config, processes: usize) -> Result<()> {
    let size = config.augment.size as u64;
    let batch = 2 * 3 * size * size * (config.train.micro_batch() / processes) as u64;
    let waiting = config.data.prefetch_batches + config.train.accumulation_steps + 1;
    let needed = batch.saturating_mul(waiting as u64);
    let there = setup::memory();
    if needed > there {
        bail!(
            "train.batch_size: the loader's batches need {:.1} GB, the machine has {:.1} GB; lower train.batch_size or \
             data.prefetch_batches, or raise train.accumulation_steps",
            needed as f64 / 1e9,
            there as f64 / 1e9
        );
    }
    Ok(())
}

/// Makes the run's folder and finds out, before any work, whether it can be written and whether it is free. The
/// file that comes back is the folder's lock, held while it is open, by whatever end of the process.
fn prepare_folder(run_dir: &Path, resume: Option<&str>) -> Result<File> {
    let checkpoints = run_dir.join("checkpoints");
    fs::create_dir_all(&checkpoints).with_context(|| format!("output.dir: cannot make {}", checkpoints.display()))?;
    let path = run_dir.join("lock");
    let writing = || format!("output.dir: cannot write {}", path.display());
    let mut lock =
        File::options().create(true).truncate(false).read(true).write(true).open(&path).with_context(writing)?;
    if lock.try_lock().is_err() {
        let mut owner = String::new();
        let _ = lock.read_to_string(&mut owner);
        bail!(
            "output.dir: {} is in use by process {}; wait for it, or choose another folder",
            run_dir.display(),
            owner.trim()
        );
    }
    lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).with_context(writing)?;
    if resume.is_none() && !checkpoint::list(&checkpoints).is_empty() {
        bail!(
            "output.dir: {} holds a run already; add --resume auto to go on with it, or choose another folder with --set output.dir=...",
            run_dir.display()
        );
    }
    checkpoint::clean(&checkpoints, usize::MAX);
    Ok(lock)
}

fn build(config: &Config, device: Device, bf16: bool, group: Option<&Group>) -> Result<Byol> {
    let mut online = Network::online(&config.model, device, config.train.seed);
    let mut target = Network::target_of(&online, &config.model, device);
    if config.train.channels_last {
        online.params.to_channels_last();
        target.params.to_channels_last();
    }
    if let Some(group) = group.filter(|_| config.model.sync_batchnorm != SyncBatchNorm::Off) {
        [&online, &target].iter().for_each(|network| network.params.synchronise(&group.processes));
    }
    let weights: Vec<&Tensor> = online.params.parameters.iter().map(|p| &p.tensor).collect();
    let reducer = group.map(|group| Reducer::new(&group.processes, &weights)).transpose()?;
    let optimizer = Optimizer::new(&config.optimizer, &online.params);
    Ok(Byol { online, target, optimizer, reducer, bf16, device })
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
        options: ExtractOptions {
            batch_size: config.train.micro_batch().clamp(64, 512),
            loader,
            bad,
            channels_last: config.train.channels_last,
            interrupted: setup::interrupted(signals),
            progress: false,
        },
        group,
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
        if saved.step > manifest.total_steps {
            bail!(
                "--resume: the checkpoint is at step {}, but the run now ends at step {}",
                saved.step,
                manifest.total_steps
            );
        }
        let machine = |m: &Manifest| format!("{}, {} threads, {}", m.device, m.threads, m.precision);
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

fn announce(config: &Config, manifest: &Manifest, byol: &Byol, plan: &Plan, workers: usize, processes: usize) {
    let each = if processes > 1 { format!(" by each of {processes} processes") } else { String::new() };
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

fn summarise(run_dir: &Path, trainer: &Trainer, outcome: &Outcome, skipped: usize, started: Instant) -> Result<()> {
    let manifest = &trainer.manifest;
    let ending = match outcome.ending {
        Ending::Finished => "finished",
        Ending::MaxSteps => "max_steps",
        Ending::Signal(_) => "signal",
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
        count => format!(", {count} unreadable images passed over"),
    };
    let loss = if summary.loss.is_finite() { format!(", loss {:.4}", summary.loss) } else { String::new() };
    let line = format!(
        "{verb}: step {} of {}{loss}{knn}, {:.0} images/s, {:.0} s{skipped}; checkpoint {}",
        summary.step,
        summary.total_steps,
        summary.images_per_second,
        summary.seconds,
        summary.checkpoint.display()
    );
    // Whoever reads stdout may be gone; the run is complete all the same.
    let _ = writeln!(std::io::stdout(), "{line}");
    Ok(())
}
