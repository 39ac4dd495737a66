//! Progress of a run on stderr: two bars on a terminal, otherwise one plain line per log interval.

use std::cell::Cell;
use std::io::{IsTerminal, stderr};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{FormattedDuration, MultiProgress, ProgressBar, ProgressStyle};

use super::{KnnMetrics, Metrics, QualityMetrics, Sink, StepMetrics, write_line};

/// All bars of the process. The logger prints above them, so it must exist before a run starts.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Progress bars of a run. Dropping it removes the bars.
pub struct Progress {
    total_steps: u64,
    steps_per_epoch: u64,
    first_step: u64,
    /// Steps that the epochs are ahead of the run.
    offset: i64,
    started: Instant,
    shown: Shown,
}

enum Shown {
    Bars { epoch: ProgressBar, total: ProgressBar },
    Lines,
    Nothing,
}

/// Whether stderr is a terminal that can move its cursor.
fn bars_can_be_drawn() -> bool {
    stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

impl Progress {
    /// A run of `total_steps` optimizer updates of which `done` are done, its epochs `offset` steps ahead. Shows
    /// nothing if the log level is below info.
    pub fn new(total_steps: u64, steps_per_epoch: u64, done: u64, offset: i64) -> Self {
        let shown = if log::max_level() < log::LevelFilter::Info {
            Shown::Nothing
        } else if bars_can_be_drawn() {
            let bar = |length, template: &str| {
                let style = ProgressStyle::with_template(template).expect("a valid template");
                BARS.add(ProgressBar::new(length).with_style(style.progress_chars("=> ")))
            };
            Shown::Bars {
                epoch: bar(steps_per_epoch, "{prefix} [{bar:10}] {pos}/{len} {wide_msg}"),
                total: bar(total_steps, "total [{bar:10}] {pos}/{len} {elapsed_precise} eta {eta_precise} {msg}"),
            }
        } else {
            Shown::Lines
        };
        let progress = Self { total_steps, steps_per_epoch, first_step: done, offset, started: Instant::now(), shown };
        progress.move_to(done);
        if let Shown::Bars { total, .. } = &progress.shown {
            total.reset_eta(); // steps of earlier sessions took no time in this one
        }
        progress
    }

    /// Moves the bars to `done` updates; cheap enough for every step.
    fn move_to(&self, done: u64) {
        if let Shown::Bars { epoch, total } = &self.shown {
            let position = |steps: u64| steps.saturating_add_signed(self.offset);
            let finished = position(done).saturating_sub(1) / self.steps_per_epoch.max(1);
            let epochs = position(self.total_steps).div_ceil(self.steps_per_epoch.max(1));
            epoch.set_prefix(format!("epoch {}/{epochs}", finished + 1));
            epoch.set_position(position(done) - finished * self.steps_per_epoch);
            total.set_position(done);
        }
    }

    /// Shows the numbers of a log interval.
    fn show(&self, metrics: &StepMetrics) {
        self.move_to(metrics.step);
        match &self.shown {
            Shown::Bars { epoch, total } => {
                epoch.set_message(summary(metrics));
                total.set_message(speed(metrics));
            }
            Shown::Lines => write_line(&self.line(metrics, self.started.elapsed())),
            Shown::Nothing => {}
        }
    }

    /// Runs `f` with the bars off the screen, so that what it prints stays readable. (`MultiProgress::suspend` panics
    /// when the terminal is closed.)
    pub fn suspend<T>(f: impl FnOnce() -> T) -> T {
        let _ = BARS.clear();
        f()
    }

    fn line(&self, metrics: &StepMetrics, elapsed: Duration) -> String {
        let (step, total) = (metrics.step, self.total_steps);
        let (numbers, speed) = (summary(metrics), speed(metrics));
        let measured = step.saturating_sub(self.first_step).max(1);
        let left = elapsed.as_secs_f64() * total.saturating_sub(step) as f64 / measured as f64;
        let eta = FormattedDuration(Duration::from_secs_f64(left));
        format!("step {step}/{total} epoch {:.2} {numbers} {speed} eta {eta}", metrics.epoch)
    }
}

impl Sink for Progress {
    fn record(&mut self, record: &Metrics) -> Result<()> {
        match record {
            Metrics::Step(metrics) => self.show(metrics),
            Metrics::Knn(KnnMetrics { epoch, knn_top1, .. }) => {
                log::info!("epoch {}: k-NN top-1 {:.2} %", short(*epoch), 100.0 * knn_top1);
            }
            Metrics::Quality(QualityMetrics { epoch, quality, .. }) => {
                log::info!("epoch {}: {}", short(*epoch), quality.line());
            }
        }
        Ok(())
    }

    fn advance(&self, done: u64) {
        self.move_to(done);
    }
}

/// Epochs done; an evaluation at the end of a shortened run falls inside an epoch.
fn short(epoch: f64) -> String {
    let digits = if epoch.fract() == 0.0 { 0 } else { 2 };
    format!("{epoch:.digits$}")
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bars { epoch, total } = &self.shown {
            epoch.finish_and_clear();
            total.finish_and_clear();
        }
    }
}

/// Progress of one task of known length: a bar on a terminal, otherwise a line every ten seconds. Dropping
/// it removes the bar.
pub struct Bar {
    what: String,
    total: u64,
    shown: Option<ProgressBar>,
    last_line: Cell<Instant>,
}

impl Bar {
    /// The label, such as "features of the test images", and the number of items.
    pub fn new(what: impl Into<String>, total: usize) -> Self {
        let (what, total) = (what.into(), total as u64);
        let shown = (bars_can_be_drawn() && log::max_level() >= log::LevelFilter::Info).then(|| {
            let style = ProgressStyle::with_template("{prefix} [{bar:20}] {pos}/{len} {per_sec} eta {eta}");
            let bar = ProgressBar::new(total).with_style(style.expect("a valid template").progress_chars("=> "));
            BARS.add(bar.with_prefix(what.clone()))
        });
        Self { what, total, shown, last_line: Cell::new(Instant::now()) }
    }

    /// Sets the number of items done.
    pub fn set(&self, done: usize) {
        if let Some(bar) = &self.shown {
            bar.set_position(done as u64);
        } else if self.last_line.get().elapsed() >= Duration::from_secs(10) {
            self.last_line.set(Instant::now());
            log::info!("{}: {done}/{}", self.what, self.total);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

fn speed(metrics: &StepMetrics) -> String {
    format!("{:.1} images/s", metrics.images_per_second)
}

fn summary(metrics: &StepMetrics) -> String {
    let lr = if metrics.lr >= 1e-3 { format!("{:.4}", metrics.lr) } else { format!("{:.2e}", metrics.lr) };
    format!("loss {:.4} lr {lr} tau {:.5}", metrics.loss, metrics.tau)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(done: u64, shown: Shown) -> Progress {
        Progress { total_steps: 400, steps_per_epoch: 100, first_step: done, offset: 0, started: Instant::now(), shown }
    }

    fn metrics() -> StepMetrics {
        StepMetrics {
            step: 150,
            epoch: 1.5,
            loss: 2.34567,
            lr: 0.45,
            tau: 0.996,
            images_per_second: 812.34,
            ..Default::default()
        }
    }

    #[test]
    fn a_line_has_everything_and_the_eta_counts_this_session_only() {
        let line = progress(100, Shown::Lines).line(&metrics(), Duration::from_secs(50));
        assert_eq!(line, "step 150/400 epoch 1.50 loss 2.3457 lr 0.4500 tau 0.99600 812.3 images/s eta 00:04:10");
    }

    #[test]
    fn small_rates_are_readable() {
        assert_eq!(summary(&StepMetrics { lr: 3.5e-6, ..metrics() }), "loss 2.3457 lr 3.50e-6 tau 0.99600");
    }

    #[test]
    fn the_last_step_of_an_epoch_fills_its_bar() {
        let bars = || Shown::Bars { epoch: ProgressBar::hidden(), total: ProgressBar::hidden() };
        for (done, position, prefix) in
            [(0, 0, "epoch 1/4"), (100, 100, "epoch 1/4"), (101, 1, "epoch 2/4"), (400, 100, "epoch 4/4")]
        {
            let progress = progress(0, bars());
            progress.move_to(done);
            let Shown::Bars { epoch, total } = &progress.shown else { unreachable!() };
            assert_eq!((epoch.position(), epoch.prefix().as_str(), total.position()), (position, prefix, done));
        }
        let mut ahead = progress(100, bars());
        ahead.offset = 50;
        ahead.move_to(101);
        let Shown::Bars { epoch, .. } = &ahead.shown else { unreachable!() };
        assert_eq!((epoch.position(), epoch.prefix().as_str()), (51, "epoch 2/5"));
    }
}
