//! What a run says at its end.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::train::{Ending, Outcome, Trainer};

/// Whether `summary.json` says that the run ended by itself after `step` steps.
pub fn finished(run_dir: &Path, step: u64) -> bool {
    let summary = fs::read(run_dir.join("summary.json")).ok();
    let summary: Option<serde_json::Value> = summary.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    summary.is_some_and(|s| s["ending"] == "finished" && s["step"] == step)
}

/// `summary.json` and the last line on stdout.
#[derive(Serialize)]
struct Summary<'a> {
    ending: &'static str,
    step: u64,
    total_steps: u64,
    epochs: f64,
    loss: f64,
    z_std: f64,
    collapsed: bool,
    knn_top1_random: Option<f64>,
    knn_top1: Option<f64>,
    images_per_second: f64,
    seconds: f64,
    images_skipped: usize,
    steps_skipped: u64,
    device: &'a str,
    precision: &'a str,
    checkpoint: &'a Path,
}

/// Writes the summary and prints the run's line, both in rank 0 only; the value is the process's exit code.
/// # Errors
/// The summary, or metrics that still wait, cannot be written: the run is complete all the same, and that is said.
pub fn summarize(trainer: &mut Trainer, outcome: &Outcome, skipped: usize, started: Instant) -> Result<u8> {
    let manifest = trainer.manifest.clone();
    let (ending, code) = match outcome.ending {
        Ending::Finished => ("finished", 0),
        Ending::MaxSteps => ("max_steps", 0),
        Ending::Signal(code) => ("signal", code as u8),
    };
    let summary = Summary {
        ending,
        step: manifest.step,
        total_steps: manifest.total_steps,
        epochs: trainer.plan.epochs(manifest.step),
        loss: outcome.loss,
        z_std: outcome.z_std,
        collapsed: outcome.collapsed,
        knn_top1_random: manifest.knn_random,
        knn_top1: outcome.knn_top1,
        images_per_second: outcome.images_per_second,
        seconds: started.elapsed().as_secs_f64(),
        images_skipped: skipped,
        steps_skipped: outcome.steps_skipped,
        device: &manifest.device,
        precision: &manifest.precision,
        checkpoint: &outcome.checkpoint,
    };
    let json = serde_json::to_vec_pretty(&summary)?;
    let logged = trainer.logger.as_mut().map_or(Ok(()), |logger| logger.finish());
    let written = logged.and_then(|()| trainer.saver.folder.put("summary.json", json));
    written.with_context(|| format!("{} is written, but not all about it", outcome.checkpoint.display()))?;
    if !trainer.saver.folder.is_own() {
        return Ok(code); // rank 0 speaks
    }
    let verb = match outcome.ending {
        Ending::Finished => "finished",
        Ending::MaxSteps => "stopped at train.max_steps",
        Ending::Signal(_) => "stopped by a signal (go on with --resume auto)",
    };
    let knn = match (summary.knn_top1_random, summary.knn_top1) {
        (Some(random), Some(trained)) => {
            format!(", k-NN top-1 {:.1} % (random encoder {:.1} %)", 100.0 * trained, 100.0 * random)
        }
        (None, Some(trained)) => format!(", k-NN top-1 {:.1} %", 100.0 * trained),
        _ => String::new(),
    };
    let mut skipped = match summary.images_skipped {
        0 => String::new(),
        count => format!(", {count} unreadable images passed over"),
    };
    if summary.steps_skipped > 0 {
        skipped += &format!(", {} steps skipped", summary.steps_skipped);
    }
    let loss = if summary.loss.is_finite() { format!(", loss {:.4}", summary.loss) } else { String::new() };
    let line = format!(
        "{verb}: step {} of {}{loss}{knn}, {:.0} images/s, {:.0} s{skipped}; checkpoint {}",
        summary.step,
        summary.total_steps,
        summary.images_per_second,
        summary.seconds,
        summary.checkpoint.display()
    );
    // Whoever reads stdout may be gone; the run is complete all the same.
    let _ = writeln!(std::io::stdout(), "{line}");
    Ok(code)
}
