//! `schedule.hours`: a run that ends after a given number of hours. After the first steps, and regularly from then on,
//! the number of steps that still fit is recomputed from the time that steps take, evaluations and checkpoints
//! included.

use std::time::Instant;

use crate::checkpoint::{Pace, UNKNOWN_STEPS};

use super::Plan;

/// Steps of a session before the first number is set, unless they take too long; the first of them is not measured.
const FIRST: u64 = 4;

/// The final evaluation is skipped if it would take more than this share of the run.
const MAX_SHARE: f64 = 0.25;

/// The clock of a run.
pub struct Hours {
    /// The run's length.
    hours: f64,
    /// Seconds of earlier sessions.
    before: f64,
    /// When this session began.
    started: Instant,
    /// Steps done before this session.
    first: u64,
    /// When its first step began.
    first_step: Option<Instant>,
    /// Measured from: the steps done, and when.
    mark: Option<(u64, Instant)>,
    /// The number of steps done at which to look again.
    next: u64,
    /// Seconds of an evaluation, and of a checkpoint, which the end of the run takes.
    evaluation: f64,
    checkpoint: f64,
    announced: bool,
}

impl Hours {
    /// For a session that began at `started`, after `first` steps; `saved` is what the checkpoint says of the sessions
    /// before.
    pub fn new(hours: f64, saved: Option<&Pace>, started: Instant, first: u64) -> Self {
        let (before, evaluation, checkpoint) =
            saved.map_or((0.0, 0.0, 0.0), |pace| (pace.seconds, pace.evaluation_seconds, pace.checkpoint_seconds));
        let announced = false;
        let (first_step, mark, next) = (None, None, first + 1);
        Self { hours, before, started, first, first_step, mark, next, evaluation, checkpoint, announced }
    }

    /// A plan of a new run until its speed is known: the rates stay at the start of their schedule.
    pub fn begin(plan: &mut Plan) {
        plan.end_after(0, UNKNOWN_STEPS);
    }

    /// Whether the number of steps is known.
    pub fn is_planned(total_steps: u64) -> bool {
        total_steps < UNKNOWN_STEPS
    }

    /// The first step of the session begins.
    pub fn steps_begin(&mut self) {
        self.first_step = Some(Instant::now());
    }

    /// Notes the seconds of an evaluation.
    pub fn evaluated(&mut self, seconds: f64) {
        self.evaluation = seconds;
    }

    /// Notes the seconds of a checkpoint.
    pub fn saved(&mut self, seconds: f64) {
        self.checkpoint = seconds;
    }

    /// Seconds left, without what the end takes.
    fn left(&self) -> f64 {
        let spent = self.before + self.started.elapsed().as_secs_f64();
        let evaluation = if self.ends_with_evaluation() { self.evaluation } else { 0.0 };
        self.hours * 3600.0 - spent - evaluation - self.checkpoint
    }

    /// Whether the run is long enough for an evaluation at its end.
    pub fn ends_with_evaluation(&self) -> bool {
        self.evaluation <= MAX_SHARE * self.hours * 3600.0
    }

    /// Whether there is time for one more evaluation before the last one.
    pub fn has_time_to_evaluate(&self) -> bool {
        self.ends_with_evaluation() && self.left() > 2.0 * self.evaluation
    }

    /// Whether to call [`Self::remaining`] after `done` steps; the same in all processes.
    pub fn is_due(&self, done: u64) -> bool {
        done >= self.next
    }

    /// The steps that still fit after `done` ones; none while the first ones are measured.
    pub fn remaining(&mut self, done: u64) -> Option<u64> {
        let Some((from, since)) = self.mark else {
            let step = self.started_steps();
            self.mark = Some((done, Instant::now()));
            // Where a step takes that long, the first one has to do.
            return (step * (2 * FIRST) as f64 > self.left()).then(|| fitting(self.left(), step));
        };
        let seconds = since.elapsed().as_secs_f64() / (done - from).max(1) as f64;
        Some(fitting(self.left(), seconds))
    }

    fn started_steps(&self) -> f64 {
        self.first_step.map_or(0.0, |start| start.elapsed().as_secs_f64())
    }

    /// Sets when to look again: soon at first, and step by step at the end.
    pub fn look_again(&mut self, done: u64, remaining: Option<u64>) {
        let own = done - self.first;
        self.next = done + remaining.map_or(FIRST - 1, |remaining| own.min(remaining / 8).max(1));
    }

    /// Whether to tell the user the length now, once.
    pub fn announces(&mut self, remaining: u64) -> bool {
        let known = remaining < 8 || self.started.elapsed().as_secs_f64() > (0.02 * self.hours * 3600.0).min(20.0);
        known && !std::mem::replace(&mut self.announced, known)
    }

    /// What a checkpoint of now says.
    pub fn pace(&self, plan: &Plan) -> Pace {
        let (schedule_steps, warmup_steps, ahead) = plan.stretched();
        Pace {
            hours: self.hours,
            seconds: self.before + self.started.elapsed().as_secs_f64(),
            evaluation_seconds: self.evaluation,
            checkpoint_seconds: self.checkpoint,
            schedule_steps,
            warmup_steps,
            ahead,
        }
    }
}

fn fitting(left: f64, seconds: f64) -> u64 {
    (left.max(0.0) / seconds.max(1e-6)).floor() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evaluation_that_takes_much_of_the_run_is_left_out() {
        let mut hours = Hours::new(0.05, None, Instant::now(), 0);
        for (seconds, left, last) in [(10.0, 170.0, true), (44.0, 136.0, true), (110.0, 180.0, false)] {
            hours.evaluated(seconds);
            assert_eq!(hours.ends_with_evaluation(), last, "{seconds}");
            assert!((hours.left() - left).abs() < 1.0, "{seconds}: {}", hours.left());
            assert_eq!(hours.has_time_to_evaluate(), last, "{seconds}");
        }
    }
}
