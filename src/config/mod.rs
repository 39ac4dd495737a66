//! The configuration of a run: one YAML file, one typed section per concern, unknown keys refused.

mod commented;
pub mod explain;
pub mod recipes;
pub mod schema;
mod source;
mod wording;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::augment::{AugmentConfig, PerChannel};
use crate::data::values::{Channels, MAX_CHANNELS, ValueRange};
use crate::data::{self, DataConfig};
use crate::distributed::DistConfig;
use crate::eval::LinearEvalConfig;
use crate::files;
use crate::model::{Family, ModelConfig};
use crate::optim::{EmaConfig, OptimizerConfig, ScheduleConfig};
use crate::section::{Problems, Range, Section, Shown};
use crate::train::{MonitorConfig, OutputConfig, TrainConfig};
pub use commented::Comments;

/// A whole config file. Every section and every key may be omitted: the default is the paper's main run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The images.
    pub data: DataConfig,
    /// Augmentations.
    pub augment: AugmentConfig,
    /// Encoder, projector, predictor.
    pub model: ModelConfig,
    /// Optimizer.
    pub optimizer: OptimizerConfig,
    /// Length of the run and learning rate schedule.
    pub schedule: ScheduleConfig,
    /// The target network's moving average.
    pub ema: EmaConfig,
    /// Batch, precision, device, seed.
    pub train: TrainConfig,
    /// Logging, collapse detection, k-NN.
    pub monitor: MonitorConfig,
    /// Run folder and checkpoints.
    pub output: OutputConfig,
    /// Distributed training.
    pub dist: DistConfig,
    /// `byol linear-eval`.
    pub linear_eval: LinearEvalConfig,
}

impl Config {
    /// Reads a YAML file and applies `--set key.path=value` overrides in order.
    /// # Errors
    /// Where (file and line, or override), what was found and what is accepted; several values out of range are
    /// reported together.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        Self::load_over(Self::default(), Some(path), overrides)
    }

    /// The same on top of `base`, such as a run's own config: a section in the file replaces that of the base entirely,
    /// other sections stay.
    pub fn load_over(base: Self, path: Option<&Path>, overrides: &[String]) -> Result<Self> {
        let source = path.map(source::Source::read).transpose()?;
        let mut outdated = Vec::new();
        let mut config = match &source {
            Some(source) => source.parse_over(base, source::preset(overrides), &mut outdated)?,
            None => Self { augment: base.augment.on(source::preset(overrides)), ..base },
        };
        for text in overrides {
            config = source::set(&config, text, &mut outdated)?;
        }
        let size = config.augment.size.shape();
        if config.model.arch.family() == Family::Vit && config.model.encoder().check_size(size).is_ok() {
            config.model.image_size.get_or_insert(size);
        }
        let paths = config.data.paths().into_iter().chain(config.output.paths()).chain(config.model.paths());
        for path in paths {
            *path = files::expanded(path)?;
        }
        config.connect();
        let problems = config.problems();
        if problems.is_empty() {
            source::note(&outdated);
            return Ok(config);
        }
        let place = |key: &str| source.as_ref().map_or("the checkpoint's config".to_string(), |s| s.place(key));
        let lines: Vec<String> = problems
            .into_iter()
            .map(|(key, message)| match source::overridden(overrides, &key) {
                Some(text) => format!("--set {text}: {key}: {message}"),
                None => format!("{}: {key}: {message}", place(&key)),
            })
            .collect();
        bail!("{}", lines.join("; "))
    }

    /// The config that a checkpoint's manifest holds.
    /// # Errors
    /// Keys or values that this version does not know.
    pub fn of_run(saved: &serde_json::Value) -> Result<Self> {
        let mut config: Self = serde_json::from_value(saved.clone()).context("the checkpoint's config")?;
        config.adopt(saved)?;
        Ok(config)
    }

    /// For keys that are `auto` here and that a run finds out from its images: takes what the run with the config `saved`
    /// found. Runs of versions without these keys had 8-bit RGB.
    /// # Errors
    /// Values that this version does not know.
    pub fn adopt(&mut self, saved: &serde_json::Value) -> Result<()> {
        fn of<T: serde::de::DeserializeOwned>(saved: &serde_json::Value, path: &str, without: T) -> Result<T> {
            let value = saved.pointer(path).cloned();
            value
                .map_or(Ok(without), serde_json::from_value)
                .with_context(|| format!("the checkpoint's config: {path}"))
        }
        if self.data.channels == Channels::Auto {
            self.data.channels = of(saved, "/data/channels", Channels::Count(3))?;
        }
        if self.data.value_range == ValueRange::Auto {
            self.data.value_range = of(saved, "/data/value_range", ValueRange::Full)?;
        }
        self.connect();
        let (default, other) = (AugmentConfig::default(), self.channels() != 3);
        let augment = &mut self.augment;
        for (own, path, default) in
            [(&mut augment.mean, "/augment/mean", default.mean), (&mut augment.std, "/augment/std", default.std)]
        {
            if *own == PerChannel::Auto || other && *own == default {
                *own = of(saved, path, own.clone())?;
            }
        }
        Ok(())
    }

    /// The number of channels of the images; 3 until the images have been looked at.
    pub fn channels(&self) -> usize {
        self.data.channels.count().unwrap_or(3)
    }

    /// Passes the number of channels on to the model.
    pub fn connect(&mut self) {
        self.model.channels = self.channels() as i64;
    }

    /// Keys whose values are for other images than those of so many channels.
    pub fn channel_problems(&self, channels: usize) -> Vec<(String, String)> {
        let mut problems = Problems::default();
        self.augment.check_channels(channels, &mut problems);
        let found = problems.into_inner().into_iter();
        found.map(|(key, message)| (format!("augment.{key}"), message)).collect()
    }

    /// Where a key was set, for errors that depend on the data: the override, or file and line.
    pub fn place(path: &Path, overrides: &[String], key: &str) -> String {
        if let Some(text) = source::overridden(overrides, key) {
            return format!("--set {text}");
        }
        let source = source::Source::read(path);
        source.map_or_else(|_| path.display().to_string(), |source| source.place(key))
    }

    /// The config as YAML, every key written out.
    pub fn to_yaml(&self) -> Result<String> {
        Ok(serde_yaml::to_string(self)?)
    }

    /// The numbers that each key accepts, where they are a range.
    pub fn ranges() -> Vec<Range> {
        let mut problems = Problems::default();
        Self::default().sections().iter().for_each(|(name, section)| problems.within(name, *section));
        problems.into_ranges()
    }

    /// Whether `--set` has changed this key or a section around it.
    pub fn is_overridden(overrides: &[String], key: &str) -> bool {
        source::overridden(overrides, key).is_some()
    }

    /// Every section with its name.
    pub fn sections(&self) -> [(&'static str, &dyn Section); 11] {
        [
            ("data", &self.data),
            ("augment", &self.augment),
            ("model", &self.model),
            ("optimizer", &self.optimizer),
            ("schedule", &self.schedule),
            ("ema", &self.ema),
            ("train", &self.train),
            ("monitor", &self.monitor),
            ("output", &self.output),
            ("dist", &self.dist),
            ("linear_eval", &self.linear_eval),
        ]
    }

    /// Values out of range, alone or against each other, as (key path, what was found and what is accepted).
    /// What needs the data itself is checked once it is open.
    fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Problems::default();
        self.sections().iter().for_each(|(name, section)| problems.within(name, *section));
        let mut problems = problems.into_inner();
        let size = self.augment.size;
        if let Err(expected) = self.model.encoder().check_size(size.shape()) {
            problems.push(("augment.size".into(), format!("found {}, expected {expected}", size.shown())));
        }
        let possible = self.data.channels.count().filter(|count| (1..=MAX_CHANNELS).contains(count));
        problems.extend(possible.into_iter().flat_map(|count| self.channel_problems(count)));
        problems
    }

    /// Whether a leaf means what the version did that did not have its key yet.
    fn is_as_before(&self, key: &str, value: &str) -> bool {
        let (section, key) = key.split_once('.').unwrap_or((key, ""));
        let sections = self.sections();
        let added =
            sections.iter().find(|(name, _)| *name == section).map_or(&[][..], |(_, section)| section.as_before());
        added.iter().any(|(name, values)| *name == key && values.contains(&value))
    }

    /// Keys that were renamed, as (old path, new path).
    fn renamed(&self) -> impl Iterator<Item = (String, String)> {
        let within =
            |(section, (old, new)): (&str, &(&str, &str))| (format!("{section}.{old}"), format!("{section}.{new}"));
        let renamed =
            |(name, section): (&'static str, &dyn Section)| section.renamed().iter().map(move |pair| (name, pair));
        self.sections().into_iter().flat_map(renamed).map(within)
    }

    /// The keys that have an effect on the result, with their values: what runs are compared by.
    /// # Errors
    /// Numbers that JSON cannot hold.
    pub fn settings(&self) -> Result<Vec<(String, serde_json::Value)>> {
        let mut settings = leaf_values(&serde_json::to_value(self)?);
        settings.retain(|(key, value)| self.has_effect(key) && !value.is_null());
        Ok(settings)
    }

    /// Whether a key changes the result of training.
    pub(crate) fn has_effect(&self, key: &str) -> bool {
        let (section, key) = key.split_once('.').unwrap_or((key, ""));
        let sections = self.sections();
        let section = sections.iter().find(|(name, _)| *name == section);
        section.is_none_or(|(_, section)| !section.no_effect().contains(key))
    }

    /// Whether version 0.1.0 did not have a key.
    fn is_added(&self, key: &str) -> bool {
        let (section, key) = key.split_once('.').unwrap_or((key, ""));
        self.sections().iter().any(|(name, added)| *name == section && added.added().contains(&key))
    }

    /// SHA-256 (hex) over the keys that change the result of training, see [`Self::differences`]. Renamed keys count by
    /// their first name, and added ones not at their default, so that the hash equals that of older versions.
    /// # Errors
    /// Values that JSON cannot hold.
    pub fn fingerprint(&self) -> Result<String> {
        self.fingerprint_of(None)
    }

    /// The same for a run whose `model.init` is the file with the hash `init`: the file counts, not its place.
    /// # Errors
    /// Values that JSON cannot hold.
    pub fn fingerprint_of(&self, init: Option<&str>) -> Result<String> {
        let mut leaves: BTreeMap<String, String> = leaves(&serde_json::to_value(self)?).into_iter().collect();
        let defaults: BTreeMap<_, _> = self::leaves(&serde_json::to_value(Self::default())?).into_iter().collect();
        let added = |key: &str, value: &String| self.is_added(key) && defaults.get(key) == Some(value);
        let same = |key: &str, value: &String| added(key, value) || self.is_as_before(key, value);
        leaves.retain(|key, value| self.has_effect(key) && !same(key, value));
        leaves.remove("model.init");
        leaves.extend(init.map(|sum| ("model.init".to_string(), sum.to_string())));
        for (old, new) in self.renamed() {
            leaves.remove(&new).and_then(|value| leaves.insert(old, value));
        }
        Ok(data::digest(leaves.into_iter().map(|(key, value)| format!("{key}: {value}"))))
    }

    /// Keys whose values differ and that change the result of training, as `key: ours, was theirs`.
    /// Keys without effect on the result are ignored ([`Section::no_effect`]). Keys that `other` lacks, because the
    /// program did not have them yet, had their default; keys that only `other` has are differences.
    /// # Errors
    /// `other` was not written by any version of this program.
    pub fn differences(&self, other: &serde_json::Value) -> Result<Vec<String>> {
        // Via text, like the other: parsing may change the last digit of a number.
        let own: serde_json::Value = serde_json::from_str(&serde_json::to_string(self)?)?;
        let (mut known, mut unknown) = (other.clone(), Vec::new());
        for (old, new) in self.renamed() {
            rename(&mut known, &old, &new);
        }
        remove_unknown("", &own, &mut known, &mut unknown);
        let theirs: Config = serde_json::from_value(known).context("cannot read the saved config")?;
        let theirs: BTreeMap<String, String> = leaves(&serde_json::to_value(theirs)?).into_iter().collect();
        let absent = "absent".to_string();
        let changed = leaves(&own).into_iter().filter_map(|(key, ours)| {
            let theirs = theirs.get(&key).unwrap_or(&absent);
            let same = ours == *theirs || self.is_as_before(&key, &ours) && self.is_as_before(&key, theirs);
            (self.has_effect(&key) && !same).then(|| format!("{key}: {ours}, was {theirs}"))
        });
        let unknown = unknown.into_iter().filter(|(key, _)| self.has_effect(key));
        Ok(changed.chain(unknown.map(|(key, value)| format!("{key}: unknown, was {value}"))).collect())
    }
}

/// Renames a key of a section.
fn rename(config: &mut serde_json::Value, old: &str, new: &str) {
    let (Some((section, old)), Some((_, new))) = (old.split_once('.'), new.split_once('.')) else { return };
    let Some(section) = config.get_mut(section).and_then(serde_json::Value::as_object_mut) else { return };
    if let Some(value) = section.remove(old) {
        section.insert(new.to_string(), value);
    }
}

/// Moves the leaves of `theirs` that `ours` has no key for to `unknown`.
fn remove_unknown(
    prefix: &str,
    ours: &serde_json::Value,
    theirs: &mut serde_json::Value,
    unknown: &mut Vec<(String, serde_json::Value)>,
) {
    let (Some(ours), Some(theirs)) = (ours.as_object(), theirs.as_object_mut()) else { return };
    theirs.retain(|key, value| {
        let path = join(prefix, key);
        match ours.get(key) {
            Some(ours) => remove_unknown(&path, ours, value, unknown),
            None => flatten(&path, value, unknown),
        }
        ours.contains_key(key)
    });
}

/// Leaves of a JSON tree as (dotted path, value).
fn leaves(value: &serde_json::Value) -> Vec<(String, String)> {
    leaf_values(value).into_iter().map(|(path, value)| (path, value.to_string())).collect()
}

fn leaf_values(value: &serde_json::Value) -> Vec<(String, serde_json::Value)> {
    let mut leaves = Vec::new();
    flatten("", value, &mut leaves);
    leaves
}

fn flatten(prefix: &str, value: &serde_json::Value, leaves: &mut Vec<(String, serde_json::Value)>) {
    match value {
        serde_json::Value::Object(map) => {
            map.iter().for_each(|(key, value)| flatten(&join(prefix, key), value, leaves))
        }
        leaf => leaves.push((prefix.to_string(), leaf.clone())),
    }
}

/// The path of a key within a section.
fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_string() } else { format!("{section}.{key}") }
}
