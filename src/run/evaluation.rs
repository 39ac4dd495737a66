//! What the commands on a trained encoder share: its config, its data, the processes, and cleanup.

use std::cell::RefCell;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::augment::AugmentConfig;
use crate::checkpoint::{self, Manifest};
use crate::cli::{EncoderArgs, SplitName};
use crate::config::Config;
use crate::data::formats::detect;
use crate::data::loader::{BadImages, LoaderOptions};
use crate::data::values::{Channels, ValueRange};
use crate::data::{self, Dataset, Format};
use crate::distributed::Group;
use crate::eval::{Encoder, EncoderOptions, ExtractOptions, Interrupted};
use crate::files;
use crate::model::EncoderConfig;
use crate::run::images;
use crate::run::machine::{self as setup, Machine};
use crate::run::ranks::{self, Shared};
use crate::signals::Signals;
use native::Memory;

/// A trained encoder and how to use it.
pub struct Evaluation {
    /// The run's config under `--config` and `--set`.
    pub config: Config,
    /// Device, precision, threads.
    pub machine: Machine,
    /// The encoder; its images are preprocessed as `config.augment` says.
    pub encoder: Encoder,
    /// Batches, threads, bad images, signals.
    pub options: ExtractOptions,
    /// Fingerprint of the run's training images, unless the evaluation names other images.
    trained_on: Option<String>,
    /// The training images, if they had to be looked at already.
    opened: RefCell<Option<Arc<dyn Dataset>>>,
}

/// What is to be evaluated, and on what.
#[derive(Clone)]
struct Request {
    config: Config,
    /// The encoder does not come from a run.
    foreign: bool,
    /// As in [`Evaluation`].
    trained_on: Option<String>,
    /// Messages about relative paths.
    notes: Vec<String>,
}

impl Evaluation {
    /// Loads the encoder and its config and has `work` done with it, by as many processes as there are; the value is
    /// the exit code. Without `--config` a run's own config names the data. `arguments` are those that must be the same
    /// in all processes: an object of names and values.
    /// # Errors
    /// No encoder there; no data path; an architecture other than the config's; those of `work`.
    pub fn run(
        args: &EncoderArgs,
        arguments: impl FnOnce(&Config) -> Value,
        work: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<u8> {
        let request = Self::request(args)?;
        let config = request.config.clone();
        let mut arguments = arguments(&config);
        // In training other values of these change nothing, here they change the rows.
        arguments["augment.eval_resize"] = json!(config.augment.eval_resize);
        arguments["data.on_bad_image"] = json!(config.data.on_bad_image);
        let shared = Shared { arguments, advice: "run the command again" };
        ranks::run(&args.ranks, &config, &shared, |machine, group| {
            let evaluation = Self::open(args, request, machine, group)?;
            match work(&evaluation) {
                Err(error) if error.is::<Interrupted>() => {
                    if evaluation.is_first() {
                        log::warn!("stopped by a signal; nothing was written");
                    }
                    Ok(error.downcast::<Interrupted>()?.0 as u8)
                }
                result => result.map(|()| 0),
            }
        })
    }

    fn request(args: &EncoderArgs) -> Result<Request> {
        let manifest = Encoder::manifest(&args.checkpoint);
        let mut notes = Vec::new();
        let base = match &manifest {
            Some(manifest) => {
                let config = with_absolute_paths(manifest, &mut notes);
                Config::of_run(&config).with_context(|| args.checkpoint.display().to_string())?
            }
            // An error of `open` comes first: a damaged run is not a foreign file.
            None if !args.checkpoint.is_file() => {
                let prefix = args.prefix.clone();
                Encoder::open(&args.checkpoint, &EncoderOptions { prefix, ..EncoderOptions::default() })?;
                Config::default()
            }
            None => Config::default(),
        };
        let mut set = args.set.clone();
        if args.config.is_none() && base.data.format == Format::Synthetic {
            set.extend(detected_format(&args.set)?);
        }
        let mut config = Config::load_over(base, args.config.as_deref(), &set)?;
        if let Some(manifest) = &manifest {
            config.adopt(&manifest.config)?;
        }
        let foreign = manifest.is_none();
        let names_data = args.config.is_some() || args.set.iter().any(|text| text.starts_with("data."));
        if foreign && !names_data {
            bail!(
                "--config: found none, but {} is not a run, so nothing names the images; give --set data.path=..., or a \
                 config with a section data",
                args.checkpoint.display()
            );
        }
        if names_data {
            notes.clear();
        }
        let trained_on = manifest.filter(|_| !names_data).map(|manifest| manifest.data);
        Ok(Request { config, foreign, trained_on, notes })
    }

    fn open(args: &EncoderArgs, request: Request, machine: Machine, group: Arc<Group>) -> Result<Self> {
        let Request { mut config, foreign, trained_on, notes } = request;
        if group.is_first() {
            notes.iter().for_each(|note| log::info!("{note}"));
        }
        let prepared = !foreign || config.augment != AugmentConfig::default();
        let mut encoder = Encoder::open(
            &args.checkpoint,
            &EncoderOptions {
                device: machine.device,
                bf16: machine.bf16,
                channels_last: config.train.channels_last,
                augment: prepared.then(|| config.augment.clone()),
                prefix: args.prefix.clone(),
                known: has_model(&config).then(|| config.model.encoder()),
                ..EncoderOptions::default()
            },
        )?;
        config.augment = encoder.augment.clone();
        if config.data.channels == Channels::Auto {
            config.data.channels = Channels::Count(encoder.config.channels as usize);
        }
        if config.data.value_range == ValueRange::Auto {
            config.data.value_range = encoder.value_range.clone();
        }
        config.connect();
        check_architecture(&encoder, &config, foreign)?;
        group.agree("checkpoint", || {
            let step = encoder.run.as_ref().map_or(String::new(), |run| format!("step {}, ", run.step));
            Ok(format!("{step}weights {}", encoder.fingerprint()?))
        })?;
        // Only a foreign file leaves anything open.
        let opened = RefCell::new(match images::is_open(&config) {
            true => Some(images::open_train(&mut config, &group, false).context("data.path")?),
            false => None,
        });
        encoder.augment = config.augment.clone();
        let signals = Signals::default();
        signals.listen()?;
        let mut loader = machine.loader;
        if config.data.workers.is_none() {
            // A forward pass costs a fraction of a training step, for which the default is tuned. Workers wait while
            // enough batches do, so more of them than needed take nothing from libtorch.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            loader.workers = loader.workers.max(cores.div_ceil(2) / group.rank_info.local_world);
        }
        let (progress, bad) = (group.is_first(), BadImages::new(config.data.on_bad_image));
        let options = ExtractOptions { progress, ..extract_options(&config, loader, bad, &signals, group) };
        Ok(Self { config, machine, encoder, options, trained_on, opened })
    }

    /// The processes that share the images.
    pub fn group(&self) -> &Group {
        &self.options.group
    }

    /// Whether this process is the one that writes and prints.
    pub fn is_first(&self) -> bool {
        self.group().is_first()
    }

    /// Number of distinct unreadable images over all processes.
    /// # Errors
    /// Another process was lost or timed out.
    pub fn images_skipped(&self) -> Result<usize> {
        ranks::bad_images(&self.options.bad, self.group())
    }

    /// The training images.
    pub fn train_set(&self) -> Result<Arc<dyn Dataset>> {
        let set = match self.opened.take() {
            Some(set) => set,
            None => data::open_train(&self.config.data).context("data.path")?,
        };
        ranks::agree_on_data(self.group(), "data.path", &*set)?;
        let now = data::fingerprint(&*set);
        if let Some(then) = self.trained_on.as_ref().filter(|then| !data::same(then, &now) && self.is_first()) {
            log::warn!(
                "data.path: these are not the images that the run was trained on: names, sizes, number or labels differ \
                 (fingerprint {}, then {}); --set data.path=... names others",
                data::short(&now),
                data::short(then)
            );
        }
        Ok(set)
    }

    /// The labeled training images.
    /// # Errors
    /// They cannot be opened; none is labeled.
    pub fn labeled_train_set(&self) -> Result<Arc<dyn Dataset>> {
        self.labeled(self.train_set()?, "data.path", "training")
    }

    fn labeled(&self, all: Arc<dyn Dataset>, key: &str, what: &str) -> Result<Arc<dyn Dataset>> {
        let labeled = data::subset::labeled(all.clone())
            .with_context(|| format!("{key}: found no label for any image, expected images with classes"))?;
        if labeled.len() < all.len() && self.is_first() {
            log::info!("{} of {} {what} images have a label and are used", labeled.len(), all.len());
        }
        Ok(labeled)
    }

    /// The held-out images, if there are any.
    pub fn held_out(&self) -> Result<Option<Arc<dyn Dataset>>> {
        let set = data::open_eval(&self.config.data).context("data.eval_path")?;
        if let Some(set) = &set {
            ranks::agree_on_data(self.group(), "data.eval_path", &**set)?;
        }
        Ok(set)
    }

    /// The labeled held-out images, if there are any.
    /// # Errors
    /// There are some, but none is labeled.
    pub fn labeled_held_out(&self) -> Result<Option<Arc<dyn Dataset>>> {
        self.held_out()?.map(|all| self.labeled(all, "data.eval_path", "held-out")).transpose()
    }

    /// The labeled held-out images, which must exist.
    /// # Errors
    /// There are no held-out images, or none is labeled.
    pub fn labeled_test_set(&self) -> Result<Arc<dyn Dataset>> {
        self.labeled(self.test_set()?, "data.eval_path", "held-out")
    }

    /// The held-out images, which must exist.
    /// # Errors
    /// There are no held-out images.
    pub fn test_set(&self) -> Result<Arc<dyn Dataset>> {
        match self.held_out()? {
            Some(set) => Ok(set),
            None => {
                bail!("data.eval_path: found no held-out images, expected some to test on (--set data.eval_path=...)")
            }
        }
    }

    /// The training images or the held-out ones.
    pub fn images_of(&self, split: SplitName) -> Result<Arc<dyn Dataset>> {
        match split {
            SplitName::Train => self.train_set(),
            SplitName::Eval => self.test_set(),
        }
    }

    /// The run's folder, if the encoder comes from a run.
    pub fn run_folder(&self) -> Option<PathBuf> {
        let checkpoints =
            self.encoder.source.parent().filter(|p| self.encoder.run.is_some() && p.ends_with("checkpoints"))?;
        Some(checkpoints.parent()?.to_path_buf())
    }

    /// Fails if the features of `images` images, which every process holds, do not fit into memory.
    /// # Errors
    /// The machine has less memory.
    pub fn check_memory(&self, images: usize, advice: &str) -> Result<()> {
        let needed = (images * self.group().rank_info.local_world) as f64 * self.encoder.net.feature_dim as f64 * 4.0;
        let there = Memory::of_host().total as f64;
        if needed > there {
            bail!(
                "the features of {images} images need {:.1} GB, the machine has {:.1} GB; {advice}",
                needed / 1e9,
                there / 1e9
            );
        }
        Ok(())
    }

    /// One line on the encoder: its source and architecture.
    pub fn encoder_line(&self) -> String {
        let (encoder, config) = (&self.encoder, &self.encoder.config);
        let step = encoder
            .run
            .as_ref()
            .map_or(String::new(), |run| format!(" ({})", checkpoint::progress(run.step, run.total_steps)));
        format!(
            "{}{step}: {}, width {}, {} features, on {} in {}",
            encoder.source.display(),
            config.arch,
            config.width,
            encoder.net.feature_dim,
            native::describe_device(self.machine.device),
            self.machine.precision()
        )
    }
}

/// How to go through images for features: batches, threads, signals; without progress.
pub fn extract_options(
    config: &Config,
    loader: LoaderOptions,
    bad: Arc<BadImages>,
    signals: &Signals,
    group: Arc<Group>,
) -> ExtractOptions {
    let (batch_size, channels_last) = (config.train.micro_batch().clamp(64, 512), config.train.channels_last);
    let signal = setup::signal(signals);
    ExtractOptions { batch_size, loader, bad, channels_last, signal, progress: false, group }
}

/// The format of `data.path`, as an override, if the overrides name the path alone.
/// # Errors
/// There is nothing at the path, or nothing that is a data set.
fn detected_format(overrides: &[String]) -> Result<Option<String>> {
    let value = |key: &str| overrides.iter().rev().find_map(|text| text.strip_prefix(key));
    let (Some(path), None) = (value("data.path="), value("data.format=")) else { return Ok(None) };
    let first = match serde_yaml::from_str(path) {
        Ok(Value::Array(paths)) => paths.first().and_then(Value::as_str).unwrap_or_default().to_string(),
        _ => path.to_string(),
    };
    let context = || format!("--set data.path={path}");
    let (format, _) = detect::format(&files::expanded(Path::new(&first))?).with_context(context)?;
    Ok(Some(format!("data.format={}", json!(format))))
}

/// Whether the config says which encoder it is for.
fn has_model(config: &Config) -> bool {
    let wanted = config.model.encoder();
    wanted != EncoderConfig { channels: wanted.channels, ..Config::default().model.encoder() }
}

/// Checks that the config's model is the encoder's. A foreign file describes itself, but must match a section model if
/// the config has one.
fn check_architecture(encoder: &Encoder, config: &Config, foreign: bool) -> Result<()> {
    let (found, wanted) = (encoder.config, config.model.encoder());
    let asked = !foreign || has_model(config);
    if found.channels != wanted.channels {
        bail!(
            "{}: found an encoder for images of {} channels, expected {} (data.channels)",
            encoder.source.display(),
            found.channels,
            wanted.channels
        );
    }
    if asked && (found.arch, found.width, found.stem) != (wanted.arch, wanted.width, wanted.stem) {
        bail!(
            "{}: found {found}, the config's model is {wanted}; name the checkpoint of that run, or remove section model",
            encoder.source.display()
        );
    }
    Ok(())
}

/// A run's config with its relative paths to data resolved against the folder that the run was started in. `notes` gets
/// a line for each.
fn with_absolute_paths(manifest: &Manifest, notes: &mut Vec<String>) -> Value {
    let mut config = manifest.config.clone();
    let mut resolve = |key: &str, path: &mut Value| {
        let Some(text) = path.as_str().filter(|text| !text.starts_with(['/', '~', '$']) && !text.is_empty()) else {
            return;
        };
        match &manifest.started_in {
            Some(folder) => {
                let resolved = folder.join(text);
                notes.push(format!(
                    "{key}: {text}, relative to the folder the run was started in: {}",
                    resolved.display()
                ));
                *path = json!(resolved);
            }
            None => notes.push(format!(
                "{key}: {text}, relative to the current folder: the run's version did not record where it was started"
            )),
        }
    };
    for key in ["path", "eval_path"] {
        match config.pointer_mut(&format!("/data/{key}")) {
            Some(Value::Array(paths)) => paths.iter_mut().for_each(|path| resolve(&format!("data.{key}"), path)),
            Some(path) => resolve(&format!("data.{key}"), path),
            None => {}
        }
    }
    config
}

/// Prints a result; a closed stdout is not an error.
/// # Errors
/// It cannot be written for another reason, such as a full disk.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write the result to stdout"),
        _ => Ok(()),
    }
}
