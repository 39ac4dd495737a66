//! The training loop in stages: take a batch, step, check the numbers, log, save, evaluate.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use native::stream::PendingScalars;
use tch::Device;

use super::interval::Interval;
use super::{CollapseWatch, Ending, Guard, Hours, Outcome, Stepped, Trainer, non_finite, trend};
use crate::byol::{Numbers, Rates, StepOutput, StopRequest};
use crate::data::loader::Batch;
use crate::logging::StepMetrics;
use crate::signals::Signals;

/// The loop's state between two steps.
pub(super) struct Steps<'a> {
    trainer: &'a mut Trainer,
    signals: &'a Signals,
    /// Steps done before this invocation.
    first: u64,
    /// Steps done at its end.
    end: u64,
    guard: Guard,
    collapse: CollapseWatch,
    interval: Interval,
    training_seconds: f64,
    started: Instant,
    /// The last step's loss and statistics, not read yet.
    pending: Option<Pending>,
    /// Loss of the last step that was not skipped.
    loss: f64,
    /// Of the last step that was logged.
    z_std: f64,
    knn_top1: Option<f64>,
    /// What was said of the quality's course.
    warned: Vec<String>,
    /// The number of steps after which the state is known to be finite; none while a step is running.
    good: Option<u64>,
}

struct Pending {
    step: u64,
    numbers: PendingScalars,
}

/// What to do after a step.
#[derive(Clone, Copy)]
struct Due {
    log: bool,
    save: bool,
    request: StopRequest,
}

/// The evaluations to run.
#[derive(Clone, Copy)]
struct Wanted {
    knn: bool,
    quality: bool,
}

impl<'a> Steps<'a> {
    pub fn new(trainer: &'a mut Trainer, signals: &'a Signals) -> Self {
        let (first, total) = (trainer.manifest.step, trainer.plan.total_steps);
        let guard = Guard::new(trainer.train.on_non_finite, trainer.train.max_skipped_steps);
        let collapse = CollapseWatch::new(&trainer.monitor, &trainer.byol);
        let end = trainer.train.max_steps.map_or(total, |max| max.min(total));
        Self {
            trainer,
            signals,
            first,
            end,
            guard,
            collapse,
            interval: Interval::start(),
            training_seconds: 0.0,
            started: Instant::now(),
            pending: None,
            loss: f64::NAN,
            z_std: f64::NAN,
            knn_top1: None,
            warned: Vec::new(),
            good: Some(first),
        }
    }

    /// Runs all steps. If they end with an error that leaves the weights finite, these are saved first.
    pub fn run(mut self) -> Result<Outcome> {
        let outcome = self.steps();
        if let (Err(_), Some(done)) = (&outcome, self.good.filter(|&done| !self.trainer.saver.tried(done))) {
            match self.trainer.save(done) {
                Ok(()) if self.trainer.saver.failing() => {} // already logged
                Ok(()) => log::warn!("saved step {done} before exiting"),
                Err(error) => log::warn!("could not save step {done}: {error:#}"),
            }
        }
        outcome
    }

    fn steps(&mut self) -> Result<Outcome> {
        self.evaluate_first()?;
        self.trainer.hours.iter_mut().for_each(Hours::steps_begin);
        let mut done = self.first;
        while done < self.end {
            let step = done;
            done += 1;
            let rates = self.trainer.plan.rates(step);
            let micro_batches = self.next_micro_batches(done)?;
            let (output, skipped) = self.step(micro_batches, rates).with_context(|| format!("step {done}"))?;
            self.keep_to_hours(done)?;
            let mut due = self.due(done);
            if let Some(numbers) = self.check(done, &output, skipped, due)? {
                due.request = due.request.or(numbers.request);
                if due.log {
                    self.log(done, &numbers, rates)?;
                }
            }
            self.trainer.logger.iter().for_each(|logger| logger.advance(done));
            if due.save || due.request != StopRequest::default() {
                self.save(done, due.request.checkpoint)?;
            }
            if let Some(code) = due.request.end {
                return self.finish(Ending::Signal(code));
            }
            let wanted = self.affordable(self.wanted(done), done)?;
            if (wanted.knn || wanted.quality) && self.has_time_to_evaluate(done)? {
                self.evaluate(done, wanted)?;
            }
        }
        self.finish(if self.end == self.trainer.plan.total_steps { Ending::Finished } else { Ending::MaxSteps })
    }

    /// With `schedule.hours`: moves the end of the run to where the time is over.
    fn keep_to_hours(&mut self, done: u64) -> Result<()> {
        let Trainer { hours: Some(hours), group, plan, manifest, logger, train, .. } = &mut *self.trainer else {
            return Ok(());
        };
        if !hours.is_due(done) {
            return Ok(());
        }
        let own = hours.remaining(done).map_or(-1.0, |steps| steps as f64);
        let remaining = group.from_first(&[own])?[0];
        let remaining = (remaining >= 0.0).then_some(remaining as u64);
        hours.look_again(done, remaining);
        let Some(remaining) = remaining else { return Ok(()) };
        plan.end_after(done, remaining);
        manifest.total_steps = plan.total_steps;
        self.end = train.max_steps.map_or(plan.total_steps, |max| max.min(plan.total_steps)).max(done);
        logger.iter().for_each(|logger| logger.set_total(plan.total_steps));
        if hours.announces(remaining) && group.is_first() {
            let (total, epochs) = (plan.total_steps, plan.epochs(plan.total_steps));
            log::info!("{epochs:.1} epochs fit, {total} updates (schedule.hours)");
            super::updates::warn_if_few(total, &self.trainer.kind);
        }
        Ok(())
    }

    /// Whether an evaluation leaves time for the last one, or is the last one and the run long enough for it, where
    /// `schedule.hours` limits it.
    fn has_time_to_evaluate(&self, done: u64) -> Result<bool> {
        let Some(hours) = &self.trainer.hours else { return Ok(true) };
        let last = done == self.end;
        let own = if last { hours.ends_with_evaluation() } else { hours.has_time_to_evaluate() };
        let agreed = self.trainer.group.from_first(&[f64::from(u8::from(own))])?[0] > 0.0;
        if last && !agreed && self.trainer.group.is_first() {
            log::warn!(
                "final evaluation skipped: it takes more than a quarter of schedule.hours; run byol knn-eval on the checkpoint"
            );
        }
        Ok(agreed)
    }

    /// Evaluates the untrained encoder, or a run that stopped between its last checkpoint and its last evaluation.
    fn evaluate_first(&mut self) -> Result<()> {
        if self.first == 0 || self.first >= self.end {
            self.evaluate(self.first, Wanted { knn: true, quality: true })?;
        }
        if self.first == 0 {
            self.trainer.manifest.knn_random = self.knn_top1;
        }
        Ok(())
    }

    /// The next step's micro-batches, still bytes: bad data is an error before the step, not within it.
    fn next_micro_batches(&mut self, done: u64) -> Result<Vec<Batch>> {
        let Trainer { train, loader, group, byol, .. } = &mut *self.trainer;
        let start = Instant::now();
        let micro_batches = (0..train.accumulation_steps).map(|_| loader.next_batch()).collect::<Result<_>>()?;
        self.interval.waited += start.elapsed().as_secs_f64();
        group.advance(done);
        byol.ranks.share_signals(self.signals);
        Ok(micro_batches)
    }

    /// One optimizer step, or one that is skipped because of NaN or Inf (`true`).
    fn step(&mut self, micro_batches: Vec<Batch>, rates: Rates) -> Result<(StepOutput, bool)> {
        self.good = None;
        let Trainer { byol, feed, executor, loader, group, .. } = &mut *self.trainer;
        let stepped = if self.guard.checks_before_update(byol.device) {
            self.guard.step(byol, micro_batches.iter().map(|batch| feed.views(batch)), rates)?
        } else {
            let batches: Vec<&Batch> = micro_batches.iter().collect();
            Stepped::Taken(executor.step(byol, feed, &batches, rates)?)
        };
        micro_batches.into_iter().for_each(|batch| loader.recycle(batch));
        self.interval.steps += 1;
        match stepped {
            Stepped::Taken(output) => Ok((output, false)),
            Stepped::Skipped(output, why) => {
                if group.is_first() {
                    log::warn!("step {} is skipped: {why}", rates.step + 1);
                }
                Ok((output, true))
            }
            Stepped::NotFinite(what) => bail!("{}", self.trainer.not_finite(&what)),
        }
    }

    fn due(&self, done: u64) -> Due {
        let Trainer { monitor, saver, plan, byol, .. } = &*self.trainer;
        let last = done == self.end;
        Due {
            log: done.is_multiple_of(monitor.log_every) || done == 1 || last,
            save: last || saver.due(done, plan.epoch_ended(done)),
            request: byol.ranks.own_request(self.signals),
        }
    }

    /// Reads loss and statistics and fails if they are not finite. On the CPU they are the step's own. On a
    /// GPU they are those of the step before, which has long ended when this one is queued, except where this one is
    /// logged or saved: that waits for it.
    fn check(&mut self, done: u64, output: &StepOutput, skipped: bool, due: Due) -> Result<Option<Numbers>> {
        let byol = &self.trainer.byol;
        let previous = self.pending.replace(Pending { step: done, numbers: output.fetch()? });
        let needed = due.log || due.save || due.request != StopRequest::default();
        let current = needed || skipped || byol.device == Device::Cpu;
        let Some(Pending { step, numbers }) = (if current { self.pending.take() } else { previous }) else {
            return Ok(None);
        };
        let numbers = Numbers::of(&numbers)?;
        if let Some(what) = numbers.not_finite().filter(|_| !skipped) {
            let culprit = non_finite::bad_parameter(byol).map(|name| format!(" ({name} is not finite)"));
            bail!("step {step}: {}", self.trainer.not_finite(&(what + &culprit.unwrap_or_default())));
        }
        self.good = Some(done);
        if !skipped {
            self.loss = numbers.loss;
        }
        Ok(Some(numbers))
    }

    fn log(&mut self, done: u64, numbers: &Numbers, rates: Rates) -> Result<()> {
        self.z_std = numbers.z_std;
        let metrics = StepMetrics {
            step: done,
            epoch: self.trainer.plan.epochs(done),
            loss: numbers.loss,
            lr: rates.lr,
            tau: rates.tau,
            z_std: numbers.z_std,
            images_per_second: self.interval.images_per_second(self.trainer.train.batch_size),
            data_wait_seconds: self.interval.waited,
            grad_norm: numbers.grad_norm,
        };
        let warn = self.trainer.group.is_first();
        self.collapse.check(done, numbers.z_std, warn);
        if let Some(logger) = &mut self.trainer.logger {
            logger.log(&metrics)?;
        }
        self.training_seconds += self.interval.restart();
        Ok(())
    }

    fn save(&mut self, done: u64, requested: bool) -> Result<()> {
        self.interval.pause();
        self.trainer.save(done)?;
        if requested && !self.trainer.saver.failing() {
            log::info!("checkpoint requested by a signal: wrote {}", self.trainer.saver.last().display());
        }
        self.interval.resume();
        Ok(())
    }

    /// The evaluations that are due after `done` steps; at the end all of them.
    fn wanted(&self, done: u64) -> Wanted {
        let Trainer { monitor, quality, plan, .. } = &*self.trainer;
        let epoch = plan.epoch_ended(done);
        let due = |every: Option<u64>| {
            done == self.end || every.zip(epoch).is_some_and(|(every, epoch)| epoch.is_multiple_of(every))
        };
        Wanted { knn: due(monitor.knn_every), quality: due(quality.as_ref().map(|watch| watch.plan.every)) }
    }

    /// Leaves out a measurement of the quality, unless it is the last, that costs more than `quality_every: auto` promises.
    fn affordable(&self, wanted: Wanted, done: u64) -> Result<Wanted> {
        let Trainer { quality, group, .. } = &*self.trainer;
        let cost = quality.as_ref().and_then(|watch| watch.cost).filter(|_| wanted.quality && done < self.end);
        let Some(cost) = cost else { return Ok(wanted) };
        let own = cost.allows_another(self.started.elapsed().as_secs_f64());
        Ok(Wanted { quality: group.from_first(&[f64::from(u8::from(own))])?[0] > 0.0, ..wanted })
    }

    /// k-NN accuracy and quality after `done` steps, each unless it is off, or a signal stops it.
    fn evaluate(&mut self, done: u64, wanted: Wanted) -> Result<()> {
        self.interval.pause();
        let started = Instant::now();
        let Trainer { knn, quality, history, byol, logger, plan, hours, .. } = &mut *self.trainer;
        let whole = wanted.knn || knn.is_none();
        let knn = knn.as_ref().filter(|_| wanted.knn);
        let top1 = knn.map(|knn| knn.top1(byol)).transpose().context("k-NN evaluation")?.flatten();
        if let (Some(logger), Some(top1)) = (&mut *logger, top1) {
            logger.knn(done, plan.epochs(done), top1)?;
        }
        self.knn_top1 = top1.or(self.knn_top1);
        let quality = quality.as_mut().filter(|_| wanted.quality);
        let found = quality.map(|watch| watch.measure(byol)).transpose().context("quality evaluation")?.flatten();
        if let (Some(logger), Some(found)) = (logger, &found) {
            logger.quality(done, plan.epochs(done), found)?;
        }
        if whole {
            hours.iter_mut().for_each(|hours| hours.evaluated(started.elapsed().as_secs_f64()));
        }
        if let Some(found) = found {
            history.push((plan.epochs(done), found));
            self.warn();
        }
        self.interval.resume();
        Ok(())
    }

    /// Logs what the course of the quality says, each sentence once, in rank 0.
    fn warn(&mut self) {
        for warning in trend::warnings(&self.trainer.history) {
            let kind = |text: &str| text.split(|c: char| c.is_ascii_digit()).next().map(str::to_string);
            if self.warned.iter().any(|earlier| kind(earlier) == kind(&warning)) {
                continue;
            }
            if self.trainer.group.is_first() {
                log::warn!("{warning}");
            }
            self.warned.push(warning);
        }
    }

    fn finish(&mut self, ending: Ending) -> Result<Outcome> {
        self.training_seconds += self.interval.restart();
        let step = self.trainer.manifest.step;
        if self.trainer.saver.failing() {
            self.trainer.save(step)?; // try again: there may be space by now
        }
        self.trainer.saver.finish(step)?;
        let images = (step - self.first) as f64 * self.trainer.train.batch_size as f64;
        let seconds = self.training_seconds;
        Ok(Outcome {
            ending,
            loss: self.loss,
            z_std: self.z_std,
            collapsed: self.collapse.collapsed,
            knn_top1: self.knn_top1,
            quality: self.trainer.history.pop().map(|(_, quality)| quality),
            warnings: std::mem::take(&mut self.warned),
            steps_skipped: self.guard.skipped,
            images_per_second: if seconds > 0.0 { images / seconds } else { 0.0 },
            checkpoint: self.trainer.saver.last(),
        })
    }
}
