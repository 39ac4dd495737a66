//! The configuration of a run: one YAML file, one typed section per concern, unknown keys refused.

mod source;
mod wording;

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::augment::AugmentConfig;
use crate::data::{self, DataConfig};
use crate::distributed::DistConfig;
use crate::eval::LinearEvalConfig;
use crate::model::ModelConfig;
use crate::optim::{EmaConfig, OptimizerConfig, ScheduleConfig};
use crate::train::{MonitorConfig, OutputConfig, TrainConfig};

/// A whole config file. Every section and every key may be left out: the default is the paper's main run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the images come from.
    pub data: DataConfig,
    /// How a view is made.
    pub augment: AugmentConfig,
    /// Encoder, projector, predictor.
    pub model: ModelConfig,
    /// Optimizer and its numbers.
    pub optimizer: OptimizerConfig,
    /// Length of the run and the learning rate over it.
    pub schedule: ScheduleConfig,
    /// The target network's moving average.
    pub ema: EmaConfig,
    /// Batch, precision, device, seed.
    pub train: TrainConfig,
    /// Logging, collapse watch, k-NN.
    pub monitor: MonitorConfig,
    /// Run folder and checkpoints.
    pub output: OutputConfig,
    /// Several processes.
    pub dist: DistConfig,
    /// `byol linear-eval`.
    pub linear_eval: LinearEvalConfig,
}

impl Config {
    /// Reads a YAML file and applies `--set key.path=value` overrides in order.
    /// # Errors
    /// What is wrong, where (file and line, or override), what was found and what is accepted; several
    /// values out of range are reported together.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        Self::load_over(Self::default(), Some(path), overrides)
    }

    /// The same on top of `base`, such as a run's own config: a section that the file has replaces the base's as a
    /// whole, one that it leaves out stays.
    /// # Errors
    /// As [`Self::load`].
    pub fn load_over(base: Self, path: Option<&Path>, overrides: &[String]) -> Result<Self> {
        let source = path.map(source::Source::read).transpose()?;
        let mut config = match &source {
            Some(source) => source.parse_over(base)?,
            None => base,
        };
        for text in overrides {
            config = source::set(&config, text)?;
        }
        let problems = config.problems();
        if problems.is_empty() {
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
    /// Keys or values of another version of this program.
    pub fn of_run(saved: &serde_json::Value) -> Result<Self> {
        serde_json::from_value(saved.clone()).context("the checkpoint's config")
    }

    /// Where a key was set, for complaints that only the data can raise: the override, or file and line.
    pub fn place(path: &Path, overrides: &[String], key: &str) -> String {
        if let Some(text) = source::overridden(overrides, key) {
            return format!("--set {text}");
        }
        // A pipe is read only once.
        let source = if path.is_file() { source::Source::read(path).ok() } else { None };
        source.map_or_else(|| path.display().to_string(), |source| source.place(key))
    }

    /// The config as YAML, every key written out.
    pub fn to_yaml(&self) -> Result<String> {
        Ok(serde_yaml::to_string(self)?)
    }

    /// Values out of range, alone or against each other, as (key path, what was found and what is accepted).
    /// What needs the data itself is checked once it is open.
    fn problems(&self) -> Vec<(String, String)> {
        let sections = [
            ("data", self.data.problems()),
            ("augment", self.augment.problems()),
            ("model", self.model.problems()),
            ("optimizer", self.optimizer.problems()),
            ("schedule", self.schedule.problems()),
            ("ema", self.ema.problems()),
            ("train", self.train.problems()),
            ("monitor", self.monitor.problems()),
            ("output", self.output.problems()),
            ("dist", self.dist.problems()),
            ("linear_eval", self.linear_eval.problems()),
        ];
        let named = |(section, problems): (&str, Vec<(String, String)>)| {
            let section = section.to_string();
            problems.into_iter().map(move |(key, message)| (format!("{section}.{key}"), message))
        };
        sections.into_iter().flat_map(named).collect()
    }

    /// SHA-256 (hex) over the keys that change the result of training, see [`Self::differences`].
    /// # Errors
    /// Values that JSON cannot hold.
    pub fn fingerprint(&self) -> Result<String> {
        let mut leaves = Vec::new();
        flatten("", &serde_json::to_value(self)?, &mut leaves);
        let counted = leaves.into_iter().filter(|(key, _)| counts(key));
        Ok(data::digest(counted.map(|(key, value)| format!("{key}: {value}"))))
    }

    /// Keys whose values differ and that change the result of training, as `key: ours, was theirs`.
    /// Left out are keys that only say where things are, how fast they go and what is reported. Keys
    /// that `other` lacks, because the program did not have them yet, had their default; those that it
    /// has and we do not are differences. Fails for what no version of the program wrote.
    pub fn differences(&self, other: &serde_json::Value) -> Result<Vec<String>> {
        // By way of text, as the other came: reading may move a number by its last digit.
        let own: serde_json::Value = serde_json::from_str(&serde_json::to_string(self)?)?;
        let (mut known, mut unknown) = (other.clone(), Vec::new());
        remove_unknown("", &own, &mut known, &mut unknown);
        let theirs: Config = serde_json::from_value(known).context("cannot read the saved config")?;
        let (mut ours, mut leaves) = (Vec::new(), Vec::new());
        flatten("", &own, &mut ours);
        flatten("", &serde_json::to_value(theirs)?, &mut leaves);
        let theirs: std::collections::BTreeMap<String, String> = leaves.into_iter().collect();
        let absent = "absent".to_string();
        let changed = ours.into_iter().filter_map(|(key, ours)| {
            let theirs = theirs.get(&key).unwrap_or(&absent);
            (counts(&key) && ours != *theirs).then(|| format!("{key}: {ours}, was {theirs}"))
        });
        let unknown = unknown.into_iter().filter(|(key, _)| counts(key));
        Ok(changed.chain(unknown.map(|(key, value)| format!("{key}: unknown, was {value}"))).collect())
    }
}

/// Whether a key changes the result of training.
fn counts(key: &str) -> bool {
    const HARMLESS: [&str; 22] = [
        "dist.",
        "data.path",
        "data.eval_path",
        "data.root",
        // A change shows in the fingerprint of the images.
        "data.key",
        "data.on_bad_image",
        "data.workers",
        "data.prefetch_batches",
        "data.prefetch_bytes",
        "data.cache_bytes",
        "data.spill_dir",
        "augment.eval_resize",
        "monitor.",
        "output.",
        "linear_eval.",
        "train.device",
        "train.threads",
        "train.max_steps",
        "train.cuda_graph",
        "train.deterministic",
        "train.on_non_finite",
        "train.max_skipped_steps",
    ];
    !HARMLESS.iter().any(|h| key == *h || (h.ends_with('.') && key.starts_with(h)))
}

/// Moves the leaves of `theirs` that `ours` has no key for to `unknown`.
fn remove_unknown(
    prefix: &str,
    ours: &serde_json::Value,
    theirs: &mut serde_json::Value,
    unknown: &mut Vec<(String, String)>,
) {
    let (Some(ours), Some(theirs)) = (ours.as_object(), theirs.as_object_mut()) else { return };
    theirs.retain(|key, value| {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match ours.get(key) {
            Some(ours) => remove_unknown(&path, ours, value, unknown),
            None => flatten(&path, value, unknown),
        }
        ours.contains_key(key)
    });
}

/// Leaves of a JSON tree as (dotted path, value).
fn flatten(prefix: &str, value: &serde_json::Value, leaves: &mut Vec<(String, String)>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, value, leaves);
            }
        }
        leaf => leaves.push((prefix.to_string(), leaf.to_string())),
    }
}
