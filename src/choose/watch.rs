//! How often a chosen run is evaluated, logged and saved.

use anyhow::Result;
use serde_json::json;

use super::Choices;
use super::look::Facts;

/// k-NN accuracy, log records and checkpoints: about twenty of each but the records, which are more.
pub fn watch(facts: &Facts, epochs: f64, updates: f64, choices: &mut Choices) -> Result<()> {
    let every = (epochs / 20.0).ceil().max(1.0) as u64;
    let labels =
        facts.labeled.map(|count| format!("{count} of {} images have one of {} labels", facts.images, facts.classes));
    let k = facts.labeled.map_or(200, |count| (count / 10).clamp(5, 200));
    match &labels {
        Some(reason) => {
            choices.set("monitor.knn_every", every, reason)?;
            choices.set("monitor.knn_k", k, "a tenth of the images, 5 to 200")?;
            let held_out = match facts.held_out {
                0 => "; leave-one-out".to_string(),
                count => format!("; {count} held-out images"),
            };
            choices.row(
                "k-NN accuracy",
                format!("every {every} epochs"),
                format!("{reason}{held_out}"),
                &["monitor.knn_every"],
            );
        }
        None => {
            choices.set("monitor.knn_every", json!(null), "no labels of several classes")?;
            choices.row("k-NN accuracy", "none".into(), "no labels of several classes".into(), &["monitor.knn_every"]);
        }
    }
    choices.set(
        "monitor.log_every",
        (updates / 200.0).clamp(1.0, 50.0) as u64,
        "about 200 records, one every 50 steps at least",
    )?;
    choices.set("output.checkpoint_every_epochs", every, "about 20 checkpoints")
}
