//! The loop: batches in, metrics and checkpoints out, until the schedule's end, a signal, or numbers that are no longer
//! numbers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use native::stream::PendingScalars;
use tch::Device;

use super::{
    CollapseWatch, Executor, Feed, Guard, KnnWatch, MonitorConfig, Plan, Saver, Stepped, TrainConfig, non_finite,
};
use crate::byol::{Byol, Numbers, StopRequest};
use crate::checkpoint::Manifest;
use crate::data::loader::{Batch, Loader};
use crate::distributed::Group;
use crate::logging::{Logger, StepMetrics};
use crate::signals::Signals;

/// Everything a run consists of; `commands::train` puts it together.
pub struct Trainer {
    /// Networks and optimizer.
    pub byol: Byol,
    /// Lengths and schedules.
    pub plan: Plan,
    /// Micro-batches, from the first one not yet trained on.
    pub loader: Loader,
    /// Brings them to the device.
    pub feed: Feed,
    /// Runs the steps.
    pub executor: Executor,
    /// k-NN accuracy, where there are labels and the config asks for it.
    pub knn: Option<KnnWatch>,
    /// Bars, metrics.jsonl, TensorBoard; rank 0's alone.
    pub logger: Option<Logger>,
    /// The processes that share each batch.
    pub group: Option<Arc<Group>>,
    /// What checkpoints say of the run; its `step` is where the run is.
    pub manifest: Manifest,
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
    /// A signal came; the exit code that says so.
    Signal(i32),
}

/// What the run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// Loss of the last step.
    pub loss: f64,
    /// Statistic of the last step logged, see [`crate::byol::loss::z_std`].
    pub z_std: f64,
    /// The projections collapsed at some time.
    pub collapsed: bool,
    /// k-NN top-1 of the encoder at the end.
    pub knn_top1: Option<f64>,
    /// Steps left out because their numbers were not finite.
    pub steps_skipped: u64,
    /// Images per second over all steps of this invocation, waiting for data included.
    pub images_per_second: f64,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
}

/// What the last step told, not yet looked at.
struct Pending {
    step: u64,
    numbers: PendingScalars,
}

impl Trainer {
    /// Trains from `manifest.step` to the end.
    /// # Errors
    /// Numbers that are not finite (the step and the tensor are named, no checkpoint of it is written) where the
    /// config does not have such steps skipped; a bad image where it says `fail`; a last checkpoint that cannot be
    /// written; what libtorch says. Where the weights are not at fault, they are saved first.
    pub fn run(&mut self, signals: &Signals) -> Result<Outcome> {
        let mut sound = Some(self.manifest.step);
        let outcome = self.steps(signals, &mut sound);
        if let (Err(_), Some(done)) = (&outcome, sound.filter(|&done| !self.saver.tried(done))) {
            match self.save(done) {
                Ok(()) if self.saver.failing() => {} // which was said
                Ok(()) => log::warn!("saved step {done} before ending"),
                Err(error) => log::warn!("could not save step {done}: {error:#}"),
            }
        }
        outcome
    }

    /// The loop of [`Self::run`]. `sound` is the number of steps after which the state is known to be good,
    /// nothing while a step is under way.
    fn steps(&mut self, signals: &Signals, sound: &mut Option<u64>) -> Result<Outcome> {
        let end = self.train.max_steps.map_or(self.plan.total_steps, |max| max.min(self.plan.total_steps));
        let first = self.manifest.step;
        let mut collapse = CollapseWatch::new(&self.monitor, &self.byol);
        let mut knn_top1 = None;
        if first == 0 {
            knn_top1 = self.evaluate(0)?;
            self.manifest.knn_random = knn_top1;
        } else if first >= end {
            knn_top1 = self.evaluate(first)?; // the run ended between its last checkpoint and this
        }
        let mut interval = Interval::start();
        let mut training_seconds = 0.0;
        let (mut loss, mut z_std) = (f64::NAN, f64::NAN);
        let mut ending = if end == self.plan.total_steps { Ending::Finished } else { Ending::MaxSteps };
        let mut pending: Option<Pending> = None;
        let mut guard = Guard::new(self.train.on_non_finite, self.train.max_skipped_steps);
        for step in first..end {
            let asked = Instant::now();
            let micro_batches = self.next_micro_batches()?;
            interval.waited += asked.elapsed().as_secs_f64();
            if let (Some(group), Some(ranks)) = (&self.group, &self.byol.ranks) {
                group.advance(step + 1); // its data is there
                ranks.tell(signals);
            }
            let (lr, tau) = (self.plan.lr(step), self.plan.tau(step));
            *sound = None;
            let done = step + 1;
            let stepped = if guard.checks_before_update(self.byol.device) {
                guard.step(&mut self.byol, micro_batches.iter().map(|batch| self.feed.views(batch)), lr, tau, step)
            } else {
                let batches: Vec<&Batch> = micro_batches.iter().collect();
                let output = self.executor.step(&mut self.byol, &mut self.feed, &batches, (lr, tau, step));
                output.map(Stepped::Taken)
            };
            let stepped = stepped.with_context(|| format!("step {done}"))?;
            micro_batches.into_iter().for_each(|batch| self.loader.recycle(batch));
            interval.steps += 1;
            let (output, skipped) = match stepped {
                Stepped::Taken(output) => (output, false),
                Stepped::Skipped(output, why) => {
                    if self.logger.is_some() {
                        log::warn!("step {done} is skipped: {why}");
                    }
                    (output, true)
                }
                Stepped::NotFinite(what) => bail!("{}", self.not_finite(done, &what)),
            };
            let logging = done.is_multiple_of(self.monitor.log_every) || done == 1 || done == end;
            let epoch_end = done.is_multiple_of(self.plan.steps_per_epoch);
            let mut asked = if self.group.is_none() { StopRequest::here(signals) } else { StopRequest::default() };
            let mut saving = asked.checkpoint || done == end || self.saver.due(done, self.plan.steps_per_epoch);
            // On the CPU the numbers are there. On a GPU the step before has long ended when this one is queued, so
            // that is the one to look at, except where this one is logged or saved: that waits for it.
            let previous = pending.replace(Pending { step: done, numbers: output.fetch()? });
            let current = logging || saving || skipped || self.byol.device == Device::Cpu;
            let seen = if current { pending.take() } else { previous };
            if let Some(Pending { step, numbers }) = seen {
                let numbers = Numbers::of(&numbers)?;
                if let Some(what) = numbers.not_finite().filter(|_| !skipped) {
                    let culprit = non_finite::bad_parameter(&self.byol).map(|name| format!(" ({name} is not finite)"));
                    bail!("{}", self.not_finite(step, &(what + &culprit.unwrap_or_default())));
                }
                if self.group.is_some() {
                    asked = numbers.asked;
                    saving |= asked.checkpoint;
                }
                *sound = Some(done);
                if !skipped {
                    loss = numbers.loss;
                }
                if logging {
                    z_std = numbers.z_std;
                    if self.logger.is_some() {
                        collapse.look(done, z_std);
                    }
                    let metrics = StepMetrics {
                        step: done,
                        epoch: self.plan.epochs(done),
                        loss: numbers.loss,
                        lr,
                        tau,
                        z_std,
                        images_per_second: interval.images_per_second(self.train.batch_size),
                        data_wait_seconds: interval.waited,
                        grad_norm: numbers.grad_norm,
                    };
                    if let Some(logger) = &mut self.logger {
                        logger.log(&metrics)?;
                    }
                    training_seconds += interval.restart();
                }
            }
            self.logger.iter().for_each(|logger| logger.advance(done));
            if saving || asked.end.is_some() {
                interval.pause();
                self.save(done)?;
                if asked.checkpoint && !self.saver.failing() {
                    log::info!("SIGUSR1: wrote {}", self.saver.last().display());
                }
                interval.resume();
            }
            if let Some(code) = asked.end {
                ending = Ending::Signal(code);
                break;
            }
            if epoch_end && self.knn_due(done) || done == end {
                interval.pause();
                knn_top1 = self.evaluate(done)?.or(knn_top1);
                interval.resume();
            }
        }
        training_seconds += interval.restart();
        if self.saver.failing() {
            self.save(self.manifest.step)?; // once more: room may have been made in the meantime
        }
        self.saver.finish(self.manifest.step)?;
        let images = (self.manifest.step - first) as f64 * self.train.batch_size as f64;
        Ok(Outcome {
            ending,
            loss,
            z_std,
            collapsed: collapse.collapsed,
            knn_top1,
            steps_skipped: guard.skipped,
            images_per_second: if training_seconds > 0.0 { images / training_seconds } else { 0.0 },
            checkpoint: self.saver.last(),
        })
    }

    /// The next step's micro-batches, still bytes: an error in the data then comes before the step, not in it.
    fn next_micro_batches(&mut self) -> Result<Vec<Batch>> {
        (0..self.train.accumulation_steps).map(|_| self.loader.next_batch()).collect()
    }

    fn knn_due(&self, done: u64) -> bool {
        self.monitor.knn_every.is_some_and(|epochs| (done / self.plan.steps_per_epoch).is_multiple_of(epochs))
    }

    /// k-NN accuracy after `done` steps; `None` where it is off, or cut short by a signal.
    fn evaluate(&mut self, done: u64) -> Result<Option<f64>> {
        let Some(knn) = &self.knn else { return Ok(None) };
        let top1 = knn.top1(&self.byol).context("k-NN evaluation")?;
        if let (Some(logger), Some(top1)) = (&mut self.logger, top1) {
            logger.knn(done, self.plan.epochs(done), top1)?;
        }
        Ok(top1)
    }

    /// A checkpoint of the state after `done` steps; of several processes, which all have the same, rank 0 writes it.
    fn save(&mut self, done: u64) -> Result<()> {
        if let Some(name) = non_finite::bad_tensor(&self.byol) {
            bail!("{}", self.not_finite(done, &format!("{name} is not finite")));
        }
        self.manifest.step = done;
        self.saver.save(&self.byol, &self.manifest)
    }

    fn not_finite(&self, step: u64, what: &str) -> String {
        format!(
            "step {step}: {what}; {}. Lower optimizer.base_lr, lengthen schedule.warmup_epochs, set \
             optimizer.clip_grad_norm or use train.precision=fp32",
            self.saver.kept()
        )
    }
}

/// Time spent on steps since the last log record; pauses leave out checkpoints and evaluations.
struct Interval {
    since: Instant,
    seconds: f64,
    steps: u64,
    waited: f64,
}

impl Interval {
    fn start() -> Self {
        Self { since: Instant::now(), seconds: 0.0, steps: 0, waited: 0.0 }
    }

    fn total(&self) -> f64 {
        self.seconds + self.since.elapsed().as_secs_f64()
    }

    fn images_per_second(&self, batch: usize) -> f64 {
        self.steps as f64 * batch as f64 / self.total().max(1e-9)
    }

    /// Seconds of the interval, which then starts anew.
    fn restart(&mut self) -> f64 {
        let total = self.total();
        *self = Self::start();
        total
    }

    fn pause(&mut self) {
        self.seconds = self.total();
    }

    fn resume(&mut self) {
        self.since = Instant::now();
    }
}
