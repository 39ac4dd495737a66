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

/// Columns of a terminal of the usual width.
const COLUMNS: usize = 80;

/// Progress bars of a run. Dropping it removes the bars.
pub struct Progress {
    /// 0 while it is unknown.
    total_steps: Cell<u64>,
    steps_per_epoch: u64,
    /// Images per step.
    batch: usize,
    /// Steps that the epochs are ahead of the run.
    offset: i64,
    started: Instant,
    /// Seconds of a step, without evaluations and checkpoints; none before the second record, because the first steps
    /// allocate memory and choose kernels.
    seconds_per_step: Cell<Option<f64>>,
    records: Cell<u64>,
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
            // Cut off where the terminal is narrow.
            let bar = |length| {
                let style = ProgressStyle::with_template("{wide_msg}").expect("a valid template");
                BARS.add(ProgressBar::new(length).with_style(style))
            };
            Shown::Bars { epoch: bar(steps_per_epoch), total: bar(total_steps) }
        } else {
            Shown::Lines
        };
        let progress = Self {
            total_steps: Cell::new(total_steps),
            steps_per_epoch,
            batch: 0,
            offset,
            started: Instant::now(),
            seconds_per_step: Cell::new(None),
            records: Cell::new(0),
            shown,
        };
        progress.move_to(done, None);
        progress
    }

    /// Sets the images per step, from which the time left is computed.
    pub fn with_batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }

    /// Moves the bars to `done` updates; cheap enough for every step.
    fn move_to(&self, done: u64, metrics: Option<&StepMetrics>) {
        if let Shown::Bars { epoch, total } = &self.shown {
            let (position, per_epoch) = (done.saturating_add_signed(self.offset), self.steps_per_epoch.max(1));
            let finished = position.saturating_sub(1) / per_epoch;
            let within = position - finished * per_epoch;
            epoch.set_position(within);
            total.set_position(done);
            if let Some(metrics) = metrics {
                epoch.set_prefix(format!("loss {:.4} lr {}", metrics.loss, rate(metrics.lr)));
                total.set_prefix(speed(metrics));
            }
            let all = self.total_steps.get();
            let epochs = match all {
                0 => "?".to_string(),
                all => all.saturating_add_signed(self.offset).div_ceil(per_epoch).to_string(),
            };
            let (bar, numbers) = (drawn(within, per_epoch), epoch.prefix());
            epoch.set_message(format!("epoch {}/{epochs} {bar} step {within}/{per_epoch} {numbers}", finished + 1));
            let (bar, elapsed) = (drawn(done, all), FormattedDuration(self.started.elapsed()));
            let all = if all == 0 { "?".to_string() } else { all.to_string() };
            total.set_message(format!("run {bar} step {done}/{all} {elapsed} {} {}", self.eta(done), total.prefix()));
        }
    }

    /// Shows the numbers of a log interval.
    fn show(&self, metrics: &StepMetrics) {
        self.measure(metrics);
        self.move_to(metrics.step, Some(metrics));
        match &self.shown {
            Shown::Lines => write_line(&self.line(metrics)),
            Shown::Bars { .. } | Shown::Nothing => {}
        }
    }

    /// Takes the speed of a log interval into the mean; recent ones count more.
    fn measure(&self, metrics: &StepMetrics) {
        self.records.set(self.records.get() + 1);
        let seconds = self.batch as f64 / metrics.images_per_second;
        if self.records.get() > 1 && seconds.is_finite() {
            self.seconds_per_step
                .set(Some(self.seconds_per_step.get().map_or(seconds, |mean| 0.7 * mean + 0.3 * seconds)));
        }
    }

    /// The time that the steps to come take.
    fn eta(&self, done: u64) -> String {
        match self.seconds_per_step.get() {
            Some(seconds) if self.total_steps.get() > 0 => {
                let left = seconds * self.total_steps.get().saturating_sub(done) as f64;
                format!("eta {}", FormattedDuration(Duration::from_secs_f64(left.min(1e9))))
            }
            _ => "eta ?".to_string(),
        }
    }

    /// Runs `f` with the bars off the screen, so that what it prints stays readable. (`MultiProgress::suspend` panics
    /// when the terminal is closed.)
    pub fn suspend<T>(f: impl FnOnce() -> T) -> T {
        let _ = BARS.clear();
        f()
    }

    /// At most 80 columns.
    fn line(&self, metrics: &StepMetrics) -> String {
        let (step, total) = (metrics.step, self.total_steps.get());
        let total = if total == 0 { "?".to_string() } else { total.to_string() };
        let start = format!("step {step}/{total} epoch {:.2} loss {:.4}", metrics.epoch, metrics.loss);
        let end = format!("{} {}", speed(metrics), self.eta(step));
        let whole = format!("{start} lr {} {end}", rate(metrics.lr));
        if whole.len() <= COLUMNS { whole } else { format!("{start} {end}") }
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
                quality.lines().iter().for_each(|line| log::info!("epoch {}: {line}", short(*epoch)));
            }
        }
        Ok(())
    }

    fn advance(&self, done: u64) {
        self.move_to(done, None);
    }

    fn set_total(&self, total: u64) {
        self.total_steps.set(total);
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
    let digits = usize::from(metrics.images_per_second < 100.0);
    format!("{:.digits$} images/s", metrics.images_per_second)
}

fn rate(lr: f64) -> String {
    if lr >= 1e-3 { format!("{lr:.4}") } else { format!("{lr:.2e}") }
}

/// `[====>     ]`.
fn drawn(done: u64, total: u64) -> String {
    const WIDTH: u64 = 10;
    let filled = (WIDTH * done.min(total)).checked_div(total).unwrap_or(0) as usize;
    let tip = if filled < WIDTH as usize { ">" } else { "" };
    format!("[{:<1$}]", "=".repeat(filled) + tip, WIDTH as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(shown: Shown) -> Progress {
        let mut progress = Progress::new(400, 100, 100, 0).with_batch(256);
        progress.shown = shown;
        progress
    }

    fn metrics() -> StepMetrics {
        StepMetrics {
            step: 150,
            epoch: 1.5,
            loss: 2.34567,
            lr: 0.45,
            tau: 0.996,
            images_per_second: 64.0,
            ..Default::default()
        }
    }

    #[test]
    fn a_line_says_what_it_measures_and_the_eta_leaves_out_the_first_record() {
        let lines = progress(Shown::Lines);
        lines.measure(&StepMetrics { images_per_second: 0.5, ..metrics() });
        assert_eq!(lines.line(&metrics()), "step 150/400 epoch 1.50 loss 2.3457 lr 0.4500 64.0 images/s eta ?");
        lines.measure(&metrics());
        assert_eq!(lines.line(&metrics()), "step 150/400 epoch 1.50 loss 2.3457 lr 0.4500 64.0 images/s eta 00:16:40");
        lines.set_total(200);
        assert!(lines.line(&metrics()).contains("step 150/200 ") && lines.line(&metrics()).ends_with("eta 00:03:20"));
    }

    #[test]
    fn a_line_fits_80_columns() {
        let lines = progress(Shown::Lines);
        lines.set_total(2_500_000);
        let long = StepMetrics { step: 1_500_000, epoch: 769.23, lr: 3.5e-6, images_per_second: 12_345.6, ..metrics() };
        (0..2).for_each(|_| lines.measure(&long));
        let line = lines.line(&long);
        assert!(line.len() <= COLUMNS && line.contains("images/s") && line.contains("eta 05:45:"), "{line}");
        assert_eq!(rate(3.5e-6), "3.50e-6");
    }

    #[test]
    fn the_last_step_of_an_epoch_fills_its_bar() {
        let bars = || Shown::Bars { epoch: ProgressBar::hidden(), total: ProgressBar::hidden() };
        let message = |progress: &Progress| {
            let Shown::Bars { epoch, total } = &progress.shown else { unreachable!() };
            (epoch.message(), total.message())
        };
        for (done, start) in [
            (0, "epoch 1/4 [>         ] step 0/100"),
            (100, "epoch 1/4 [==========] step 100/100"),
            (101, "epoch 2/4 [>         ] step 1/100"),
            (400, "epoch 4/4 [==========] step 100/100"),
        ] {
            let progress = progress(bars());
            progress.move_to(done, Some(&metrics()));
            let (epoch, total) = message(&progress);
            assert!(epoch.starts_with(start) && epoch.ends_with("loss 2.3457 lr 0.4500"), "{epoch}");
            assert!(total.contains(&format!("step {done}/400 ")) && total.ends_with("64.0 images/s"), "{total}");
            assert!(epoch.len() <= COLUMNS && total.len() <= COLUMNS, "{total}");
        }
        let mut ahead = progress(bars());
        ahead.offset = 50;
        ahead.move_to(101, None);
        assert!(message(&ahead).0.starts_with("epoch 2/5 [=====>    ] step 51/100"), "{}", message(&ahead).0);
    }
}
