//! A config for a set of images and a machine: what `byol train PATH` does before it trains. [`look`] measures,
//! [`decide`] applies the [`rules`] to that, and this module writes the config.

mod decide;
mod look;
mod rules;
mod source;
mod table;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::json;

use crate::checkpoint;
use crate::config::recipes::Recipe;
use crate::config::{Comments, Config};
use crate::data::formats::detect;
use crate::data::values::Channels;
use crate::data::{DataConfig, Format};
use crate::distributed::Group;
use crate::files;
use crate::run::images;
use crate::run::machine::Machine;
use crate::run::memory::Estimate;
use crate::run::trial::Trial;
use decide::{Case, Length};
use look::Facts;
use native::Memory;
pub use source::Source;
pub use table::Row;

/// What the user asked for.
pub struct Request<'a> {
    /// The images.
    pub path: &'a Path,
    /// The run's folder.
    pub output: PathBuf,
    /// Length in epochs, if given.
    pub epochs: Option<u64>,
    /// Length in hours, if given.
    pub hours: Option<f64>,
    /// A recipe to start from.
    pub preset: Option<Recipe>,
    /// Side of a view, pixels, if given.
    pub size: Option<usize>,
    /// Overrides of keys.
    pub set: &'a [String],
}

/// The run's folder where none is named: `runs/` and the name of the images' folder or file.
pub fn default_output(path: &Path) -> PathBuf {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let name = real.file_stem().filter(|_| real.is_file()).or(real.file_name());
    let name = name.map_or("images".into(), |name| name.to_string_lossy().into_owned());
    let tidy = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '_' };
    Path::new("runs").join(name.chars().map(tidy).collect::<String>())
}

/// A config in the making: its values, why each was chosen, and the table's rows.
pub struct Choices {
    /// The values so far.
    pub config: Config,
    /// Why, by dotted key: the comments of the file.
    reasons: BTreeMap<String, String>,
    /// The table.
    pub rows: Vec<Row>,
    overrides: Vec<String>,
}

impl Choices {
    /// On top of a config; keys in `overrides` stay.
    pub fn new(config: Config, overrides: &[String]) -> Self {
        Self { config, reasons: BTreeMap::new(), rows: Vec::new(), overrides: overrides.to_vec() }
    }

    /// Whether the user has set a key, or chosen a preset of views with it.
    pub fn is_fixed(&self, key: &str) -> bool {
        self.fixed_by(key).is_some()
    }

    /// The key that the user has set to fix this one.
    fn fixed_by<'a>(&self, key: &'a str) -> Option<&'a str> {
        let of_preset = key.starts_with("augment.view") || key == "augment.size";
        let keys = [Some(key), of_preset.then_some("augment.preset")];
        keys.into_iter().flatten().find(|key| Config::is_overridden(&self.overrides, key))
    }

    /// Sets a key unless the user has.
    pub fn set(&mut self, key: &str, value: impl Serialize, reason: &str) -> Result<()> {
        if self.is_fixed(key) {
            return Ok(());
        }
        let mut whole = serde_json::to_value(&self.config)?;
        let place = whole.pointer_mut(&format!("/{}", key.replace('.', "/"))).with_context(|| key.to_string())?;
        *place = serde_json::to_value(value)?;
        self.config = serde_json::from_value(whole).with_context(|| key.to_string())?;
        self.reasons.insert(key.to_string(), reason.to_string());
        Ok(())
    }

    /// Adds a row to the table; `keys` are those that it is about: where the user has set one, that is the reason.
    pub fn row(&mut self, what: &'static str, value: String, reason: String, keys: &[&str]) {
        let fixed = keys.iter().find_map(|key| self.fixed_by(key));
        let reason = fixed.map_or(reason, |key| format!("your {key}"));
        self.rows.push(Row { what, value, reason });
    }
}

/// What was chosen.
pub struct Chosen {
    /// The file that it was written to.
    pub file: PathBuf,
    /// The table of choices, in lines.
    pub table: Vec<String>,
}

/// Looks at the images and the machine, chooses a config and writes it to `config.yaml` in the run's folder.
/// # Errors
/// No images there, or none that can be read; a folder that holds a run.
pub fn choose(request: &Request) -> Result<Chosen> {
    let dir = &request.output;
    if !checkpoint::list(&dir.join("checkpoints")).is_empty() {
        bail!(
            "{} already contains a run; add --resume auto to continue it, or choose another folder with --output DIR",
            dir.display()
        );
    }
    let named = Config::is_overridden(request.set, "data.format");
    let detected = if named { None } else { Some(detect::format(request.path)?) };
    let config = base(request, detected.as_ref().map(|(format, _)| *format))?;
    let mut choices = Choices::new(config, &overrides(request));
    let (format, why) = (json!(choices.config.data.format), detected.map_or(String::new(), |(_, why)| why));
    choices.reasons.insert("data.format".into(), why.clone());
    choices.row("format", format.as_str().unwrap_or_default().into(), why, &["data.format"]);
    let facts = look::look(&choices.config).with_context(|| request.path.display().to_string())?;
    let machine = Machine::set_up(&choices.config)?;
    let memory = [Memory::of_host().free, Memory::of(machine.device).free];
    let fits = |config: &Config| fits(config, &machine, memory);
    let gpu = machine.device.is_cuda();
    let case = Case { facts: &facts, gpu, preset: request.preset.map(|recipe| recipe.name), fits: &fits };
    facts.rows(&mut choices);
    decide::network(&case, &mut choices)?;
    let rate = rate(&choices.config, &machine, &facts).context("measuring the speed of a step")?;
    let length = Length { epochs: request.epochs, hours: request.hours, rate };
    decide::length(&case, &length, &mut choices)?;
    describe_machine(&machine, rate, &facts, &mut choices);
    let config = Config::load_over(choices.config.clone(), None, request.set)?;
    let header = [
        format!("Chosen by byol train {} on {}.", request.path.display(), native::describe_device(machine.device)),
        format!("  byol train --config {}", dir.join("config.yaml").display()),
        "Comments say why a value was chosen, or else what the key means.".to_string(),
    ];
    let header = header.map(|line| crate::logging::one_line(&line)).into();
    let yaml = config.to_commented_yaml(&Comments { header, of_keys: choices.reasons })?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let file = dir.join("config.yaml");
    files::write_atomic(&file, yaml.as_bytes())?;
    Ok(Chosen { file, table: table::lines(&choices.rows) })
}

/// The preset or the defaults, with the images and the user's overrides.
fn base(request: &Request, format: Option<Format>) -> Result<Config> {
    let base = match request.preset {
        Some(recipe) => Config::load_over(Config::default(), Some(Path::new(recipe.name)), &[])?,
        None => Config::default(),
    };
    // The preset's own images are others.
    let base = Config { data: DataConfig { on_bad_image: base.data.on_bad_image, ..Default::default() }, ..base };
    let mut given = vec![format!("data.format={}", json!(format.unwrap_or(Format::ImageFolder)))];
    given.push(format!("data.path={}", json!(request.path)));
    given.push(format!("output.dir={}", json!(request.output)));
    given.push("schedule.warmup_epochs=0".to_string()); // set later, to suit the length
    given.extend(overrides(request));
    Config::load_over(base, None, &given)
}

fn overrides(request: &Request) -> Vec<String> {
    let size = request.size.map(|size| format!("augment.size={size}"));
    request.set.iter().cloned().chain(size).collect()
}

/// Whether a run fits into the memory that is free, with a margin.
fn fits(config: &Config, machine: &Machine, [host, device]: [u64; 2]) -> bool {
    let estimate = Estimate::here(config, machine);
    let (needed, on_device) = estimate.peaks(machine.device, config.train.cuda_graph);
    let within = |needed: u64, free: u64| needed as f64 <= rules::SHARE_OF_MEMORY * free as f64;
    within(needed, host) && on_device.is_none_or(|needed| within(needed, device))
}

/// Images per second that a run will train on, about: steps on noise, and the time that decoding takes beside them.
fn rate(config: &Config, machine: &Machine, facts: &Facts) -> Result<f64> {
    let mut probe = config.clone();
    // A processor takes about the same time per image in a small batch.
    let most = if machine.device.is_cuda() { usize::MAX } else { 32 };
    probe.train.batch_size = config.train.micro_batch().min(most);
    probe.train.accumulation_steps = 1;
    probe.data.channels = Channels::Count(facts.channels.0);
    probe.connect();
    images::assume_noise(&mut probe);
    let mut trial = Trial::new(&probe, machine, None, &Group::single(), &|key: &str| key.to_string())?;
    let seconds = trial.seconds_per_step(10, Duration::from_secs(4))?;
    let step = seconds / probe.train.batch_size as f64;
    let load = facts.decode_seconds / machine.loader.workers.max(1) as f64;
    // On a GPU they overlap.
    Ok(1.0 / if machine.device.is_cuda() { step.max(load) } else { step + load })
}

fn describe_machine(machine: &Machine, rate: f64, facts: &Facts, choices: &mut Choices) {
    let (workers, device) = (machine.loader.workers, native::describe_device(machine.device));
    let decoding = format!("decoding takes {:.1} ms an image", 1e3 * facts.decode_seconds);
    choices.row("workers", workers.to_string(), decoding, &["data.workers"]);
    let precision = machine.precision();
    choices.row("device", device, format!("{precision}, about {rate:.0} images/s"), &["train.device"]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_named_after_its_images() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("my photos");
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(default_output(&folder), Path::new("runs/my_photos"));
        let file = root.path().join("train.parquet");
        std::fs::write(&file, "").unwrap();
        assert_eq!(default_output(&file), Path::new("runs/train"));
    }

    #[test]
    fn what_the_user_set_stays_and_is_the_reason() {
        let overrides = ["train.batch_size=7".to_string()];
        let config = Config::load_over(Config::default(), None, &["train.batch_size=14".into()]).unwrap();
        let mut choices = Choices::new(config, &overrides);
        choices.set("train.batch_size", 256, "a rule").unwrap();
        choices.set("optimizer.base_lr", 0.5, "a rule").unwrap();
        choices.row("batch", "14".into(), "a rule".into(), &["train.batch_size"]);
        assert_eq!((choices.config.train.batch_size, choices.config.optimizer.base_lr), (14, 0.5));
        assert_eq!(choices.rows[0].reason, "your train.batch_size");
    }
}
