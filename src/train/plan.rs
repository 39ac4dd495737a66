//! A config's epochs and base rates as steps and rates of this run, once the number of images is known.

use anyhow::{Result, bail};

use super::TrainConfig;
use crate::optim::{self, EmaConfig, OptimizerConfig, ScheduleConfig};

/// Lengths in optimizer steps, and the two schedules over them.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Optimizer steps of an epoch; images that do not fill a last batch are left out (another set each epoch).
    pub steps_per_epoch: u64,
    /// Optimizer steps of the run: K of the paper.
    pub total_steps: u64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Learning rate after warm-up.
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
        Ok(Self {
            steps_per_epoch,
            total_steps: steps_per_epoch * schedule.epochs,
            warmup_steps: (steps_per_epoch as f64 * schedule.warmup_epochs).round() as u64,
            peak_lr: optimizer.peak_lr(train.batch_size),
            final_lr_factor: schedule.final_lr_factor,
            ema: ema.clone(),
        })
    }

    /// Learning rate of update `step`, from 0.
    pub fn lr(&self, step: u64) -> f64 {
        optim::learning_rate(step, self.warmup_steps, self.total_steps, self.peak_lr, self.final_lr_factor)
    }

    /// tau of the target's update after update `step`, from 0.
    pub fn tau(&self, step: u64) -> f64 {
        optim::tau(step, self.total_steps, &self.ema)
    }

    /// Epochs done after `steps` updates, with their fraction.
    pub fn epochs(&self, steps: u64) -> f64 {
        steps as f64 / self.steps_per_epoch as f64
    }
}
