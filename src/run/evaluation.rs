//! What the commands on a trained encoder share: its config, its data, the processes, and an end without debris.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::augment::AugmentConfig;
use crate::cli::EncoderArgs;
use crate::config::Config;
use crate::data::loader::BadImages;
use crate::data::{self, Dataset};
use crate::distributed::Group;
use crate::eval::{Encoder, EncoderOptions, ExtractOptions, Interrupted};
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
    /// The encoder, which gets its images as `config.augment` says.
    pub encoder: Encoder,
    /// Batches, threads, bad images, signals.
    pub options: ExtractOptions,
}

impl Evaluation {
    /// Loads the encoder and its config and has `work` done with it, by as many processes as there are; the value is
    /// the exit code. Without `--config` a run's own config names the data. `arguments` are those that must be the same
    /// in all processes: an object of names and values.
    /// # Errors
    /// No encoder there; data that nobody names; another architecture than the config's; `work`'s own.
    pub fn run(
        args: &EncoderArgs,
        arguments: impl FnOnce(&Config) -> Value,
        work: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<u8> {
        let (config, elsewhere) = Self::config(args)?;
        let mut arguments = arguments(&config);
        // Other values in training change nothing, here they change the rows.
        arguments["augment.eval_resize"] = json!(config.augment.eval_resize);
        arguments["data.on_bad_image"] = json!(config.data.on_bad_image);
        let shared = Shared { arguments, advice: "start it again" };
        ranks::run(&args.ranks, &config, &shared, |machine, group| {
            let evaluation = Self::open(args, config.clone(), elsewhere, machine, group)?;
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

    /// The config, and whether the encoder is from elsewhere than a run.
    fn config(args: &EncoderArgs) -> Result<(Config, bool)> {
        let manifest = Encoder::manifest(&args.checkpoint);
        let base = match &manifest {
            Some(manifest) => {
                Config::of_run(&manifest.config).with_context(|| args.checkpoint.display().to_string())?
            }
            // What `open` says comes first: a damaged run is no file from elsewhere.
            None if !args.checkpoint.is_file() => {
                Encoder::open(&args.checkpoint, &EncoderOptions::default())?;
                Config::default()
            }
            None => Config::default(),
        };
        let config = Config::load_over(base, args.config.as_deref(), &args.set)?;
        let elsewhere = manifest.is_none();
        if elsewhere && args.config.is_none() && !args.set.iter().any(|text| text.starts_with("data.")) {
            bail!(
                "--config: found none, but {} is no run, so nothing names the images; give a config with a section \
                 data, or --set data.format=... --set data.path=...",
                args.checkpoint.display()
            );
        }
        Ok((config, elsewhere))
    }

    fn open(
        args: &EncoderArgs,
        mut config: Config,
        elsewhere: bool,
        machine: Machine,
        group: Arc<Group>,
    ) -> Result<Self> {
        let told = !elsewhere || config.augment != AugmentConfig::default();
        let encoder = Encoder::open(
            &args.checkpoint,
            &EncoderOptions {
                device: machine.device,
                bf16: machine.bf16,
                channels_last: config.train.channels_last,
                augment: told.then(|| config.augment.clone()),
                ..EncoderOptions::default()
            },
        )?;
        config.augment = encoder.augment.clone();
        let (found, wanted) = (encoder.config, config.model.encoder());
        // A file from elsewhere says itself what it is; a section model beside it is checked all the same.
        let asked = !elsewhere || wanted != Config::default().model.encoder();
        if asked && (found.arch, found.width, found.stem) != (wanted.arch, wanted.width, wanted.stem) {
            bail!(
                "{}: found {:?} of width {} with stem {:?}, the config's model is {:?} of width {} with stem {:?}; name \
                 the checkpoint of that run, or leave section model out",
                encoder.source.display(),
                found.arch,
                found.width,
                found.stem,
                wanted.arch,
                wanted.width,
                wanted.stem
            );
        }
        group.agree("checkpoint", || {
            let step = encoder.run.as_ref().map_or(String::new(), |run| format!("step {}, ", run.step));
            Ok(format!("{step}weights {}", encoder.fingerprint()?))
        })?;
        let signals = Signals::default();
        signals.listen()?;
        let mut loader = machine.loader;
        if config.data.workers.is_none() {
            // A forward pass costs a fraction of a training step, for which the default is made. Workers wait while
            // enough batches do, so more of them than needed take nothing from libtorch.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            loader.workers = loader.workers.max(cores.div_ceil(2) / group.rank_info.local_world);
        }
        let options = ExtractOptions {
            batch_size: config.train.micro_batch().clamp(64, 512),
            loader,
            bad: BadImages::new(config.data.on_bad_image),
            channels_last: config.train.channels_last,
            signal: setup::signal(&signals),
            progress: group.is_first(),
            group,
        };
        Ok(Self { config, machine, encoder, options })
    }

    /// The processes that share the work.
    pub fn group(&self) -> &Group {
        &self.options.group
    }

    /// Whether this process is the one that writes and prints.
    pub fn is_first(&self) -> bool {
        self.group().is_first()
    }

    /// How many different images could not be read, in whichever process.
    /// # Errors
    /// A process is gone, or late.
    pub fn images_skipped(&self) -> Result<usize> {
        ranks::bad_images(&self.options.bad, self.group())
    }

    /// The training images.
    /// # Errors
    /// They cannot be opened.
    pub fn train_set(&self) -> Result<Arc<dyn Dataset>> {
        let set = data::open_train(&self.config.data).context("data.path")?;
        ranks::agree_on_data(self.group(), "data.path", &*set)?;
        Ok(set)
    }

    /// Those of the training images that have a label.
    /// # Errors
    /// They cannot be opened; none has.
    pub fn labelled_train_set(&self) -> Result<Arc<dyn Dataset>> {
        let all = self.train_set()?;
        let labelled = data::subset::labelled(all.clone());
        let labelled = labelled.context("data.path: found no label for any image, expected images with classes")?;
        if labelled.len() < all.len() {
            log::info!("{} of {} training images have a label and are used", labelled.len(), all.len());
        }
        Ok(labelled)
    }

    /// The held-out images, if there are any.
    /// # Errors
    /// They cannot be opened.
    pub fn held_out(&self) -> Result<Option<Arc<dyn Dataset>>> {
        let set = data::open_eval(&self.config.data).context("data.eval_path")?;
        if let Some(set) = &set {
            ranks::agree_on_data(self.group(), "data.eval_path", &**set)?;
        }
        Ok(set)
    }

    /// The same, where there is no doing without.
    /// # Errors
    /// There are none.
    pub fn test_set(&self) -> Result<Arc<dyn Dataset>> {
        match self.held_out()? {
            Some(set) => Ok(set),
            None => {
                bail!("data.eval_path: found no held-out images, expected some to test on (--set data.eval_path=...)")
            }
        }
    }

    /// The run's folder, where the encoder is a run's.
    pub fn run_folder(&self) -> Option<PathBuf> {
        let checkpoints =
            self.encoder.source.parent().filter(|p| self.encoder.run.is_some() && p.ends_with("checkpoints"))?;
        Some(checkpoints.parent()?.to_path_buf())
    }

    /// The memory for the features of `images` images, which every process has, is there, or an error.
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

    /// One line on the encoder: where it is from, what it is.
    pub fn encoder_line(&self) -> String {
        let (encoder, config) = (&self.encoder, &self.encoder.config);
        let step =
            encoder.run.as_ref().map_or(String::new(), |run| format!(" (step {} of {})", run.step, run.total_steps));
        format!(
            "{}{step}: {:?}, width {}, {} features, on {} in {}",
            encoder.source.display(),
            config.arch,
            config.width,
            encoder.net.feature_dim,
            native::describe_device(self.machine.device),
            self.machine.precision()
        )
    }
}

/// Prints a result; whoever reads stdout may be gone, which changes nothing.
/// # Errors
/// It cannot be written for another reason, such as a full disk.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write the result to stdout"),
        _ => Ok(()),
    }
}
