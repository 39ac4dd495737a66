//! `summary.json` and the last line of a run.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::checkpoint;
use crate::logging::Quality;
use crate::train::{Ending, Outcome, RunFolder, Trainer};

const NAME: &str = "summary.json";

/// The run's summary on disk.
fn read(run_dir: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(run_dir.join(NAME)).ok()?).ok()
}

/// Whether `summary.json` says that the run finished after `step` steps.
pub fn finished(run_dir: &Path, step: u64) -> bool {
    read(run_dir).is_some_and(|summary| summary["ending"] == "finished" && summary["step"] == step)
}

/// `summary.json`.
#[derive(Default, Serialize)]
struct Summary {
    /// running, finished, max_steps, signal or failed. A killed run leaves `running`.
    ending: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    step: u64,
    total_steps: u64,
    epochs: f64,
    loss: Option<f64>,
    z_std: Option<f64>,
    collapsed: bool,
    /// Of the encoder before the first step: a random one, or that of `model.init`.
    knn_top1_random: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    knn_top1_init: Option<f64>,
    knn_top1: Option<f64>,
    /// Without labels, at the end.
    quality: Option<Quality>,
    /// What was said of its course.
    warnings: Vec<String>,
    /// The steps from which the run was resumed.
    resumed_at: Vec<u64>,
    images_per_second: Option<f64>,
    seconds: f64,
    images_skipped: usize,
    steps_skipped: u64,
    device: String,
    precision: String,
    checkpoint: Option<PathBuf>,
}

impl Summary {
    fn new(trainer: &Trainer, ending: &'static str) -> Self {
        let manifest = &trainer.manifest;
        Self {
            ending,
            step: manifest.step,
            total_steps: manifest.total_steps,
            epochs: trainer.plan.epochs(manifest.step),
            knn_top1_random: manifest.knn_random.filter(|_| manifest.init.is_none()),
            knn_top1_init: manifest.knn_random.filter(|_| manifest.init.is_some()),
            device: manifest.device.clone(),
            precision: manifest.precision.clone(),
            ..Self::default()
        }
    }
}

/// Replaces the summary of an earlier session of the run.
pub fn begin(trainer: &mut Trainer) -> Result<()> {
    let step = trainer.manifest.step;
    let mut resumed_at = resumed_at(trainer.saver.folder.path());
    resumed_at.retain(|&earlier| step > 0 && earlier < step);
    resumed_at.extend((step > 0).then_some(step));
    let json = serde_json::to_vec_pretty(&Summary { resumed_at, ..Summary::new(trainer, "running") })?;
    trainer.saver.folder.put(NAME, json)
}

/// The steps from which the run in this folder was resumed, as its summary has them.
fn resumed_at(run_dir: &Path) -> Vec<u64> {
    let found = read(run_dir).map(|summary| summary["resumed_at"].clone());
    found.and_then(|steps| serde_json::from_value(steps).ok()).unwrap_or_default()
}

/// Records that the run in this folder, whose lock this process has released, failed. The summary of an earlier session
/// stays if this one failed before its first step.
pub fn fail(run_dir: &Path, error: &anyhow::Error, started: Instant) {
    let mut summary = read(run_dir).filter(Value::is_object).unwrap_or_else(|| json!({}));
    if ["finished", "max_steps", "signal"].iter().any(|ending| summary["ending"] == *ending) {
        return;
    }
    // Not if another run has locked the folder in the meantime.
    let Ok(mut folder) = RunFolder::take(run_dir) else { return };
    summary["ending"] = json!("failed");
    summary["error"] = json!(native::one_line(error));
    summary["seconds"] = json!(started.elapsed().as_secs_f64());
    if let Some(last) = crate::checkpoint::list(&folder.checkpoints()).first() {
        let step = last.file_name().and_then(|name| name.to_str()?.strip_prefix("step-")?.parse::<u64>().ok());
        summary["step"] = json!(step);
        summary["checkpoint"] = json!(last);
    }
    let written = serde_json::to_vec_pretty(&summary).map_err(Into::into).and_then(|json| folder.put(NAME, json));
    if let Err(error) = written {
        log::warn!("{error:#}");
    }
}

/// Writes encoder and summary and prints the run's line, all in rank 0 only, and unless a signal ended the run the lines
/// of Python that load the encoder; the value is the process's exit code.
/// # Errors
/// The encoder, the summary or pending metrics cannot be written: the run is complete all the same, and the error says so.
pub fn summarize(trainer: &mut Trainer, outcome: &Outcome, skipped: usize, started: Instant) -> Result<u8> {
    let (ending, code) = match outcome.ending {
        Ending::Finished => ("finished", 0),
        Ending::MaxSteps => ("max_steps", 0),
        Ending::Signal(code) => ("signal", code as u8),
    };
    let summary = Summary {
        loss: Some(outcome.loss),
        z_std: Some(outcome.z_std),
        collapsed: outcome.collapsed,
        knn_top1: outcome.knn_top1,
        quality: outcome.quality.clone(),
        warnings: outcome.warnings.clone(),
        resumed_at: resumed_at(trainer.saver.folder.path()),
        images_per_second: Some(outcome.images_per_second),
        seconds: started.elapsed().as_secs_f64(),
        images_skipped: skipped,
        steps_skipped: outcome.steps_skipped,
        checkpoint: Some(outcome.checkpoint.clone()),
        ..Summary::new(trainer, ending)
    };
    let json = serde_json::to_vec_pretty(&summary)?;
    let logged = trainer.logger.as_mut().map_or(Ok(()), |logger| logger.finish());
    // The summary comes last: a run that it calls finished has its encoder.
    let exported = logged.and_then(|()| trainer.saver.export(&trainer.byol, &trainer.manifest));
    let written = exported.and_then(|exported| trainer.saver.folder.put(NAME, json).map(|()| exported));
    let rest = || format!("{} was written, but not all of metrics, encoder and summary", outcome.checkpoint.display());
    let exported = written.with_context(rest)?;
    if trainer.group.is_first() {
        // Stdout may be closed; the run is complete all the same.
        let mut stdout = std::io::stdout();
        let _ = writeln!(stdout, "{}", summary.line(outcome));
        if let (Some((path, lines)), 0) = (exported, code) {
            let _ = writeln!(stdout, "{}, the encoder for other software; in Python:\n{lines}", path.display());
        }
        if outcome.ending != Ending::Finished {
            return Ok(code);
        }
        let labeled = trainer.knn.is_some();
        next_steps(trainer.saver.folder.path(), labeled).iter().for_each(|line| log::info!("{line}"));
    }
    Ok(code)
}

/// Commands to go on with after a run.
fn next_steps(run_dir: &Path, labeled: bool) -> Vec<String> {
    let run = quoted(&run_dir.display().to_string());
    let file = |name: &str| quoted(&run_dir.join(name).display().to_string());
    let evaluate = match labeled {
        true => format!("byol linear-eval --checkpoint {run}"),
        false => format!("byol linear-eval --checkpoint {run} --set data.path=LABELED_IMAGES"),
    };
    vec![
        format!("evaluate: {evaluate}"),
        format!("look:     byol report {run}"),
        format!("features: byol extract-features --checkpoint {run} --output {}", file("features")),
        format!("export:   byol export-encoder --checkpoint {run} --format onnx --output {}", file("encoder.onnx")),
    ]
}

/// A word of a shell command.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

impl Summary {
    /// The line on stdout.
    fn line(&self, outcome: &Outcome) -> String {
        let verb = match outcome.ending {
            Ending::Finished => "finished",
            Ending::MaxSteps => "stopped at train.max_steps",
            Ending::Signal(_) => "stopped by a signal (continue with --resume auto)",
        };
        let first =
            self.knn_top1_random.map(|top1| ("random", top1)).or(self.knn_top1_init.map(|top1| ("first", top1)));
        let knn = match (first, self.knn_top1) {
            (Some((which, first)), Some(trained)) => {
                format!(", k-NN top-1 {:.1} % ({which} encoder {:.1} %)", 100.0 * trained, 100.0 * first)
            }
            (None, Some(trained)) => format!(", k-NN top-1 {:.1} %", 100.0 * trained),
            _ => String::new(),
        };
        let mut skipped = match self.images_skipped {
            0 => String::new(),
            count => format!(", {count} unreadable images skipped"),
        };
        if self.steps_skipped > 0 {
            skipped += &format!(", {} steps skipped", self.steps_skipped);
        }
        let loss = if outcome.loss.is_finite() { format!(", loss {:.4}", outcome.loss) } else { String::new() };
        format!(
            "{verb}: {}{loss}{knn}, {:.0} images/s, {:.0} s{skipped}; checkpoint {}",
            checkpoint::progress(self.step, self.total_steps),
            outcome.images_per_second,
            self.seconds,
            outcome.checkpoint.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_steps_have_the_runs_paths_as_a_shell_takes_them() {
        let lines = next_steps(Path::new("runs/my photos"), true);
        assert_eq!(lines[0], "evaluate: byol linear-eval --checkpoint 'runs/my photos'");
        assert!(lines[3].ends_with("--output 'runs/my photos/encoder.onnx'"), "{}", lines[3]);
        assert_eq!((quoted("it's"), quoted("a/b.c")), ("'it'\\''s'".into(), "a/b.c".into()));
    }
}
