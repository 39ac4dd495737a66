//! Sections `train`, `monitor` and `output` of a config.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::{EnumAccess, Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::OnNonFinite;
use crate::section::{Keys, Problems, Section, Words, count_or_null};
use native::DeviceChoice;

/// `train.precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 if the device supports it, else fp32.
    Auto,
    /// Everything in fp32.
    Fp32,
    /// Forward passes in bf16 autocast; weights, loss, norms, optimizer and EMA in fp32.
    Bf16,
}

/// `train.cuda_graph`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CudaGraph {
    /// On a GPU, if this build and the config allow it.
    Auto,
    /// On, or an error.
    On,
    /// Every operation is launched separately.
    Off,
}

/// Section `train`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    #[schemars(with = "String")]
    pub device: DeviceChoice,
    /// Threads of libtorch's CPU operators, 1 to 1024. Default null: automatic.
    #[serde(deserialize_with = "count_or_null")]
    pub threads: Option<usize>,
    /// Channels-last memory format. Default true.
    pub channels_last: bool,
    /// TF32 for fp32 products on CUDA. Default true.
    pub allow_tf32: bool,
    /// Reproducible CUDA runs: deterministic algorithms, no autotuning. CPU runs are always reproducible. Default
    /// false.
    pub deterministic: bool,
    /// auto, on or off: capture a whole step as a CUDA graph and replay it, one launch instead of thousands. The first
    /// replays are compared with the step without a graph. Default auto.
    pub cuda_graph: CudaGraph,
    /// CUDA, in training: BatchNorm fused with the residual sum and ReLU after it, which is faster. The kernels are
    /// compiled at startup and compared with libtorch's operators. Default true.
    pub fused_batch_norm: bool,
    /// Stop, with a checkpoint, after this many steps in total; the schedules still span `schedule.epochs`. Default
    /// null: run to the end.
    pub max_steps: Option<u64>,
    /// What to do when the loss or gradient of a step is NaN or Inf: stop (the default), or skip_step, which restores
    /// the state before the step. On CUDA skip_step synchronizes in every step; stop does not, and detects NaN
    /// one step later.
    pub on_non_finite: OnNonFinite,
    /// Start even if the estimated memory exceeds what the machine or the GPU has. Default false.
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
            threads: None,
            channels_last: true,
            allow_tf32: true,
            deterministic: false,
            cuda_graph: CudaGraph::Auto,
            fused_batch_norm: true,
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
}

impl Section for TrainConfig {
    fn check(&self, problems: &mut Problems) {
        let (batch, parts) = (self.batch_size, self.accumulation_steps);
        problems.range("batch_size", batch, 2..=1 << 20);
        let divides = parts > 0 && batch.is_multiple_of(parts) && batch / parts >= 2;
        let expected = format!("a divisor of batch_size ({batch}) that leaves at least 2 images per micro-batch");
        problems.require(divides || !(2..=1 << 20).contains(&batch), "accumulation_steps", parts, expected);
        problems.range_or_null("threads", self.threads, 1..=1024);
        problems.require(self.max_steps != Some(0), "max_steps", 0u64, "null or at least 1");
        problems.at_least_one("max_skipped_steps", self.max_skipped_steps);
    }

    fn no_effect(&self) -> Keys {
        Keys::Only(&[
            "device",
            "threads",
            "cuda_graph",
            "fused_batch_norm",
            "deterministic",
            "max_steps",
            "ignore_memory",
            "on_non_finite",
            "max_skipped_steps",
        ])
    }
}

/// `monitor.quality_every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QualityEvery {
    /// As often as costs under 2 % of the run.
    Auto,
    /// Every so many epochs.
    #[serde(untagged)]
    Epochs(u64),
}

impl<'de> Deserialize<'de> for QualityEvery {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QualityEveryVisitor)
    }
}

struct QualityEveryVisitor;

impl<'de> Visitor<'de> for QualityEveryVisitor {
    type Value = QualityEvery;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("auto or a whole number, 0 or more")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<QualityEvery, E> {
        if text == "auto" { Ok(QualityEvery::Auto) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
    }

    fn visit_u64<E>(self, epochs: u64) -> Result<QualityEvery, E> {
        Ok(QualityEvery::Epochs(epochs))
    }

    /// A YAML tag.
    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<QualityEvery, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Other("a word with a tag"), &self))
    }
}

/// Section `monitor`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MonitorConfig {
    /// Steps between log records, at least 1. Default 50.
    pub log_every: u64,
    /// Epochs between k-NN evaluations, or null for none; needs labels. The first one is of the random encoder. Default
    /// 10.
    #[serde(deserialize_with = "count_or_null")]
    pub knn_every: Option<u64>,
    /// Number of neighbors. Default 200.
    pub knn_k: usize,
    /// Temperature of the neighbors' weights, exp(cosine / temperature). Default 0.1.
    pub knn_temperature: f64,
    /// Training images to compare with, or null for all. Default 50000.
    #[serde(deserialize_with = "count_or_null")]
    pub knn_train_images: Option<usize>,
    /// Held-out images to classify, or null for all. Default 10000.
    #[serde(deserialize_with = "count_or_null")]
    pub knn_eval_images: Option<usize>,
    /// Epochs between measurements of the label-free metrics (effective rank, view retrieval and so on); auto: as many
    /// as keep their cost under 2 % of the run; null: never. Default auto.
    pub quality_every: Option<QualityEvery>,
    /// Images for the label-free metrics, held-out ones if there are some, at least 2; with auto fewer in a short run. Default 1024.
    pub quality_images: usize,
    /// Warn of collapse when the standard deviation of projections falls below this fraction of 1/sqrt(D), 0 to 1.
    /// Default 0.1.
    pub collapse_threshold: f64,
    /// Write TensorBoard event files beside metrics.jsonl. Default true.
    pub tensorboard: bool,
    /// Images in TensorBoard, too: augmented views at the start, and at the end the representations of
    /// `quality_images` images with names, classes and thumbnails for its Projector. Default false.
    pub tensorboard_images: bool,
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self {
            log_every: 50,
            knn_every: Some(10),
            knn_k: 200,
            knn_temperature: 0.1,
            knn_train_images: Some(50_000),
            knn_eval_images: Some(10_000),
            quality_every: Some(QualityEvery::Auto),
            quality_images: 1024,
            collapse_threshold: 0.1,
            tensorboard: true,
            tensorboard_images: false,
        }
    }
}

impl Section for MonitorConfig {
    fn check(&self, problems: &mut Problems) {
        problems.at_least_one("log_every", self.log_every);
        problems.at_least_one("knn_k", self.knn_k);
        let expected = "auto, null or at least 1";
        problems.require(self.quality_every != Some(QualityEvery::Epochs(0)), "quality_every", 0u64, expected);
        problems.require(self.quality_images >= 2, "quality_images", self.quality_images, "at least 2");
        problems.range("knn_temperature", self.knn_temperature, 0.001..=100.0);
        problems.range("collapse_threshold", self.collapse_threshold, 0.0..=1.0);
    }

    fn no_effect(&self) -> Keys {
        Keys::All
    }
}

/// `output.on_write_error`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnWriteError {
    /// Log it, keep existing files, and retry at the next checkpoint or record.
    #[default]
    Retry,
    /// Stop the run.
    Stop,
}

/// Section `output`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputConfig {
    /// The run's folder: checkpoints, metrics, resolved config. Default runs/byol.
    pub dir: PathBuf,
    /// Epochs between checkpoints, or null. The end of the run always gets one. Default 1.
    #[serde(deserialize_with = "count_or_null")]
    pub checkpoint_every_epochs: Option<u64>,
    /// Steps between checkpoints, in addition to those at epochs. Default null.
    #[serde(deserialize_with = "count_or_null")]
    pub checkpoint_every_steps: Option<u64>,
    /// Latest checkpoints to keep, at least 1 (and as many of those set aside). Default 3.
    pub keep_checkpoints: usize,
    /// Write `encoder.safetensors`, which a run's folder gets at its end, into each checkpoint too. Default false.
    pub checkpoint_encoders: bool,
    /// When a checkpoint or a metrics record cannot be written: retry at the next one, or stop. Default retry. A run
    /// whose last checkpoint cannot be written fails either way.
    pub on_write_error: OnWriteError,
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self {
            dir: "runs/byol".into(),
            checkpoint_every_epochs: Some(1),
            checkpoint_every_steps: None,
            keep_checkpoints: 3,
            checkpoint_encoders: false,
            on_write_error: OnWriteError::Retry,
        }
    }
}

impl Section for OutputConfig {
    fn check(&self, problems: &mut Problems) {
        problems.require(!self.dir.as_os_str().is_empty(), "dir", Words("an empty path"), "the run's folder");
        problems.at_least_one("keep_checkpoints", self.keep_checkpoints);
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.dir]
    }

    fn no_effect(&self) -> Keys {
        Keys::All
    }
}
