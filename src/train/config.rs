//! Sections `train`, `monitor` and `output` of a config.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::OnNonFinite;
use native::DeviceChoice;

/// `train.precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 where the device computes in it, else fp32.
    Auto,
    /// Everything in fp32.
    Fp32,
    /// Forward passes in bf16 autocast; weights, loss, norms, optimizer and EMA in fp32.
    Bf16,
}

/// `train.cuda_graph`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CudaGraph {
    /// On a GPU, where this build and the config allow it.
    Auto,
    /// On, or an error.
    On,
    /// Every operation is launched by itself.
    Off,
}

/// Section `train`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Seed of the initial weights, the order of images and the views. Default 0.
    pub seed: u64,
    /// Images per optimizer step. Default 4096.
    pub batch_size: usize,
    /// Micro-batches per step, whose gradients are averaged: divides `batch_size`. Default 1.
    pub accumulation_steps: usize,
    /// auto, fp32 or bf16. Default auto.
    pub precision: Precision,
    /// auto, cpu, cuda or cuda:N. Default auto.
    pub device: DeviceChoice,
    /// Threads of libtorch's CPU operators, 0 for automatic. Default 0.
    pub threads: usize,
    /// Channels innermost in memory. Default true.
    pub channels_last: bool,
    /// TF32 for fp32 products on CUDA. Default true.
    pub allow_tf32: bool,
    /// Repeatable CUDA runs: deterministic algorithms, no autotuning. CPU runs always repeat. Default false.
    pub deterministic: bool,
    /// auto, on or off: record a whole step as a CUDA graph and replay it, one launch in place of thousands. The first
    /// replays are compared with the step as it is without. Default auto.
    pub cuda_graph: CudaGraph,
    /// End, with a checkpoint, after this many steps in all; the schedules still span `schedule.epochs`. Default null: run to the end.
    pub max_steps: Option<u64>,
    /// What to do when the loss or gradient of a step is NaN or Inf: stop (the default), or skip_step, which restores the
    /// state before the step. On CUDA skip_step waits for the device in every step; stop does not, and detects NaN one
    /// step later.
    pub on_non_finite: OnNonFinite,
    /// Start even where the estimated memory exceeds what the machine or the GPU has. Default false.
    pub ignore_memory: bool,
    /// With skip_step: stop after this many skipped steps in a row, at least 1. Default 10.
    pub max_skipped_steps: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            batch_size: 4096,
            accumulation_steps: 1,
            precision: Precision::Auto,
            device: DeviceChoice::Auto,
            threads: 0,
            channels_last: true,
            allow_tf32: true,
            deterministic: false,
            cuda_graph: CudaGraph::Auto,
            max_steps: None,
            on_non_finite: OnNonFinite::Stop,
            ignore_memory: false,
            max_skipped_steps: 10,
        }
    }
}

impl TrainConfig {
    /// Images per forward pass.
    pub fn micro_batch(&self) -> usize {
        self.batch_size / self.accumulation_steps
    }

    /// Out-of-range values as (key, what was found and what is accepted).
    pub fn problems(&self) -> Vec<(String, String)> {
        let (batch, parts) = (self.batch_size, self.accumulation_steps);
        let mut problems = Vec::new();
        if !(2..=1 << 20).contains(&batch) {
            problems.push(("batch_size".into(), format!("found {batch}, expected 2 to {}", 1 << 20)));
        } else if parts == 0 || batch % parts != 0 || batch / parts < 2 {
            let expected = format!("a divisor of batch_size ({batch}) that leaves at least 2 images a micro-batch");
            problems.push(("accumulation_steps".into(), format!("found {parts}, expected {expected}")));
        }
        if self.threads > 1024 {
            problems.push(("threads".into(), format!("found {}, expected 0 (automatic) to 1024", self.threads)));
        }
        if self.max_steps == Some(0) {
            problems.push(("max_steps".into(), "found 0, expected null or at least 1".into()));
        }
        if self.max_skipped_steps == 0 {
            problems.push(("max_skipped_steps".into(), "found 0, expected at least 1".into()));
        }
        problems
    }
}

/// Section `monitor`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MonitorConfig {
    /// Steps between log records, at least 1. Default 50.
    pub log_every: u64,
    /// Epochs between k-NN evaluations, 0 for none; needs labels. The first one sees the random encoder. Default 10.
    pub knn_every: u64,
    /// Neighbors that vote. Default 200.
    pub knn_k: usize,
    /// Temperature of their weights, exp(cosine / temperature). Default 0.1.
    pub knn_temperature: f64,
    /// Training images to compare with, 0 for all. Default 50000.
    pub knn_train_images: usize,
    /// Held-out images to classify, 0 for all. Default 10000.
    pub knn_eval_images: usize,
    /// Warn of a collapse when the deviation of projections falls below this part of 1/sqrt(D), 0 to 1. Default 0.1.
    pub collapse_threshold: f64,
    /// Write TensorBoard event files beside metrics.jsonl. Default true.
    pub tensorboard: bool,
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self {
            log_every: 50,
            knn_every: 10,
            knn_k: 200,
            knn_temperature: 0.1,
            knn_train_images: 50_000,
            knn_eval_images: 10_000,
            collapse_threshold: 0.1,
            tensorboard: true,
        }
    }
}

impl MonitorConfig {
    /// Out-of-range values as (key, what was found and what is accepted).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        if self.log_every == 0 {
            problems.push(("log_every".into(), "found 0, expected at least 1 step".into()));
        }
        if self.knn_k == 0 {
            problems.push(("knn_k".into(), "found 0, expected at least 1 neighbor".into()));
        }
        if !(0.001..=100.0).contains(&self.knn_temperature) {
            problems.push(("knn_temperature".into(), format!("found {}, expected 0.001 to 100", self.knn_temperature)));
        }
        if !(0.0..=1.0).contains(&self.collapse_threshold) {
            problems.push(("collapse_threshold".into(), format!("found {}, expected 0 to 1", self.collapse_threshold)));
        }
        problems
    }
}

/// `output.on_write_error`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnWriteError {
    /// Say so, keep what there is, and try again at the next checkpoint or record.
    #[default]
    Retry,
    /// End the run.
    Stop,
}

/// Section `output`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputConfig {
    /// The run's folder: checkpoints, metrics, resolved config. Default runs/byol.
    pub dir: PathBuf,
    /// Epochs between checkpoints, 0 for none but the last. Default 1.
    pub checkpoint_every_epochs: u64,
    /// Steps between checkpoints, 0 for none, besides those of epochs. Default 0.
    pub checkpoint_every_steps: u64,
    /// Newest checkpoints to keep, at least 1 (and as many of those set aside). Default 3.
    pub keep_checkpoints: usize,
    /// When a checkpoint or a metrics record cannot be written: retry at the next one, or stop. Default retry. A run
    /// whose last checkpoint cannot be written ends with an error either way.
    pub on_write_error: OnWriteError,
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self {
            dir: "runs/byol".into(),
            checkpoint_every_epochs: 1,
            checkpoint_every_steps: 0,
            keep_checkpoints: 3,
            on_write_error: OnWriteError::Retry,
        }
    }
}

impl OutputConfig {
    /// Out-of-range values as (key, what was found and what is accepted).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        if self.dir.as_os_str().is_empty() {
            problems.push(("dir".into(), "found nothing, expected the run's folder".into()));
        }
        if self.keep_checkpoints == 0 {
            problems.push(("keep_checkpoints".into(), "found 0, expected at least 1".into()));
        }
        problems
    }
}
