//! `byol train`: a config becomes the parts of a run, the parts a [`Trainer`], its outcome a summary.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tch::Device;

use crate::byol::Byol;
use crate::checkpoint::{self, Manifest};
use crate::choose::Source;
use crate::cli::TrainArgs;
use crate::config::Config;
use crate::data::loader::sampler::Sampler;
use crate::data::loader::{BadImages, Loader, LoaderOptions};
use crate::data::{self, Dataset, Format};
use crate::distributed::Group;
use crate::eval::{self, ExtractOptions};
use crate::logging::progress::Progress;
use crate::logging::{Logger, Quality, metrics};
use crate::model::SyncBatchNorm;
use crate::report::tensorboard::{self, RunImages};
use crate::run::evaluation::extract_options;
use crate::run::machine::{self as setup, Machine};
use crate::run::ranks::{self, Shared};
use crate::run::resume::{self, Resume};
use crate::run::{images, memory, summary};
use crate::signals::Signals;
use crate::train::updates::{self, RunKind};
use crate::train::{
    Ending, Feed, Hours, KnnWatch, OnWriteError, Plan, QualityCost, QualityPlan, QualityWatch, RunFolder, Saver,
    Trainer,
};
use crate::weights::Start;

/// Runs the command; the value is the process's exit code.
pub fn run(args: &TrainArgs) -> Result<u8> {
    let Some(source) = Source::of(args)? else { return Ok(0) };
    let config = Config::load(&source.config, &source.set)?;
    // These change no weights, so a resumed run may change them, but all processes need the same.
    let (end, monitor) = (config.train.max_steps, &config.monitor);
    let arguments = json!({"command": "train", "train.max_steps": end, "monitor": monitor});
    let shared = Shared { arguments, advice: "resume from its last checkpoint with --resume auto" };
    ranks::run(&args.ranks, &config, &shared, |machine, group| {
        let started = Instant::now();
        let signals = Signals::default();
        signals.install_nonfatal()?;
        let folder = take_folder(args.resume.is_some(), &config, &group)?;
        let (resume, allow_config_change) = (args.resume.as_deref(), args.allow_config_change);
        let own = config.clone();
        let mut setup = Setup { resume, allow_config_change, source: &source, config: own, machine, group, signals };
        let outcome = native::caught(|| setup.run(folder, started));
        if let (Err(error), true) = (&outcome, setup.group.is_first()) {
            summary::fail(&config.output.dir, error, started);
        }
        outcome
    })
}

/// The run's folder, which must not contain a run already, unless that is resumed.
pub(super) fn take_folder(resumed: bool, config: &Config, group: &Group) -> Result<RunFolder> {
    let dir = &config.output.dir;
    if !group.is_first() {
        return Ok(RunFolder::for_worker(dir));
    }
    let folder = RunFolder::take(dir)?;
    if !resumed && !checkpoint::list(&folder.checkpoints()).is_empty() {
        bail!(
            "output.dir: {} already contains a run; add --resume auto to continue it, or choose another folder with --set \
             output.dir=...",
            dir.display()
        );
    }
    Ok(folder)
}

/// Logs why there are no images in TensorBoard: they are no reason to end a run.
fn said(written: Result<()>) {
    if let Err(error) = written {
        log::warn!("monitor.tensorboard_images: {error:#}");
    }
}

/// What a run is built from.
pub(super) struct Setup<'a> {
    /// `--resume`.
    pub resume: Option<&'a str>,
    /// `--allow-config-change`.
    pub allow_config_change: bool,
    /// Where the config is from.
    pub source: &'a Source,
    /// The config.
    pub config: Config,
    /// Device, precision, threads.
    pub machine: Machine,
    /// The processes that share each batch.
    pub group: Arc<Group>,
    /// Signals of this process.
    pub signals: Signals,
}

impl Setup<'_> {
    /// Builds the run and trains; the value is the exit code.
    fn run(&mut self, folder: RunFolder, started: Instant) -> Result<u8> {
        ranks::check_shares(&self.config, self.group.world()).with_context(|| self.place("train.batch_size"))?;
        let executor = setup::executor(&self.config, &self.machine, &self.group)?;
        let start = self.start(&folder).with_context(|| format!("{}: model.init", self.place("model.init")))?;
        let dataset = self.open_images(&folder.checkpoints())?;
        let (config, machine, group) = (&self.config, &self.machine, &self.group);
        let mut share = config.clone();
        share.train.batch_size /= group.world();
        if group.is_first() {
            memory::check(&share, machine)?;
        }
        self.signals.listen()?; // until here their default action, terminating the process, loses nothing
        let mut plan = Plan::new(dataset.len(), &config.train, &config.optimizer, &config.schedule, &config.ema)
            .with_context(|| self.place("train.batch_size"))?;
        let bad = BadImages::new(config.data.on_bad_image);
        let monitor = &config.monitor;
        let monitored = monitor.knn_every.is_some() || monitor.quality_every.is_some() || monitor.tensorboard_images;
        let held_out = if monitored { data::open_eval(&config.data).context("data.eval_path")? } else { None };
        let knn = self.knn_watch(&share, &dataset, held_out.clone(), bad.clone())?;
        let shown = held_out.unwrap_or(dataset.clone());
        let quality = self.quality_watch(&share, shown.clone(), &plan, bad.clone());
        let byol = setup::byol(config, machine, group)?;
        let mut manifest = self.manifest(&*dataset, &plan)?;
        if config.schedule.hours.is_some() {
            Hours::begin(&mut plan);
        }
        if self.resume(&folder, start, &byol, &*dataset, &mut plan, &mut manifest)? {
            log::info!("nothing left to do: {} has finished all {} steps", folder.path().display(), manifest.step);
            return Ok(0);
        }
        let hours = config.schedule.hours.or(manifest.pace.as_ref().map(|pace| pace.hours));
        let hours = hours.map(|hours| Hours::new(hours, manifest.pace.as_ref(), started, manifest.step));
        let saver = Saver::new(folder, config.output.clone(), manifest.step);
        let mut trainer = Trainer {
            loader: self.loader(dataset.clone(), &plan, manifest.step, bad.clone())?,
            feed: Feed::new(&config.augment, machine.device, machine.image_layout(config))?,
            logger: None,
            group: group.clone(),
            train: config.train.clone(),
            monitor: config.monitor.clone(),
            byol,
            plan,
            executor,
            hours,
            kind: RunKind::new(config.data.format == Format::Synthetic, config.augment.size),
            knn,
            quality,
            history: Vec::new(),
            saver,
            manifest,
        };
        self.begin(&mut trainer)?;
        summary::begin(&mut trainer)?;
        let images = self.tensorboard_images(&share, shown, &trainer, bad.clone());
        if let (Some(RunImages { folder, .. }), true) = (&images, group.is_first()) {
            said(tensorboard::write_views(folder, config, &dataset, &bad, trainer.manifest.step));
        }
        let outcome = trainer.run(&self.signals)?;
        if let (Some(images), Ending::Finished | Ending::MaxSteps) = (images, outcome.ending) {
            said(images.represent(&trainer.byol, &config.augment));
        }
        let skipped = ranks::bad_images(&bad, group)?;
        images::report_clipped(&*dataset, config, group)?;
        summary::summarize(&mut trainer, &outcome, skipped, started)
    }

    /// Where a key was set.
    fn place(&self, key: &str) -> String {
        self.source.place(key)
    }

    /// Opens the training images, and completes the config by what they need, or by what the run that is resumed found.
    pub fn open_images(&mut self, checkpoints: &Path) -> Result<Arc<dyn Dataset>> {
        if let (Some(from), true) = (self.resume, self.group.is_first())
            && let Some(saved) = resume::config_of(from, checkpoints)
        {
            self.config.adopt(&saved)?;
        }
        let path = format!("{}: data.path", self.place("data.path"));
        images::open_train(&mut self.config, &self.group, true).context(path)
    }

    fn manifest(&self, dataset: &dyn Dataset, plan: &Plan) -> Result<Manifest> {
        let (config, machine) = (&self.config, &self.machine);
        Ok(Manifest {
            total_steps: plan.total_steps,
            steps_per_epoch: plan.steps_per_epoch,
            images: dataset.len(),
            data: data::fingerprint(dataset),
            device: native::describe_device(machine.device),
            threads: machine.threads,
            processes: self.group.world(),
            precision: machine.precision().into(),
            seed: config.train.seed,
            deterministic: config.train.deterministic,
            ..Manifest::new(serde_json::to_value(config)?)
        })
    }

    /// The weights of `model.init`, in rank 0 of a run that does not go on from a checkpoint.
    fn start(&self, folder: &RunFolder) -> Result<Option<Start>> {
        let resumes =
            self.resume.is_some_and(|from| from != "auto" || !checkpoint::list(&folder.checkpoints()).is_empty());
        if resumes || !self.group.is_first() { Ok(None) } else { Start::open(&self.config.model) }
    }

    /// Loads the checkpoint that `--resume` names, or the weights to start from, in rank 0, and gives the state to all;
    /// whether the run is finished.
    fn resume(
        &self,
        folder: &RunFolder,
        start: Option<Start>,
        byol: &Byol,
        dataset: &dyn Dataset,
        plan: &mut Plan,
        manifest: &mut Manifest,
    ) -> Result<bool> {
        if let (Some(from), true) = (self.resume, self.group.is_first()) {
            let allow_config_change = self.allow_config_change;
            let checkpoints = &folder.checkpoints();
            Resume { from, checkpoints, config: &self.config, allow_config_change }.load(byol, plan, manifest)?;
        }
        if let Some(start) = start {
            manifest.init = Some(start.load(byol).context("model.init")?);
        }
        manifest.config_sha256 = self.config.fingerprint_of(manifest.init.as_ref().map(|init| init.sha256.as_str()))?;
        let finished = manifest.step == manifest.total_steps && summary::finished(folder.path(), manifest.step);
        ranks::agree_on_data(&self.group, "data", dataset)?;
        resume::broadcast_state(&self.group, byol, plan, manifest, finished)
    }

    fn loader(&self, dataset: Arc<dyn Dataset>, plan: &Plan, step: u64, bad: Arc<BadImages>) -> Result<Loader> {
        let (config, group) = (&self.config, &self.group);
        let parts = config.train.accumulation_steps;
        let sampler = Sampler::new(dataset.len(), config.train.batch_size, parts, config.train.seed)?;
        let first = plan.position(step) * parts as u64;
        let own = LoaderOptions { rank: group.rank(), world: group.world(), ..self.machine.loader };
        Loader::new(dataset, config.augment.clone(), sampler, first, bad, own)
    }

    /// Writes what is needed to reproduce the run, logs it, and opens its metrics.
    fn begin(&self, trainer: &mut Trainer) -> Result<()> {
        let (config, manifest, plan) = (&self.config, &trainer.manifest, &trainer.plan);
        let folder = &mut trainer.saver.folder;
        folder.put("config.yaml", self.source.yaml(config, folder.path())?.into_bytes())?;
        folder.put("manifest.json", serde_json::to_vec_pretty(manifest)?)?;
        self.announce(manifest, &trainer.byol, plan);
        self.warn(plan, &trainer.kind);
        if self.group.is_first() {
            let resumed = (manifest.step > 0).then_some(manifest.step);
            let total = if Hours::is_planned(plan.total_steps) { plan.total_steps } else { 0 };
            let progress = Progress::new(total, plan.steps_per_epoch, manifest.step, plan.offset());
            let progress = progress.with_batch(config.train.batch_size);
            let settings = config.monitor.tensorboard.then(|| config.settings()).transpose()?;
            let logger = Logger::open(&config.output.dir, resumed, settings.as_deref(), progress)?;
            let records = metrics::read(&config.output.dir.join("metrics.jsonl"))?;
            trainer.history = Quality::history(&records);
            trainer.logger = Some(logger.retrying(config.output.on_write_error == OnWriteError::Retry));
        }
        Ok(())
    }

    /// How the monitors go through images; `config` has this process's share of the batch.
    fn extraction(&self, config: &Config, bad: Arc<BadImages>) -> ExtractOptions {
        extract_options(config, self.machine.loader, bad, &self.signals, self.group.clone())
    }

    /// k-NN monitoring, if the config enables it and there are labels; `config` has this process's share of the batch.
    pub fn knn_watch(
        &self,
        config: &Config,
        bank: &Arc<dyn Dataset>,
        held_out: Option<Arc<dyn Dataset>>,
        bad: Arc<BadImages>,
    ) -> Result<Option<KnnWatch>> {
        if config.monitor.knn_every.is_none() {
            return Ok(None);
        }
        let Some(labeled) = data::subset::labeled(bank.clone()) else {
            log::info!("no k-NN accuracy: no training image has a label");
            return Ok(None);
        };
        if !eval::several_classes(&*labeled) {
            log::info!("no k-NN accuracy: all labeled training images are of one class");
            return Ok(None);
        }
        if labeled.len() < bank.len() {
            log::info!("k-NN: using the {} labeled of {} training images", labeled.len(), bank.len());
        }
        let queries = held_out.clone().and_then(data::subset::labeled);
        if held_out.is_some() && queries.is_none() {
            if config.data.eval_path.is_some() {
                bail!(
                    "data.eval_path: found no image with a label, expected labels; remove it, or set monitor.knn_every=null"
                );
            }
            log::info!("k-NN: the images beside the training set have no labels and are not used");
        }
        match &queries {
            Some(set) => {
                let all = held_out.map_or(0, |all| all.len());
                let part = if set.len() < all { format!(" that have a label, of {all}") } else { String::new() };
                log::info!("k-NN: {} held-out images{part}", set.len());
            }
            None => log::info!("k-NN: no held-out images (data.eval_path); leave-one-out on training images"),
        }
        Ok(Some(KnnWatch {
            bank: labeled,
            queries,
            monitor: config.monitor.clone(),
            augment: config.augment.clone(),
            options: self.extraction(config, bad),
        }))
    }

    /// Monitoring without labels on these images, if the config enables it; `config` as in [`Self::knn_watch`].
    fn quality_watch(
        &self,
        config: &Config,
        dataset: Arc<dyn Dataset>,
        plan: &Plan,
        bad: Arc<BadImages>,
    ) -> Option<QualityWatch> {
        let trained = plan.steps_per_epoch * self.config.train.batch_size as u64;
        let plan = QualityPlan::new(&config.monitor, dataset.len(), trained, config.schedule.epochs)?;
        let options = self.extraction(config, bad);
        let cost = QualityCost::of(&config.monitor);
        Some(QualityWatch { dataset, plan, cost, augment: config.augment.clone(), options })
    }

    /// The images for TensorBoard, if the config asks for them; `config` as in [`Self::knn_watch`].
    fn tensorboard_images(
        &self,
        config: &Config,
        dataset: Arc<dyn Dataset>,
        trainer: &Trainer,
        bad: Arc<BadImages>,
    ) -> Option<RunImages> {
        let folder = config.monitor.tensorboard_images.then(|| config.output.dir.join("tensorboard"))?;
        let count = trainer.quality.as_ref().map_or(config.monitor.quality_images, |watch| watch.plan.images);
        let options = self.extraction(config, bad);
        Some(RunImages { folder, dataset, count, options })
    }

    /// Warns of a run that is too short, or of too few images for BatchNorm.
    fn warn(&self, plan: &Plan, kind: &RunKind) {
        let (config, world) = (&self.config, self.group.world());
        if Hours::is_planned(plan.total_steps) {
            log::info!("{} updates", plan.total_steps);
            updates::warn_if_few(plan.total_steps, kind);
        }
        let apart = if config.model.sync_batchnorm == SyncBatchNorm::Off { world } else { 1 };
        updates::warn_of_batch_norm(config.train.micro_batch() / apart, kind);
    }

    /// Logs the parts of the run, and what is needed to reproduce it.
    fn announce(&self, manifest: &Manifest, byol: &Byol, plan: &Plan) {
        let (config, workers, world) = (&self.config, self.machine.loader.workers, self.group.world());
        let each = if world > 1 { format!(" in each of {world} processes") } else { String::new() };
        let cpu = if byol.device == Device::Cpu { format!(", {} threads", manifest.threads) } else { String::new() };
        let length = match Hours::is_planned(plan.total_steps) {
            true => format!("{} epochs", config.schedule.epochs),
            false => format!("{} hours", config.schedule.hours.unwrap_or_default()),
        };
        log::info!(
            "{} images, {} a step, {} steps an epoch, {length}; {} with {:.2} M parameters on {}{cpu} in {}, {workers} loader workers{each}; peak lr {:.4}",
            manifest.images,
            config.train.batch_size,
            plan.steps_per_epoch,
            config.model.arch,
            byol.online.params.count() as f64 / 1e6,
            manifest.device,
            manifest.precision,
            plan.peak_lr,
        );
        log::info!("{}", manifest.line());
    }
}
