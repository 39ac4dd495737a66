//! The training loop around [`step`]: batches in, metrics and checkpoints out, until the schedule's end, a
//! signal, or numbers that are no longer numbers.

mod config;
mod plan;
mod signals;
mod step;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tch::{Device, Kind, Tensor};

pub use config::{MonitorConfig, OutputConfig, Precision, TrainConfig};
pub use plan::Plan;
pub use signals::Signals;
pub use step::{Byol, StepOutput, Views};
pub use watch::{CollapseWatch, KnnWatch};

use crate::augment::AugmentConfig;
use crate::backend;
use crate::checkpoint::{self, Manifest};
use crate::data::loader::{Batch, Loader};
use crate::dist::Group;
use crate::logging::{Logger, StepMetrics};
use crate::model::Network;

/// Everything a run consists of; `commands::train` puts it together.
pub struct Trainer {
    /// Networks and optimiser.
    pub byol: Byol,
    /// Lengths and schedules.
    pub plan: Plan,
    /// Micro-batches, from the first one not yet trained on.
    pub loader: Loader,
    /// k-NN accuracy, where there are labels and the config asks for it.
    pub knn: Option<KnnWatch>,
    /// Bars, metrics.jsonl, TensorBoard; rank 0's alone.
    pub logger: Option<Logger>,
    /// The processes that share each batch.
    pub group: Option<Arc<Group>>,
    /// What checkpoints say of the run; its `step` is where the run is.
    pub manifest: Manifest,
    /// Folder of the checkpoints.
    pub checkpoints: PathBuf,
    /// Section `train`.
    pub train: TrainConfig,
    /// Section `augment`: size and normalisation.
    pub augment: AugmentConfig,
    /// Section `monitor`.
    pub monitor: MonitorConfig,
    /// Section `output`.
    pub output: OutputConfig,
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
    /// Statistic of the last step logged, see [`crate::loss::z_std`].
    pub z_std: f64,
    /// The projections collapsed at some time.
    pub collapsed: bool,
    /// k-NN top-1 of the encoder at the end.
    pub knn_top1: Option<f64>,
    /// Images per second over all steps of this invocation, waiting for data included.
    pub images_per_second: f64,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
}

/// What the last step left on the device, not yet looked at.
struct Pending {
    step: u64,
    output: StepOutput,
    /// How many processes got SIGINT and SIGTERM by then, where there are several.
    signals: Option<Tensor>,
}

impl Trainer {
    /// Trains from `manifest.step` to the end.
    /// # Errors
    /// A non-finite loss (the step is named, no checkpoint of it is written); a bad image where the config
    /// says `fail`; a checkpoint that cannot be written; what libtorch says. Where the weights are not at fault,
    /// they are saved first.
    pub fn run(&mut self, signals: &Signals) -> Result<Outcome> {
        let mut sound = Some(self.manifest.step);
        let outcome = self.steps(signals, &mut sound);
        if let (Err(_), Some(done)) = (&outcome, sound.filter(|&done| done > self.manifest.step)) {
            match self.save(done) {
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
        let mut saved = first;
        for step in first..end {
            let asked = Instant::now();
            let micro_batches = self.next_micro_batches()?;
            interval.waited += asked.elapsed().as_secs_f64();
            self.group.iter().for_each(|group| group.advance(step + 1)); // its data is there
            let (lr, tau) = (self.plan.lr(step), self.plan.tau(step));
            *sound = None;
            let (device, planar) = (self.byol.device, !self.train.channels_last);
            let views = micro_batches.iter().map(|batch| to_device(batch, &self.augment, device, planar));
            let place = || format!("step {}", step + 1);
            let output = self.byol.step(views, lr, tau, step).with_context(place)?;
            let (output, arrived) = self.of_all(output, signals).with_context(place)?;
            micro_batches.into_iter().for_each(|batch| self.loader.recycle(batch));
            interval.steps += 1;
            let done = step + 1;
            let logging = done.is_multiple_of(self.monitor.log_every) || done == 1 || done == end;
            let epoch_end = done.is_multiple_of(self.plan.steps_per_epoch);
            let saving = self.checkpoint_due(done, epoch_end) || done == end;
            // Reading a value waits for the device. On the CPU it is there; on a GPU the step before has long
            // ended when this one is queued, so that is the one to look at, except where this one is logged or saved.
            let previous = pending.replace(Pending { step: done, output, signals: arrived });
            let current = logging || saving || self.byol.device == Device::Cpu;
            let seen = if current { pending.take() } else { previous };
            let mut code = if self.group.is_none() { signals.exit_code() } else { None };
            if let Some(Pending { step, output, signals }) = seen {
                code = code.or(signals.and_then(|arrived| agreed_code(&arrived)));
                loss = output.loss.double_value(&[]);
                if !loss.is_finite() {
                    bail!("{}", self.not_finite(step, &format!("the loss is {loss}")));
                }
                *sound = Some(done);
                if logging {
                    z_std = output.z_std.double_value(&[]);
                    collapse.look(done, z_std);
                    let metrics = StepMetrics {
                        step: done,
                        epoch: self.plan.epochs(done),
                        loss,
                        lr,
                        tau,
                        z_std,
                        images_per_second: interval.images_per_second(self.train.batch_size),
                        data_wait_seconds: interval.waited,
                        grad_norm: self.byol.optimizer.gradient_norm().double_value(&[]),
                    };
                    if let Some(logger) = &mut self.logger {
                        logger.log(&metrics)?;
                    }
                    training_seconds += interval.restart();
                }
            }
            self.logger.iter().for_each(|logger| logger.advance(done));
            if saving || code.is_some() {
                interval.pause();
                self.save(done)?;
                saved = done;
                interval.resume();
            }
            if let Some(code) = code {
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
        let images = (self.manifest.step - first) as f64 * self.train.batch_size as f64;
        Ok(Outcome {
            ending,
            loss,
            z_std,
            collapsed: collapse.collapsed,
            knn_top1,
            images_per_second: if training_seconds > 0.0 { images / training_seconds } else { 0.0 },
            checkpoint: checkpoint::path_of(&self.checkpoints, saved),
        })
    }

    /// A step's output, averaged over all processes, and how many of them got which signal: all have to stop at the
    /// same step. One small reduction, which a GPU does beside the host.
    fn of_all(&self, output: StepOutput, signals: &Signals) -> Result<(StepOutput, Option<Tensor>)> {
        let Some(group) = &self.group else { return Ok((output, None)) };
        let code = signals.exit_code();
        let arrived = [130, 143].map(|signal| f32::from(u8::from(code == Some(signal))));
        let arrived = Tensor::from_slice(&arrived).to_device(self.byol.device);
        let sums = Tensor::f_cat(&[output.loss.reshape([1]), output.z_std.reshape([1]), arrived], 0)?;
        group.processes.all_reduce(&sums)?;
        let mean = |index| sums.get(index) / group.place.world as f64;
        Ok((StepOutput { loss: mean(0), z_std: mean(1) }, Some(sums.narrow(0, 2, 2))))
    }

    /// The next step's micro-batches, still bytes: an error in the data then comes before the step, not in it.
    fn next_micro_batches(&mut self) -> Result<Vec<Batch>> {
        (0..self.train.accumulation_steps).map(|_| self.loader.next_batch()).collect()
    }

    fn checkpoint_due(&self, done: u64, epoch_end: bool) -> bool {
        let (epochs, steps) = (self.output.checkpoint_every_epochs, self.output.checkpoint_every_steps);
        let by_epoch = epoch_end && epochs > 0 && (done / self.plan.steps_per_epoch).is_multiple_of(epochs);
        by_epoch || (steps > 0 && done.is_multiple_of(steps))
    }

    fn knn_due(&self, done: u64) -> bool {
        let every = self.monitor.knn_every;
        every > 0 && (done / self.plan.steps_per_epoch).is_multiple_of(every)
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
        if self.group.as_ref().is_some_and(|group| !group.is_first()) {
            self.manifest.step = done;
            return Ok(());
        }
        if let Some(name) = not_finite_tensor(&self.byol) {
            bail!("{}", self.not_finite(done, &format!("{name} is not finite")));
        }
        self.manifest.step = done;
        checkpoint::save(&self.checkpoints, &self.byol, self.manifest.clone(), self.output.keep_checkpoints)?;
        Ok(())
    }

    fn not_finite(&self, step: u64, what: &str) -> String {
        let kept = match checkpoint::list(&self.checkpoints).first() {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".into(),
        };
        format!(
            "step {step}: {what}; {kept}. Lower optimizer.base_lr, lengthen schedule.warmup_epochs or \
             use train.precision=fp32"
        )
    }
}

/// The exit code for the signals that arrived at some process: 143 where it was SIGTERM.
fn agreed_code(arrived: &Tensor) -> Option<i32> {
    let [int, term] = [0, 1].map(|index| arrived.double_value(&[index]) > 0.0);
    term.then_some(143).or(int.then_some(130))
}

/// Both views of a micro-batch, normalised, on the device.
fn to_device(batch: &Batch, augment: &AugmentConfig, device: Device, planar: bool) -> Result<Views> {
    let size = augment.size as i64;
    let shape = [batch.indices.len() as i64, size, size, 3];
    let view = |bytes: &[u8]| backend::normalised(bytes, shape, augment.mean, augment.std, device, planar);
    Ok([view(&batch.views[0])?, view(&batch.views[1])?])
}

/// Name of the first parameter or buffer of either network with a value that is not finite.
fn not_finite_tensor(byol: &Byol) -> Option<String> {
    let _no_grad = tch::no_grad_guard();
    let tensors = |(prefix, network): (&'static str, &'_ Network)| {
        let named = network.params.parameters.iter().chain(&network.params.buffers);
        named.map(|n| (format!("{prefix}.{}", n.name), n.tensor.sum(Kind::Double))).collect::<Vec<_>>()
    };
    let mut sums = tensors(("online", &byol.online));
    sums.extend(tensors(("target", &byol.target)));
    // One look at all of them first. A sum in f64 is finite only where every part is.
    let all = Tensor::stack(&sums.iter().map(|(_, sum)| sum).collect::<Vec<_>>(), 0).sum(Kind::Double);
    if all.double_value(&[]).is_finite() {
        return None;
    }
    sums.into_iter().find(|(_, sum)| !sum.double_value(&[]).is_finite()).map(|(name, _)| name)
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
