//! A config's epochs and base rates as steps and rates of this run, once the number of images is known.

use anyhow::{Result, bail};

use super::TrainConfig;
use crate::byol::Rates;
use crate::optim::{self, EmaConfig, OptimizerConfig, ScheduleConfig};

/// Lengths in optimizer steps, and the two schedules over them.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Optimizer steps per epoch; the last incomplete batch is dropped (`drop_last`), other images each epoch.
    pub steps_per_epoch: u64,
    /// Optimizer steps of the run: K of the paper, but for [`Self::offset`].
    pub total_steps: u64,
    /// Steps of the whole schedule.
    schedule_steps: u64,
    offset: i64,
    /// Steps that the rates are ahead of the run: [`Self::offset`], or what [`Self::end_after`] made of it.
    rates_offset: i64,
    /// Steps of linear warmup.
    pub warmup_steps: u64,
    /// Learning rate after warmup.
    pub peak_lr: f64,
    final_lr_factor: f64,
    ema: EmaConfig,
}

impl Plan {
    /// # Errors
    /// A batch larger than the training set.
    pub fn new(
        images: usize,
        train: &TrainConfig,
        optimizer: &OptimizerConfig,
        schedule: &ScheduleConfig,
        ema: &EmaConfig,
    ) -> Result<Self> {
        let steps_per_epoch = (images / train.batch_size) as u64;
        if steps_per_epoch == 0 {
            let batch = train.batch_size;
            bail!(
                "train.batch_size: found {batch}, expected at most the {images} training images; lower it, or add images"
            );
        }
        let total_steps = steps_per_epoch * schedule.epochs;
        Ok(Self {
            steps_per_epoch,
            total_steps,
            schedule_steps: total_steps,
            offset: 0,
            rates_offset: 0,
            warmup_steps: (steps_per_epoch as f64 * schedule.warmup_epochs).round() as u64,
            peak_lr: optimizer.peak_lr(train.batch_size),
            final_lr_factor: schedule.final_lr_factor,
            ema: ema.clone(),
        })
    }

    /// Places step `step` at `position` in the schedule, which then ends that much earlier or later.
    pub fn place(&mut self, step: u64, position: u64) {
        self.offset = position as i64 - step as i64;
        self.rates_offset = self.offset;
        self.total_steps = self.schedule_steps.saturating_add_signed(-self.offset);
    }

    /// Steps that the schedule is ahead of the run, see [`Self::place`].
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// Where in the schedule a run is after `steps` updates. The two differ only if a resumed run has another number
    /// of steps per epoch than before.
    pub fn position(&self, steps: u64) -> u64 {
        steps.saturating_add_signed(self.offset)
    }

    /// Ends the run `remaining` steps after step `step`. The schedule keeps its shape and its place at that step; what
    /// is left of it is stretched or shrunk.
    pub fn end_after(&mut self, step: u64, remaining: u64) {
        self.total_steps = step + remaining;
        let left = 1.0 - self.rates_position(step) as f64 / self.schedule_steps as f64;
        if remaining == 0 || left <= 0.0 {
            return;
        }
        let steps = (remaining as f64 / left).round().max(remaining as f64);
        self.warmup_steps = (self.warmup_steps as f64 * steps / self.schedule_steps as f64).round() as u64;
        self.schedule_steps = steps as u64;
        self.rates_offset = self.schedule_steps as i64 - self.total_steps as i64;
    }

    /// What [`Self::end_after`] has made of the schedule, for checkpoints: its steps, those of warmup, and how far it
    /// is ahead of the run.
    pub fn stretched(&self) -> (u64, u64, i64) {
        (self.schedule_steps, self.warmup_steps, self.rates_offset)
    }

    /// Restores what [`Self::stretched`] gave.
    pub fn stretch_to(&mut self, (schedule, warmup, ahead): (u64, u64, i64)) {
        (self.schedule_steps, self.warmup_steps, self.rates_offset) = (schedule, warmup, ahead);
        self.total_steps = schedule.saturating_add_signed(-ahead);
    }

    fn rates_position(&self, step: u64) -> u64 {
        step.saturating_add_signed(self.rates_offset)
    }

    /// Learning rate and tau of update `step`, from 0.
    pub fn rates(&self, step: u64) -> Rates {
        let at = self.rates_position(step);
        let lr = optim::learning_rate(at, self.warmup_steps, self.schedule_steps, self.peak_lr, self.final_lr_factor);
        Rates { lr, tau: optim::tau(at, self.schedule_steps, &self.ema), step }
    }

    /// Epochs done after `steps` updates, with their fraction.
    pub fn epochs(&self, steps: u64) -> f64 {
        self.position(steps) as f64 / self.steps_per_epoch as f64
    }

    /// The number of epochs done if update `steps`, counted from 1, is the last one of an epoch.
    pub fn epoch_ended(&self, steps: u64) -> Option<u64> {
        let position = self.position(steps);
        position.is_multiple_of(self.steps_per_epoch).then_some(position / self.steps_per_epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let train = TrainConfig { batch_size: 256, ..TrainConfig::default() };
        let schedule = ScheduleConfig { epochs: 100, warmup_epochs: 10.0, ..ScheduleConfig::default() };
        Plan::new(2560, &train, &OptimizerConfig::default(), &schedule, &EmaConfig::default()).unwrap()
    }

    #[test]
    fn a_run_that_ends_earlier_or_later_keeps_its_rates_and_its_shape() {
        for remaining in [50, 500, 5000] {
            let mut plan = plan();
            let before = plan.rates(400);
            plan.end_after(400, remaining);
            let after = plan.rates(400);
            assert_eq!(plan.total_steps, 400 + remaining);
            assert!((before.lr - after.lr).abs() < 0.02 * before.lr, "{} {}", before.lr, after.lr);
            assert!((before.tau - after.tau).abs() < 1e-4);
            let last = plan.rates(400 + remaining - 1);
            assert!(last.lr < 0.01 * plan.peak_lr && last.tau > 0.9999, "{last:?}");
            assert_eq!((plan.position(400), plan.epochs(400)), (400, 40.0)); // the images are not skipped
            let mut again = self::plan();
            again.stretch_to(plan.stretched());
            assert_eq!((again.total_steps, again.rates(450).lr), (plan.total_steps, plan.rates(450).lr));
        }
        let mut over = plan();
        over.end_after(400, 0);
        assert_eq!(over.total_steps, 400);
    }

    #[test]
    fn many_small_changes_of_the_end_leave_one_smooth_schedule() {
        let mut plan = plan();
        let (mut step, mut last, mut peak) = (0, 0.0, 0.0f64);
        let mut remaining = 700;
        while remaining > 0 {
            plan.end_after(step, remaining);
            let rate = plan.rates(step).lr;
            assert!((rate - last).abs() < 0.2 * plan.peak_lr, "step {step}: {last} to {rate}");
            (last, peak) = (rate, peak.max(rate));
            step += 10;
            remaining = (700 - step as i64 + if step % 20 == 0 { 7 } else { -7 }).max(0) as u64;
        }
        assert!(last < 0.05 * peak && peak > 0.95 * plan.peak_lr, "{last} {peak}");
    }
}
