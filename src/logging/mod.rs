//! What a run reports: log lines and progress on stderr, metrics to every [`Sink`].
//! A closed or full stderr never stops a run; a metrics file that cannot be written does if the config says so.

pub mod append;
mod hparams;
pub mod metrics;
pub mod progress;
mod quality;
pub mod tensorboard;

use std::io::{Write, stderr};
use std::path::Path;

use anyhow::Result;
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::Serialize;
use serde_json::Value;

use metrics::MetricsFile;
use progress::Progress;
pub use quality::Quality;
use tensorboard::EventWriter;

/// Sends `log` records up to `level` to stderr. A second call only changes the level.
pub fn init(level: LevelFilter) {
    // The only error is that a logger is already there.
    let _ = log::set_logger(&StderrLog);
    log::set_max_level(level);
}

struct StderrLog;

impl Log for StderrLog {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // `--verbose` does not include debug output of other crates.
        metadata.level() <= Level::Warn || metadata.target().starts_with(env!("CARGO_PKG_NAME"))
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            write_line(&one_line(&format!("{}{}", prefix(record.level()), record.args())));
        }
    }

    fn flush(&self) {}
}

fn prefix(level: Level) -> &'static str {
    match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info => "",
        Level::Debug | Level::Trace => "debug: ",
    }
}

/// A text as one line that is safe on a terminal: line ends, escapes and other control characters, and those that
/// change the direction of text, appear as `\n`, `\u{1b}` and so on. Names of files may hold any of them.
pub fn one_line(text: &str) -> String {
    let control = |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if control(c) { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// One line on stderr, above the bars. Not `eprintln!`, which panics if stderr is closed.
fn write_line(line: &str) {
    Progress::suspend(|| {
        let _ = stderr().lock().write_all(format!("{line}\n").as_bytes());
    });
}

/// The numbers of one log interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Optimizer updates done, this one included.
    pub step: u64,
    /// Epochs done, with the fraction of the current one.
    pub epoch: f64,
    /// Symmetric loss, 0 to 8.
    pub loss: f64,
    /// Learning rate of this update.
    pub lr: f64,
    /// EMA coefficient of this update.
    pub tau: f64,
    /// Standard deviation over the batch of the normalized projections; 1/sqrt(dim) when healthy, 0 when collapsed.
    pub z_std: f64,
    /// Images (not views) per second since the last record.
    pub images_per_second: f64,
    /// Seconds spent waiting for data since the last record.
    pub data_wait_seconds: f64,
    /// L2 norm of the whole gradient.
    pub grad_norm: f64,
}

/// One k-NN evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KnnMetrics {
    /// Optimizer updates done.
    pub step: u64,
    /// Epochs done, with the fraction of the current one.
    pub epoch: f64,
    /// Accuracy on the held-out images, 0 to 1.
    pub knn_top1: f64,
}

/// One evaluation without labels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QualityMetrics {
    /// Optimizer updates done.
    pub step: u64,
    /// Epochs done, with the fraction of the current one.
    pub epoch: f64,
    /// The numbers.
    #[serde(flatten)]
    pub quality: Quality,
}

/// Numbers to record.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Metrics {
    /// Of a log interval.
    Step(StepMetrics),
    /// Of an evaluation.
    Knn(KnnMetrics),
    /// Of an evaluation without labels.
    Quality(QualityMetrics),
}

impl Metrics {
    /// Optimizer updates done.
    pub fn step(&self) -> u64 {
        match self {
            Self::Step(metrics) => metrics.step,
            Self::Knn(metrics) => metrics.step,
            Self::Quality(metrics) => metrics.step,
        }
    }

    /// The values with their TensorBoard tags.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let named = |all: &[(&str, f64)]| all.iter().map(|(tag, value)| (tag.to_string(), *value)).collect();
        match self {
            Self::Step(metrics) => named(&[
                ("train/epoch", metrics.epoch),
                ("train/loss", metrics.loss),
                ("train/lr", metrics.lr),
                ("train/tau", metrics.tau),
                ("train/z_std", metrics.z_std),
                ("train/grad_norm", metrics.grad_norm),
                ("speed/images_per_second", metrics.images_per_second),
                ("speed/data_wait_seconds", metrics.data_wait_seconds),
            ]),
            Self::Knn(metrics) => named(&[("eval/knn_top1", metrics.knn_top1)]),
            Self::Quality(metrics) => {
                metrics.quality.numbers().iter().map(|(key, value)| (format!("quality/{key}"), *value)).collect()
            }
        }
    }
}

/// A destination of metrics. To add one, write a file for it and open it in [`Logger::open`].
pub trait Sink {
    /// Records metrics; file writes have reached the operating system when this returns.
    /// # Errors
    /// Why nothing could be written; the record stays pending.
    fn record(&mut self, record: &Metrics) -> Result<()>;

    /// Writes the pending records.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    /// Called after every update with the number of updates done.
    fn advance(&self, _done: u64) {}

    /// Called when the number of updates of the run changes.
    fn set_total(&self, _total: u64) {}
}

/// Sends a run's metrics to every sink.
pub struct Logger {
    sinks: Vec<Box<dyn Sink>>,
    /// Whether records that cannot be written are retried with the next ones, or stop the run.
    retry: bool,
    /// The last write failed, and a warning was logged.
    failing: bool,
}

impl Logger {
    /// Opens `metrics.jsonl` and (with `tensorboard`) an event file with these settings in `run_dir`, which must exist. With
    /// `resume_from_step` both continue after that step. Errors name the file.
    pub fn open(
        run_dir: &Path,
        resume_from_step: Option<u64>,
        tensorboard: Option<&[(String, Value)]>,
        progress: Progress,
    ) -> Result<Self> {
        let mut sinks: Vec<Box<dyn Sink>> =
            vec![Box::new(MetricsFile::open(&run_dir.join("metrics.jsonl"), resume_from_step)?)];
        if let Some(settings) = tensorboard {
            sinks.push(Box::new(EventWriter::of_run(&run_dir.join("tensorboard"), resume_from_step, settings)?));
        }
        sinks.push(Box::new(progress));
        Ok(Self { sinks, retry: false, failing: false })
    }

    /// Records that cannot be written are retried with the next ones; this logs a single warning.
    pub fn retrying(self, retry: bool) -> Self {
        Self { retry, ..self }
    }

    /// Moves the progress bars to `done` updates.
    pub fn advance(&self, done: u64) {
        self.sinks.iter().for_each(|sink| sink.advance(done));
    }

    /// Sets the number of updates of the run.
    pub fn set_total(&self, total: u64) {
        self.sinks.iter().for_each(|sink| sink.set_total(total));
    }

    /// Records and shows the numbers of an interval; they have been written when this returns.
    pub fn log(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.record(&Metrics::Step(metrics.clone()))
    }

    /// Records and shows a k-NN accuracy, 0 to 1, of the encoder after `step` updates.
    pub fn knn(&mut self, step: u64, epoch: f64, top1: f64) -> Result<()> {
        self.record(&Metrics::Knn(KnnMetrics { step, epoch, knn_top1: top1 }))
    }

    /// Records and shows the quality of the encoder after `step` updates.
    pub fn quality(&mut self, step: u64, epoch: f64, quality: &Quality) -> Result<()> {
        self.record(&Metrics::Quality(QualityMetrics { step, epoch, quality: quality.clone() }))
    }

    /// Writes the pending records.
    pub fn finish(&mut self) -> Result<()> {
        first_error(self.sinks.iter_mut().map(|sink| sink.flush()))
    }

    fn record(&mut self, record: &Metrics) -> Result<()> {
        match (first_error(self.sinks.iter_mut().map(|sink| sink.record(record))), self.retry) {
            (Err(error), false) => return Err(error),
            (Err(error), true) if !self.failing => {
                log::warn!("{error:#}; trying again at the next record (output.on_write_error: retry)");
                self.failing = true;
            }
            (Ok(()), _) if self.failing => {
                log::info!("the metrics were written after an earlier failure");
                self.failing = false;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The first error, after all sinks were tried.
fn first_error(results: impl Iterator<Item = Result<()>>) -> Result<()> {
    results.fold(Ok(()), Result::and)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_serialized_number_is_a_scalar() {
        let json = serde_json::to_value(StepMetrics::default()).unwrap();
        let keys = json.as_object().unwrap();
        let scalars = Metrics::Step(StepMetrics::default()).scalars();
        let tags: Vec<&str> = scalars.iter().map(|(tag, _)| tag.rsplit('/').next().unwrap()).collect();
        assert!(tags.iter().all(|tag| keys.contains_key(*tag)), "{tags:?}");
        assert_eq!(tags.len() + 1, keys.len()); // all but `step`
    }

    #[test]
    fn a_logger_fills_its_run_directory() {
        let dir = tempfile::tempdir().unwrap();
        for resume in [None, Some(2)] {
            let mut logger = Logger::open(dir.path(), resume, Some(&[]), Progress::new(4, 2, 0, 0)).unwrap();
            for step in resume.unwrap_or(0) + 1..=4 {
                logger.advance(step);
                logger.log(&StepMetrics { step, ..Default::default() }).unwrap();
                logger.knn(step, 0.5 * step as f64, 0.25).unwrap();
            }
        }
        let lines = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        assert_eq!(lines.lines().count(), 8);
        assert_eq!(lines.lines().last().unwrap(), r#"{"step":4,"epoch":2.0,"knn_top1":0.25}"#);
        assert_eq!(std::fs::read_dir(dir.path().join("tensorboard")).unwrap().count(), 2);
    }

    #[test]
    fn control_characters_are_escaped() {
        let line = one_line("a\n\r\tb\x1b[31m\u{9b}1m\u{202e}\u{2028}é\u{fffd}\\n");
        assert_eq!(line, "a\\n\\r\\tb\\u{1b}[31m\\u{9b}1m\\u{202e}\\u{2028}é\u{fffd}\\n");
    }

    #[test]
    fn only_our_own_details_are_shown() {
        let enabled = |level, target| StderrLog.enabled(&Metadata::builder().level(level).target(target).build());
        assert!(enabled(Level::Debug, concat!(env!("CARGO_PKG_NAME"), "::train")) && enabled(Level::Warn, "parquet"));
        assert!(!enabled(Level::Info, "parquet"));
        assert_eq!((prefix(Level::Warn), prefix(Level::Info)), ("warning: ", ""));
    }
}
