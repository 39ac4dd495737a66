//! Timing of steps.

use std::time::Instant;

/// Time spent on steps since the last log record; without checkpoints and evaluations.
pub(super) struct Interval {
    since: Instant,
    seconds: f64,
    /// Steps done.
    pub steps: u64,
    /// Seconds of waiting for data.
    pub waited: f64,
}

impl Interval {
    pub fn start() -> Self {
        Self { since: Instant::now(), seconds: 0.0, steps: 0, waited: 0.0 }
    }

    fn total(&self) -> f64 {
        self.seconds + self.since.elapsed().as_secs_f64()
    }

    pub fn images_per_second(&self, batch: usize) -> f64 {
        self.steps as f64 * batch as f64 / self.total().max(1e-9)
    }

    /// Starts a new interval; returns the seconds of this one.
    pub fn restart(&mut self) -> f64 {
        let total = self.total();
        *self = Self::start();
        total
    }

    pub fn pause(&mut self) {
        self.seconds = self.total();
    }

    pub fn resume(&mut self) {
        self.since = Instant::now();
    }
}
