//! The configuration of a run: one YAML file, one typed section per concern, unknown keys refused.

mod source;

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::augment::AugmentConfig;
use crate::data::DataConfig;
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
    /// Optimiser and its numbers.
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
        match (source::overridden(overrides, key), source::Source::read(path)) {
            (Some(text), _) => format!("--set {text}"),
            (None, Ok(source)) => source.place(key),
            (None, Err(_)) => path.display().to_string(),
        }
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
            ("linear_eval", self.linear_eval.problems()),
        ];
        let named = |(section, problems): (&str, Vec<(String, String)>)| {
            let section = section.to_string();
            problems.into_iter().map(move |(key, message)| (format!("{section}.{key}"), message))
        };
        sections.into_iter().flat_map(named).collect()
    }

    /// Keys whose values differ and that change the result of training, as `key: ours, then theirs`.
    /// Left out are keys that only say where things are, how fast they go and what is reported.
    pub fn differences(&self, other: &serde_json::Value) -> Result<Vec<String>> {
        const HARMLESS: [&str; 12] = [
            "data.path",
            "data.eval_path",
            "data.workers",
            "data.prefetch_batches",
            "monitor.",
            "output.",
            "linear_eval.",
            "train.device",
            "train.threads",
            "train.max_steps",
            "train.deterministic",
            "data.cache_bytes",
        ];
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        flatten("", &serde_json::to_value(self)?, &mut ours);
        flatten("", other, &mut theirs);
        let theirs: std::collections::BTreeMap<String, String> = theirs.into_iter().collect();
        let changed = ours.iter().filter(|(key, value)| {
            let counts = !HARMLESS.iter().any(|h| key == h || (h.ends_with('.') && key.starts_with(h)));
            counts && theirs.get(key) != Some(value)
        });
        let missing = "absent".to_string();
        Ok(changed.map(|(k, v)| format!("{k}: {v}, was {}", theirs.get(k).unwrap_or(&missing))).collect())
    }
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
