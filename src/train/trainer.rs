//! The parts of a run, and its result. [`super::steps`] is the loop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};

use super::steps::Steps;
use super::updates::RunKind;
use super::{Executor, Feed, Hours, KnnWatch, MonitorConfig, Plan, QualityWatch, Saver, TrainConfig, non_finite};
use crate::byol::Byol;
use crate::checkpoint::Manifest;
use crate::data::loader::Loader;
use crate::distributed::Group;
use crate::logging::{Logger, Quality};
use crate::signals::Signals;

/// Everything a run consists of; `commands::train` puts it together.
pub struct Trainer {
    /// Networks and optimizer.
    pub byol: Byol,
    /// Lengths and schedules.
    pub plan: Plan,
    /// Micro-batches, from the first one not yet trained on.
    pub loader: Loader,
    /// Copies them to the device.
    pub feed: Feed,
    /// Runs the steps.
    pub executor: Executor,
    /// The clock of a run with `schedule.hours`.
    pub hours: Option<Hours>,
    /// k-NN accuracy, if there are labels and the config enables it.
    pub knn: Option<KnnWatch>,
    /// Quality without labels, if the config enables it.
    pub quality: Option<QualityWatch>,
    /// The quality so far, each after so many epochs; rank 0's alone.
    pub history: Vec<(f64, Quality)>,
    /// Bars, metrics.jsonl, TensorBoard; rank 0's alone.
    pub logger: Option<Logger>,
    /// The processes that share each batch.
    pub group: Arc<Group>,
    /// Metadata for checkpoints; its `step` is that of the last checkpoint.
    pub manifest: Manifest,
    /// What the run's length is compared with.
    pub kind: RunKind,
    /// The run's folder and its checkpoints.
    pub saver: Saver,
    /// Section `train`.
    pub train: TrainConfig,
    /// Section `monitor`.
    pub monitor: MonitorConfig,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All steps done.
    Finished,
    /// `train.max_steps` reached.
    MaxSteps,
    /// A signal arrived; its exit code.
    Signal(i32),
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// Loss of the last step.
    pub loss: f64,
    /// Statistic of the last step logged, see [`crate::byol::loss::z_std`].
    pub z_std: f64,
    /// Whether the projections collapsed at some step.
    pub collapsed: bool,
    /// k-NN top-1 of the encoder at the end.
    pub knn_top1: Option<f64>,
    /// Quality of the encoder at the end.
    pub quality: Option<Quality>,
    /// What was said of the quality's course.
    pub warnings: Vec<String>,
    /// Steps skipped because of NaN or Inf.
    pub steps_skipped: u64,
    /// Images per second over all steps of this invocation, waiting for data included.
    pub images_per_second: f64,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
}

impl Trainer {
    /// Trains from `manifest.step` to the end.
    /// # Errors
    /// NaN or Inf (the message has the step and the tensor; no checkpoint of it is written) unless the config
    /// skips such steps; a bad image if it says `fail`; a last checkpoint that cannot be written; a failure of
    /// libtorch. Finite weights are saved first.
    pub fn run(&mut self, signals: &Signals) -> Result<Outcome> {
        Steps::new(self, signals).run()
    }

    /// A checkpoint of the state after `done` steps; of several processes, which all have the same, rank 0 writes it.
    pub(super) fn save(&mut self, done: u64) -> Result<()> {
        if let Some(name) = non_finite::bad_tensor(&self.byol) {
            bail!("step {done}: {}", self.not_finite(&format!("{name} is not finite")));
        }
        self.manifest.step = done;
        self.manifest.pace = self.hours.as_ref().map(|hours| hours.pace(&self.plan));
        let started = Instant::now();
        let saved = self.saver.save(&self.byol, &self.manifest);
        self.hours.iter_mut().for_each(|hours| hours.saved(started.elapsed().as_secs_f64()));
        saved
    }

    /// The error that `what` is not finite, with advice.
    pub(super) fn not_finite(&self, what: &str) -> String {
        format!(
            "{what}; {}. Lower optimizer.base_lr, lengthen schedule.warmup_epochs, set optimizer.clip_grad_norm or use \
             train.precision=fp32",
            self.saver.kept()
        )
    }
}
