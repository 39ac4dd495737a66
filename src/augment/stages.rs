//! Timing of the stages of a view.

use std::time::{Duration, Instant};

/// Time spent in each part of making views.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    /// Crop, resize and flip.
    pub resize: Duration,
    /// Jitter, grayscale, solarization, and storing.
    pub color: Duration,
    /// Gaussian blur.
    pub blur: Duration,
}

/// A stopwatch for [`Stages`]; does nothing if none are given.
pub(super) struct Laps<'a>(Option<(&'a mut Stages, Instant)>);

impl<'a> Laps<'a> {
    pub fn new(stages: &'a mut Option<Stages>) -> Self {
        Self(stages.as_mut().map(|stages| (stages, Instant::now())))
    }

    /// Adds the time since the last call to a stage.
    pub fn end(&mut self, stage: impl FnOnce(&mut Stages) -> &mut Duration) {
        if let Some((stages, last)) = &mut self.0 {
            let now = Instant::now();
            *stage(stages) += now - *last;
            *last = now;
        }
    }
}
