//! What a run says: log lines and progress on stderr, metrics as JSON lines and TensorBoard scalars.
//! A closed or full stderr never stops a run; a metrics file that cannot be written does where the config says so.

pub mod append;
pub mod metrics;
pub mod progress;
pub mod tensorboard;

use std::io::{Write, stderr};
use std::path::Path;

use anyhow::Result;
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::Serialize;

use metrics::MetricsFile;
use progress::Progress;
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
        // Details of other crates are not what `--verbose` asks for.
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

/// A text as one line that a terminal shows and does not obey: line ends, escapes and other control characters, and
/// those that turn the direction of writing, appear as `\n`, `\u{1b}` and so on. Names of files may hold any of them.
pub fn one_line(text: &str) -> String {
    let obeyed = |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if obeyed(c) { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// One line on stderr, above the bars. Not `eprintln!`, which panics when nobody reads.
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
struct KnnMetrics {
    step: u64,
    epoch: f64,
    /// Accuracy on the held-out images, 0 to 1.
    knn_top1: f64,
}

/// The three places where metrics go.
pub struct Logger {
    metrics: MetricsFile,
    events: Option<EventWriter>,
    progress: Progress,
    /// Whether records that cannot be written wait for the next ones, or end the run.
    retry: bool,
    /// The last try failed, and it was said.
    failing: bool,
}

impl Logger {
    /// Opens `metrics.jsonl` and (with `tensorboard`) an event file in `run_dir`, which must exist. With
    /// `resume_from_step` both go on after that step. Errors name the file.
    pub fn open(run_dir: &Path, resume_from_step: Option<u64>, tensorboard: bool, progress: Progress) -> Result<Self> {
        let metrics = MetricsFile::open(&run_dir.join("metrics.jsonl"), resume_from_step)?;
        let mut events = tensorboard.then(|| EventWriter::create(&run_dir.join("tensorboard"))).transpose()?;
        if let (Some(events), Some(step)) = (&mut events, resume_from_step) {
            events.restart_at(step + 1);
        }
        Ok(Self { metrics, events, progress, retry: false, failing: false })
    }

    /// Records that cannot be written wait for the next ones; it is warned of once.
    pub fn retrying(self, retry: bool) -> Self {
        Self { retry, ..self }
    }

    /// Moves the progress bars to `done` updates.
    pub fn advance(&self, done: u64) {
        self.progress.advance(done);
    }

    /// Records and shows the numbers of an interval; they are on their way to disk when this returns.
    pub fn log(&mut self, metrics: &StepMetrics) -> Result<()> {
        let written = self.metrics.write(metrics);
        self.written(written, metrics.step, &scalars(metrics))?;
        self.progress.show(metrics);
        Ok(())
    }

    /// Writes what still waits.
    /// # Errors
    /// What could not be written.
    pub fn finish(&mut self) -> Result<()> {
        self.metrics.flush()?;
        self.events.as_mut().map_or(Ok(()), EventWriter::flush)
    }

    /// Records and shows a k-NN accuracy, 0 to 1, of the encoder after `step` updates.
    pub fn knn(&mut self, step: u64, epoch: f64, top1: f64) -> Result<()> {
        let written = self.metrics.write(&KnnMetrics { step, epoch, knn_top1: top1 });
        self.written(written, step, &[("eval/knn_top1", top1)])?;
        // An evaluation at the end of a shortened run falls inside an epoch.
        let digits = if epoch.fract() == 0.0 { 0 } else { 2 };
        log::info!("epoch {epoch:.digits$}: k-NN top-1 {:.2} %", 100.0 * top1);
        Ok(())
    }

    /// Records the same values for TensorBoard, then judges how that and `metrics` went.
    fn written(&mut self, metrics: Result<()>, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let events = match &mut self.events {
            None => Ok(()),
            Some(events) => {
                let wall_time = tensorboard::now();
                values.iter().for_each(|(tag, value)| events.scalar(tag, step, *value, wall_time));
                events.flush()
            }
        };
        match (metrics.and(events), self.retry) {
            (Err(error), false) => return Err(error),
            (Err(error), true) if !self.failing => {
                log::warn!("{error:#}; trying again at the next record (output.on_write_error: retry)");
                self.failing = true;
            }
            (Ok(()), _) if self.failing => {
                log::info!("the metrics could be written again");
                self.failing = false;
            }
            _ => {}
        }
        Ok(())
    }
}

fn scalars(metrics: &StepMetrics) -> [(&'static str, f64); 8] {
    [
        ("train/epoch", metrics.epoch),
        ("train/loss", metrics.loss),
        ("train/lr", metrics.lr),
        ("train/tau", metrics.tau),
        ("train/z_std", metrics.z_std),
        ("train/grad_norm", metrics.grad_norm),
        ("speed/images_per_second", metrics.images_per_second),
        ("speed/data_wait_seconds", metrics.data_wait_seconds),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_serialized_number_is_a_scalar() {
        let json = serde_json::to_value(StepMetrics::default()).unwrap();
        let keys = json.as_object().unwrap();
        let tags = scalars(&StepMetrics::default()).map(|(tag, _)| tag.rsplit('/').next().unwrap());
        assert!(tags.iter().all(|tag| keys.contains_key(*tag)), "{tags:?}");
        assert_eq!(tags.len() + 1, keys.len()); // all but `step`
    }

    #[test]
    fn a_logger_fills_its_run_directory() {
        let dir = tempfile::tempdir().unwrap();
        for resume in [None, Some(2)] {
            let mut logger = Logger::open(dir.path(), resume, true, Progress::new(4, 2, 0, 0)).unwrap();
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
    fn what_a_terminal_would_obey_is_shown() {
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
