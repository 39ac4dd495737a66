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
            warmup_steps: (steps_per_epoch as f64 * schedule.warmup_epochs).round() as u64,
            peak_lr: optimizer.peak_lr(train.batch_size),
            final_lr_factor: schedule.final_lr_factor,
            ema: ema.clone(),
        })
    }

    /// Places step `step` at `position` in the schedule, which then ends that much earlier or later.
    pub fn place(&mut self, step: u64, position: u64) {
        self.offset = position as i64 - step as i64;
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

    /// Learning rate and tau of update `step`, from 0.
    pub fn rates(&self, step: u64) -> Rates {
        let at = self.position(step);
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
