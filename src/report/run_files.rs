//! What a run left in its folder, read for the report. Only `config.yaml` and `metrics.jsonl` must be there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::logging::{Quality, metrics};

/// A run's files.
pub struct RunFiles {
    /// Its folder, as given.
    pub folder: PathBuf,
    /// The folder's name, the same for no two runs of a report.
    pub name: String,
    /// The resolved config, as text and as values.
    pub yaml: String,
    /// The same as values.
    pub config: Value,
    /// Null if there is none.
    pub manifest: Value,
    /// Null if there is none.
    pub summary: Value,
    /// The lines of `metrics.jsonl`.
    pub records: Vec<Value>,
}

impl RunFiles {
    /// Reads them.
    /// # Errors
    /// The folder is not a run's; a file is damaged.
    pub fn read(folder: &Path) -> Result<Self> {
        let place = |name: &str| folder.join(name);
        if !place("config.yaml").is_file() {
            bail!("{}: found no config.yaml, expected a run's folder (output.dir of byol train)", folder.display());
        }
        let text =
            |name: &str| fs::read_to_string(place(name)).with_context(|| format!("reading {}", place(name).display()));
        let json = |name: &str| match place(name).is_file() {
            true => serde_json::from_str(&text(name)?).with_context(|| place(name).display().to_string()),
            false => Ok(Value::Null),
        };
        let yaml = text("config.yaml")?;
        let config = serde_yaml::from_str(&yaml).with_context(|| place("config.yaml").display().to_string())?;
        let records = match place("metrics.jsonl").is_file() {
            true => metrics::read(&place("metrics.jsonl"))?,
            false => Vec::new(),
        };
        let full = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
        let name = full.file_name().unwrap_or(full.as_os_str()).to_string_lossy().into_owned();
        let (manifest, summary) = (json("manifest.json")?, json("summary.json")?);
        Ok(Self { folder: folder.into(), name, yaml, config, manifest, summary, records })
    }

    /// The values of a key over the epochs.
    pub fn series(&self, key: &str) -> Vec<(f64, f64)> {
        let point = |record: &Value| Some((record["epoch"].as_f64()?, record[key].as_f64()?));
        self.records.iter().filter_map(point).collect()
    }

    /// Pairs of the values of two keys after the same steps.
    pub fn pairs(&self, first: &str, second: &str) -> Vec<(f64, f64)> {
        let values = |key: &str| {
            let value = |record: &Value| Some((record["step"].as_u64()?, record[key].as_f64()?));
            self.records.iter().filter_map(value).collect::<Vec<_>>()
        };
        let second = values(second);
        let other = |step: u64| second.iter().find(|(at, _)| *at == step).map(|(_, value)| *value);
        values(first).into_iter().filter_map(|(step, value)| Some((value, other(step)?))).collect()
    }

    /// The quality over the epochs.
    pub fn quality(&self) -> Vec<(f64, Quality)> {
        Quality::history(&self.records)
    }

    /// Epochs at which the run was resumed.
    pub fn resumed(&self) -> Vec<f64> {
        let per_epoch = self.manifest["steps_per_epoch"].as_f64().filter(|steps| *steps > 0.0);
        let steps = self.summary["resumed_at"].as_array().into_iter().flatten().filter_map(Value::as_f64);
        steps.zip(std::iter::repeat(per_epoch)).filter_map(|(step, per_epoch)| Some(step / per_epoch?)).collect()
    }
}

/// Gives runs whose folders have the same name different ones.
pub fn distinguish(runs: &mut [RunFiles]) {
    for at in 1..runs.len() {
        let (before, rest) = runs.split_at_mut(at);
        let (name, mut number) = (rest[0].name.clone(), 1);
        while before.iter().any(|run| run.name == rest[0].name) {
            number += 1;
            rest[0].name = format!("{name} ({number})");
        }
    }
}
