//! Saving and resuming a run: both networks with their buffers, the optimizer's state, the step, the
//! config and the data's fingerprint. Learning rate, tau, the order of images and the views are functions of
//! the step, so nothing else is needed for bit-identical weights.

mod folder;
mod tensors;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub use crate::files::write_atomic as write_file;
pub use folder::{check_file, check_output, clean, list, path_of, set_aside, sha256};
pub use tensors::{Mismatch, load_views, serialize, views};

use crate::byol::Byol;
use crate::model::Named;

/// Version of the layout below; newer ones are refused.
const FORMAT: u32 = 1;

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const MANIFEST: &str = "manifest.json";

/// Total steps of a run with `schedule.hours` whose speed is not known yet.
pub const UNKNOWN_STEPS: u64 = 1_000_000_000;

/// How far a run is, in words.
pub fn progress(step: u64, total_steps: u64) -> String {
    if total_steps < UNKNOWN_STEPS { format!("step {step} of {total_steps}") } else { format!("step {step}") }
}

/// The time that a run with `schedule.hours` has taken, and the schedule that this led to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// The run's length in hours.
    pub hours: f64,
    /// Seconds of all sessions so far.
    pub seconds: f64,
    /// Seconds of an evaluation.
    pub evaluation_seconds: f64,
    /// Seconds of a checkpoint.
    pub checkpoint_seconds: f64,
    /// Steps of the schedule.
    pub schedule_steps: u64,
    /// Steps of its warmup.
    pub warmup_steps: u64,
    /// Steps that the schedule is ahead of the run.
    pub ahead: i64,
}

/// A checkpoint's metadata, `manifest.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout version.
    pub format: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// Total steps of the run.
    pub total_steps: u64,
    /// Steps per epoch.
    pub steps_per_epoch: u64,
    /// Number of training images.
    pub images: usize,
    /// Fingerprint of the data set's index.
    pub data: String,
    /// Train-mode forward passes of the online and the target network (PyTorch's `num_batches_tracked`).
    pub batches_tracked: [i64; 2],
    /// Version of this program.
    pub byol: String,
    /// The commit it was built from, see [`crate::commit`].
    #[serde(default)]
    pub commit: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// SHA-256 over the config keys that change the result.
    #[serde(default)]
    pub config_sha256: String,
    /// Seed of initial weights, order and views.
    #[serde(default)]
    pub seed: u64,
    /// Whether only deterministic algorithms were allowed (`train.deterministic`); those of the CPU always are.
    #[serde(default)]
    pub deterministic: bool,
    /// Device; bit-identical results depend on it and on the CPU threads.
    pub device: String,
    /// Threads of libtorch's CPU operators.
    pub threads: usize,
    /// Processes that shared each batch.
    #[serde(default = "one")]
    pub processes: usize,
    /// fp32 or bf16.
    pub precision: String,
    /// Steps that the position in the schedule is ahead of `step`: not 0 if the run was resumed with another number
    /// of steps per epoch.
    #[serde(default)]
    pub schedule_offset: i64,
    /// Of a run with `schedule.hours`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace: Option<Pace>,
    /// k-NN top-1 of the encoder before the first step, if measured.
    pub knn_random: Option<f64>,
    /// The weights that the run started from (`model.init`), if not from random ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<StartedFrom>,
    /// The folder the run was started in, against which relative paths in its config are resolved.
    #[serde(default)]
    pub started_in: Option<PathBuf>,
    /// The resolved config.
    pub config: serde_json::Value,
}

/// The weights that a run started from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartedFrom {
    /// The file, or the checkpoint's folder.
    pub path: PathBuf,
    /// SHA-256 of the file, or of the checkpoint's `model.safetensors`, in hex.
    pub sha256: String,
}

fn one() -> usize {
    1
}

impl Manifest {
    /// A manifest with the versions of this program and layout, to be filled in.
    pub fn new(config: serde_json::Value) -> Self {
        Self {
            format: FORMAT,
            step: 0,
            total_steps: 0,
            steps_per_epoch: 0,
            images: 0,
            data: String::new(),
            batches_tracked: [0; 2],
            byol: env!("CARGO_PKG_VERSION").into(),
            commit: crate::commit().into(),
            libtorch: native::libtorch_version(),
            config_sha256: String::new(),
            seed: 0,
            deterministic: false,
            device: String::new(),
            threads: 0,
            processes: 1,
            precision: String::new(),
            schedule_offset: 0,
            pace: None,
            knn_random: None,
            init: None,
            started_in: std::env::current_dir().ok(),
            config,
        }
    }

    /// What a run's result depends on, in one line.
    pub fn line(&self) -> String {
        let Self { byol, commit, libtorch, device, threads, precision, seed, .. } = self;
        let deterministic = match (self.deterministic, device.as_str()) {
            (true, _) => ", deterministic",
            (false, "cpu") => "",
            (false, _) => ", not deterministic",
        };
        let processes = if self.processes > 1 { format!("{} processes, ", self.processes) } else { String::new() };
        let short = |sum: &str| sum.chars().take(12).collect::<String>();
        let init = self.init.as_ref().map_or(String::new(), |init| format!(", init {}", short(&init.sha256)));
        format!(
            "byol {byol} ({commit}), libtorch {libtorch}, {device}, {processes}{threads} threads, {precision}{deterministic}, seed \
             {seed}, config {}, data {}{init}",
            short(&self.config_sha256),
            short(&self.data)
        )
    }
}

/// Writes the checkpoint of `manifest.step` below `root` atomically, with these other files, then removes all but the
/// latest `keep`.
/// # Errors
/// What could not be written and how much space it needs; earlier checkpoints are kept.
pub fn save(
    root: &Path,
    byol: &Byol,
    mut manifest: Manifest,
    others: Vec<(&str, Vec<u8>)>,
    keep: usize,
) -> Result<PathBuf> {
    manifest.batches_tracked = byol.batches_tracked();
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let mut files = vec![
        (MODEL, serialize(&byol.state_dict(), metadata.clone())?),
        (OPTIMIZER, serialize(&byol.optimizer.state(), metadata)?),
        (MANIFEST, serde_json::to_vec_pretty(&manifest)?),
    ];
    files.extend(others);
    let folder = folder::write(root, manifest.step, &files)?;
    clean(root, keep);
    Ok(folder)
}

/// Reads and checks a checkpoint's manifest.
/// # Errors
/// Damaged, or of a newer format.
pub fn read_manifest(folder: &Path) -> Result<Manifest> {
    let bytes = folder::read(folder, MANIFEST, 1 << 24)?;
    let place = || format!("{}/{MANIFEST}", folder.display());
    let format = serde_json::from_slice::<serde_json::Value>(&bytes).with_context(place)?["format"].as_u64();
    if format != Some(FORMAT.into()) {
        let found = format.map_or("none".to_string(), |f| f.to_string());
        bail!("{}: found format {found}, this version reads format {FORMAT}; use the version that wrote it", place());
    }
    serde_json::from_slice(&bytes).with_context(place)
}

/// Reads a file of tensors, up to the size that its header declares.
fn read_tensors(folder: &Path, name: &str) -> Result<Vec<u8>> {
    folder::read(folder, name, tensors::length_by_header(&folder.join(name))?)
}

/// The bytes of a checkpoint's `model.safetensors`.
/// # Errors
/// A damaged file.
pub fn read_model(folder: &Path) -> Result<Vec<u8>> {
    read_tensors(folder, MODEL)
}

/// Loads the tensors of a checkpoint's model whose names begin with `prefix` (such as `online.encoder.`).
/// # Errors
/// A damaged file; tensors that differ in name, shape or type, all listed; nothing is changed then.
pub fn load_part(folder: &Path, prefix: &str, tensors: &[Named]) -> Result<()> {
    let model = read_tensors(folder, MODEL)?;
    let place = || folder.join(MODEL).display().to_string();
    let mut found = views(&model).with_context(place)?;
    found = found.into_iter().filter_map(|(n, v)| Some((n.strip_prefix(prefix)?.to_string(), v))).collect();
    load_views(found, tensors, false).with_context(place)
}

/// Loads a checkpoint into networks and optimizer of the same shapes.
/// # Errors
/// Damaged files (nothing is changed then); tensors that differ in name, shape or type, all listed.
pub fn load(folder: &Path, byol: &Byol) -> Result<Manifest> {
    let manifest = read_manifest(folder)?;
    let model = read_tensors(folder, MODEL)?;
    let optimizer = read_tensors(folder, OPTIMIZER)?;
    let fitting = |name: &str, bytes, tensors: &[Named]| {
        let place = || folder.join(name).display().to_string();
        views(bytes).and_then(|found| tensors::fitting(found, tensors, false)).with_context(place)
    };
    let model = fitting(MODEL, &model, &byol.state_dict())?;
    let optimizer = fitting(OPTIMIZER, &optimizer, &byol.optimizer.state())?;
    tensors::copy(model)?;
    tensors::copy(optimizer)?;
    byol.set_batches_tracked(manifest.batches_tracked);
    Ok(manifest)
}

/// Loads the latest valid checkpoint below `root`; damaged ones are logged. `None` if there is no checkpoint.
/// # Errors
/// `accept` refuses the manifest; the checkpoint is of another model or optimizer ([`Mismatch`]), as the older ones
/// are, too; or all checkpoints are damaged (the run must not silently start over).
pub fn load_newest(
    root: &Path,
    byol: &Byol,
    accept: impl Fn(&Manifest) -> Result<()>,
) -> Result<Option<(PathBuf, Manifest)>> {
    let all = list(root);
    for folder in &all {
        match read_manifest(folder) {
            Ok(manifest) => accept(&manifest)?,
            Err(error) => {
                log::warn!("skipping a checkpoint: {error:#}");
                continue;
            }
        }
        match load(folder, byol) {
            Ok(manifest) => return Ok(Some((folder.clone(), manifest))),
            Err(error) if error.is::<Mismatch>() => return Err(error),
            Err(error) => log::warn!("skipping a checkpoint: {error:#}"),
        }
    }
    if all.is_empty() {
        return Ok(None);
    }
    bail!(
        "{}: none of its {} checkpoints can be used; choose another with --resume, or move them away",
        root.display(),
        all.len()
    )
}
