//! Learning rate and tau as pure functions of the optimizer step, so resuming only needs the step.

use std::f64::consts::PI;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::section::{Keys, Problems, Section};

/// Section `schedule` of a config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Length of training in epochs. Default 1000.
    pub epochs: u64,
    /// Train for this many hours, over all sessions of the run together: the number of epochs is set once the speed is
    /// known, and corrected as it changes. `epochs` and `warmup_epochs` then only say how long the warmup is relative to
    /// the run. Default null: train for `epochs`.
    pub hours: Option<f64>,
    /// Epochs of linear warmup from 0, at most `epochs`. Default 10.
    pub warmup_epochs: f64,
    /// Final learning rate as a factor of the peak, 0 to 1. Default 0.
    pub final_lr_factor: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { epochs: 1000, hours: None, warmup_epochs: 10.0, final_lr_factor: 0.0 }
    }
}

impl Section for ScheduleConfig {
    fn check(&self, problems: &mut Problems) {
        problems.range("epochs", self.epochs, 1..=1_000_000);
        let (found, most) = (self.warmup_epochs, self.epochs);
        let right = (0.0..=most as f64).contains(&found);
        problems.require(right, "warmup_epochs", found, format!("0 to schedule.epochs ({most})"));
        let right = self.hours.is_none_or(|hours| hours > 0.0 && hours <= 100_000.0);
        problems.require(right, "hours", self.hours.unwrap_or_default(), "null or above 0, at most 100000");
        problems.range("final_lr_factor", self.final_lr_factor, 0.0..=1.0);
    }

    fn no_effect(&self) -> Keys {
        Keys::Only(&["hours"]) // a run may be given more or less time when it is resumed
    }
}

/// `ema.schedule`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TauSchedule {
    /// From `base_tau` to 1 along half a cosine (paper, section 3.3).
    Cosine,
    /// `base_tau` throughout.
    Constant,
}

/// Section `ema` of a config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EmaConfig {
    /// Weight of the old target in the first update, 0 to 1. Default 0.996.
    pub base_tau: f64,
    /// cosine (to 1 at the end) or constant. Default cosine.
    pub schedule: TauSchedule,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { base_tau: 0.996, schedule: TauSchedule::Cosine }
    }
}

impl Section for EmaConfig {
    fn check(&self, problems: &mut Problems) {
        problems.range("base_tau", self.base_tau, 0.0..=1.0);
    }
}

/// Learning rate of optimizer step `step` (from 0) of `total`: linear from 0 over `warmup` steps, then half a
/// cosine to `peak * final_factor` (DeepMind's `utils/schedules.py`; the very first rate is 0).
pub fn learning_rate(step: u64, warmup: u64, total: u64, peak: f64, final_factor: f64) -> f64 {
    if step < warmup {
        return peak * step as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / (total - warmup).max(1) as f64;
    let floor = peak * final_factor;
    floor + (peak - floor) * (1.0 + (PI * progress.min(1.0)).cos()) / 2.0
}

/// tau of the update after optimizer step `step` (from 0) of `total`: `1 - (1 - base) (cos(pi step / total) + 1) / 2`.
pub fn tau(step: u64, total: u64, config: &EmaConfig) -> f64 {
    match config.schedule {
        TauSchedule::Constant => config.base_tau,
        TauSchedule::Cosine => 1.0 - (1.0 - config.base_tau) * ((PI * step as f64 / total as f64).cos() + 1.0) / 2.0,
    }
}
